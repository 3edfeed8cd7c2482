"""Pipelines of diffusers' own classes, saved and loaded by the real code, as teachers of clips."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamstill.media import fit
from streamstill.teachers.pipelines.clips import PipelineTeacher
from streamstill.teachers.pipelines.opened import pipeline_teacher
from streamstill.types import Clip, Geometry
from tests.teachers.fakes import same
from tests.teachers.pipelines.asking import OTHER, PROMPT, SIZE, Saved, config_of, picture, request

FAMILIES = ["wan", "wan-of-two", "wan-image", "ltx", "hunyuan", "cogvideox", "unknown"]


def loaded(saved: Saved, family: str = "wan", **changes: Any) -> PipelineTeacher:
    if family == "wan-image":
        changes = {"image": picture(saved(family).parent / "first.png"), **changes}
    return PipelineTeacher.load(config_of(saved(family), **changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip_is_a_function_of_prompt_and_seed(saved: Saved, family: str) -> None:
    teacher, asked = loaded(saved, family), request(7)
    clip = teacher.generate(asked)
    assert clip.geometry == asked.geometry
    assert clip.provenance == {"teacher": teacher.name, "prompt": PROMPT, "seed": "7"}
    torch.manual_seed(3)  # the global generator has no say
    assert same(clip, loaded(saved, family).generate(asked))
    for other in (request(8), request(7, OTHER)):
        assert not np.array_equal(clip.frames_FCHW, teacher.generate(other).frames_FCHW)


def test_a_clip_is_the_pipelines_own_cut_to_what_was_asked(saved: Saved) -> None:
    asked = Geometry(frames=5, height=24, width=20, fps=4)
    teacher = loaded(saved, guidance=4.0, negative_prompt="blurry", arguments={"max_sequence_length": 40})
    (frames_FHWC,) = teacher.pipe(
        prompt=PROMPT,
        negative_prompt="blurry",
        num_frames=9,
        height=32,
        width=32,
        num_inference_steps=3,
        guidance_scale=4.0,
        max_sequence_length=40,
        generator=torch.Generator().manual_seed(2),
    ).frames
    pixels = (255 * frames_FHWC).round().astype(np.uint8).transpose(0, 3, 1, 2)
    wanted = fit(Clip(frames_FCHW=np.ascontiguousarray(pixels), fps=8), asked)
    assert np.array_equal(teacher.generate(request(2, size=asked)).frames_FCHW, wanted.frames_FCHW)


def test_without_a_geometry_the_asked_size_is_rounded_up_at_the_pipelines_own_fps(saved: Saved) -> None:
    asked = Geometry(frames=4, height=20, width=40, fps=8)
    sizes = {family: loaded(saved, family, geometry=None).size_for(asked) for family in ("wan", "ltx", "cogvideox")}
    assert sizes["wan"] == Geometry(frames=9, height=32, width=48, fps=16)  # 7 frames last as long as asked
    assert sizes["ltx"] == Geometry(frames=17, height=32, width=64, fps=25)
    assert sizes["cogvideox"] == Geometry(frames=9, height=32, width=48, fps=8)
    assert loaded(saved, geometry=None).generate(request(size=asked)).geometry == asked


def test_a_pipeline_of_an_unknown_class_shows_clips_in_the_sizes_of_its_vae(saved: Saved) -> None:
    teacher = pipeline_teacher(config_of(saved("unknown"), geometry=None))
    assert isinstance(teacher, PipelineTeacher)
    asked = Geometry(frames=4, height=20, width=40, fps=8)
    assert teacher.size_for(asked) == Geometry(frames=5, height=32, width=48, fps=8)
    assert teacher.generate(request(size=asked)).geometry == asked


def test_with_a_geometry_every_clip_is_cut_from_that_size(saved: Saved) -> None:
    teacher = loaded(saved, geometry=Geometry(frames=6, height=40, width=33, fps=8))
    assert teacher.size_for(SIZE) == Geometry(frames=9, height=48, width=48, fps=8)
    with pytest.raises(
        ValueError, match="the clip is too short: at 8 frames a second it has 9 frames and 10 were asked"
    ):
        teacher.generate(request(size=replace(SIZE, frames=10)))


def test_a_name_says_weights_and_whatever_changes_a_clip(saved: Saved, tmp_path: Path) -> None:
    names = [loaded(saved).name]
    changes: list[dict[str, Any]] = [
        {"steps": 4},
        {"guidance": 2.0},
        {"negative_prompt": "blurry"},
        {"geometry": replace(SIZE, frames=5)},
        {"arguments": {"max_sequence_length": 32}},
        {"dtype": "bfloat16"},
        {"vae_dtype": "bfloat16"},
        {"vae_tiling": True},
    ]
    names += [loaded(saved, **change).name for change in changes]
    plain = loaded(saved)
    names.append(replace(plain, config=replace(plain.config, variant="fp16")).name)  # other files of one commit
    changed = shutil.copytree(saved("wan"), tmp_path / "changed" / "wan")
    weights = next((changed / "transformer").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(bytes(content))
    names.append(PipelineTeacher.load(config_of(changed)).name)
    names += [loaded(saved, "wan-image", image=picture(tmp_path / f"{c}.png", c)).name for c in (10, 90)]
    assert len(set(names)) == len(names)


def test_a_name_does_not_say_where_the_parts_live(saved: Saved, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(saved("wan"), tmp_path / "somewhere" / "wan")
    (elsewhere / ".cache").write_text("not part of the pipeline")
    name = PipelineTeacher.load(config_of(elsewhere, offload="group", offline=True)).name
    assert name == loaded(saved).name
    assert name.startswith("pipeline/wan@")
    assert str(tmp_path) not in name


def test_a_repo_id_is_found_where_the_hub_keeps_it(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--tiny--wan"
    shutil.copytree(saved("wan"), repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = replace(config_of(Path("tiny/wan")), revision="v1", offline=True)
    teacher = PipelineTeacher.load(config)
    assert teacher.name.startswith("pipeline/tiny/wan@0123456789ab/steps=3,")
    ours, theirs = loaded(saved).generate(request()), teacher.generate(request())
    assert np.array_equal(ours.frames_FCHW, theirs.frames_FCHW)


def test_parts_are_frozen_and_of_the_dtypes_asked_for(saved: Saved) -> None:
    pipe = loaded(saved, dtype="bfloat16").pipe
    assert (pipe.transformer.dtype, pipe.text_encoder.dtype, pipe.vae.dtype) == (torch.bfloat16,) * 2 + (torch.float32,)
    for part in (pipe.transformer, pipe.text_encoder, pipe.vae):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_offload_by_groups_and_tiles_make_the_same_clip(saved: Saved) -> None:
    plain = loaded(saved).generate(request())
    assert np.array_equal(loaded(saved, offload="group").generate(request()).frames_FCHW, plain.frames_FCHW)
    tiled = loaded(saved, vae_tiling=True)
    assert tiled.pipe.vae.use_tiling
    assert np.array_equal(tiled.generate(request()).frames_FCHW, plain.frames_FCHW)  # smaller than a tile


def test_quantisation_reaches_the_parts_it_names(saved: Saved) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    saved("wan")  # the extra is there
    from diffusers import TorchAoConfig

    given = {"quant_mapping": {"transformer": TorchAoConfig(torchao.Int8WeightOnlyConfig())}}
    teacher, plain = loaded(saved, quantisation=given), loaded(saved)
    weights = [one.pipe.transformer.blocks[0].ffn.net[2].weight for one in (plain, teacher)]
    assert type(weights[0]) is not type(weights[1])
    assert type(teacher.pipe.text_encoder.shared.weight) is type(plain.pipe.text_encoder.shared.weight)
    assert teacher.name == loaded(saved, quantisation=given).name != plain.name
    gap = teacher.generate(request()).frames_FCHW.astype(int) - plain.generate(request()).frames_FCHW
    assert 0 < np.abs(gap).mean() < 3


def test_pixels_that_are_not_finite_are_refused(saved: Saved) -> None:
    teacher = loaded(saved)
    teacher.pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="gave pixels that are not finite; set dtype and vae_dtype to bfloat16 or"):
        teacher.generate(request())


def test_a_config_that_the_pipeline_cannot_follow_is_refused(saved: Saved) -> None:
    with pytest.raises(
        ValueError, match=r"^WanPipeline has no argument \['eta', 'image'\]; its arguments are \['attention"
    ):
        loaded(saved, image="first.png", arguments={"eta": 1})
    with pytest.raises(ValueError, match=r"^WanImageToVideoPipeline begins with a picture; set image to the file"):
        PipelineTeacher.load(config_of(saved("wan-image")))
    with pytest.raises(ValueError, match=r"^diffusers refuses the quantisation \{'quant_backend': 'none'"):
        loaded(saved, quantisation={"quant_backend": "none", "quant_kwargs": {"bits": 1}})


def test_a_pipeline_of_pictures_is_refused(saved: Saved, tmp_path: Path) -> None:
    import diffusers

    sizes = {
        "block_out_channels": (4, 4),
        "norm_num_groups": 2,
        "layers_per_block": 1,
        "sample_size": 8,
        "add_attention": False,
    }
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    saved("wan")  # the extra is there
    diffusers.DDPMPipeline(diffusers.UNet2DModel(**sizes, **blocks), diffusers.DDPMScheduler()).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match=r"^DDPMPipeline makes no video from text \(its call has no prompt, height"):
        PipelineTeacher.load(config_of(tmp_path))


def test_a_pipeline_that_is_not_there_or_not_whole_is_refused(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no pipeline \(it has no model_index.json\); give a folder that"):
        PipelineTeacher.load(config_of(tmp_path))
    with pytest.raises(ValueError, match=r"^there is no folder nobody/nothing and no pipeline .*; give the folder of"):
        PipelineTeacher.load(config_of(Path("nobody/nothing"), offline=True))
    broken = shutil.copytree(saved("wan"), tmp_path / "broken")
    next((broken / "vae").glob("*.safetensors")).write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"^the pipeline .*broken cannot be loaded \(.*\); save it again"):
        PipelineTeacher.load(config_of(broken))


def test_without_the_extra_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ftfy" else known(name))
    with pytest.raises(
        ModuleNotFoundError, match=r"^local teachers need ftfy; install it with: pip install 'streamstill"
    ):
        PipelineTeacher.load(config_of(tmp_path))
