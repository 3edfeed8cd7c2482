"""A pipeline's autoencoder and text encoder as codec and text encoder: what they give is what the pipeline gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from streamstill.codec.diffusers_vae import DiffusersCodec
from streamstill.codec.text_models import TextModel
from streamstill.codec.video import to_frames
from streamstill.recipes.open_source import fresh_student, shared_with
from streamstill.student.sandwich import SandwichConfig
from streamstill.teachers.pipelines.clips import PipelineTeacher
from streamstill.teachers.pipelines.opened import OpenPipelineTeacher, pipeline_teacher
from streamstill.teachers.pipelines.parts import codec_of, text_of
from streamstill.types import Geometry
from tests.teachers.pipelines.asking import OTHER, PROMPT, Saved, config_of, request

SIZE = Geometry(frames=13, height=32, width=32, fps=8)


@pytest.fixture(scope="module")
def wan(saved: Saved) -> OpenPipelineTeacher:
    teacher = pipeline_teacher(config_of(saved("wan"), geometry=SIZE, steps=2))
    assert isinstance(teacher, OpenPipelineTeacher)
    return teacher


def test_the_codec_decodes_the_teachers_latents_to_its_clip(wan: OpenPipelineTeacher) -> None:
    pixels, _ = codec_of(wan.clips).decode(wan.latents([request(size=SIZE)]))
    difference = to_frames(pixels[0]).astype(int) - wan.generate(request(size=SIZE)).frames_FCHW
    assert np.abs(difference).max() <= 1


def test_the_text_encoder_reads_as_the_pipeline_does(wan: OpenPipelineTeacher) -> None:
    text = text_of(wan.clips)
    assert text.config.tokens == 48
    torch.testing.assert_close(text.encode([PROMPT, OTHER]), wan.encode_prompts([PROMPT, OTHER]))
    assert text_of(wan.clips, tokens=8).encode([PROMPT]).shape == (1, 8, text.text_width)


def test_taking_parts_out_leaves_the_pipeline_as_it_was(wan: OpenPipelineTeacher) -> None:
    side, before = wan.clips.pipe.tokenizer.padding_side, wan.generate(request(size=SIZE))
    wan.clips.pipe.tokenizer.padding_side = "left"
    try:
        torch.testing.assert_close(text_of(wan.clips).encode([PROMPT]), wan.encode_prompts([PROMPT]))
        assert wan.clips.pipe.tokenizer.padding_side == "left"
    finally:
        wan.clips.pipe.tokenizer.padding_side = side
    codec_of(wan.clips)
    assert np.array_equal(before.frames_FCHW, wan.generate(request(size=SIZE)).frames_FCHW)


def test_the_parts_are_those_that_are_loaded_from_the_folder(wan: OpenPipelineTeacher, saved: Saved) -> None:
    folder: Path = saved("wan")
    assert DiffusersCodec.from_pretrained(folder, subfolder="vae").config == codec_of(wan.clips).config
    again = TextModel.from_pretrained(folder, subfolder="text_encoder", tokenizer="tokenizer", tokens=48)
    assert again.config == text_of(wan.clips).config


def test_with_offload_the_text_encoder_is_not_the_pipelines(saved: Saved) -> None:
    clips = PipelineTeacher.load(config_of(saved("wan"), offload="group"))
    assert not text_of(clips).loaded
    plain = PipelineTeacher.load(config_of(saved("wan")))
    assert text_of(clips).config == text_of(plain).config
    torch.testing.assert_close(text_of(clips).encode([PROMPT]), text_of(plain).encode([PROMPT]))


def test_a_pipeline_without_velocities_still_gives_a_student_its_parts(saved: Saved) -> None:
    clips = PipelineTeacher.load(config_of(saved("unknown"), geometry=SIZE))
    student = fresh_student(shared_with(clips), layout="SLLS", seed=3)
    assert isinstance(student.config.network, SandwichConfig)
    assert student.config.network.layout == "SLLS"
    assert student.latent_shape == (4, 16, 4, 4)
    assert student.fingerprint == fresh_student(shared_with(clips), layout="SLLS", seed=3).fingerprint
    assert student.fingerprint != fresh_student(shared_with(clips), layout="SLLS", seed=4).fingerprint


def test_parts_of_no_known_kind_and_a_missing_size_are_refused(saved: Saved) -> None:
    with pytest.raises(ValueError, match="holds AutoencoderKLCogVideoX, which is no codec here"):
        codec_of(PipelineTeacher.load(config_of(saved("cogvideox"))))
    with pytest.raises(ValueError, match="unknown family of text encoders 'llama'"):
        text_of(PipelineTeacher.load(config_of(saved("hunyuan"), arguments={})), tokens=8)
    with pytest.raises(ValueError, match="set the pipeline's geometry"):
        shared_with(PipelineTeacher.load(config_of(saved("wan"), geometry=None)))
