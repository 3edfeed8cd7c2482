"""Drift: windows are the stream that a viewer sees, cut; changes are known where the stream is known."""

import io
import math
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from streamstill.codec.patch import PatchCodec
from streamstill.report.drift import (
    as_table,
    drift_of,
    drift_of_clips,
    looks,
    streamed_windows,
    windows_of,
    world_looks,
)
from streamstill.streaming.session import Session
from streamstill.student.student import Student
from streamstill.teachers import WorldTeacher
from streamstill.testing import tiny_student
from streamstill.types import Clip, ClipRequest
from streamstill.worlds import World

PROMPT = "A red ball is thrown to the left."
PROMPTS = [PROMPT, "A blue ball is dropped.", "A green ball is dropped."]


@pytest.fixture(scope="module")
def student() -> Student:
    return tiny_student().eval()


def filmed(frames: int) -> Clip:
    return WorldTeacher(World()).generate(ClipRequest(prompt=PROMPT, seed=3, frames=frames, height=32, width=32, fps=8))


def grey(levels: list[int]) -> Clip:
    """Two frames of each level."""
    frames = np.repeat(np.array(levels, dtype=np.uint8), 2)[:, None, None, None]
    return Clip(frames_FCHW=np.broadcast_to(frames, (len(frames), 3, 8, 8)).copy(), fps=8)


def frames_of(student: Student, **changes: int) -> list[NDArray[np.uint8]]:
    """The frames of one stream."""
    windows = streamed_windows(student, [PROMPT], **changes)
    return [frame for (clip,) in windows for frame in clip.frames_FCHW]


def test_the_windows_are_the_stream_that_a_session_shows(student: Student) -> None:
    made = np.stack(frames_of(student, times=3, seed=5))
    session = Session(student, PROMPT, sampling=student.config.sampling, seed=5)
    assert len(made) == 3 * student.config.geometry.frames
    assert np.array_equal(made, np.stack(list(islice(session.frames(), len(made)))))


class ShortStart(PatchCodec):
    """As Wan's codec counts: the first latent frame makes one frame, here the last of its patch."""

    first_frames = 1

    def decode(self, latents_BFCHW: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        pixels_BFCHW, _ = super().decode(latents_BFCHW)
        return pixels_BFCHW[:, 0 if state else self.frames - 1 :], True


def test_a_codec_with_a_short_first_frame_fills_windows_as_well() -> None:
    student = tiny_student().eval()
    plain = frames_of(student, times=5)
    frames = student.config.geometry.frames - 1
    student.codec = ShortStart(frames=2, size=4)
    student.config = replace(student.config, geometry=replace(student.config.geometry, frames=frames))
    windows = list(streamed_windows(student, [PROMPT], times=4))
    assert [len(clip.frames_FCHW) for (clip,) in windows] == 4 * [frames]
    assert np.array_equal(windows[3][0].frames_FCHW, plain[3 * frames + 1 : 4 * frames + 1])


def test_the_stream_is_not_left_in_inference_mode(student: Student) -> None:
    windows = streamed_windows(student, [PROMPT], times=2)
    next(windows)
    assert not torch.is_inference_mode_enabled()


def test_a_stream_and_its_frames_measure_the_same_and_every_window_is_shown(student: Student) -> None:
    frames = student.config.geometry.frames
    seen: dict[int, list[Clip]] = {}

    def see(number: int, window: Clip) -> None:
        seen.setdefault(number, []).append(window)

    drift = drift_of(student, [PROMPT], looks, times=3, seed=5, on_window=see)
    whole = Clip(frames_FCHW=np.stack(frames_of(student, times=3, seed=5)), fps=8)
    again = drift_of_clips([whole], [PROMPT], looks, frames=frames)
    assert drift.as_json() == again.as_json()
    for window, part in zip(seen[0], windows_of(whole, frames), strict=True):
        assert np.array_equal(window.frames_FCHW, part.frames_FCHW)


def test_streams_that_are_made_in_groups_are_as_many_and_each_has_its_noise(student: Student) -> None:
    drift = drift_of(student, 3 * [PROMPT], looks, times=2, at_once=2)
    first = [windows[0]["sharpness"] for windows in drift.streams]
    assert len({*first}) == 3


def test_the_change_is_the_last_window_by_the_first_stream_by_stream() -> None:
    def level(clip: Clip, prompt: str) -> dict[str, float]:
        return {"level": float(clip.frames_FCHW.mean())}

    drift = drift_of_clips([grey([100, 90, 50]), grey([60, 70, 80])], [PROMPT] * 2, level, frames=2)
    assert drift.length == 3
    assert drift.at("level", 2).mean == 80
    change = drift.change("level")
    assert change.mean == pytest.approx((-50 + 20) / 2 / 80)
    assert (change.low, change.high) == pytest.approx((-50 / 80, 20 / 80))


def test_the_world_does_not_drift_in_looks_and_its_body_stays() -> None:
    drift = drift_of_clips([filmed(48)], [PROMPT], world_looks, frames=16)
    assert [drift.at("in_sight", window).mean for window in (1, 2, 3)] == [1, 1, 1]
    assert drift.at("size", 3).mean == pytest.approx(1, abs=0.05)
    assert abs(drift.change("colorfulness").mean) < 0.02


def test_a_body_that_vanishes_is_seen_to_vanish() -> None:
    clip = filmed(32)
    frames = clip.frames_FCHW.copy()
    frames[16:] = frames[:1].min(axis=(2, 3), keepdims=True)  # the darkest of each colour: the empty stage, nearly
    drift = drift_of_clips([replace(clip, frames_FCHW=frames)], [PROMPT], world_looks, frames=16)
    assert [drift.at("in_sight", window).mean for window in (1, 2)] == [1, 0]
    assert drift.at("size", 2).n == 0
    assert math.isnan(drift.change("size").mean)
    assert drift.as_json()["size"]["change"]["mean"] is None


def test_a_table_has_a_row_for_each_measure_and_party_and_says_nothing_where_nothing_is() -> None:
    def level(clip: Clip, prompt: str) -> dict[str, float]:
        return {"level": float(clip.frames_FCHW.mean()), "never": math.nan}

    drift = drift_of_clips([grey([100, 100, 50])], [PROMPT], level, frames=2)
    console = Console(file=io.StringIO(), width=100)
    console.print(as_table({"one": drift, "other": drift}))
    assert isinstance(console.file, io.StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines() if "one" in line or "other" in line]
    assert lines[0] == ["level", "one", "100", "100", "50", "-50%", "[-50%,", "-50%]"]
    assert lines[3] == ["other", "-", "-", "-", "-"]


def test_what_cannot_be_compared_is_refused(student: Student) -> None:
    with pytest.raises(ValueError, match=r"at least 2 windows, got \[1\] windows"):
        drift_of_clips([filmed(16)], [PROMPT], world_looks, frames=16)
    with pytest.raises(ValueError, match="at least 2 training lengths of at least 1 video, got 1 lengths of 3 videos"):
        drift_of(student, PROMPTS, world_looks, times=1)
    two, three = (drift_of_clips([grey([1] * n)], [PROMPT], looks, frames=2) for n in (2, 3))
    with pytest.raises(ValueError, match=r"streams of one length, got \[2, 3\] windows"):
        as_table({"two": two, "three": three})


def test_a_window_comes_before_the_rest_of_an_endless_stream_is_made(student: Student) -> None:
    windows = streamed_windows(student, [PROMPT], times=10**9)
    assert [len(next(windows)[0].frames_FCHW) for _ in range(3)] == 3 * [student.config.geometry.frames]
