"""The small language of the world's prompts: sentences to scenes and back."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from streamstill.worlds.palette import BACKGROUNDS, COLORS

T = TypeVar("T")

SHAPES = ("ball", "box")
SIZES = ("small", "medium", "large")
EXAMPLES = (
    "A red ball is dropped.",
    "A small blue box is thrown to the left against a light background.",
    "A yellow ball hits a large red box.",
)

# {thing} and {other} are noun phrases, {pendulum} is a ball by another name, {boxes} is a plural.
_SENTENCES: dict[str, tuple[str, ...]] = {
    "drop": ("{thing} is dropped", "{thing} falls down", "{thing} falls to the floor", "someone drops {thing}"),
    "throw left": (
        "{thing} is thrown to the left",
        "{thing} is tossed to the left",
        "{thing} flies to the left",
        "someone throws {thing} to the left",
    ),
    "throw right": (
        "{thing} is thrown to the right",
        "{thing} is tossed to the right",
        "{thing} flies to the right",
        "someone throws {thing} to the right",
    ),
    "ramp": (
        "{thing} rolls down a ramp",
        "{thing} rolls down a slope",
        "{thing} slides down a ramp",
        "{thing} slides down a slope",
        "{thing} moves down a ramp",
        "{thing} moves down a slope",
    ),
    "collision": (
        "{thing} hits {other}",
        "{thing} bumps into {other}",
        "{thing} crashes into {other}",
        "{thing} collides with {other}",
    ),
    "pendulum": (
        "{pendulum} swings",
        "{pendulum} swings back and forth",
        "{thing} swings on a rod",
        "{thing} swings from the ceiling",
        "{thing} swings like a pendulum",
    ),
    "move": (  # dropped or thrown to either side: the seed decides what the sentence leaves open
        "{thing} moves",
        "{thing} moves about",
        "{thing} moves around",
        "{thing} is in motion",
        "{thing} is moving",
        "something moves {thing}",
    ),
    "topple": (
        "a stack of three {boxes} topples",
        "a stack of three {boxes} falls over",
        "a tower of three {boxes} collapses",
        "a tower of three {boxes} topples over",
    ),
}
_WORDS_FOR_SHAPE = {"ball": ("ball", "sphere"), "box": ("box", "block")}
_WORDS_FOR_SIZE = {"small": ("small", "little"), "medium": ("medium", "medium-sized"), "large": ("large", "big")}
_PREPOSITIONS = ("against", "on", "in front of")
_ARTICLES = frozenset(("a", "an", "the"))
_WORDING_TRIES = 200
_FRESH_SCENE_TRIES = 40


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a prompt means. The ``other_*`` fields describe the body that is hit; they are None without a collision."""

    action: str
    color: str
    shape: str = "ball"
    size: str = "medium"
    background: str = "dark"
    other_color: str | None = None
    other_shape: str | None = None
    other_size: str | None = None

    def __post_init__(self) -> None:
        others = (self.other_color, self.other_shape, self.other_size)
        _check("action", self.action, all_actions())
        for color, shape, size in ((self.color, self.shape, self.size), others):
            if (color, shape, size) == (None, None, None):
                continue
            _check("colour", color, tuple(COLORS))
            _check("shape", shape, SHAPES)
            _check("size", size, SIZES)
        _check("background", self.background, BACKGROUNDS)
        if (self.action == "collision") != (others != (None, None, None)):
            raise ValueError(f"a collision, and nothing else, has a second body; got {self}")
        if self.action == "topple" and self.shape != "box":
            raise ValueError("only boxes can be stacked: give a scene that topples the shape 'box'")


def all_actions() -> tuple[str, ...]:
    """The names of everything that can happen."""
    return tuple(_SENTENCES)


def parse(prompt: str) -> Scene:
    """The scene that a sentence describes; case, articles, spaces and the final period do not matter.

    Raises:
        ValueError: the sentence is outside the grammar; the message shows it and three valid ones.
    """
    plain = _plain(prompt)
    for action, pattern in _PATTERNS:
        match = pattern.fullmatch(plain)
        if match:
            return _scene_of(action, match.groupdict())
    examples = " ".join(f'"{example}"' for example in EXAMPLES)
    raise ValueError(f"the world cannot play the prompt {prompt[:200]!r}; write one like these: {examples}")


