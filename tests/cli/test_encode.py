"""``streamstill encode`` and training from what it wrote, as a user types them."""

from pathlib import Path

import pytest
import torch

from streamstill.codec.learned import LearnedCodec, LearnedCodecConfig
from streamstill.student.student import Student
from streamstill.teachers.encoded import EncodedStore
from tests.cli.conftest import Run
from tests.codec.tiny_models import saved_text, saved_vae, t5, wan
from tests.recipes.tiny import read
from tests.student.borrowed import SIZE, borrowing_student

COLLECT = ("collect", "world", "--count", 3, "--cache", "cache")
ENCODE = ("encode", "--cache", "cache", "--out", "out")
TINY_SIZE, WAN_SIZE = "8x16x16@8", "13x16x16@8"


def test_collect_then_encode_then_train(run: Run, student: Path) -> None:
    run(*COLLECT, "--size", TINY_SIZE)
    told = run(*ENCODE, "--student", student)
    assert told.status == 0, told.err
    assert "3 clips, 3 of them new -> out" in told.out
    assert f"next: streamstill train {student} --cache out" in told.out
    assert "3 clips, 0 of them new" in run(*ENCODE, "--student", student).out
    words = ("train", student, "--cache", "out", "--steps", 2, "--out", "taught", "--set", "batch=2")
    assert run(*words).status == 0
    assert Student.from_pretrained("taught/student").fingerprint != Student.from_pretrained(student).fingerprint


def test_a_cache_in_a_bucket_is_encoded_and_trained_from_as_one_on_disk_is(
    run: Run, student: Path, bucket: str
) -> None:
    for cache in (bucket, "cache"):
        run("collect", "world", "--count", 3, "--size", TINY_SIZE, "--cache", cache)
    for cache, out in ((bucket, "far"), ("cache", "near")):
        told = run("encode", "--cache", cache, "--student", student, "--out", out)
        assert told.status == 0, told.err
        assert f"3 clips, 3 of them new -> {out}" in told.out
    assert "3 clips, 0 of them new" in run("encode", "--cache", bucket, "--student", student, "--out", "far").out
    far, near = (EncodedStore.open(Path(out)) for out in ("far", "near"))
    keys = [entry.key for entry in far.find()]
    for one, other in zip(far.get(keys), near.get(keys), strict=True):
        assert torch.equal(one.latents_FCHW, other.latents_FCHW)

    for cache, out in ((bucket, "taught_far"), ("cache", "taught_near")):
        told = run("train", student, "--cache", cache, "--steps", 2, "--out", out, "--set", "batch=2")
        assert told.status == 0, told.err
    taught = [Student.from_pretrained(f"{out}/student").fingerprint for out in ("taught_far", "taught_near")]
    assert taught[0] == taught[1] != Student.from_pretrained(student).fingerprint
    assert read(Path("taught_far/recipe.json"))["inputs"]["cache"] == bucket
    assert not Path("s3:").exists()


def test_the_cache_itself_is_no_place_for_what_is_encoded(run: Run, student: Path) -> None:
    run("collect", "world", "--count", 2, "--size", TINY_SIZE, "--cache", "cache")
    run("encode", "--cache", "cache", "--student", student, "--out", "cache").says(
        "--out cache holds other things than encoded clips"
    )
    assert not Path("cache/latents").exists()


def test_what_is_wrong_with_a_bucket_is_one_sentence(run: Run, student: Path, bucket: str) -> None:
    run("encode", "--cache", bucket, "--out", "out", "--codec", "patch").says(
        f"there is no teacher cache at {bucket}; make one with `streamstill collect --cache {bucket}`"
    )
    run("train", student, "--cache", bucket).says(f"there is no teacher cache at {bucket}; make one with")
    run("encode", "--cache", "s3://nowhere/clips", "--out", "out", "--codec", "patch").says(
        "the clip store s3://nowhere/clips cannot be read"
    )
    run("encode", "--cache", bucket, "--out", bucket, "--codec", "patch").says(
        f"--out must be a folder on disk, got {bucket}; only --cache may be in a bucket"
    )
    run("collect", "world", "--count", 1, "--size", "8x32x32@8", "--cache", bucket)
    run("train", student, "--cache", bucket).says(f"{bucket} has 1 clips and none in the student's size 8x16x16@8")
    assert not list(Path.cwd().iterdir())


def test_a_student_that_borrows_its_encoders(run: Run, tmp_path: Path) -> None:
    borrowing_student(tmp_path / "models").save_pretrained("student")
    Path("prompts.txt").write_text("A red ball is dropped.\n")
    run(*COLLECT, "--size", WAN_SIZE, "--prompts", "prompts.txt")
    told = run(*ENCODE, "--student", "student", "--device", "cpu")
    assert told.status == 0, told.err
    assert "embeddings of prompts: 1 -> out" in told.out
    assert len(list(Path("out/text").rglob("*.safetensors"))) == 2  # and that of no prompt


def test_codec_and_text_encoder_of_a_pipelines_folder(run: Run) -> None:
    saved_vae(wan, Path("pipeline/vae"))
    saved_text(t5, Path("pipeline"), model="text_encoder", tokenizer="tokenizer")
    run(*COLLECT, "--size", WAN_SIZE)
    words = ("--codec", "pipeline", "--text", "pipeline", "--tokens", 8, "--weights", "bfloat16", "--dtype", "float32")
    run(*ENCODE, *words, "--tile", 8).says("tiles of 8 latents cannot share 8")
    told = run(*ENCODE, *words, "--tile", 9)
    assert told.status == 0, told.err
    (first, *_) = EncodedStore.open(Path("out")).find()
    assert first.request.geometry == SIZE


def test_a_learned_codec_and_the_patch_codec(run: Run) -> None:
    LearnedCodec(LearnedCodecConfig(compression=(2, 4, 4), latent_channels=4, width=8, blocks=1)).save_pretrained(
        "codec"
    )
    run(*COLLECT, "--size", TINY_SIZE)
    for codec in ("patch", "codec"):
        assert "3 clips, 3 of them new" in run(*ENCODE, "--codec", codec).out
    assert len(EncodedStore.open(Path("out"))) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give --student, whose codec and text encoder are used, or --codec, and not both"),
        (("--student", "a", "--codec", "patch"), "and not both"),
        (("--student", "a", "--tile", 8), "--text, --tokens and --tile go with --codec"),
        (("--student", "nowhere"), "nowhere is not a student"),
        (("--codec", "patch", "--teacher", "nobody"), "has 3 clips and none of the teacher 'nobody'"),
    ],
)
def test_bad_input_gets_one_sentence(run: Run, words: tuple[object, ...], said: str) -> None:
    run(*COLLECT, "--size", TINY_SIZE)
    run(*ENCODE, *words).says(said)


def test_a_cache_that_is_not_there_is_named(run: Run) -> None:
    for kind in ("absent", "empty"):
        run(*ENCODE, "--codec", "patch").says("there is no teacher cache at cache; make one with `streamstill collect")
        if kind == "absent":
            Path("cache").mkdir()
    Path("cache/notes.txt").write_text("mine")
    run(*ENCODE, "--codec", "patch").says("the folder cache is no clip store, it holds 'notes.txt'")
    assert not Path("out").exists()
