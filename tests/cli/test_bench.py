"""``streamstill bench``: a card for a student and for a preset, and one sentence for what cannot be measured."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamstill.codec.learned import LearnedCodec, LearnedCodecConfig
from streamstill.codec.light_decoder import LightDecoder, LightDecoderConfig
from streamstill.report.card import read_card
from streamstill.student.sandwich import SandwichConfig
from streamstill.student.student import build_student
from streamstill.testing import tiny_student
from tests.cli.conftest import Run
from tests.cli.test_cli import next_command
from tests.codec.parts import codec
from tests.recipes.tiny import files

QUICK = ("--ages", "1,2", "--rounds", 1, "--steps", 1, "--out", "card.json")


def test_a_student_is_measured_with_its_codec(run: Run, student: Path) -> None:
    told = run("bench", student, *QUICK)
    assert told.status == 0
    card = read_card(Path("card.json"))
    assert (card.subject.name, card.subject.weights, card.subject.layout) == (str(student), "trained", "LSL")
    assert (card.subject.pixels, card.subject.latents) == ((16, 16), (2, 96, 4, 4))
    assert (card.subject.decoder, card.subject.frames_per_latent) == ("PatchCodec", 2)
    assert [at.age for at in card.timing.at_age] == [1, 2]
    assert (card.setting.steps, card.setting.dtype, card.setting.compiled) == (1, "float32", False)
    assert card.end_to_end_fps is not None
    assert card.loop_fps >= card.end_to_end_fps > 0
    assert card.gflops_per_second is not None
    assert card.gflops_per_second > 0
    assert files(Path.cwd()) == {"card.json", "card.md"}
    assert card.as_markdown() in told.out
    assert "card -> card.json and card.md" in told.out
    assert next_command(told.out) == f'streamstill stream {student} --prompt "A red ball is dropped."'


def test_a_light_decoder_is_timed_and_named_on_the_card(run: Run, student: Path, light_decoder: Path) -> None:
    told = run("bench", student, *QUICK, "--dtype", "bfloat16", "--width", 32, "--light-decoder", light_decoder)
    assert told.status == 0, told.err
    card = read_card(Path("card.json"))
    assert card.subject.decoder == f"light decoder {light_decoder} of PatchCodec"
    assert card.timing.decode_share is not None
    assert f"| decode | {card.subject.decoder}, {card.timing.decode_share:.1%} of end to end |" in told.out
    assert next_command(told.out).endswith(f'--prompt "A red ball is dropped." --light-decoder {light_decoder}')


def test_a_light_decoder_is_checked_against_the_students_learned_codec_in_half_precision_too(run: Run) -> None:
    codec(seed=0).save_pretrained("codec")
    codec(seed=1).save_pretrained("other")
    for name in ("codec", "other"):
        full = LearnedCodec.from_pretrained(name)
        LightDecoder(LightDecoderConfig.of(full, width=8)).save_pretrained(f"light_of_{name}")
    config = tiny_student().config
    assert isinstance(config.network, SandwichConfig)
    network = replace(config.network, latent_channels=6)
    build_student(replace(config, network=network, codec=LearnedCodecConfig.of("codec")), seed=0).save_pretrained("s")
    words = ("bench", "s", *QUICK, "--dtype", "bfloat16", "--light-decoder")
    told = run(*words, "light_of_codec")
    assert told.status == 0, told.err
    run(*words, "light_of_other").says("this light decoder was made for another codec of the same sizes")


def test_a_student_can_be_measured_at_another_size(run: Run, student: Path) -> None:
    assert run("bench", student, *QUICK, "--width", 32).status == 0
    card = read_card(Path("card.json"))
    assert (card.subject.pixels, card.subject.latents) == ((16, 32), (2, 96, 4, 8))


def test_nano_is_measured_end_to_end_and_the_next_command_compares(run: Run) -> None:
    told = run("bench", "nano", *QUICK, "--height", 16, "--width", 16)
    assert told.status == 0
    card = read_card(Path("card.json"))
    assert (card.subject.weights, card.subject.layout, card.subject.decoder) == ("random", "LSSL", "PatchCodec")
    assert card.timing.end_to_end_ms is not None
    assert next_command(told.out) == "streamstill bench nano --layout full --out card-full.json"
    assert run("bench", "nano", *QUICK, "--height", 16, "--width", 16, "--layout", "full").status == 0
    assert read_card(Path("card.json")).subject.layout == "FFFF"


def test_threads_and_dtypes_are_as_asked_and_afterwards_as_before(run: Run) -> None:
    before = torch.get_num_threads(), torch.get_default_dtype()
    told = run("bench", "nano", *QUICK, "--height", 16, "--width", 16, "--threads", 2, "--dtype", "bfloat16")
    assert told.status == 0
    card = read_card(Path("card.json"))
    assert (card.setting.threads, card.setting.dtype) == (2, "bfloat16")
    assert (torch.get_num_threads(), torch.get_default_dtype()) == before


@pytest.mark.slow
def test_a_preset_of_wans_latents_is_measured_without_a_decoder(run: Run) -> None:
    told = run("bench", "small", *QUICK, "--height", 32, "--width", 32, "--dtype", "bfloat16")
    assert told.status == 0
    assert "| decode | not measured, no codec for these latents is installed |" in told.out
    card = read_card(Path("card.json"))
    assert (card.subject.latents, card.subject.frames_per_latent) == ((3, 16, 4, 4), 4)
    assert card.timing.end_to_end_ms is None
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the compiler's own imports say
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_a_compiled_student_is_measured(run: Run, student: Path) -> None:
    assert run("bench", student, *QUICK, "--compile").status == 0
    assert read_card(Path("card.json")).setting.compiled


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nanno",), "unknown student folder or preset 'nanno': choose one of nano, micro, small, phone, server; did"),
        (("nano", "--ages", "5,5"), "ages must rise and be at least 1, got [5, 5]; for example 5,100,1000"),
        (("nano", "--ages", "0,5"), "ages must rise and be at least 1, got [0, 5]"),
        (("nano", "--ages", "soon"), "cannot read the ages 'soon'; write whole numbers with commas, like 5,100,1000"),
        (("nano", "--ages", "5,"), "cannot read the ages '5,'"),
        (("nano", "--rounds", "0"), "rounds and warmup_chunks must be at least 1, got rounds=0"),
        (("nano", "--dtype", "int8"), "unknown dtype 'int8': choose one of float32, bfloat16, float16"),
        (("nano", "--device", "tpu"), "unknown device 'tpu'; give cpu, cuda, or cuda:N"),
        (("nano", "--threads", "0"), "--threads must be at least 1, got 0"),
        (("nano", "--height", "0"), "--height must be at least 1, got 0"),
        (("nano", "--width", "30"), "width 30 is not divisible by 8"),
        (("phone", "--height", "30"), "height 30 is not divisible by 8, the pixels of one of Wan's latents; use 32"),
        (("nano", "--steps", "0"), "a sampler needs steps >= 1"),
        (("nano", "--layout", "LL"), "the layout 'LL' has 2 blocks, the preset nano has a budget of 4"),
        (("nano", "--out", "card.txt"), "--out must be the name of a json file, got card.txt"),
        (("nano", "--light-decoder", "x"), "--light-decoder belongs to a student's codec, and nano is a preset"),
    ],
)
def test_what_cannot_be_measured_says_why_and_writes_nothing(run: Run, words: tuple[str, ...], said: str) -> None:
    run("bench", *words).says(said)
    assert not list(Path.cwd().iterdir())


def test_a_folder_that_is_no_student_and_a_layout_for_a_student_are_refused(run: Run, student: Path) -> None:
    Path("empty").mkdir()
    run("bench", "empty", *QUICK).says("empty is not a student: it has no config.json")
    run("bench", student, *QUICK, "--layout", "full").says("is a student and has its layout; --layout belongs to a")
    assert files(Path.cwd()) == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(run: Run) -> None:
    run("bench", "nano", "--device", "cuda").says("--device cuda was asked for and torch sees no GPU; use --device cpu")
    assert not list(Path.cwd().iterdir())


def test_compiling_without_a_compiler_is_refused_before_anything_is_built(
    run: Run, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    run("bench", student, *QUICK, "--compile").says("--compile needs a C++ compiler and none was found; install g++")