def describe(scene: Scene, rng: random.Random) -> str:
    """A sentence that means ``scene``; ``rng`` chooses the wording."""
    sentence = rng.choice(_fitting_sentences(scene))
    noun = _noun(scene.shape, rng)
    words = {
        "thing": _phrase(scene.size, scene.color, noun, rng),
        "pendulum": _phrase(scene.size, scene.color, "pendulum", rng),
        "boxes": f"{_size_word(scene.size, rng)}{scene.color} {_plural(noun)}",
    }
    if scene.other_color and scene.other_shape and scene.other_size:
        words["other"] = _phrase(scene.other_size, scene.other_color, _noun(scene.other_shape, rng), rng)
    text = sentence.format(**words)
    if scene.background != "dark" or rng.random() < 0.5:
        text += f" {rng.choice(_PREPOSITIONS)} a {scene.background} background"
    return text[0].upper() + text[1:] + "."


def sample_scene(
    rng: random.Random,
    *,
    actions: Sequence[str] | None = None,
    colors: Sequence[str] = tuple(COLORS),
    shapes: Sequence[str] = SHAPES,
    sizes: Sequence[str] = SIZES,
    backgrounds: Sequence[str] = BACKGROUNDS,
) -> Scene:
    """A random scene from the allowed values; a stack is of boxes whatever ``shapes`` says."""
    action = rng.choice(actions or all_actions())
    color, size, shape = rng.choice(colors), rng.choice(sizes), rng.choice(shapes)
    return _complete(rng, action, color, shape, size, rng.choice(backgrounds), shapes=shapes, sizes=sizes)


def sample_prompt(
    rng: random.Random,
    *,
    actions: Sequence[str] | None = None,
    colors: Sequence[str] = tuple(COLORS),
    shapes: Sequence[str] = SHAPES,
    sizes: Sequence[str] = SIZES,
    backgrounds: Sequence[str] = BACKGROUNDS,
) -> str:
    """A random sentence about a random scene from the allowed values."""
    scene = sample_scene(rng, actions=actions, colors=colors, shapes=shapes, sizes=sizes, backgrounds=backgrounds)
    return describe(scene, rng)


def prompts(
    count: int,
    seed: int,
    *,
    actions: Sequence[str] | None = None,
    colors: Sequence[str] = tuple(COLORS),
    shapes: Sequence[str] = SHAPES,
    sizes: Sequence[str] = SIZES,
    backgrounds: Sequence[str] = BACKGROUNDS,
) -> list[str]:
    """``count`` different sentences, the same for the same arguments: actions, colours and the rest in equal shares.

    New scenes are preferred to new wordings of old scenes.

    Raises:
        ValueError: the allowed values do not give that many different sentences.
    """
    rng = random.Random(f"prompts {seed}")
    deck_of_actions, deck_of_colors = _deck(actions or all_actions(), rng), _deck(colors, rng)
    decks = tuple(_deck(values, rng) for values in (shapes, sizes, backgrounds))
    found: list[str] = []
    seen: set[str | Scene] = set()
    for action, color, _ in zip(deck_of_actions, deck_of_colors, range(count), strict=False):
        for attempt in range(_WORDING_TRIES):
            shape, size, ground = (next(deck) for deck in decks)
            scene = _complete(rng, action, color, shape, size, ground, shapes=shapes, sizes=sizes)
            prompt = describe(scene, rng)
            if prompt not in seen and (scene not in seen or attempt >= _FRESH_SCENE_TRIES):
                break
        else:
            raise ValueError(
                f"found only {len(found)} different prompts of {count}; allow more actions, sizes or others"
            )
        seen.update((prompt, scene))
        found.append(prompt)
    return found


def _check(name: str, value: str | None, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"a scene's {name} must be one of {tuple(allowed)}, got {value!r}")


