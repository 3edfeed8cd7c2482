"""A pipeline as a teacher by name: from a file and from words of the command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from streamstill.teachers import ClipStore
from streamstill.teachers.pipelines.clips import PipelineTeacher
from streamstill.teachers.pipelines.opened import OpenPipelineTeacher
from streamstill.teachers.plugins import find_teacher, is_job_teacher
from tests.recipes.tiny import streamstill
from tests.teachers.fakes import same
from tests.teachers.pipelines.asking import PROMPT, SIZE, Saved, config_of, request

OPTIONS = {"steps": 2, "dtype": "float32", "arguments": {"max_sequence_length": 48}}
TABLE = {"frames": 9, "height": 32, "width": 32, "fps": 8}
COLLECT = ("collect", "pipeline", "--cache", "cache", "--prompts", "prompts.txt", "--size", "9x32x32@8")


@pytest.fixture
def desk(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the description of a tiny Wan in ``p.json``, and one prompt."""
    monkeypatch.chdir(tmp_path)
    described = {"source": str(saved("wan")), "geometry": TABLE, **OPTIONS}
    Path("p.json").write_text(json.dumps(described))
    Path("prompts.txt").write_text(f"{PROMPT}\n")
    return tmp_path


def test_a_pipeline_is_found_by_name_open_where_velocities_are_known(saved: Saved) -> None:
    found = find_teacher("pipeline", {"source": str(saved("wan")), "geometry": TABLE, **OPTIONS})
    assert isinstance(found, OpenPipelineTeacher)
    assert not is_job_teacher(found)
    assert found.name == PipelineTeacher.load(config_of(saved("wan"), steps=2)).name
    closed = find_teacher("pipeline", {"source": str(saved("cogvideox")), "geometry": TABLE, "dtype": "float32"})
    assert isinstance(closed, PipelineTeacher)


def test_a_number_is_one_number_however_it_is_written(saved: Saved) -> None:
    one, other, third = (
        PipelineTeacher.load(config_of(saved("wan"), guidance=guidance, geometry=replace(SIZE, fps=fps)))
        for guidance, fps in ((5, 8), (5.0, 8.0), (5.5, 8.0))
    )
    assert one.name == other.name != third.name


def test_collect_keeps_the_clips_of_a_described_pipeline(
    desk: Path, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert streamstill(monkeypatch, *COLLECT, "--config", "p.json", "--count", 2) == 0
    teacher = PipelineTeacher.load(config_of(saved("wan"), steps=2))
    store = ClipStore.open("cache")
    assert [(entry.teacher, entry.request.seed) for entry in store.find()] == [(teacher.name, 0), (teacher.name, 1)]
    asked = request(1, PROMPT, SIZE)
    assert same(store.get(store.keys()[1]), teacher.generate(asked))


def test_words_of_the_command_change_fields_of_the_description(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*COLLECT, "--config", "p.json", "--count", 1)
    assert streamstill(monkeypatch, *words) == 0
    changes = ("--set", "steps=1", "--set", "geometry.frames=13")
    assert streamstill(monkeypatch, *words, *changes) == 0
    names = [entry.teacher for entry in ClipStore.open("cache").find()]
    assert [name.split("/steps=")[1].split(",")[0] for name in names] == ["2", "1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "pipeline is incomplete"),
        (("--config", "p.json", "--set", "setps=1"), "pipeline has no field ['setps']"),
        (("--config", "p.json", "--set", "source=nowhere", "--set", "offline=true"), "there is no folder nowhere"),
        (("--config", "p.json", "--budget", "3"), "--budget is for services and pipeline is none"),
    ],
)
def test_what_is_wrong_with_a_description_is_one_sentence(
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    assert streamstill(monkeypatch, *COLLECT, *words) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("streamstill: ")]
    assert said in line
    assert not Path("cache").exists()
