"""The drift benchmark: windows are judged by themselves, and the real world does not drift."""

from pathlib import Path

import numpy as np
import pytest
import torch

from streamstill.teachers import WorldTeacher
from streamstill.types import Clip, ClipRequest
from streamstill.worlds import World
from tests.test_benchmarks import loaded

drift = loaded("drift")
PROMPT = "A red ball is thrown to the left."


def filmed(frames: int) -> Clip:
    return WorldTeacher(World()).generate(ClipRequest(prompt=PROMPT, seed=3, frames=frames, height=32, width=32, fps=8))


def test_a_window_is_the_clip_cut_out() -> None:
    clip = filmed(48)
    measured = drift.windows(clip, PROMPT, 16)
    middle = Clip(frames_FCHW=clip.frames_FCHW[16:32], fps=clip.fps)
    assert len(measured) == 3
    assert measured[1] == drift.windows(middle, PROMPT, 16)[0]


def test_a_body_that_vanishes_is_seen_to_vanish() -> None:
    clip = filmed(32)
    frames = clip.frames_FCHW.copy()
    frames[16:] = frames[:1].min(axis=(2, 3), keepdims=True)  # the darkest of each colour: the empty stage, nearly
    first, second = drift.windows(Clip(frames_FCHW=np.ascontiguousarray(frames), fps=clip.fps), PROMPT, 16)
    assert first["visible"] == 1
    assert second["visible"] == 0
    assert np.isnan(second["mass"])


def test_the_table_has_both_parties_and_the_world_stays_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    try:
        drift.main(["--times", "2", "--clips", "2", "--out", str(tmp_path / "drift.png")])
    finally:
        torch.set_num_threads(threads)
    lines = [line for line in capsys.readouterr().out.splitlines() if "| teacher |" in line]
    visible, mass, *_ = lines
    assert visible.split("|")[3].split()[0] == "1"
    assert float(mass.split("|")[4].split()[0]) == pytest.approx(1, abs=0.05)
    assert (tmp_path / "drift.png").stat().st_size > 1000
