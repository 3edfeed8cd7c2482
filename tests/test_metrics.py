import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamstill.metrics import (
    Interval,
    background_flicker,
    brightness,
    colorfulness,
    flicker,
    frechet_distance,
    interval,
    interval_if_any,
    interval_over_seeds,
    psnr,
    set_interval,
    sharpness,
    ssim,
)
from streamstill.types import Clip

Floats = NDArray[np.float64]


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


def test_brightness_is_the_mean_and_grey_has_no_colour() -> None:
    grey = clip(np.full((2, 3, 4, 4), 90))
    assert brightness(grey) == 90
    assert colorfulness(grey) == 0


def test_colorfulness_of_one_colour_is_its_distance_from_grey() -> None:
    red = np.zeros((2, 3, 4, 4))
    red[:, 0] = 200
    assert colorfulness(clip(red)) == pytest.approx(0.3 * math.hypot(200, 100), rel=1e-6)


def test_colorfulness_of_two_halves_is_that_of_the_definition() -> None:
    halves = np.zeros((1, 3, 2, 2))
    halves[0, 0, 0], halves[0, 1, 1] = 100, 100  # red above, green below: red-green is +-100, yellow-blue 50
    assert colorfulness(clip(halves)) == pytest.approx(100 + 0.3 * 50, rel=1e-6)


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


def noise_clip(seed: int, frames: int = 2, height: int = 14, width: int = 17) -> Clip:
    return clip(np.random.default_rng(seed).integers(0, 256, size=(frames, 3, height, width)))


def test_ssim_of_flat_clips_is_known() -> None:
    """Without contrast only the means count: (2ab + c1) / (a^2 + b^2 + c1)."""
    one, two = np.full((2, 3, 12, 12), 100), np.full((2, 3, 12, 12), 150)
    c1 = (0.01 * 255) ** 2
    assert ssim(clip(one), clip(two)) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))
    assert ssim(clip(one), clip(one)) == 1


def test_ssim_is_that_of_the_definition() -> None:
    """Every window by itself, with a two-dimensional kernel."""
    one, two = noise_clip(0), noise_clip(1)
    offsets = np.arange(11) - 5
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    c1, c2, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for x_plane, y_plane in zip(one.frames_FCHW.reshape(-1, 14, 17), two.frames_FCHW.reshape(-1, 14, 17), strict=True):
        for row in range(4):
            for column in range(7):
                x, y = (plane[row : row + 11, column : column + 11].astype(float) for plane in (x_plane, y_plane))
                mx, my = (kernel * x).sum(), (kernel * y).sum()
                vx, vy = (kernel * (x - mx) ** 2).sum(), (kernel * (y - my) ** 2).sum()
                shared = (kernel * (x - mx) * (y - my)).sum()
                found.append((2 * mx * my + c1) * (2 * shared + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(one, two) == pytest.approx(np.mean(found))
    assert ssim(two, one) == pytest.approx(ssim(one, two))


def test_blur_and_noise_lower_ssim_and_an_inverted_picture_is_below_0() -> None:
    sharp = checkers(4)
    assert ssim(blurred(sharp), sharp) < 0.99
    assert ssim(noise_clip(0, 4, 16, 16), sharp) < 0.2
    assert ssim(clip(200 - sharp.frames_FCHW), sharp) < 0


def test_ssim_refuses_other_sizes_and_pictures_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="SSIM needs clips of one size"):
        ssim(clip(np.zeros((2, 3, 12, 12))), clip(np.zeros((2, 3, 12, 13))))
    with pytest.raises(ValueError, match=r"at least 11x11, got \(10, 16\)"):
        ssim(clip(np.zeros((2, 3, 10, 16))), clip(np.zeros((2, 3, 10, 16))))


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


def test_nothing_to_average_is_no_interval_where_that_may_be() -> None:
    nothing = interval_if_any([math.nan])
    assert nothing.n == 0
    assert nothing.words == ""
    assert Interval(mean=0.4567, low=0.441, high=0.48, n=2).words == "0.457 [0.441, 0.48]"
    assert nothing.as_json() == {"mean": None, "low": None, "high": None, "n": 0}
    assert interval_if_any([1.0, math.nan, 3.0]) == interval([1.0, 3.0])


def test_apart_means_not_touching() -> None:
    low, high = Interval(mean=1, low=0, high=2, n=9), Interval(mean=4, low=3, high=5, n=9)
    assert low.apart_from(high)
    assert high.apart_from(low)
    assert not low.apart_from(Interval(mean=2, low=2, high=4, n=9))


def test_a_body_that_passes_is_no_background_flicker() -> None:
    frames = np.full((8, 3, 16, 16), 30)
    for frame in range(8):
        frames[frame, :, 6:9, 2 * frame : 2 * frame + 2] = 220
    assert flicker(clip(frames)) > 5
    assert background_flicker(clip(frames)) == 0


def test_background_flicker_of_a_still_room_is_its_flicker() -> None:
    frames = np.full((6, 3, 8, 8), 100)
    frames[::2] = 110
    assert background_flicker(clip(frames)) == pytest.approx(10) == flicker(clip(frames))
    frames[:, :, 2:5, 2:5] = np.array([0, 250, 0, 250, 0, 250])[:, None, None, None]
    assert background_flicker(clip(frames)) == pytest.approx(10)


def test_background_flicker_needs_a_still_pixel_and_two_frames() -> None:
    wild = np.zeros((2, 3, 4, 4))
    wild[1] = 255
    assert math.isnan(background_flicker(clip(wild)))
    with pytest.raises(ValueError, match="at least 2 frames"):
        background_flicker(clip(np.zeros((1, 3, 8, 8))))


def correlated(rows: int, columns: int, *, seed: int = 0) -> Floats:
    dice = np.random.default_rng(seed)
    return dice.normal(size=(rows, columns)) @ dice.normal(size=(columns, columns))


def test_the_frechet_distance_of_equal_sets_is_zero() -> None:
    for rows, columns in ((50, 5), (10, 30), (2, 1)):  # singular covariances too
        features = correlated(rows, columns)
        assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6 * np.square(features).sum())
        shuffled = np.random.default_rng(1).permutation(features)
        assert frechet_distance(features, shuffled) == pytest.approx(0, abs=1e-6 * np.square(features).sum())


