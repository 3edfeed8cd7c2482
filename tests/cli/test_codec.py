"""``streamstill codec`` as a user types it."""

import re
import shlex
from pathlib import Path

import pytest

from streamstill.codec.learned import LearnedCodec
from streamstill.codec.light_decoder import LightDecoder
from tests.cli.conftest import Run
from tests.cli.test_cli import TINY_SIZE, collected, next_command
from tests.recipes.tiny import as_flags, read

TINY_CODEC = as_flags(
    ["codec.compression=[2, 4, 4]", "codec.latent_channels=6", "codec.width=8", "codec.blocks=1", "batch=2"]
)


@pytest.mark.parametrize("name", ["train", "distill"])
def test_both_commands_have_help_with_an_example(run: Run, name: str) -> None:
    told = run("codec", name, "--help")
    assert told.status == 0
    assert re.search(rf"Example: streamstill codec {name}\b", told.out)


def test_a_codec_is_trained_and_the_next_command_distils_it(run: Run) -> None:
    collected(run)
    told = run("codec", "train", "--cache", "cache", "--size", TINY_SIZE, "--steps", 2, "--out", "c", *TINY_CODEC)
    assert told.status == 0
    assert re.search(r"to clips that it has never seen: PSNR [\d.]+ dB, SSIM 0\.\d+", told.out)
    assert LearnedCodec.from_pretrained("c/codec").config.latent_channels == 6
    words = next_command(told.out).split()
    assert words == ["streamstill", "codec", "distill", "c/codec", "--cache", "cache", "--size", TINY_SIZE]

    flags = as_flags(["width=8", "batch=2", "rounds=2"])
    told = run(*words[1:], "--steps", 2, "--out", "light", *flags)
    assert told.status == 0
    assert len(re.findall(r"(?:full|light): [\d.]+ ms a chunk, [\d.]+% of end to end", told.out)) == 2
    assert LightDecoder.from_pretrained("light/light_decoder").config.width == 8
    shown = 'streamstill stream STUDENT --prompt "..." --light-decoder light/light_decoder'
    assert next_command(told.out) == shown
    assert read(Path("light/recipe.json"))["config"]["student"] == "nano"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train",), "give --clips DIR, a folder of videos with captions, or --cache DIR, and not both"),
        (("train", "--clips", "nowhere"), "there is no folder of clips nowhere; check the name"),
        (("train", "--cache", "nowhere"), "there is no teacher cache at nowhere"),
        (("train", "--cache", "nowhere", "--size", "big"), "cannot read the size 'big'"),
        (("train", "--cache", "nowhere", "--steps", 0), "steps must be at least 1, got 0"),
        (("train", "--cache", "nowhere", "--set", "codec.widht=8"), "has no field 'widht'"),
        (("train", "--cache", "nowhere", "--set", "codec.width=7"), "width must be even, got 7; use 8"),
        (("distill", "nowhere", "--cache", "nowhere"), "there is no teacher cache at nowhere"),
        (("distill", "nowhere", "--cache", "."), "there is no teacher cache at .; make one with"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence_and_nothing_is_written(
    run: Run, words: tuple[object, ...], said: str
) -> None:
    run("codec", *words).says(said)
    assert not list(Path.cwd().iterdir())


def test_a_folder_without_a_codec_cannot_be_distilled(run: Run) -> None:
    collected(run)
    run("codec", "distill", "nowhere", "--cache", "cache").says(
        "nowhere holds no codec; give the folder of a learned codec"
    )
    assert not Path("runs").exists()


def test_a_codec_is_learnt_from_a_bucket_as_from_a_folder(run: Run, bucket: str) -> None:
    run("codec", "train", "--cache", bucket).says(
        f"there is no teacher cache at {bucket}; make one with `streamstill collect --cache {bucket}`"
    )
    for cache in (bucket, "cache"):
        told = run("collect", "world", "--count", 6, "--size", TINY_SIZE, "--cache", cache)
        assert f"6 clips, 6 of them new -> {cache}\n" in told.out
        assert next_command(told.out) == f"streamstill train STUDENT --cache {cache}"
    for cache, out in ((bucket, "far"), ("cache", "near")):
        told = run("codec", "train", "--cache", cache, "--size", TINY_SIZE, "--steps", 1, "--out", out, *TINY_CODEC)
        assert told.status == 0, told.err
        assert f"--cache {cache} --size" in next_command(told.out)
    weights = [Path(f"{out}/codec/model.safetensors").read_bytes() for out in ("far", "near")]
    assert weights[0] == weights[1]
    assert read(Path("far/recipe.json"))["inputs"] == {"cache": bucket}
    run("codec", "train", "--cache", bucket, "--size", "8x32x32@8").says(f"{bucket} has 6 clips and none of the size")
    assert not Path("s3:").exists()


def test_a_light_decoder_of_a_students_codec_is_shown_with_the_student(run: Run, student: Path) -> None:
    collected(run)
    words = ("codec", "distill", student, "--cache", "cache", "--size", TINY_SIZE, "--steps", 1, "--out", "light")
    told = run(*words, *as_flags(["width=8", "batch=2", "rounds=2"]))
    assert told.status == 0, told.err
    typed = shlex.split(next_command(told.out).replace("...", "A red ball is dropped."))
    assert typed[:3] == ["streamstill", "stream", str(student)]
    assert run(*typed[1:], "--frames", 4, "--out", "v.mp4").status == 0
    assert Path("v.mp4").stat().st_size > 0
