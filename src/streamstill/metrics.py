"""Numbers about clips of any origin, and intervals for numbers about many clips."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from streamstill.types import Clip, Frames

Floats = NDArray[np.float64]

RESAMPLES = 2000
SET_RESAMPLES = 200  # of numbers that are slow to compute
_QUANTILES = (0.025, 0.975)
_SSIM_WINDOW, _SSIM_SIGMA, _SSIM_K = 11, 1.5, (0.01, 0.03)  # Wang et al. 2004, section III.C
_STILL = 32  # 8-bit levels: a pixel nearer to its own median over time shows the background


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number over ``n`` clips with its 95 % bootstrap interval. Without a clip ``n`` is 0 and the rest is NaN."""

    mean: float
    low: float
    high: float
    n: int

    def apart_from(self, other: "Interval") -> bool:
        """Whether the two intervals do not touch."""
        return self.high < other.low or other.high < self.low

    @property
    def words(self) -> str:
        """``0.46 [0.44, 0.48]``; nothing where no clip has the number, as an error of flight where every body rests."""
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]" if self.n else ""

    def as_json(self) -> dict[str, float | int | None]:
        """Plain values; JSON has no NaN, null stands for it."""
        return {name: None if math.isnan(number) else number for name, number in asdict(self).items()}


NO_INTERVAL = Interval(mean=math.nan, low=math.nan, high=math.nan, n=0)


def sharpness(clip: Clip) -> float:
    """Root mean square of the spatial brightness gradient, in 8-bit levels per pixel; blur lowers it, noise raises it.

    (Squared, because a blurred edge has the same mean gradient as a sharp one.)
    """
    luma_FHW = clip.frames_FCHW.astype(np.float32).mean(axis=1)
    down = np.diff(luma_FHW, axis=1)[:, :, :-1]
    across = np.diff(luma_FHW, axis=2)[:, :-1]
    return float(np.sqrt((down**2 + across**2).mean()))


def flicker(clip: Clip) -> float:
    """Mean absolute change between neighbouring frames, in 8-bit levels; zero for a still."""
    if clip.frames_FCHW.shape[0] < 2:
        raise ValueError("flicker needs at least 2 frames, the clip has 1")
    return float(np.abs(np.diff(clip.frames_FCHW.astype(np.float32), axis=0)).mean())


def background_flicker(clip: Clip) -> float:
    """``flicker`` of the still parts: where a pixel is within 32 levels of its median over time in both frames.

    A body that passes is not counted; one that covers a pixel for most of the clip is background there.

    Returns:
        8-bit levels; NaN if no pixel is still for two frames.

    Raises:
        ValueError: the clip has one frame.
    """
    if clip.frames_FCHW.shape[0] < 2:
        raise ValueError("flicker needs at least 2 frames, the clip has 1")
    frames_FCHW = clip.frames_FCHW.astype(np.float32)
    away_FHW: NDArray[np.float32] = np.abs(frames_FCHW - np.median(frames_FCHW, axis=0)).max(axis=1)
    still_FHW: NDArray[np.bool_] = away_FHW <= _STILL
    change_FHW = np.abs(np.diff(frames_FCHW, axis=0)).mean(axis=1)
    kept = change_FHW[still_FHW[1:] & still_FHW[:-1]]
    return float(kept.mean()) if kept.size else math.nan


def brightness(clip: Clip) -> float:
    """Mean of the colours, 0 to 255."""
    return float(clip.frames_FCHW.mean())


def colorfulness(clip: Clip) -> float:
    """Hasler and Suesstrunk 2003, Eqs. 13-15, mean over frames; 0 for grey, above 80 for vivid pictures.

    Streams that feed on themselves often saturate; this is where it shows.
    """
    red, green, blue = clip.frames_FCHW.astype(np.float32).transpose(1, 0, 2, 3)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread, shift = (np.sqrt(np.square(of).sum(axis=0)) for of in (opponents.std((2, 3)), opponents.mean((2, 3))))
    return float((spread + 0.3 * shift).mean())