def test_the_frechet_distance_of_known_gaussians() -> None:
    """Whitened samples have exactly the covariance that they are given."""
    raw = correlated(200, 4)
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    one, two, shift = np.array([1.0, 2, 3, 0]), np.array([4.0, 1, 3, 2]), np.array([0.5, 0, -1, 2])
    expected = (shift**2).sum() + ((one - two) ** 2).sum()  # of standard deviations, where axes are shared
    assert frechet_distance(white * one, white * two + shift) == pytest.approx(expected)
    turn, _ = np.linalg.qr(correlated(4, 4, seed=3))
    assert frechet_distance(white * one @ turn, (white * two + shift) @ turn) == pytest.approx(expected)


def test_the_frechet_distance_of_covariances_that_do_not_commute() -> None:
    """Against the definition: the trace of the root of S1 S2 is the sum of the roots of its eigenvalues."""
    one, two = correlated(60, 5, seed=1), correlated(80, 5, seed=2) + 1
    first, second = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    shared = np.sqrt(np.linalg.eigvals(first @ second).real).sum()
    expected = np.square(one.mean(0) - two.mean(0)).sum() + np.trace(first + second) - 2 * shared
    assert frechet_distance(one, two) == pytest.approx(expected)
    assert frechet_distance(two, one) == pytest.approx(expected)


def test_the_frechet_distance_refuses_what_it_cannot_compare() -> None:
    for other in (np.zeros((5, 3)), np.zeros((1, 2)), np.zeros(4)):
        with pytest.raises(ValueError, match="same columns"):
            frechet_distance(np.zeros((4, 2)), other)
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(np.full((4, 2), np.nan), np.zeros((4, 2)))


@pytest.mark.parametrize(("shift", "least"), [(0.0, 36), (0.5, 34)])
def test_the_interval_of_a_distance_covers_the_truth(shift: float, least: int) -> None:
    """40 pairs of sets; the raw distance is too large by chance, the estimate is not."""
    dice = np.random.default_rng(0)
    pairs = [(dice.normal(size=(60, 4)), dice.normal(size=(60, 4)) + shift) for _ in range(40)]
    truth = 4 * shift**2
    found = [set_interval(frechet_distance, one, two, seed=k, resamples=60) for k, (one, two) in enumerate(pairs)]
    assert sum(i.low <= truth <= i.high for i in found) >= least
    raw = np.mean([frechet_distance(one, two) for one, two in pairs])
    assert abs(np.mean([i.mean for i in found]) - truth) < 0.6 * (raw - truth)
    assert found[0].n == 60


