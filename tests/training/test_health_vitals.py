"""Numbers of clips and of scores, where the answer is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from streamstill import metrics
from streamstill.codec.video import to_pixels
from streamstill.training.health_vitals import (
    START,
    Moves,
    flat,
    from_flat,
    judgement,
    look,
    moves,
    relative_distance,
)
from streamstill.types import Clip
from tests.training.afd_parts import dice
from tests.training.health_parts import vitals

LEVEL = 1 / 127.5  # one 8-bit level


def noise_clip(seed: int = 0) -> Clip:
    frames = np.random.default_rng(seed).integers(0, 256, size=(6, 3, 16, 24), dtype=np.uint8)
    return Clip(frames_FCHW=frames, fps=8)


def waves(*, speed: float = 1.0, size: int = 32) -> Tensor:
    """A wave that travels to the right, ``speed`` pixels a frame."""
    place = torch.arange(size) - speed * torch.arange(8)[:, None]
    return (place * 2 * math.pi / 16).sin()[None, :, None, None].expand(1, 8, 3, size, size)


def test_sharpness_and_flicker_are_those_of_the_reports() -> None:
    """The same definitions as in ``streamstill.metrics``, which training may not import."""
    clips = [noise_clip(seed) for seed in (1, 2)]
    seen = look(torch.stack([to_pixels(clip.frames_FCHW) for clip in clips]))
    assert seen.sharpness == pytest.approx(np.mean([metrics.sharpness(clip) for clip in clips]), rel=1e-5)
    assert seen.flicker == pytest.approx(np.mean([metrics.flicker(clip) for clip in clips]), rel=1e-5)


def test_a_still_does_not_move() -> None:
    still = torch.randn(1, 1, 3, 16, 16, generator=dice()).expand(2, 5, 3, 16, 16)
    seen = look(still)
    assert (seen.motion, seen.moving, seen.flicker) == (0, 0, 0)
    assert seen.sharpness > 0


def test_a_flat_picture_that_brightens_by_ten_levels_a_frame_moves_everywhere() -> None:
    grey = torch.arange(5).mul(10 * LEVEL)[None, :, None, None, None].expand(1, 5, 3, 16, 16)
    seen = look(grey)
    assert (seen.motion, seen.moving, seen.flicker) == pytest.approx((10, 1, 10), rel=1e-5)
    assert seen.sharpness == 0


def test_the_share_of_moving_cells_is_counted() -> None:
    """One cell of 4x4 pixels of sixteen blinks."""
    clip = torch.zeros(1, 4, 3, 16, 16)
    clip[:, 1::2, :, 4:8, 8:12] = 1
    assert look(clip).moving == 1 / 16


def test_flicker_that_averages_out_is_no_motion() -> None:
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    frames = torch.stack([checks, -checks, checks])[None, :, None].expand(1, 3, 3, 16, 16)
    seen = look(frames)
    assert (seen.motion, seen.moving) == (0, 0)
    assert seen.flicker == pytest.approx(255)


def test_a_faster_wave_moves_more_and_is_as_sharp() -> None:
    slow, fast = look(waves(speed=1)), look(waves(speed=2))
    assert fast.motion > 1.5 * slow.motion
    assert fast.sharpness == pytest.approx(slow.sharpness, rel=1e-5)


def test_blur_lowers_sharpness_more_than_motion() -> None:
    clip = noise_clip()
    sharp = to_pixels(clip.frames_FCHW)[None]
    blurred = nn.functional.avg_pool2d(sharp[0], 3, 1, padding=1)[None]
    before, after = look(sharp), look(blurred)
    assert after.sharpness < 0.4 * before.sharpness
    assert after.motion > 0.6 * before.motion


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_clips_smaller_than_a_cell_or_no_multiple_of_it_are_measured_too(size: int) -> None:
    blink = torch.tensor([0.0, 1.0])[None, :, None, None, None].expand(1, 2, 3, 8, size)
    assert look(blink).motion == pytest.approx(127.5)


def test_a_single_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 frames, these have 1; train on longer clips"):
        look(torch.zeros(1, 1, 3, 8, 8))


def test_a_judgement_by_hand() -> None:
    teacher_PM, student_PK = torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0, 2.0], [1.0, 3.0]])
    judged = judgement(teacher_PM, [student_PK, student_PK])
    assert judged.pair_accuracy == (1 + 0.5 + 0 + 0) / 4  # a tie counts half
    assert judged.logit_gap == (2 + 0 - 1 - 3) / 4
    gaps = (2.0, 0.0, -1.0, -3.0)
    assert judged.mean_r == pytest.approx(sum(1 / (1 + math.exp(gap)) for gap in gaps) / 4)
    assert judged.advantage_spread == pytest.approx(math.sqrt(2))
    assert judged.reliability == pytest.approx(1)


def test_a_constant_for_each_prompt_changes_nothing() -> None:
    """That constant is what a Bradley-Terry score leaves open."""
    generator = dice(1)
    teacher, student, again = (torch.randn(5, n, generator=generator).double() for n in (2, 3, 3))
    constant = 100 * torch.randn(5, 1, generator=generator).double()
    plain = judgement(teacher, [student, again])
    moved = judgement(teacher + constant, [student + constant, again + constant])
    for name in ("pair_accuracy", "logit_gap", "mean_r", "advantage_spread", "reliability"):
        assert getattr(moved, name) == pytest.approx(getattr(plain, name), abs=1e-9)


@pytest.mark.parametrize("scorings", [2, 4])
@pytest.mark.parametrize("signal", [0.0, 1.0, 3.0])
def test_reliability_is_the_share_of_variance_that_belongs_to_the_rollouts(signal: float, scorings: int) -> None:
    generator = dice(2)
    true = signal * torch.randn(4000, 2, generator=generator)
    judged = judgement(
        torch.zeros(4000, 1), [true + torch.randn(4000, 2, generator=generator) for _ in range(scorings)]
    )
    assert judged.reliability == pytest.approx(signal**2 / (signal**2 + 1), abs=0.04)
    assert judged.advantage_spread == pytest.approx(math.sqrt(signal**2 + 1), rel=0.03)


def test_scores_without_any_difference_are_not_reliable() -> None:
    same = torch.ones(3, 2)
    judged = judgement(same[:, :1], [same, same])
    assert (judged.reliability, judged.advantage_spread, judged.pair_accuracy, judged.mean_r) == (0, 0, 0.5, 0.5)


def test_distances_are_relative_and_zero_for_equal_weights() -> None:
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    assert relative_distance(one, other) == 0
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    assert relative_distance(one, other) == pytest.approx(0.5)
    assert relative_distance(other, one) == pytest.approx(1)


def test_the_trainers_numbers_are_found_by_their_players() -> None:
    logged = {"student/grad_norm": 0.5, "student/reward": 0.49, "discriminator/pair_accuracy": 0.9, "seconds": 3.0}
    assert moves(logged) == Moves(reward=0.49, student_grad_norm=0.5, pair_accuracy=0.9)
    assert moves({}) == Moves()


numbers = st.floats(-1e6, 1e6)


@given(numbers, st.none() | numbers, st.none() | numbers, st.booleans())
def test_what_is_written_flat_is_read_back(
    error: float, distance: float | None, reward: float | None, judged: bool
) -> None:
    healthy = vitals(7)
    checkup = replace(
        healthy,
        held_out_error=error,
        distance_to_old=distance,
        moves=Moves(reward=reward),
        judgement=healthy.judgement if judged else None,
    )
    assert from_flat(7, flat(checkup), where="here") == checkup


def test_flat_names_are_paths() -> None:
    written = flat(vitals(START, sharpness=3.0))
    assert written["student/sharpness"] == 3.0
    assert written["judgement/mean_r"] == 0.3
    assert "step" not in written


def test_a_number_that_was_not_finite_comes_back_as_not_a_number() -> None:
    back = from_flat(0, {**flat(vitals(0)), "held_out_error": None}, where="here")
    assert math.isnan(back.held_out_error)


@pytest.mark.parametrize("change", [{"student/sharpnes": 1.0}, {"speed": 2.0}])
def test_a_foreign_number_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"health\.jsonl, step 3.* has no field"):
        from_flat(3, {**flat(vitals(3)), **change}, where="health.jsonl")