def psnr(clip: Clip, reference: Clip) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal clips.

    Raises:
        ValueError: the clips have different sizes.
    """
    _require_one_size(clip, reference, "PSNR")
    difference = clip.frames_FCHW.astype(np.float64) - reference.frames_FCHW
    error = float(np.square(difference).mean())
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(clip: Clip, reference: Clip) -> float:
    """Structural similarity, mean over frames, colours and places; 1 for equal clips, which alone reach it.

    Wang et al. 2004: Gaussian window of 11x11 pixels and standard deviation 1.5, K1 = 0.01, K2 = 0.03, and only places
    where the window lies inside the picture. It sees neither colour nor time: every plane of a frame is a picture.

    Raises:
        ValueError: the clips have different sizes, or pictures smaller than the window.
    """
    _require_one_size(clip, reference, "SSIM")
    if min(clip.frames_FCHW.shape[2:]) < _SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs pictures of at least {_SSIM_WINDOW}x{_SSIM_WINDOW}, got {clip.frames_FCHW.shape[2:]}; "
            "use PSNR for smaller ones"
        )
    return float(
        np.mean([_ssim_map(*pair).mean() for pair in zip(clip.frames_FCHW, reference.frames_FCHW, strict=True)])
    )


def frechet_distance(features_ND: Floats, features_MD: Floats) -> float:
    """Squared Frechet distance of two Gaussians with the sets' means and covariances; 0 for equal sets.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), Dowson and Landau 1982. The last trace is the sum of the singular
    values of S1^(1/2) S2^(1/2), so singular covariances, from fewer clips than features, are no trouble. The number
    of small sets is too large by chance: compare sets of one size, and see ``set_interval``.

    Raises:
        ValueError: the sets have different features, fewer than two rows, or a value that is not finite.
    """
    shapes = features_ND.shape, features_MD.shape
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][1] != shapes[1][1] or min(shapes)[0] < 2:
        raise ValueError(
            f"a Frechet distance needs two tables of at least 2 rows with the same columns, got {shapes[0]} and "
            f"{shapes[1]}"
        )
    if not (np.isfinite(features_ND).all() and np.isfinite(features_MD).all()):
        raise ValueError("a Frechet distance needs finite features; leave out the rows that have none")
    (root_DD, trace), (other_DD, other_trace) = _root_covariance(features_ND), _root_covariance(features_MD)
    apart = float(np.square(features_ND.mean(axis=0) - features_MD.mean(axis=0)).sum())
    shared = float(np.linalg.svd(root_DD @ other_DD, compute_uv=False).sum())
    return max(apart + trace + other_trace - 2 * shared, 0.0)


def interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean and 95 % percentile bootstrap interval; values that are not a number are left out.

    Raises:
        ValueError: no value is left.
    """
    kept = np.asarray([value for value in values if not np.isnan(value)], dtype=np.float64)
    if kept.size == 0:
        raise ValueError(f"an interval needs at least one number, got {len(values)} values and none is a number")
    dice = np.random.default_rng(seed)
    means = kept[dice.integers(kept.size, size=(RESAMPLES, kept.size))].mean(axis=1)
    low, high = np.quantile(means, _QUANTILES)
    return Interval(mean=float(kept.mean()), low=float(low), high=float(high), n=int(kept.size))


def interval_if_any(values: Sequence[float]) -> Interval:
    """The same, and ``NO_INTERVAL`` where no value is a number: a long run must not end in an error."""
    return NO_INTERVAL if all(math.isnan(value) for value in values) else interval(values)


def set_interval(
    statistic: Callable[[Floats, Floats], float],
    features_ND: Floats,
    features_MD: Floats,
    *,
    seed: int = 0,
    resamples: int = SET_RESAMPLES,
) -> Interval:
    """A number of two sets of clips with its 95 % basic bootstrap interval; ``n`` is the size of the smaller set.

    Rows are drawn again in both sets. Drawing again makes two sets look farther apart by as much as being small does,
    so twice the found value less the mean of the drawn ones is the estimate, and the interval is turned about the
    found value in the same way. Both may be below 0 where the distributions are equal.
    """
    found = statistic(features_ND, features_MD)
    dice = np.random.default_rng(seed)
    drawn = [statistic(_drawn_again(features_ND, dice), _drawn_again(features_MD, dice)) for _ in range(resamples)]
    high, low = 2 * found - np.quantile(drawn, _QUANTILES)
    count = min(len(features_ND), len(features_MD))
    return Interval(mean=2 * found - float(np.mean(drawn)), low=float(low), high=float(high), n=count)


def interval_over_seeds(
    rows_by_seed: Sequence[Sequence[Mapping[str, float]]], *, same_clips: bool = False, seed: int = 0
) -> dict[str, Interval]:
    """Every number of the clips' rows over several training seeds: mean and 95 % interval, by name.

    Hierarchical bootstrap: seeds are drawn again, then clips within each drawn seed, so the interval also holds what
    another training would change. Every seed counts the same, whatever clips have a number; few seeds make it too
    narrow. Values that are not a number are left out; ``n`` counts the others.

    Args:
        same_clips: every seed answered the same prompts, in one order: then the same ones are drawn for all seeds.
            Drawn for each seed by itself, they would look like so many more prompts than there are.

    Raises:
        ValueError: there is no seed, a seed has no clip, the rows have different names, or seeds with the same clips
            have different numbers of them.
    """
    counts = [len(rows) for rows in rows_by_seed]
    if not counts or not min(counts):
        raise ValueError(f"an interval over seeds needs clips of every seed, got {counts} clips; leave empty seeds out")
    names = {tuple(sorted(row)) for rows in rows_by_seed for row in rows}
    if len(names) > 1:
        raise ValueError(f"every clip needs the same numbers to be pooled over seeds, got {sorted(names)}")
    if same_clips and len(set(counts)) > 1:
        raise ValueError(f"seeds that answered the same prompts have equally many clips, got {counts}")
    pooled = _of_same_clips if same_clips else _hierarchical
    return {name: pooled([[row[name] for row in rows] for rows in rows_by_seed], seed) for name in rows_by_seed[0][0]}


