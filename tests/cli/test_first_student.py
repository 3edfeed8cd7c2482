"""``streamstill student`` as a user types it: what it writes, that it can be taught, and what it refuses."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from streamstill.codec.learned import LearnedCodec, LearnedCodecConfig
from streamstill.codec.patch import PatchCodec
from streamstill.student.sandwich import SandwichConfig
from streamstill.student.student import Student
from streamstill.types import Geometry
from tests.cli.conftest import Run
from tests.cli.test_cli import TINY_SIZE, collected, next_command
from tests.recipes.tiny import files

WORDS = ("student", "--out", "start", "--size", TINY_SIZE)


def layout_of(student: Student) -> str:
    assert isinstance(student.config.network, SandwichConfig)
    return student.config.network.layout


def test_a_first_student_is_written_and_the_next_command_teaches_it(run: Run) -> None:
    told = run(*WORDS)
    assert told.status == 0, told.err
    assert "nano, untrained, " in told.out
    assert "M weights, for clips of 8x16x16@8 -> start" in told.out
    made = Student.from_pretrained("start")
    assert made.config.geometry == Geometry(frames=8, height=16, width=16, fps=8)
    assert isinstance(made.codec, PatchCodec)
    collected(run)
    typed = shlex.split(next_command(told.out).replace("CACHE", "cache"))
    assert typed == ["streamstill", "train", "start", "--cache", "cache"]
    told = run(*typed[1:], "--steps", 1, "--out", "taught", "--set", "batch=2")
    assert told.status == 0, told.err
    assert Student.from_pretrained("taught/student").fingerprint != made.fingerprint


def test_preset_layout_and_seed_are_those_that_were_asked(run: Run) -> None:
    for out, *words in (("a",), ("b",), ("c", "--seed", 1), ("d", "--layout", "LLLS"), ("e", "--preset", "micro")):
        assert run("student", "--out", out, "--size", TINY_SIZE, *words).status == 0
    a, b, c, d, e = (Student.from_pretrained(name) for name in "abcde")
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert a.config == c.config
    assert (layout_of(d), len(layout_of(e))) == ("LLLS", 8)


def test_the_codec_may_be_a_learned_one_which_is_saved_with_the_student(run: Run) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        codec = LearnedCodec(LearnedCodecConfig(compression=(2, 4, 4), latent_channels=6, width=8, blocks=1))
    codec.save_pretrained("codec")
    assert run(*WORDS, "--codec", "codec").status == 0
    Path("codec/model.safetensors").unlink()
    made = Student.from_pretrained("start")
    assert isinstance(made.codec, LearnedCodec)
    assert made.latent_shape == (4, 6, 4, 4)
    assert all(torch.equal(weight, codec.state_dict()[name]) for name, weight in made.codec.state_dict().items())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--out", "start"),
            "give --size FRAMESxHEIGHTxWIDTH@FPS, that of the clips to learn from, or --pipeline FILE",
        ),
        (("--out", "start", "--size", "large"), "cannot read the size 'large'"),
        (("--out", "start", "--size", "9x16x16@8"), "frames 9 is not divisible by"),
        (("--out", "start", "--size", TINY_SIZE, "--preset", "nona"), "unknown preset 'nona'"),
        (("--out", "start", "--size", TINY_SIZE, "--layout", "LX"), "the layout 'LX' has 2 blocks"),
        (("--out", "start", "--size", TINY_SIZE, "--layout", "LXLS"), "X"),
        (("--out", "start", "--size", TINY_SIZE, "--codec", "nowhere"), "nowhere"),
        (("--out", "start", "--size", TINY_SIZE, "--pipeline", "p.json"), "--size and --codec are the pipeline's own"),
        (("--out", "start", "--codec", "c", "--pipeline", "p.json"), "--size and --codec are the pipeline's own"),
        (("--out", "start", "--pipeline", "p.json"), "there is no file p.json; check the name"),
    ],
)
def test_what_cannot_be_made_is_one_sentence_and_nothing_is_written(
    run: Run, words: tuple[str, ...], said: str
) -> None:
    run("student", *words).says(said)
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"source": "nowhere", "steps": 2}, "set the pipeline's geometry to that of the clips"),
        ({"steps": 2}, "p.json is incomplete"),
        ({"source": "nowhere", "setps": 2}, "p.json has no field ['setps']"),
    ],
)
def test_a_pipeline_is_described_strictly(run: Run, described: dict[str, object], said: str) -> None:
    Path("p.json").write_text(json.dumps(described))
    run("student", "--out", "start", "--pipeline", "p.json").says(said)
    assert not Path("start").exists()


def test_a_student_that_is_there_is_not_written_over(run: Run) -> None:
    assert run(*WORDS).status == 0
    before = {name: (Path("start") / name).read_bytes() for name in files(Path("start"))}
    run(*WORDS, "--seed", 1).says("start holds a config.json already, which is not written over; give another --out")
    assert {name: (Path("start") / name).read_bytes() for name in files(Path("start"))} == before
