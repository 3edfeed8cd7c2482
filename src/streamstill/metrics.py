"""Numbers about clips of any origin, and intervals for numbers about many clips."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamstill.types import Clip

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over ``n`` clips with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int

    def apart_from(self, other: "Interval") -> bool:
        """Whether the two intervals do not touch."""
        return self.high < other.low or other.high < self.low


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


def psnr(clip: Clip, reference: Clip) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal clips.

    Raises:
        ValueError: the clips have different sizes.
    """
    if clip.frames_FCHW.shape != reference.frames_FCHW.shape:
        raise ValueError(
            f"PSNR needs clips of one size, got {clip.frames_FCHW.shape} and {reference.frames_FCHW.shape}; "
            "resample one of them first"
        )
    difference = clip.frames_FCHW.astype(np.float64) - reference.frames_FCHW
    error = float(np.square(difference).mean())
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


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
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean=float(kept.mean()), low=float(low), high=float(high), n=int(kept.size))
