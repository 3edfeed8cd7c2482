"""A motion as a row of numbers of fixed length, for distances between sets of clips."""

import numpy as np
from numpy.typing import NDArray

from streamstill.worlds.tracker import Track

Floats = NDArray[np.float64]

PLACES, SPANS = 8, 5  # moments of a clip at which places are read; equal spans over which motion is averaged
FEATURES = 2 * PLACES + 4 * SPANS + 4


def motion_features(seen: Track) -> Floats:
    """``FEATURES`` numbers, never NaN, for a clip of any length.

    In this order, x before y where there are two: the place at 8 evenly spaced moments (stage heights); the mean
    velocity in 5 equal spans of the clip (heights/s); the mean absolute change of velocity from frame to frame in 5
    equal spans (heights/s), which jitter and bounces raise; mean speed (heights/s); the share of frames that show the
    body; mean and standard deviation of its seen area over the expected one. Where the body is hidden its place is
    interpolated; a body that is never seen stands in the middle.
    """
    place_F2 = _without_gaps(seen)
    velocity_F2 = np.diff(place_F2, axis=0) * seen.fps
    change_F2 = np.abs(np.diff(velocity_F2, axis=0))
    frames = np.arange(len(place_F2))
    moments = np.linspace(0, len(place_F2) - 1, PLACES)
    parts = [np.stack([np.interp(moments, frames, place_F2[:, axis]) for axis in range(2)], axis=1)]
    parts += [_span_means(velocity_F2), _span_means(change_F2)]
    speed = float(np.linalg.norm(velocity_F2, axis=1).mean()) if len(velocity_F2) else 0.0
    whole = [speed, float(seen.visible_F.mean()), float(seen.mass_F.mean()), float(seen.mass_F.std())]
    return np.concatenate([*(part.ravel() for part in parts), whole])


def _without_gaps(seen: Track) -> Floats:
    """Places of all frames: straight lines across gaps, standing still before the first sight and after the last."""
    frames, shown = np.arange(len(seen.visible_F)), np.flatnonzero(seen.visible_F)
    if len(shown) == 0:
        return np.tile([seen.aspect / 2, 0.5], (len(frames), 1))
    return np.stack([np.interp(frames, shown, seen.centroid_F2[shown, axis]) for axis in range(2)], axis=1)


def _span_means(values_F2: Floats) -> Floats:
    """Means over ``SPANS`` equal spans, by the integral of a step function, so that any number of values will do."""
    count = len(values_F2)
    if count == 0:
        return np.zeros((SPANS, 2))
    total = np.concatenate([np.zeros((1, 2)), np.cumsum(values_F2, axis=0)])
    edges = np.linspace(0, count, SPANS + 1)
    at_edges = np.stack([np.interp(edges, np.arange(count + 1), total[:, axis]) for axis in range(2)], axis=1)
    means: Floats = np.diff(at_edges, axis=0) * SPANS / count
    return means