def _deck(values: Sequence[T], rng: random.Random) -> Iterator[T]:
    """The values in random order, for ever, each once before any comes again."""
    if not values:
        raise ValueError("an empty list of allowed values leaves nothing to choose from; name at least one")
    while True:
        yield from rng.sample(values, len(values))


def _complete(
    rng: random.Random,
    action: str,
    color: str,
    shape: str,
    size: str,
    background: str,
    *,
    shapes: Sequence[str],
    sizes: Sequence[str],
) -> Scene:
    """The scene of these values, with a second body of another colour where the action needs one."""
    shape = "box" if action == "topple" else shape
    scene = {"action": action, "color": color, "shape": shape, "size": size, "background": background}
    if action == "collision":
        scene["other_color"] = rng.choice([name for name in COLORS if name != color])
        scene["other_shape"], scene["other_size"] = rng.choice(shapes), rng.choice(sizes)
    return Scene(**scene)


def _fitting_sentences(scene: Scene) -> list[str]:
    """Balls roll, boxes slide, and only a ball is called a pendulum."""
    unfit = ("slides",) if scene.shape == "ball" else ("rolls", "{pendulum}")
    return [sentence for sentence in _SENTENCES[scene.action] if not any(word in sentence for word in unfit)]


def _noun(shape: str, rng: random.Random) -> str:
    usual, rare = _WORDS_FOR_SHAPE[shape]
    return usual if rng.random() < 0.75 else rare


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("x") else "s")


def _size_word(size: str, rng: random.Random) -> str:
    if size == "medium" and rng.random() < 0.75:
        return ""
    usual, rare = _WORDS_FOR_SIZE[size]
    return (usual if rng.random() < 0.75 else rare) + " "


def _phrase(size: str, color: str, noun: str, rng: random.Random) -> str:
    words = f"{_size_word(size, rng)}{color} {noun}"
    if rng.random() < 0.2:
        return f"the {words}"
    return ("an " if words[0] in "aeiou" else "a ") + words


def _plain(text: str) -> str:
    """Lower case, single spaces, no articles, no commas, no final period."""
    words = text.lower().replace(",", " ").strip().removesuffix(".").split()
    return " ".join(word for word in words if word not in _ARTICLES)


def _one_of(name: str, words: Sequence[str]) -> str:
    return f"(?P<{name}>{'|'.join(re.escape(word) for word in words)})"


def _pattern_of(sentence: str) -> re.Pattern[str]:
    nouns = [word for words in _WORDS_FOR_SHAPE.values() for word in words]
    sizes = [word for words in _WORDS_FOR_SIZE.values() for word in words]
    boxes = [_plural(word) for word in _WORDS_FOR_SHAPE["box"]]
    head = f"(?:{_one_of('size', sizes)} )?{_one_of('color', tuple(COLORS))} "
    other = f"(?:{_one_of('other_size', sizes)} )?{_one_of('other_color', tuple(COLORS))} "
    filled = _plain(sentence).format(
        thing=head + _one_of("shape", nouns),
        other=other + _one_of("other_shape", nouns),
        pendulum=head + "pendulum",
        boxes=head + _one_of("shape", boxes),
    )
    ground = f"(?: (?:{'|'.join(_PREPOSITIONS)}) {_one_of('background', BACKGROUNDS)} background)?"
    return re.compile(filled + ground)


def _scene_of(action: str, words: dict[str, str | None]) -> Scene:
    fields = {name: _MEANINGS.get(word, word) for name, word in words.items() if word}
    if action == "collision":
        fields.setdefault("other_size", "medium")
    return Scene(action=action, **fields)


_PATTERNS = tuple((action, _pattern_of(text)) for action, texts in _SENTENCES.items() for text in texts)
_MEANINGS = {
    word: meaning for table in (_WORDS_FOR_SHAPE, _WORDS_FOR_SIZE) for meaning, words in table.items() for word in words
} | {_plural(word): "box" for word in _WORDS_FOR_SHAPE["box"]}
