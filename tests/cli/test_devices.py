"""``--device``: every command that teaches or makes video works away from the CPU and gives what the CPU gives."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from streamstill.cli.devices import device_named
from streamstill.codec.learned import LearnedCodec
from streamstill.codec.light_decoder import LightDecoder
from streamstill.media import read_clip
from tests.cli.conftest import Ended, Run
from tests.cli.test_cli import TINY_SIZE, collected
from tests.cli.test_codec import TINY_CODEC
from tests.far_device import FAR, far_device
from tests.recipes import test_few_steps, test_knowledge
from tests.recipes.tiny import BASE, FOLDER, QUICKSTART, as_flags

PROMPT = "A red ball is dropped."
WEIGHTS = "student/model.safetensors"


def on(device: str, run: Run, *words: object) -> Ended:
    with far_device() if device == "cuda" else nullcontext():
        ended = run(*words, "--device", device)
    assert ended.status == 0, ended.err
    return ended


def same_on_both(run: Run, written: str, *words: object) -> None:
    """The file that the command leaves in ``--out`` is the same, byte for byte."""
    made = []
    for device in ("cpu", "cuda"):
        on(device, run, *words, "--out", device)
        made.append((Path(device) / written).read_bytes())
    assert made[0] == made[1]


@pytest.fixture
def cache(run: Run, student: Path) -> Path:
    collected(run)
    return Path("cache")


def test_train_from_a_cache(run: Run, student: Path, cache: Path) -> None:
    few = as_flags(["prompts_per_update=2", "afd.warmup_turns=1", "discriminator.kind=centroid"])
    same_on_both(run, WEIGHTS, "train", student, "--cache", cache, "--objective", "afd", "--steps", 2, *few)


def test_train_from_encoded_clips(run: Run, student: Path, cache: Path) -> None:
    on("cuda", run, "encode", "--cache", cache, "--student", student, "--out", "encoded")
    same_on_both(run, WEIGHTS, "train", student, "--cache", "encoded", "--steps", 2, *as_flags(["batch=2"]))


def test_distill_quickstart(run: Run, student: Path) -> None:
    same_on_both(run, WEIGHTS, "distill", "quickstart", *as_flags([*QUICKSTART, f"base={student}"]))


def test_distill_base(run: Run) -> None:
    same_on_both(run, WEIGHTS, "distill", "base", *as_flags(BASE))


def test_distill_few(run: Run, student: Path) -> None:
    same_on_both(run, WEIGHTS, "distill", "few", *as_flags([*test_few_steps.SETTINGS, f"student={student}"]))


def test_distill_kd(run: Run, student: Path) -> None:
    same_on_both(run, WEIGHTS, "distill", "kd", *as_flags([*test_knowledge.SETTINGS, f"teacher={student}"]))


def test_distill_folder(run: Run, real_clips: Path) -> None:
    same_on_both(run, WEIGHTS, "distill", "folder", "--clips", real_clips, *as_flags(FOLDER))


@pytest.mark.parametrize("more", [(), ("--whole", "--steps", 2), ("--first-frame", "picture.png")])
def test_stream(run: Run, student: Path, more: tuple[object, ...]) -> None:
    Image.new("RGB", (16, 16), (200, 100, 50)).save("picture.png")
    near, far = streamed_on_both(run, student, *more)
    assert np.abs(near - far).mean() < 0.5  # a picture lies in memory in another way there, so last bits may differ


def test_stream_with_a_light_decoder(run: Run, student: Path, light_decoder: Path) -> None:
    near, far = streamed_on_both(run, student, "--light-decoder", light_decoder)
    assert np.array_equal(near, far)


def streamed_on_both(run: Run, student: Path, *more: object) -> list[NDArray[np.float64]]:
    """The pixels of the videos that are written."""
    made = []
    for device in ("cpu", "cuda"):
        on(device, run, "stream", student, "--prompt", PROMPT, "--frames", 8, "--out", f"{device}.mp4", *more)
        made.append(read_clip(Path(f"{device}.mp4")).frames_FCHW.astype(np.float64))
    return made


def test_a_codec_and_its_light_decoder(run: Run, cache: Path) -> None:
    given = ("--cache", cache, "--size", TINY_SIZE, "--steps", 2)
    learn = as_flags(["learn.reconstruction.adversarial=0.1", "learn.reconstruction.adversarial_from=1"])
    for device in ("cpu", "cuda"):
        on(device, run, "codec", "train", *given, *TINY_CODEC, *learn, "--out", device)
    near, far = (LearnedCodec.from_pretrained(f"{device}/codec").state_dict() for device in ("cpu", "cuda"))
    for name in near:
        torch.testing.assert_close(far[name], near[name], rtol=1e-4, atol=1e-5)
    light = as_flags(["width=8", "batch=2", "rounds=2"])
    on("cuda", run, "codec", "distill", "cpu/codec", *given, *light, "--out", "l")
    assert LightDecoder.from_pretrained("l/light_decoder").config.width == 8


def test_drift(run: Run, student: Path) -> None:
    made = []
    for device in ("cpu", "cuda"):
        on(device, run, "drift", student, "--times", 2, "--count", 2, "--out", f"{device}/drift.json")
        made.append(Path(f"{device}/drift.png").read_bytes())
    assert made[0] == made[1]


def test_devices_by_name() -> None:
    assert device_named("cpu") == torch.device("cpu")
    with far_device():
        assert device_named("cuda:0") == FAR
        with pytest.raises(ValueError, match=r"torch sees 1 GPU\(s\), counted from 0"):
            device_named("cuda:1")


def test_a_gpu_that_would_stand_idle_is_mentioned(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not used" not in run("distill", "base", "--out", "without", *as_flags(BASE)).out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    said = run("distill", "base", "--out", "with", *as_flags(BASE)).out
    assert "Some GPU is here and not used; --device cuda uses it" in said


@pytest.mark.parametrize("word", ["tpu", "cuda:x", "cpu:0", "cuda:"])
def test_an_unknown_device_is_named_before_anything_is_written(run: Run, student: Path, word: str) -> None:
    for words in (("train", student), ("distill", "quickstart"), ("stream", student, "--prompt", PROMPT)):
        run(*words, "--device", word).says(f"unknown device {word!r}; give cpu, cuda, or cuda:N")
    run("drift", student, "--device", word).says(f"unknown device {word!r}")
    assert not Path("runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_missed(run: Run, student: Path) -> None:
    run("train", student, "--device", "cuda").says(
        "--device cuda was asked for and torch sees no GPU; use --device cpu"
    )
    run("encode", "--cache", "c", "--student", student, "--out", "e", "--device", "cuda").says("torch sees no GPU")
