"""The recipe few, whole, at tiny size: what it leaves, that it goes on where it stopped, and what it refuses."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from streamstill.config import with_overrides
from streamstill.recipes.few_steps import WAYS, FewSteps, run_few_steps
from streamstill.streaming.session import Session
from streamstill.student.student import Student
from tests.recipes.tiny import files, read, saved_student, streamstill

SETTINGS = ["steps=1", "path_steps=3", "paths=6", "updates=4", "batch=2", "compared_paths=3"]


def config(student: Path, *changes: str) -> FewSteps:
    return with_overrides(FewSteps(), [*SETTINGS, f"student={student}", *changes])


def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_student(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, student: Path) -> Path:
    out = tmp_path_factory.mktemp("few") / "run"
    run_few_steps(config(student), out, quiet())
    return out


def test_it_leaves_a_student_of_few_steps_that_streams_and_a_report(finished: Path, student: Path) -> None:
    few, many = Student.from_pretrained(finished / "student"), Student.from_pretrained(student)
    assert few.config == many.with_steps(1).config
    assert few.fingerprint != many.fingerprint
    assert len(Session(few, "A red ball is dropped.", sampling=few.config.sampling).next_chunk()) == 4
    assert not [name for name in files(finished) if name.endswith(".partial")]
    report = read(finished / "report.json")
    assert set(report["seconds"]) == {"paths", "learn", "compare"}
    assert set(report["compared"]) == set(WAYS)
    assert report["compared"]["many steps"]["distance"] == 0
    assert all(row["sharpness"] > 0 for row in report["compared"].values())


def test_it_comes_nearer_to_its_own_many_steps(tmp_path: Path, student: Path) -> None:
    run_few_steps(config(student, "updates=40", "learn.optim.lr=3e-3"), tmp_path / "run", quiet())
    compared = read(tmp_path / "run" / "report.json")["compared"]
    assert compared["few steps after"]["distance"] < 0.9 * compared["few steps before"]["distance"]


def test_the_same_command_again_follows_no_path_and_learns_nothing(finished: Path, student: Path) -> None:
    kept = [finished / "paths" / "paths.safetensors", finished / "learn" / "training" / "state.safetensors"]
    before, when = read(finished / "report.json")["compared"], [path.stat().st_mtime_ns for path in kept]
    run_few_steps(config(student), finished, quiet())
    assert read(finished / "report.json")["compared"] == before
    assert [path.stat().st_mtime_ns for path in kept] == when


def test_paths_of_a_stopped_run_are_followed_again_where_others_are_asked_for(tmp_path: Path, student: Path) -> None:
    """Before anything is learnt a folder may be given other settings, and its paths would be the wrong ones."""
    run_few_steps(config(student), tmp_path, quiet())
    shutil.rmtree(tmp_path / "learn")  # as if it had been stopped between the two stages
    run_few_steps(config(student, "seed=1"), tmp_path, quiet())
    run_few_steps(config(student, "seed=1"), tmp_path / "fresh", quiet())
    again, fresh = (Student.from_pretrained(out / "student").fingerprint for out in (tmp_path, tmp_path / "fresh"))
    assert again == fresh


def test_another_student_in_the_same_folder_is_refused(finished: Path, tmp_path: Path) -> None:
    other = saved_student(tmp_path / "other", seed=4)
    with pytest.raises(ValueError, match="holds a run of other settings"):
        run_few_steps(config(other), finished, quiet())


def test_steps_that_the_paths_do_not_pass_are_refused_before_anything_is_written(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = [word for change in (*SETTINGS, f"student={student}", "steps=2") for word in ("--set", change)]
    assert streamstill(monkeypatch, "distill", "few", "--out", tmp_path / "run", *words) == 1
    assert "paths of 3 steps do not pass the times of a student with 2; use a multiple" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["steps", "paths", "updates", "batch"])
def test_numbers_must_be_positive(student: Path, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        config(student, f"{field}=0")


def test_the_command_asks_a_list_and_says_what_to_run_next(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    listed = tmp_path / "mine.txt"
    listed.write_text("a lighthouse at night\na dog on a beach\n")
    words = [word for change in (*SETTINGS, f"student={student}", f"prompts={listed}") for word in ("--set", change)]
    assert streamstill(monkeypatch, "distill", "few", "--out", tmp_path / "run", *words) == 0
    told = capsys.readouterr().out
    assert "few steps after: distance" in told
    assert f'stream {tmp_path / "run" / "student"} --prompt "a lighthouse at night"' in told.replace("\n", "")
