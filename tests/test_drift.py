"""The drift benchmark: every student has its rows, and the real world does not drift."""

from dataclasses import replace
from pathlib import Path

import pytest

from streamstill.recipes.quickstart import shipped_base
from streamstill.streaming.timing import torch_threads
from tests.test_benchmarks import loaded

drift = loaded("drift")


def drifted(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of the table."""
    with torch_threads(None):
        drift.main(words)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]


def test_the_table_has_every_student_and_the_world_stays_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped_base().save_pretrained(tmp_path / "same")
    students = [f"first={tmp_path / 'same'}", str(tmp_path / "same")]
    lines = drifted([*students, "--times", "2", "--clips", "2", "--out", str(tmp_path / "drift.png")], capsys)
    in_sight, size, *_ = [line for line in lines if "| world |" in line]
    first, same = ([line.split("|")[3:] for line in lines if f"| {name} |" in line] for name in ("first", "same"))
    assert first == same
    assert len(first) == len(drift.METRICS)
    assert in_sight.split("|")[3].split()[0] == "1"
    assert float(size.split("|")[4].split()[0]) == pytest.approx(1, abs=0.05)
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
