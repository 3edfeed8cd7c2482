"""The drift benchmark: windows are judged by themselves, and the real world does not drift."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streamstill.recipes.quickstart import shipped_base
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


def drifted(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of the table."""
    threads = torch.get_num_threads()
    try:
        drift.main(words)
    finally:
        torch.set_num_threads(threads)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]


def test_the_table_has_every_student_and_the_world_stays_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped_base().save_pretrained(tmp_path / "same")
    students = [f"first={tmp_path / 'same'}", str(tmp_path / "same")]
    lines = drifted([*students, "--times", "2", "--clips", "2", "--out", str(tmp_path / "drift.png")], capsys)
    visible, mass, *_ = [line for line in lines if "| world |" in line]
    first, same = ([line.split("|")[3:] for line in lines if f"| {name} |" in line] for name in ("first", "same"))
    assert first == same
    assert len(first) == len(drift.METRICS)
    assert visible.split("|")[3].split()[0] == "1"
    assert float(mass.split("|")[4].split()[0]) == pytest.approx(1, abs=0.05)
    assert (tmp_path / "drift.png").stat().st_size > 1000


def test_students_of_two_sizes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = shipped_base()
    small.save_pretrained(tmp_path / "small")
    small.resized(replace(small.config.geometry, frames=32)).save_pretrained(tmp_path / "long")
    with pytest.raises(SystemExit, match="of 2 sizes; compare those of one size"):
        drifted([str(tmp_path / "small"), str(tmp_path / "long"), "--out", str(tmp_path / "drift.png")], capsys)


def test_students_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped_base().save_pretrained(tmp_path / "student")
    with pytest.raises(SystemExit, match="have one name; give each a name of its own"):
        drifted([str(tmp_path / "student")] * 2, capsys)