def test_the_interval_of_a_difference_of_means_is_the_usual_one() -> None:
    dice = np.random.default_rng(0)
    one, two = dice.normal(size=(400, 1)), dice.normal(2, 1, size=(400, 1))
    found = set_interval(lambda a, b: float(b.mean() - a.mean()), one, two, resamples=400)
    assert found.mean == pytest.approx(2, abs=0.15)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(2 / 400), rel=0.2)


def seeds_of(means: list[float], *, clips: int = 50, spread: float = 1.0) -> list[list[dict[str, float]]]:
    dice = np.random.default_rng(0)
    return [[{"error": float(value)} for value in dice.normal(mean, spread, clips)] for mean in means]


def test_seeds_that_differ_widen_the_interval() -> None:
    alike = interval_over_seeds(seeds_of([1.0] * 5))["error"]
    apart = interval_over_seeds(seeds_of([0.0, 0.5, 1.0, 1.5, 2.0]))["error"]
    assert alike.n == apart.n == 250
    assert apart.high - apart.low > 3 * (alike.high - alike.low)
    assert alike.low < 1 < alike.high


def test_the_interval_over_one_seed_is_the_interval_over_its_clips() -> None:
    (rows,) = seeds_of([3.0])
    pooled, plain = interval_over_seeds([rows])["error"], interval([row["error"] for row in rows])
    assert pooled.mean == pytest.approx(plain.mean)
    assert pooled.low == pytest.approx(plain.low, abs=0.05)
    assert pooled.high == pytest.approx(plain.high, abs=0.05)


def test_without_spread_inside_seeds_only_the_draw_of_seeds_counts() -> None:
    """Two seeds of 0 and 1: their drawn mean is 0, 1/2 or 1, so both ends are reached."""
    found = interval_over_seeds([[{"x": 0.0}] * 9, [{"x": 1.0}] * 3])["x"]
    assert (found.mean, found.low, found.high, found.n) == (0.5, 0.0, 1.0, 12)


def test_every_seed_counts_the_same_whatever_clips_have_a_number() -> None:
    nan = math.nan
    rows = [[{"a": 0.0, "b": nan}] * 6, [{"a": nan, "b": nan}, {"a": 1.0, "b": nan}], [{"a": nan, "b": nan}]]
    found = interval_over_seeds(rows)
    assert found["a"].mean == 0.5
    assert found["a"].n == 7
    assert found["b"].n == 0
    assert math.isnan(found["b"].mean)


def test_seeds_that_cannot_be_pooled_are_refused() -> None:
    for nothing in ([], [[{"a": 1.0}], []]):
        with pytest.raises(ValueError, match="clips of every seed"):
            interval_over_seeds(nothing)
    with pytest.raises(ValueError, match="same numbers"):
        interval_over_seeds([[{"a": 1.0}], [{"b": 1.0}]])


def test_seeds_with_the_same_prompts_are_no_more_prompts() -> None:
    (rows,) = seeds_of([0.0], clips=60)
    alone, thrice = interval_over_seeds([rows])["error"], interval_over_seeds([rows] * 3, same_clips=True)["error"]
    assert thrice.mean == pytest.approx(alone.mean)
    assert thrice.high - thrice.low == pytest.approx(alone.high - alone.low, rel=0.1)
    apart = interval_over_seeds([rows] * 3)["error"]
    assert apart.high - apart.low < 0.7 * (thrice.high - thrice.low)


def test_the_interval_of_shared_prompts_holds_the_truth_as_often_as_it_says() -> None:
    """Prompts differ by 1, seeds by nothing; their mean of 0 must lie inside about 95 times in 100."""
    dice, held = np.random.default_rng(1), 0
    for _ in range(100):
        prompts = dice.normal(0, 1, 64)
        rows = [
            [{"x": float(prompt + noise)} for prompt, noise in zip(prompts, dice.normal(0, 0.3, 64), strict=True)]
            for _ in range(3)
        ]
        found = interval_over_seeds(rows, same_clips=True)["x"]
        held += found.low <= 0 <= found.high
    assert 88 <= held <= 99


def test_shared_prompts_may_lack_numbers_and_must_be_as_many() -> None:
    nan = math.nan
    found = interval_over_seeds([[{"x": 1.0}, {"x": nan}], [{"x": nan}, {"x": nan}]], same_clips=True)["x"]
    assert (found.mean, found.low, found.high, found.n) == (1.0, 1.0, 1.0, 1)
    assert interval_over_seeds([[{"x": nan}]], same_clips=True)["x"].n == 0
    with pytest.raises(ValueError, match=r"equally many clips, got \[2, 1\]"):
        interval_over_seeds([[{"x": 1.0}] * 2, [{"x": 1.0}]], same_clips=True)
