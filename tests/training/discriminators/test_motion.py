"""Discriminators from scratch: a score that knows its prompt and its motion, whole or chunk by chunk."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from streamstill.training.discriminators.blindfold import Blindfold
from streamstill.training.discriminators.losses import bradley_terry_loss
from streamstill.training.discriminators.motion import (
    ChunkMotionDiscriminator,
    MotionConfig,
    MotionDiscriminator,
    with_changes,
)
from streamstill.training.optim import OptimConfig, build_optimizer
from tests.training.discriminators.parts import OTHER, PROMPT, dice, drifting, pixels


def whole(seed: int = 0, width: int = 16) -> MotionDiscriminator:
    torch.manual_seed(seed)
    return MotionDiscriminator(width)


def chunked(seed: int = 0, width: int = 16) -> ChunkMotionDiscriminator:
    torch.manual_seed(seed)
    return ChunkMotionDiscriminator(width)


def test_the_score_depends_on_the_prompt_and_each_clip_has_its_own() -> None:
    discriminator, clips = whole(), pixels(3)
    score_B = discriminator(clips, [PROMPT] * 3)
    assert score_B.shape == (3,)
    assert len(set(score_B.tolist())) == 3
    assert not torch.allclose(score_B, discriminator(clips, [OTHER] * 3))
    torch.testing.assert_close(discriminator(clips[1:2], [PROMPT]), score_B[1:2])


def test_the_score_depends_on_the_order_of_the_frames() -> None:
    discriminator, clips = whole(), drifting(2, step=2)
    assert not torch.allclose(discriminator(clips, [PROMPT] * 2), discriminator(clips.flip(1), [PROMPT] * 2))


@pytest.mark.parametrize("shape", [(8, 16, 16), (16, 48, 80), (5, 9, 13), (1, 8, 8), (12, 64, 64)])
def test_clips_of_any_length_and_size_are_scored_after_the_blindfold(shape: tuple[int, int, int]) -> None:
    clips = pixels(2, *shape)
    score_B = whole()(Blindfold()(clips, dice()), [PROMPT, OTHER])
    assert score_B.shape == (2,)
    assert torch.isfinite(score_B).all()


def test_it_learns_to_tell_two_motions_apart_through_the_blindfold() -> None:
    discriminator, blindfold, generator = whole(), Blindfold(), dice()
    optimizer = build_optimizer(discriminator, OptimConfig(lr=3e-3))
    still, moving, prompts = drifting(16, step=0), drifting(16, step=3), [PROMPT, OTHER] * 8
    for _ in range(25):
        seen = [blindfold(clips, generator) for clips in (moving, still)]
        teacher_B, student_B = (discriminator(clips, prompts) for clips in seen)
        loss = bradley_terry_loss(teacher_B, student_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (teacher_B > student_B).float().mean() >= 0.9
    assert float(loss.detach()) < math.log(2) / 2


@pytest.mark.parametrize("make", [whole, chunked])
def test_every_parameter_learns(make: Callable[[], nn.Module]) -> None:
    discriminator = make()
    bradley_terry_loss(
        discriminator(drifting(2, step=2), [PROMPT, OTHER]), discriminator(drifting(2, step=0), [PROMPT, OTHER])
    ).backward()
    idle = {name for name, p in discriminator.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert len(idle) == 1
    assert idle.pop().endswith("head.score.bias")  # the Bradley-Terry loss cannot see a constant


def test_changes_are_beside_the_frames_and_the_first_has_none() -> None:
    clips = pixels(2, frames=3)
    beside = with_changes(clips)
    assert torch.equal(beside[:, :, :3], clips)
    assert (beside[:, 0, 3:] == 0).all()
    assert torch.equal(beside[:, 2, 3:], clips[:, 2] - clips[:, 1])


@pytest.mark.parametrize("frames_per_chunk", [1, 2, 3, 4, 8])
def test_what_comes_later_changes_no_score_of_a_chunk_by_a_bit(frames_per_chunk: int) -> None:
    discriminator, chunks = chunked(), 4
    clips = pixels(2, frames=chunks * frames_per_chunk)
    before = discriminator.chunk_scores(clips, [PROMPT, OTHER], chunks=chunks)
    assert before.shape == (2, chunks)
    for chunk in range(chunks):
        changed = clips.clone()
        changed[:, chunk * frames_per_chunk :] = pixels(2, frames=(chunks - chunk) * frames_per_chunk, seed=9)
        after = discriminator.chunk_scores(changed, [PROMPT, OTHER], chunks=chunks)
        assert torch.equal(after[:, :chunk], before[:, :chunk])
        assert not torch.isclose(after[:, chunk], before[:, chunk]).any()


@pytest.mark.parametrize("frames_per_chunk", [1, 3, 4, 8])
def test_every_frame_of_a_chunk_counts_in_its_own_score(frames_per_chunk: int) -> None:
    discriminator, clips = chunked(), pixels(1, frames=2 * frames_per_chunk)
    before = discriminator.chunk_scores(clips, [PROMPT], chunks=2)
    for frame in range(frames_per_chunk, 2 * frames_per_chunk):
        changed = clips.clone()
        changed[:, frame] = pixels(1, frames=1, seed=9)[:, 0]
        after = discriminator.chunk_scores(changed, [PROMPT], chunks=2)
        assert torch.equal(after[:, 0], before[:, 0])
        assert after[0, 1] != before[0, 1]


def test_a_clip_is_one_chunk_when_nothing_else_is_said() -> None:
    discriminator, clips = chunked(), pixels(3)
    expected = discriminator.chunk_scores(clips, [PROMPT] * 3, chunks=1)[:, 0]
    assert torch.equal(discriminator(clips, [PROMPT] * 3), expected)


def test_the_causal_form_has_the_weights_of_the_other() -> None:
    for one, other in zip(whole(3).parameters(), chunked(3).parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("made", [MotionDiscriminator, ChunkMotionDiscriminator])
def test_latents_are_scored_by_their_own_channels(made: type[MotionDiscriminator]) -> None:
    torch.manual_seed(0)
    discriminator = made(16, in_channels=96, sees="latents")
    latents = torch.randn(2, 4, 96, 4, 4, generator=dice())
    score_B = discriminator(latents, [PROMPT, OTHER])
    assert torch.isfinite(score_B).all()
    assert not torch.allclose(score_B, discriminator(latents, [OTHER, PROMPT]))


@pytest.mark.parametrize(
    ("shape", "prompts", "said"),
    [
        ((2, 8, 3, 16), 2, r"takes clips of shape \(B, F, 3, H, W\), got \(2, 8, 3, 16\)"),
        ((2, 8, 96, 4, 4), 2, r"takes clips of shape \(B, F, 3, H, W\), got \(2, 8, 96, 4, 4\)"),
        ((2, 8, 3, 16, 16), 3, "2 clips have 3 prompts; give one each"),
    ],
)
def test_what_is_no_batch_of_clips_with_prompts_is_refused(shape: tuple[int, ...], prompts: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        whole()(torch.zeros(shape), [PROMPT] * prompts)


@pytest.mark.parametrize("chunks", [0, 3, 16])
def test_chunks_that_do_not_divide_the_clip_are_refused(chunks: int) -> None:
    with pytest.raises(ValueError, match=f"8 frames cannot be cut into {chunks} equal chunks"):
        chunked().chunk_scores(pixels(1), [PROMPT], chunks=chunks)


@pytest.mark.parametrize("width", [0, 4, 20])
def test_a_width_that_has_no_groups_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"width must be a multiple of 8, got {width}"):
        MotionConfig(width=width)
