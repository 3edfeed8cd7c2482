"""From a tiny Wan pipeline to a student that streams, in both ways, by the commands that a user types."""

import json
import math
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from streamstill.codec.text_cache import CachedText
from streamstill.config import with_overrides
from streamstill.recipes import Knowledge, run_knowledge
from streamstill.streaming.session import Session
from streamstill.student.sandwich import SandwichConfig
from streamstill.student.student import Student
from streamstill.teachers.encoded import EncodedStore
from streamstill.teachers.homework import HomeworkStore
from streamstill.types import Geometry
from tests.recipes.tiny import as_flags, files, read, streamstill
from tests.teachers.pipelines.asking import OTHER, PROMPT, Saved

SIZE = Geometry(frames=13, height=32, width=32, fps=8)  # 4 latent frames: two chunks of the student
TOKENS = 48
PIPELINE = {
    "source": "pipeline",
    "geometry": {"frames": 13, "height": 32, "width": 32, "fps": 8},
    "steps": 2,
    "dtype": "float32",
    "arguments": {"max_sequence_length": TOKENS},
}
KD = [
    f"pipeline={json.dumps(PIPELINE)}",
    "start=fresh",
    "prompts=prompts.txt",
    "clips=3",
    "held_out_clips=1",
    "steps=3",
    "batch=2",
    "velocities=1",
]


@pytest.fixture(scope="module")
def workshop(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pipeline, a list of prompts, and the run of ``kd`` in ``kd``."""
    folder = tmp_path_factory.mktemp("workshop")
    shutil.copytree(saved("wan"), folder / "pipeline")
    (folder / "prompts.txt").write_text(f"{PROMPT}\n{OTHER}\n")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as told:
        patch.chdir(folder)
        assert streamstill(patch, "distill", "kd", "--out", "kd", *as_flags(KD)) == 0
    (folder / "told.txt").write_text(told.getvalue())
    return folder


@pytest.fixture
def here(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workshop)
    return workshop


def frames_of(student: Path, chunks: int = 2) -> torch.Tensor:
    """The first frames that it streams, as the session gives them."""
    loaded = Student.from_pretrained(student)
    session = Session(loaded, PROMPT, sampling=loaded.config.sampling)
    return torch.cat([torch.as_tensor(session.next_chunk()) for _ in range(chunks)])


def test_homework_makes_a_nano_student_in_the_pipelines_latents_that_streams(here: Path) -> None:
    assert len(HomeworkStore.open(here / "kd/homework/store")) == 4
    report = read(here / "kd/report.json")
    assert all(math.isfinite(error) for row in report["held_out"].values() for error in row.values())
    start, student = (Student.from_pretrained(here / "kd" / name) for name in ("start", "student"))
    assert isinstance(student.config.network, SandwichConfig)
    assert (student.config.network.width, student.config.network.latent_channels) == (96, 16)
    assert student.config == start.config
    assert student.fingerprint != start.fingerprint
    frames = frames_of(here / "kd/student")
    assert frames.shape == (13, 3, 32, 32)
    assert not torch.equal(frames, frames_of(here / "kd/start"))


def test_the_next_command_asks_for_the_pipelines_steps_and_one_of_its_prompts(here: Path) -> None:
    (line,) = [line for line in Path("told.txt").read_text().splitlines() if line.startswith("next: ")]
    assert line == f'next: streamstill stream kd/student --prompt "{PROMPT}" --whole --frames 13 --steps 2'


def test_while_the_student_learns_neither_autoencoder_nor_text_encoder_is_in_memory(here: Path) -> None:
    config = with_overrides(Knowledge(), [*KD, "steps=1"])
    student = run_knowledge(config, here / "again", Console(quiet=True))
    assert isinstance(student.text, CachedText)
    assert not student.codec.loaded  # type: ignore[attr-defined]
    assert not student.text.encoder.loaded
    assert len({file for file in files(here / "again/homework/text") if file.endswith("safetensors")}) == 3


def test_clips_encoded_once_make_a_student_without_the_pipeline(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("p.json").write_text(json.dumps(PIPELINE))
    assert streamstill(monkeypatch, "student", "--pipeline", "p.json", "--out", "start") == 0
    assert Student.from_pretrained("start").config == Student.from_pretrained("kd/start").config
    assert Student.from_pretrained("start").fingerprint == Student.from_pretrained("kd/start").fingerprint
    asked = ("--prompts", "prompts.txt", "--count", 4, "--size", "13x32x32@8", "--cache", "cache")
    assert streamstill(monkeypatch, "collect", "pipeline", "--config", "p.json", *asked) == 0
    assert streamstill(monkeypatch, "encode", "--cache", "cache", "--student", "start", "--out", "encoded") == 0
    (first, *_) = store = EncodedStore.open(Path("encoded")).find()
    assert len(store) == 4
    assert first.request.geometry == SIZE

    Path("pipeline").rename("away")  # neither autoencoder nor text encoder can be loaded now
    try:
        words = ("train", "start", "--cache", "encoded", "--steps", 3, "--set", "batch=2", "--out", "taught")
        assert streamstill(monkeypatch, *words) == 0
    finally:
        Path("away").rename("pipeline")
    (before, after) = (Student.from_pretrained(folder) for folder in ("start", "taught/student"))
    assert after.fingerprint != before.fingerprint
    assert frames_of(Path("taught/student")).shape == (13, 3, 32, 32)
    stream = ("stream", "taught/student", "--prompt", PROMPT, "--frames", 13, "--out", "clip.mp4")
    assert streamstill(monkeypatch, *stream) == 0
    assert Path("clip.mp4").stat().st_size > 0


def changed(**changes: Any) -> list[str]:
    return [f"pipeline={json.dumps({**PIPELINE, **changes})}", *KD[1:]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (changed(geometry={"frames": 13, "height": 24, "width": 32, "fps": 8}), "height 24 is not divisible by 16"),
        (changed(geometry=None), "set geometry to that of the clips to learn from"),
        ([*KD, "start=base"], "start from another student, or set start=fresh"),
        ([*KD, "guidance=2.0"], "set pipeline.steps and pipeline.guidance"),
        ([*KD, "teacher=kd/student"], "are those of a student that teaches"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: list[str], said: str
) -> None:
    assert streamstill(monkeypatch, "distill", "kd", "--out", "refused", *as_flags(settings)) != 0
    assert said in capsys.readouterr().err
    assert not (here / "refused").exists()


def test_a_pipeline_that_shows_finished_clips_only_is_refused(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = changed(source=str(saved("cogvideox")))
    assert streamstill(monkeypatch, "distill", "kd", "--out", tmp_path / "refused", *as_flags(settings)) != 0
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "homework needs an open teacher, and 'pipeline/cogvideox@" in line
