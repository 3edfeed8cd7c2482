import random
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamstill.worlds import Scene, parse, prompts, sample_prompt
from streamstill.worlds.grammar import EXAMPLES, all_actions, describe, sample_scene
from streamstill.worlds.palette import BACKGROUNDS, COLORS

WORDS = ("a", "red", "small", "ball", "box", "is", "dropped", "hits", "pendulum", "swings", "stack", "of", "three", ".")


@given(st.integers())
def test_a_described_scene_parses_back_to_itself(seed: int) -> None:
    rng = random.Random(seed)
    scene = sample_scene(rng)
    assert parse(describe(scene, rng)) == scene


@given(st.integers(), st.sampled_from(all_actions()))
def test_sampled_prompts_have_the_allowed_action(seed: int, action: str) -> None:
    assert parse(sample_prompt(random.Random(seed), actions=(action,), sizes=("large",))).action == action


@given(st.one_of(st.text(), st.lists(st.sampled_from(WORDS)).map(" ".join)))
@example("")
@example("a red ball is dropped against a pink background")
@example("the red ball is dropped.\x00")
def test_any_text_parses_or_is_refused_with_examples(text: str) -> None:
    refusal = ""
    try:
        parse(text)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert repr(text[:200]) in refusal
        assert all(sentence in refusal for sentence in EXAMPLES)


@pytest.mark.parametrize("sentence", EXAMPLES)
def test_case_articles_spaces_and_the_period_do_not_matter(sentence: str) -> None:
    scene = parse(sentence)
    assert parse(sentence.upper()) == scene
    assert parse(f"  {sentence.replace(' ', '   ').rstrip('.')}\n") == scene
    assert parse(sentence.replace("A ", "The ").replace(" a ", " ")) == scene


def test_sentences_mean_what_they_say() -> None:
    assert parse("A red ball is dropped.") == Scene(action="drop", color="red")
    assert parse("A large green ball rolls down a ramp.") == Scene(action="ramp", color="green", size="large")
    assert parse("A purple pendulum swings.") == Scene(action="pendulum", color="purple")
    assert parse("A stack of three orange boxes topples.") == Scene(action="topple", color="orange", shape="box")
    assert parse("a small blue box is thrown to the left against a light background") == Scene(
        action="throw left", color="blue", shape="box", size="small", background="light"
    )
    assert parse("A yellow ball hits a big red box.") == Scene(
        action="collision", color="yellow", other_color="red", other_shape="box", other_size="large"
    )


@pytest.mark.parametrize("action", all_actions())
def test_every_action_has_three_wordings(action: str) -> None:
    rng = random.Random(0)
    scene = sample_scene(rng, actions=(action,), colors=("red",), sizes=("small",), backgrounds=("light",))
    assert len({describe(scene, rng) for _ in range(200)}) >= 3


def test_prompts_are_different_balanced_and_repeatable() -> None:
    found = prompts(240, seed=3)
    assert found == prompts(240, seed=3) != prompts(240, seed=4)
    assert len(set(found)) == 240
    scenes = [parse(prompt) for prompt in found]
    assert len(set(scenes)) > 225
    assert set(Counter(scene.action for scene in scenes).values()) == {30}
    assert set(Counter(scene.color for scene in scenes).values()) == {40}
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)


def test_prompts_stay_within_the_allowed_values() -> None:
    found = prompts(
        60,
        seed=0,
        actions=("drop",),
        shapes=("ball",),
        sizes=("medium",),
        backgrounds=("dark",),
        colors=("red", "blue"),
    )
    allowed = {Scene(action="drop", color=color) for color in ("red", "blue")}
    assert {parse(prompt) for prompt in found} == allowed


def test_prompts_say_when_there_are_not_enough_sentences() -> None:
    with pytest.raises(ValueError, match="allow more"):
        prompts(10_000, seed=0, actions=("drop",), shapes=("ball",), sizes=("small",), backgrounds=("dark",))
    with pytest.raises(ValueError, match="at least one"):
        prompts(1, seed=0, colors=())


def test_impossible_scenes_are_refused() -> None:
    with pytest.raises(ValueError, match="must be one of"):
        Scene(action="drop", color="pink")
    with pytest.raises(ValueError, match="second body"):
        Scene(action="collision", color="red")
    with pytest.raises(ValueError, match="second body"):
        Scene(action="drop", color="red", other_color="blue", other_shape="box", other_size="small")
    with pytest.raises(ValueError, match="boxes"):
        Scene(action="topple", color="red", shape="ball")


def test_colours_are_far_apart() -> None:
    values = list(COLORS.values())
    for index, one in enumerate(values):
        for other in values[:index]:
            assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) > 90**2
