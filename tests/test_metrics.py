from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamstill.metrics import Interval, flicker, interval, psnr, sharpness
from streamstill.types import Clip


def clip(frames: Any) -> Clip:
    return Clip(frames_FCHW=frames.astype(np.uint8), fps=8)


def checkers(step: int) -> Clip:
    y, x = np.mgrid[:16, :16]
    board = ((y // step + x // step) % 2) * 200
    return clip(np.broadcast_to(board, (4, 3, 16, 16)))


def blurred(sharp: Clip) -> Clip:
    frames = sharp.frames_FCHW.astype(np.float32)
    return clip((frames + np.roll(frames, 1, 2) + np.roll(frames, 1, 3) + np.roll(frames, (1, 1), (2, 3))) / 4)


def test_a_flat_clip_has_no_sharpness_and_no_flicker() -> None:
    flat = clip(np.full((3, 3, 8, 8), 90))
    assert sharpness(flat) == 0
    assert flicker(flat) == 0


def test_blur_lowers_sharpness() -> None:
    assert sharpness(blurred(checkers(4))) < 0.8 * sharpness(checkers(4))


def test_sharpness_of_a_ramp_is_its_slope() -> None:
    ramp = np.broadcast_to(np.arange(16) * 10, (2, 3, 16, 16))
    assert sharpness(clip(ramp)) == pytest.approx(10)


def test_flicker_is_the_mean_change() -> None:
    frames = np.zeros((3, 3, 8, 8))
    frames[1] = 30
    assert flicker(clip(frames)) == pytest.approx(30)


def test_flicker_of_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 frames"):
        flicker(clip(np.zeros((1, 3, 8, 8))))


def test_psnr_of_a_known_error() -> None:
    one, two = np.full((2, 3, 8, 8), 100), np.full((2, 3, 8, 8), 105)
    assert psnr(clip(one), clip(two)) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr(clip(one), clip(one)) == float("inf")


def test_psnr_needs_equal_sizes() -> None:
    with pytest.raises(ValueError, match="clips of one size"):
        psnr(clip(np.zeros((2, 3, 8, 8))), clip(np.zeros((3, 3, 8, 8))))


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_an_interval_holds_its_mean(values: list[float]) -> None:
    found = interval(values)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values))


def test_an_interval_covers_the_truth_about_95_times_in_100() -> None:
    dice = np.random.default_rng(0)
    found = [interval(dice.normal(3, 1, 60).tolist(), seed=k) for k in range(200)]
    assert 178 <= sum(i.low <= 3 <= i.high for i in found) <= 200


def test_what_is_not_a_number_is_left_out_and_nothing_left_is_refused() -> None:
    assert interval([1.0, float("nan"), 3.0]).n == 2
    with pytest.raises(ValueError, match="none is a number"):
        interval([float("nan")])


def test_apart_means_not_touching() -> None:
    low, high = Interval(mean=1, low=0, high=2, n=9), Interval(mean=4, low=3, high=5, n=9)
    assert low.apart_from(high)
    assert high.apart_from(low)
    assert not low.apart_from(Interval(mean=2, low=2, high=4, n=9))