def _hierarchical(values_by_seed: Sequence[Sequence[float]], seed: int) -> Interval:
    groups = [np.asarray([value for value in values if not math.isnan(value)]) for values in values_by_seed]
    groups = [group for group in groups if group.size]
    if not groups:
        return NO_INTERVAL
    dice = np.random.default_rng(seed)
    drawn = np.zeros(RESAMPLES)
    for _ in groups:
        chosen = dice.integers(len(groups), size=RESAMPLES)
        for number, group in enumerate(groups):
            hit = chosen == number
            drawn[hit] += group[dice.integers(group.size, size=(int(hit.sum()), group.size))].mean(axis=1)
    low, high = np.quantile(drawn / len(groups), _QUANTILES)
    mean = float(np.mean([group.mean() for group in groups]))
    return Interval(mean=mean, low=float(low), high=float(high), n=sum(group.size for group in groups))


def _of_same_clips(values_by_seed: Sequence[Sequence[float]], seed: int) -> Interval:
    values_SN = np.asarray(values_by_seed)
    values_SN = values_SN[~np.isnan(values_SN).all(axis=1)]
    if not values_SN.size:
        return NO_INTERVAL
    dice, (seeds, clips) = np.random.default_rng(seed), values_SN.shape
    chosen_RS1 = dice.integers(seeds, size=(RESAMPLES, seeds, 1))
    drawn_RSN = values_SN[chosen_RS1, dice.integers(clips, size=(RESAMPLES, 1, clips))]
    low, high = np.nanquantile(_mean_of_numbers(_mean_of_numbers(drawn_RSN)), _QUANTILES)
    mean = float(_mean_of_numbers(_mean_of_numbers(values_SN)))
    return Interval(mean=mean, low=float(low), high=float(high), n=int((~np.isnan(values_SN)).sum()))


def _mean_of_numbers(values: Floats) -> Floats:
    """Over the last axis; not a number where there is none."""
    numbers = ~np.isnan(values)
    count = numbers.sum(axis=-1)
    total = np.where(numbers, values, 0).sum(axis=-1)
    means: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return means


def _require_one_size(clip: Clip, reference: Clip, what: str) -> None:
    if clip.frames_FCHW.shape != reference.frames_FCHW.shape:
        raise ValueError(
            f"{what} needs clips of one size, got {clip.frames_FCHW.shape} and {reference.frames_FCHW.shape}; "
            "resample one of them first"
        )


def _ssim_map(first_CHW: Frames, second_CHW: Frames) -> Floats:
    x, y = first_CHW.astype(np.float64), second_CHW.astype(np.float64)
    c1, c2 = ((k * 255) ** 2 for k in _SSIM_K)
    mean_x, mean_y = _windowed(x), _windowed(y)
    spread_x, spread_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    shared = _windowed(x * y) - mean_x * mean_y
    alike: Floats = (2 * mean_x * mean_y + c1) * (2 * shared + c2)
    return alike / ((mean_x**2 + mean_y**2 + c1) * (spread_x + spread_y + c2))


def _windowed(values_CHW: Floats) -> Floats:
    """Gaussian mean around every place where the whole window fits, rows then columns."""
    offsets = np.arange(_SSIM_WINDOW) - _SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    for axis in (1, 2):
        places = values_CHW.shape[axis] - _SSIM_WINDOW + 1
        moved = (np.take(values_CHW, range(k, k + places), axis=axis) for k in range(_SSIM_WINDOW))
        total = np.zeros([1])
        for weight, part in zip(weights / weights.sum(), moved, strict=True):
            total = total + weight * part
        values_CHW = total
    return values_CHW


def _drawn_again(features_ND: Floats, dice: np.random.Generator) -> Floats:
    return features_ND[dice.integers(len(features_ND), size=len(features_ND))]


def _root_covariance(features_ND: Floats) -> tuple[Floats, float]:
    """Symmetric square root of the covariance, and the trace of the covariance."""
    values, vectors = np.linalg.eigh(np.cov(features_ND, rowvar=False).reshape(2 * features_ND.shape[1:]))
    kept = np.maximum(values, 0.0)
    return (vectors * np.sqrt(kept)) @ vectors.T, float(kept.sum())
