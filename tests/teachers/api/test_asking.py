"""A request in the words of a model: types are kept, lengths cover the clip, shapes are the nearest there are."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamstill.config import from_dict, to_dict
from streamstill.teachers.api.asking import WORDS, Asking
from streamstill.teachers.api.jobs import Refused
from streamstill.types import ClipRequest


def request(*, frames: int = 40, height: int = 90, width: int = 160, prompt: str = "a red ball") -> ClipRequest:
    return ClipRequest(prompt=prompt, seed=7, frames=frames, height=height, width=width, fps=8)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{prompt}", "a red ball"),
        ("{seed}", 7),
        ("{frames}", 40),
        ("{seconds}", 5),
        ("{seconds}s", "5s"),
        ("{fps}", 8),
        ("{size}", "160x90"),
        ("{width}*{height}", "160*90"),
        ("{height}p", "90p"),
        ("{aspect}", "16:9"),
        ("{{{seed}}}", "{7}"),
    ],
)
def test_a_template_of_one_word_keeps_its_type_and_any_other_is_text(template: str, said: Any) -> None:
    asked = Asking(fields={"prompt": "{prompt}", "x": template}).arguments(request())["x"]
    assert asked == said
    assert type(asked) is type(said) or template == "{fps}"


@given(st.text(max_size=10_000))
def test_any_prompt_goes_through_unchanged(prompt: str) -> None:
    assert Asking().arguments(request(prompt=prompt)) == {"prompt": prompt}
    assert Asking(fields={"prompt": "film: {prompt}"}).arguments(request(prompt=prompt))["prompt"] == f"film: {prompt}"


@given(st.integers(1, 64))
def test_the_length_covers_the_clip_and_is_the_shortest_that_does(frames: int) -> None:
    asking = Asking(fields={"prompt": "{prompt}", "seconds": "{seconds}"}, lengths=(8, 4, 6))
    seconds = asking.arguments(request(frames=frames))["seconds"]
    assert seconds >= frames / 8
    assert all(length >= seconds for length in (4, 6, 8) if length >= frames / 8)


@pytest.mark.parametrize(
    ("asking", "seconds"),
    [
        (Asking(), 2.5),  # it is told nothing of the length
        (Asking(fields={"prompt": "{prompt}", "num_frames": "{frames}"}), 2.5),
        (Asking(fields={"prompt": "{prompt}", "duration": "{seconds}s"}), 3),
        (Asking(lengths=(2, 4, 8)), 4),
        (Asking(lengths=(1, 2)), 0),  # refused
    ],
)
def test_what_is_ordered_is_what_the_model_is_told(asking: Asking, seconds: float) -> None:
    assert asking.ordered_seconds(request(frames=20)) == seconds


def test_a_clip_longer_than_the_longest_is_refused() -> None:
    with pytest.raises(Refused, match=r"8.125 s was asked for and the model makes at most 8 s; ask for fewer frames"):
        Asking(lengths=(4, 8)).arguments(request(frames=65))


@pytest.mark.parametrize(
    ("height", "width", "aspect"), [(90, 160, "16:9"), (64, 64, "1:1"), (96, 64, "9:16"), (480, 832, "16:9")]
)
def test_the_nearest_shape_is_asked_for(height: int, width: int, aspect: str) -> None:
    asking = Asking(fields={"p": "{prompt}", "aspect": "{aspect}"}, aspects=("16:9", "1:1", "9:16"))
    assert asking.arguments(request(height=height, width=width))["aspect"] == aspect


def test_inputs_go_along_as_they_are() -> None:
    asking = Asking(inputs={"steps": 4, "audio": False, "nested": {"a": [1]}})
    assert asking.arguments(request()) == {"prompt": "a red ball", "steps": 4, "audio": False, "nested": {"a": [1]}}


def test_every_setting_changes_the_fingerprint() -> None:
    asked = [
        Asking(),
        Asking(inputs={"steps": 4}),
        Asking(inputs={"steps": 5}),
        Asking(lengths=(4,)),
        Asking(aspects=("1:1",)),
        Asking(fields={"text": "{prompt}"}),
    ]
    assert len({asking.fingerprint() for asking in asked}) == len(asked)
    assert Asking().fingerprint() == from_dict(Asking, to_dict(Asking())).fingerprint()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"fields": {"seed": "{seed}"}}, "no field holds the prompt"),
        ({"fields": {"prompt": "{promt}"}}, "unknown word in the template of prompt 'promt': .* did you mean 'prompt'"),
        ({"fields": {"prompt": "{prompt"}}, "the template of prompt cannot be read"),
        ({"inputs": {"prompt": "mine"}}, "prompt cannot be a field and an input at once"),
        ({"lengths": [4, 0]}, r"lengths are whole seconds from 1 up, got \[4, 0\]"),
        ({"aspects": ["wide"]}, "an aspect is written width:height, for example 16:9, got 'wide'"),
        ({"aspects": ["16:0"]}, "an aspect is written"),
    ],
)
def test_what_cannot_be_asked_is_said_at_once(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        from_dict(Asking, values)


def test_the_words_are_those_of_a_request() -> None:
    every = Asking(fields={word: f"{{{word}}}" for word in WORDS}).arguments(request())
    assert every.keys() == set(WORDS)
