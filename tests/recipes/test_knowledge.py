"""The recipe kd, whole, at tiny size: what it leaves, that it goes on where it stopped, and what it refuses."""

import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from streamstill.config import with_overrides
from streamstill.recipes import knowledge
from streamstill.recipes.knowledge import Knowledge, held_out_errors, run_knowledge
from streamstill.recipes.student_teacher import StudentTeacher
from streamstill.streaming.session import Session
from streamstill.student.student import Student
from streamstill.teachers.homework import HomeworkStore
from streamstill.testing import TINY, tiny_student
from streamstill.training.homework_batches import homework_batches
from tests.recipes.tiny import as_flags, files, read, saved_student, streamstill

SETTINGS = [
    "teacher_steps=2",
    "clips=6",
    "held_out_clips=3",
    "steps=4",
    "batch=2",
    "prepare.steps=2",
    "prepare.batch=2",
    "start=fresh",
]


def config(teacher: Path, *changes: str) -> Knowledge:
    return with_overrides(Knowledge(), [*SETTINGS, f"teacher={teacher}", *changes])


def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_student(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    out = tmp_path_factory.mktemp("kd") / "run"
    run_knowledge(config(teacher), out, quiet())
    return out


def weights(out: Path) -> bytes:
    return (out / "student" / "model.safetensors").read_bytes()


def test_it_leaves_a_store_a_student_and_a_report(finished: Path, teacher: Path) -> None:
    left = {name for name in files(finished) if not name.startswith(("homework/", "learn/"))}
    assert left == {"recipe.json", "seconds.json", "report.json", "student/model.safetensors", "student/config.json"}
    store = HomeworkStore.open(finished / "homework" / "store")
    assert len(store) == 6 + 3
    name = StudentTeacher(Student.from_pretrained(teacher), steps=2).name
    assert len(store.keys(teacher=name, assignment=config(teacher).assignment)) == 9
    assert Student.from_pretrained(finished / "student").config.geometry == TINY


def test_the_report_has_both_errors_before_and_after(finished: Path) -> None:
    report = read(finished / "report.json")
    assert set(report) == {"held_out", "seconds", "environment"}
    assert set(report["held_out"]) == {"start", "student"}
    for errors in report["held_out"].values():
        assert set(errors) == {"flow", "kd"}
        assert all(math.isfinite(error) for error in errors.values())
    assert set(report["seconds"]) == {"homework", "learn"}


def test_the_reported_error_is_that_of_the_saved_student_on_what_was_held_out(finished: Path, teacher: Path) -> None:
    store = HomeworkStore.open(finished / "homework" / "store")
    saved = Student.from_pretrained(finished / "student")
    prompts = [one.request.prompt for one in store.get(store.keys())]
    assert not set(prompts[:6]) & set(prompts[6:])
    errors = held_out_errors(saved, store, store.keys()[6:], config(teacher))
    assert errors == pytest.approx(read(finished / "report.json")["held_out"]["student"], rel=1e-5)


def test_it_streams_as_it_is(finished: Path) -> None:
    """Converting it to the causal mode is loading it; learning that mode is another run."""
    student = Student.from_pretrained(finished / "student")
    chunk = Session(student, "A red ball is dropped.", sampling=student.config.sampling).next_chunk()
    assert chunk.shape[1:] == (3, 16, 16)


def test_the_student_learns_without_its_teacher(
    finished: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the homework is done the teacher is never asked: a run over that store learns the same without it."""

    def silent(*args: object) -> Any:
        raise AssertionError("the teacher was asked")

    out = tmp_path / "run"
    store = out / "homework" / "store"
    store.parent.mkdir(parents=True)
    finished.joinpath("homework", "store").rename(store)
    try:
        monkeypatch.setattr(StudentTeacher, "latents", silent)
        monkeypatch.setattr(StudentTeacher, "velocity", silent)
        run_knowledge(config(teacher), out, quiet())
    finally:
        store.rename(finished / "homework" / "store")
    assert weights(out) == weights(finished)


def test_the_same_command_again_trains_nothing(finished: Path, teacher: Path) -> None:
    before, held = weights(finished), read(finished / "report.json")["held_out"]
    run_knowledge(config(teacher), finished, quiet())
    assert weights(finished) == before
    assert read(finished / "report.json")["held_out"] == held


@pytest.mark.parametrize("stage", ["homework", "learn"])
def test_a_stopped_run_goes_on_to_the_same_student(
    finished: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        if stage == "homework":
            patch.setattr(StudentTeacher, "velocity", _interrupt_at(2, StudentTeacher.velocity))
        else:
            patch.setattr(knowledge, "homework_batches", _stops_after(2))
        with pytest.raises(KeyboardInterrupt):
            run_knowledge(config(teacher), out, quiet())
    assert "report.json" not in files(out)
    run_knowledge(config(teacher), out, quiet())
    assert weights(out) == weights(finished)


def _interrupt_at(call: int, method: Callable[..., Any]) -> Callable[..., Any]:
    calls = list[int]()

    def counted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return method(*args)

    return counted


def _stops_after(steps: int) -> Callable[..., Any]:
    def stopping(*args: Any, **options: Any) -> Callable[[int], Any]:
        batches = homework_batches(*args, **options)
        training = len(args[1]) == 6  # not the held-out ones

        def batch_at(step: int) -> Any:
            if training and step == steps:
                raise KeyboardInterrupt
            return batches(step)

        return batch_at

    return stopping


def test_other_settings_or_another_teacher_in_the_same_folder_are_refused(
    finished: Path, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"holds a run of other settings: seed=0 \(now 1\)"):
        run_knowledge(config(teacher, "seed=1"), finished, quiet())
    other = saved_student(tmp_path / "other", seed=3)
    with pytest.raises(ValueError, match=r"holds a run of other settings: teacher=.*teacher_weights="):
        run_knowledge(config(other), finished, quiet())


def test_a_layout_may_be_chosen_and_a_student_gone_on_from(finished: Path, teacher: Path, tmp_path: Path) -> None:
    fresh = run_knowledge(config(teacher, "layout=SLLS", "steps=1"), tmp_path / "layout", quiet())
    assert fresh.config.network.layout == "SLLS"  # type: ignore[union-attr]
    start = finished / "student"
    causal = config(teacher, f"start={start}", "learn.mode=causal", "learn.kd_weight=0.5", "steps=1")
    on = run_knowledge(causal, tmp_path / "on", quiet())
    assert on.config == Student.from_pretrained(start).config
    assert on.fingerprint != Student.from_pretrained(start).fingerprint


def test_without_a_teacher_the_shipped_base_is_prepared_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knowledge, "shipped_base", tiny_student)
    learnt = run_knowledge(replace(config(tmp_path), teacher="", start="base"), tmp_path / "run", quiet())
    assert learnt.config == tiny_student().config
    assert learnt.fingerprint != tiny_student().fingerprint
    assert set(read(tmp_path / "run" / "report.json")["seconds"]) == {"prepare", "homework", "learn"}
    (name,) = {one.teacher for one in _all(tmp_path / "run" / "homework" / "store")}
    assert tiny_student().fingerprint not in name


def test_a_list_of_prompts_is_asked_in_turn_each_time_with_another_seed(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    run_knowledge(config(teacher, f"prompts={tmp_path / 'prompts.txt'}", "steps=1"), tmp_path / "run", quiet())
    asked = {(one.request.prompt, one.request.seed) for one in _all(tmp_path / "run" / "homework" / "store")}
    assert asked == {(("a cat", "a dog")[seed % 2], seed) for seed in range(6 + 3)}


def _all(path: Path) -> list[Any]:
    store = HomeworkStore.open(path)
    return list(store.get(store.keys()))


def test_a_list_that_is_not_there_is_refused_before_anything_is_written(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nope\.txt"):
        run_knowledge(config(teacher, "prompts=nope.txt"), tmp_path / "run", quiet())
    assert not (tmp_path / "run").exists()


def test_a_start_that_does_not_fit_is_refused_before_anything_is_written(teacher: Path, tmp_path: Path) -> None:
    tiny_student(replace(TINY, frames=16)).save_pretrained(tmp_path / "long")
    with pytest.raises(
        ValueError, match=r"has the geometry Geometry\(frames=16.* start from another student, or set start="
    ):
        run_knowledge(config(teacher, f"start={tmp_path / 'long'}"), tmp_path / "run", quiet())
    with pytest.raises(ValueError, match="has the sampling"):
        run_knowledge(config(teacher, f"start={teacher}", "sampling.steps=2"), tmp_path / "run", quiet())
    with pytest.raises(ValueError, match=r"start from \(base\) has the geometry .* set start=fresh"):
        run_knowledge(config(teacher, "start=base"), tmp_path / "run", quiet())
    with pytest.raises(ValueError, match="nowhere is not a student"):
        run_knowledge(config(Path("nowhere")), tmp_path / "run", quiet())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["clips=0", "steps=0", "velocities=0", "teacher_steps=0", "held_out_clips=0"])
def test_numbers_below_one_are_refused(change: str) -> None:
    with pytest.raises(ValueError, match=f"{change.split('=')[0]} must be at least 1, got 0"):
        with_overrides(Knowledge(), [change])


def test_a_layout_is_that_of_fresh_weights() -> None:
    with pytest.raises(
        ValueError, match="preset and layout are those of fresh weights, and this run starts from 'base'"
    ):
        with_overrides(Knowledge(), ["layout=SLLS"])
    with pytest.raises(ValueError, match="set start=fresh, or leave them out"):
        with_overrides(Knowledge(), ["start=runs/kd/student", "preset=micro"])
    assert with_overrides(Knowledge(), ["start=fresh", "layout=SLLS"]).layout == "SLLS"


def test_flow_matching_alone_needs_no_velocities() -> None:
    assert with_overrides(Knowledge(), ["learn.kd_weight=0", "velocities=0"]).assignment.velocities == 0


def test_the_command_runs_it(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert streamstill(monkeypatch, "distill", "kd", *as_flags([*SETTINGS, f"teacher={teacher}"])) == 0
    told = capsys.readouterr().out
    assert "9 clips, 9 of them new -> runs/kd/homework/store" in told
    (command,) = re.findall(r"next: streamstill (.*)", told)
    assert command.endswith("--whole --frames 8 --steps 2")
    assert streamstill(monkeypatch, *shlex.split(command)) == 0
    assert streamstill(monkeypatch, "distill", "kd", "--clips", "there") != 0
    assert "the recipe kd has a teacher of its own" in capsys.readouterr().err
