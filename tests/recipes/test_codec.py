"""The codec's recipes, whole, at tiny size: what they leave, that they go on, and what they refuse."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from streamstill.codec.learned import LearnedCodec, LearnedCodecConfig
from streamstill.codec.light_decoder import LightCodec, LightDecoder
from streamstill.codec.video import to_pixels
from streamstill.config import with_overrides
from streamstill.media import write_clip
from streamstill.recipes.codec import CodecDistill, CodecTrain, run_codec_distill, run_codec_train
from streamstill.recipes.codec_parts import ClipSource, every_clip, open_codec, pacemaker
from streamstill.teachers import Answer, CachedTeacher, ClipStore, FolderTeacher, WorldTeacher
from streamstill.types import Clip, ClipRequest, Geometry
from streamstill.worlds import World
from tests.codec.parts import codec
from tests.recipes.tiny import files, read, saved_student

SIZE = Geometry(frames=8, height=16, width=16, fps=8)
TRAIN = CodecTrain(
    geometry=SIZE,
    codec=LearnedCodecConfig(compression=(2, 4, 4), latent_channels=6, width=8, blocks=1),
    steps=3,
    batch=2,
)
DISTILL = CodecDistill(codec="", geometry=SIZE, width=8, steps=3, batch=2, rounds=2)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=160)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of a square that moves, two of them with one caption."""
    folder = tmp_path_factory.mktemp("clips")
    for number, caption in enumerate(("a red square", "a red square", "a green square", "a blue square")):
        frames = np.full((8, 3, 16, 16), 40, dtype=np.uint8)
        for frame in range(8):
            frames[frame, number % 3, 2 + number : 8 + number, frame : frame + 6] = 220
        write_clip(folder / f"{number}.mp4", Clip(frames_FCHW=frames, fps=8))
        (folder / f"{number}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    """The folder of a finished run of ``codec train``."""
    out = tmp_path_factory.mktemp("runs") / "codec"
    run_codec_train(TRAIN, ClipSource(folder=clips), out, quiet())
    return out


def distil(codec_folder: Path, source: ClipSource, out: Path, **changes: Any) -> dict[str, Any]:
    return run_codec_distill(replace(DISTILL, codec=str(codec_folder), **changes), source, out, quiet())


def test_training_leaves_a_codec_a_strip_and_a_report(trained: Path) -> None:
    assert {"codec/model.safetensors", "codec/config.json", "strip.png", "report.json"} < files(trained)
    report = read(trained / "report.json")
    assert report["trained_on"]["psnr"]["n"] == 3
    assert report["held_out"]["psnr"]["n"] == 1
    assert report["trained_on"]["psnr"]["mean"] > 20  # the linear start alone is better than that
    assert report["trained_on"]["latent_std"] == pytest.approx(1, abs=0.01)
    assert report["codec"]["compression"] == [2, 4, 4]


def test_the_report_is_of_the_saved_codec(trained: Path, clips: Path) -> None:
    ours = LearnedCodec.from_pretrained(trained / "codec")
    teacher = FolderTeacher.open(clips)
    asked = every_clip(teacher, SIZE)
    assert [(request.prompt, request.seed) for request in asked[:2]] == [("a red square", 0), ("a red square", 1)]
    assert len(asked) == 4
    last = to_pixels(teacher.generate(asked[-1]).frames_FCHW)[None]
    with torch.inference_mode():
        error = (ours.decode(ours.encode(last))[0].clamp(-1, 1) - last).square().mean()
    expected = read(trained / "report.json")["held_out"]["psnr"]["mean"]
    assert float(10 * torch.log10(4 / error)) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(("whitening", "even"), [("1.0", True), ("0.5", False)])
def test_the_saved_codec_has_the_scale_that_was_asked_for(
    clips: Path, tmp_path: Path, whitening: str, even: bool
) -> None:
    config = with_overrides(TRAIN, [f"codec.whitening={whitening}"])
    report = run_codec_train(config, ClipSource(folder=clips), tmp_path / "run", quiet())
    assert report["codec"]["whitening"] == float(whitening)
    ours, teacher = LearnedCodec.from_pretrained(tmp_path / "run" / "codec"), FolderTeacher.open(clips)
    shown = [to_pixels(teacher.generate(asked).frames_FCHW) for asked in every_clip(teacher, SIZE)[:3]]
    with torch.inference_mode():
        variance_C = ours.encode(torch.stack(shown)).transpose(1, 2).flatten(2).var(dim=(0, 2), correction=0)
    assert float(variance_C.mean()) == pytest.approx(1, abs=1e-3)
    assert (float(variance_C.max() / variance_C.min()) < 1.01) == even


def test_the_same_run_again_learns_nothing_new_and_other_settings_are_refused(trained: Path, clips: Path) -> None:
    before = (trained / "codec" / "model.safetensors").read_bytes()
    run_codec_train(TRAIN, ClipSource(folder=clips), trained, quiet())
    assert (trained / "codec" / "model.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match=r"holds a run of other settings: seed=0 \(now 1\)"):
        run_codec_train(replace(TRAIN, seed=1), ClipSource(folder=clips), trained, quiet())


def test_distilling_leaves_a_light_decoder_that_is_near_the_full_one(
    trained: Path, clips: Path, tmp_path: Path
) -> None:
    report = distil(trained / "codec", ClipSource(folder=clips), tmp_path / "light")
    assert {"light_decoder/model.safetensors", "light_decoder/config.json", "strip.png", "report.json"} < files(
        tmp_path / "light"
    )
    full = LearnedCodec.from_pretrained(trained / "codec")
    both = LightCodec(full, LightDecoder.from_pretrained(tmp_path / "light" / "light_decoder"))
    assert both.compression == (2, 4, 4)
    found = report["held_out"]
    assert found["to_the_full_decoder"]["psnr"]["mean"] > found["full_to_the_clips"]["psnr"]["mean"]
    assert read(tmp_path / "light" / "report.json")["times"].keys() == {"full", "light"}
    for taken in report["times"].values():
        assert 0 < taken["share"] < 1
        assert taken["decode_ms"]["median"] > 0


def test_a_light_decoder_does_not_go_on_beside_another_codec(trained: Path, clips: Path, tmp_path: Path) -> None:
    copy = tmp_path / "codec"
    LearnedCodec.from_pretrained(trained / "codec").save_pretrained(copy)
    distil(copy, ClipSource(folder=clips), tmp_path / "light")
    other = LearnedCodec.from_pretrained(copy)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    other.save_pretrained(copy)
    with pytest.raises(ValueError, match="holds a run of other settings: codec_weights="):
        distil(copy, ClipSource(folder=clips), tmp_path / "light")


def test_a_discriminator_can_take_part(trained: Path, clips: Path, tmp_path: Path) -> None:
    changes = ["learn.reconstruction.adversarial=0.1", "discriminator.width=8", "steps=2"]
    report = run_codec_train(with_overrides(TRAIN, changes), ClipSource(folder=clips), tmp_path / "a", quiet())
    assert report["trained_on"]["psnr"]["n"] == 3
    assert "discriminator/loss" in (tmp_path / "a" / "train" / "metrics.jsonl").read_text()
    config = with_overrides(replace(DISTILL, codec=str(trained / "codec")), changes)
    run_codec_distill(config, ClipSource(folder=clips), tmp_path / "b", quiet())
    assert "decoder/adversarial" in (tmp_path / "b" / "train" / "metrics.jsonl").read_text()


def cached(cache: Path, *, teachers: int = 1) -> Path:
    store = ClipStore.open(cache)
    for number in range(teachers):
        world = CachedTeacher(WorldTeacher(World(), name=f"world {number}"), store)
        asked = [ClipRequest.of(SIZE, prompt="A red ball is dropped.", seed=seed) for seed in range(3)]
        answers: list[Answer] = [world.ask(request) for request in asked]
        store.add(answers)
    return cache


def test_a_cache_of_a_teacher_is_as_good_as_a_folder(tmp_path: Path) -> None:
    source = ClipSource(cache=cached(tmp_path / "cache"))
    report = run_codec_train(TRAIN, source, tmp_path / "run", quiet())
    assert report["trained_on"]["psnr"]["n"] == 2
    assert read(tmp_path / "run" / "recipe.json")["inputs"] == {"cache": str(tmp_path / "cache")}


def test_the_codec_of_a_student_can_be_distilled_and_its_network_timed(tmp_path: Path, clips: Path) -> None:
    """PatchCodec is linear, and so is the start of the light decoder: it is all but lossless."""
    student = saved_student(tmp_path / "student")
    report = distil(student, ClipSource(folder=clips), tmp_path / "light", student=str(student), steps=1)
    assert report["trained_on"]["to_the_full_decoder"]["psnr"]["mean"] > 45


def test_an_autoencoder_of_diffusers_can_be_distilled(tmp_path: Path, clips: Path) -> None:
    tiny_models = pytest.importorskip("tests.codec.tiny_models")
    tiny_models.wan().save_pretrained(tmp_path / "vae")
    size = Geometry(frames=5, height=32, width=32, fps=8)
    config = replace(DISTILL, codec=str(tmp_path / "vae"), geometry=size, steps=2)
    report = run_codec_distill(config, ClipSource(folder=clips), tmp_path / "light", quiet())
    assert report["light_decoder"]["first_frames"] == 1
    assert report["held_out"]["to_the_full_decoder"]["psnr"]["n"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 4}, "there are 4 clips and held_out=4 of them are kept apart"),
        ({"geometry": replace(SIZE, height=18)}, "height 18 is not divisible by the codec's 4"),
        ({"geometry": replace(SIZE, frames=9)}, "frames 9 is not divisible by the codec's 2"),
    ],
)
def test_clips_that_do_not_fit_are_refused(clips: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_codec_train(replace(TRAIN, **changes), ClipSource(folder=clips), tmp_path / "run", quiet())
    assert not list(tmp_path.rglob("*.safetensors"))


def test_sources_that_are_not_there_are_refused(tmp_path: Path) -> None:
    for wrong in ({}, {"folder": tmp_path, "cache": tmp_path}):
        with pytest.raises(ValueError, match="give --clips DIR"):
            ClipSource(**wrong)
    with pytest.raises(ValueError, match="there is no teacher cache at"):
        run_codec_train(TRAIN, ClipSource(cache=tmp_path / "cache"), tmp_path / "run", quiet())
    assert not (tmp_path / "run").exists()
    source = ClipSource(cache=cached(tmp_path / "cache", teachers=2))
    with pytest.raises(ValueError, match="clips of the teachers"):
        source.clips(SIZE, "", tmp_path, quiet())
    with pytest.raises(ValueError, match="has 6 clips and none of the size 4x16x16@8"):
        source.clips(replace(SIZE, frames=4), "", tmp_path, quiet())
    assert len(source.clips(SIZE, "world 1", tmp_path, quiet())) == 3


def test_what_is_no_codec_and_what_does_not_fit_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no codec; give the folder of a learned codec"):
        open_codec(str(tmp_path))
    with pytest.raises(ValueError, match=r"unknown student folder or preset 'nanno'.*did you mean 'nano'"):
        pacemaker("nanno", codec(), SIZE)
    with pytest.raises(ValueError, match="give a student of this codec, or a preset"):
        pacemaker(str(saved_student(tmp_path / "student")), codec(), SIZE)
    with pytest.raises(ValueError, match="height 12 is not divisible by 8, the codec's 4 times the network's 2"):
        pacemaker("nano", codec(), replace(SIZE, height=12))


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        replace(DISTILL, rounds=0)
    with pytest.raises(ValueError, match=r"codec\.path belongs to a student"):
        CodecTrain(codec=LearnedCodecConfig(path="somewhere"))
