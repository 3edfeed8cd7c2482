"""A student whose codec or text encoder is not its own: what is saved, what is loaded when, what stays frozen."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamstill.codec.counting import pixel_frames
from streamstill.codec.diffusers_vae import DiffusersCodec
from streamstill.codec.learned import LearnedCodec, LearnedCodecConfig
from streamstill.codec.text_cache import CachedText
from streamstill.flow.times import Sampling
from streamstill.streaming.rollout import rollout
from streamstill.streaming.session import Session
from streamstill.student.student import Student
from streamstill.testing import TINY
from streamstill.types import Geometry
from tests.codec.tiny_models import PROMPTS
from tests.student.borrowed import SIZE, borrowing_student, student_with, wan_codec

LEARNED = LearnedCodecConfig(compression=(2, 4, 4), latent_channels=4, width=8, blocks=1)


@pytest.fixture
def borrowing(tmp_path: Path) -> Student:
    return borrowing_student(tmp_path)


def codec_of(student: Student) -> DiffusersCodec:
    assert isinstance(student.codec, DiffusersCodec)
    return student.codec


def text_of(student: Student) -> CachedText:
    assert isinstance(student.text, CachedText)
    return student.text


def test_it_is_made_saved_and_read_without_loading_what_it_borrows(borrowing: Student, tmp_path: Path) -> None:
    borrowing.save_pretrained(tmp_path / "student")
    again = Student.from_pretrained(tmp_path / "student")
    assert again.config == borrowing.config
    assert again.latent_shape == (4, 4, 2, 2)
    assert again.fingerprint == borrowing.fingerprint
    assert all(name.startswith("network.") for name in again.state_dict())
    assert not any((codec_of(again).loaded, text_of(again).encoder.loaded))


def test_it_streams_the_pixels_of_its_whole_decode(borrowing: Student) -> None:
    session = Session(borrowing, PROMPTS[0], sampling=Sampling(steps=1), seed=3)
    chunks = [torch.from_numpy(session.next_chunk()) for _ in range(2)]
    assert [len(chunk) for chunk in chunks] == [pixel_frames(borrowing.codec, 2), 8]
    with torch.inference_mode():
        latents = rollout(
            borrowing.network,
            borrowing.encode_prompts(PROMPTS[:1]),
            frames=4,
            latent_shape=borrowing.latent_shape[1:],
            sampling=Sampling(steps=1),
            generator=torch.Generator().manual_seed(3),
        )
        pixels, _ = borrowing.codec.decode(latents)
    shown = ((pixels[0].clamp(-1, 1) + 1) * 127.5).round()
    assert (torch.cat(chunks).float() - shown).abs().max() <= 1  # a rounding may fall the other way


def test_embeddings_are_looked_up_where_they_are_kept(borrowing: Student, tmp_path: Path) -> None:
    borrowing.keep_text_in(tmp_path / "kept")
    fresh, nothing = borrowing.encode_prompts(PROMPTS), borrowing.encode_nothing(2)
    borrowing.save_pretrained(tmp_path / "student")
    again = Student.from_pretrained(tmp_path / "student")
    again.keep_text_in(tmp_path / "kept")
    assert torch.equal(again.encode_prompts(PROMPTS), fresh)
    assert torch.equal(again.encode_nothing(2), nothing)
    assert not text_of(again).encoder.loaded


def test_a_student_with_an_encoder_of_its_own_keeps_nothing(tmp_path: Path) -> None:
    student = student_with()
    student.keep_text_in(tmp_path / "kept")
    student.encode_prompts(PROMPTS)
    assert not (tmp_path / "kept").exists()


def test_copies_and_other_sizes_share_what_is_borrowed(borrowing: Student) -> None:
    assert codec_of(deepcopy(borrowing)) is codec_of(borrowing)
    assert text_of(deepcopy(borrowing)).encoder is text_of(borrowing).encoder
    larger = borrowing.resized(Geometry(frames=5, height=32, width=16, fps=8))
    assert larger.latent_shape == (2, 4, 4, 2)
    assert larger.fingerprint == borrowing.fingerprint


@pytest.mark.parametrize(("frames", "said"), [(12, "5 or 13"), (16, "13 or 21"), (1, "5"), (9, "5 or 13")])
def test_clips_of_a_causal_codec_have_its_frames(frames: int, said: str, tmp_path: Path) -> None:
    """Chunks have 2 latent frames: 5 pixel frames in the first, 8 in the others."""
    with pytest.raises(ValueError, match=rf"frames {frames} plus 3 is not divisible by 8, .*; use {said}$"):
        student_with(codec=wan_codec(tmp_path), geometry=replace(SIZE, frames=frames))


def learned(folder: Path) -> Student:
    torch.manual_seed(0)
    LearnedCodec(LEARNED).save_pretrained(folder)
    return student_with(codec=LearnedCodecConfig.of(folder))


def test_a_learned_codec_is_saved_with_the_student(tmp_path: Path) -> None:
    student, codec = learned(tmp_path / "codec"), LearnedCodec.from_pretrained(tmp_path / "codec")
    student.save_pretrained(tmp_path / "student")
    for file in (tmp_path / "codec").iterdir():
        file.unlink()
    again = Student.from_pretrained(tmp_path / "student")
    pixels = torch.rand(1, TINY.frames, 3, TINY.height, TINY.width)
    for one in (student, again, deepcopy(again), again.resized(replace(TINY, height=32))):
        assert torch.equal(one.codec.encode(pixels), codec.encode(pixels))
    assert again.config.codec == LEARNED
    assert again.fingerprint == student.fingerprint


def test_a_learned_codec_does_not_learn_with_the_student(tmp_path: Path) -> None:
    student = learned(tmp_path)
    trainable = {name.split(".")[0]: parameter.requires_grad for name, parameter in student.named_parameters()}
    assert trainable == {"codec": False, "network": True, "text": True}


def test_a_student_does_not_begin_with_a_codec_that_knows_nothing() -> None:
    with pytest.raises(ValueError, match="cannot begin with a learned codec of fresh weights; train the codec first"):
        student_with(codec=LEARNED)
