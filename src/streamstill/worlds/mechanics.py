"""A tracked motion against mechanics: what a bounce gives back, and whether energy and momentum are kept."""

import math

import numpy as np
from numpy.typing import NDArray

from streamstill.worlds.flight import Flight, at_rate, bounces_of, clearances, flights_of
from streamstill.worlds.physics import REAL_LAWS, Laws
from streamstill.worlds.tracker import Track

Floats = NDArray[np.float64]

WORST_BOUNCE = 1.0  # no bounce is more wrong than this
WORST_BREACH = 3.0  # neither is a flight, a bounce or a collision whose energy or momentum is not kept

_FEWEST = 4  # frames of a flight whose own acceleration is trusted
_HARD = 0.6  # stage heights per second: a slower approach is too short a flight at 8 frames per second
_MEETING_FPS = 24.0  # at which collisions are read: soon after one the second body meets a wall
_TOUCHING = 0.13  # stage heights between two bodies that are about to meet
_PUSH = 0.35  # stage heights per second: a smaller change of the speed between two bodies is no collision


def restitution_error(seen: Track, laws: Laws = REAL_LAWS) -> float:
    """Mean over bounces of |e - restitution|, each at most ``WORST_BOUNCE``; e is leaving by approaching speed.

    Only balls, whose normal speed no spin changes, and only bounces at 0.6 heights/s or more. A body that stays on
    the side has e = 0.

    Returns:
        0 is right; NaN without a bounce, or if the body is a box.
    """
    if seen.body.shape != "ball":
        return math.nan
    hard = [bounce for part in at_rate(seen) for bounce in bounces_of(part) if bounce.approach >= _HARD]
    errors = [min(abs(bounce.leave / bounce.approach - laws.restitution), WORST_BOUNCE) for bounce in hard]
    return float(np.mean(errors)) if errors else math.nan


def energy_error(seen: Track, laws: Laws = REAL_LAWS) -> float:
    """Mean breach of energy over flights and bounces, in units of a fall through the stage, g * 1 height.

    In flight the energy must stay: the breach is its range, the work that the surplus acceleration does. At a bounce
    it must not rise: the breach is the growth of v^2 / 2. Spin is not seen. Each counts at most ``WORST_BREACH``.

    Returns:
        0 is right; NaN without a flight of four frames and without a bounce.
    """
    pull, strength = _gravity(laws)
    breaches = []
    for part in at_rate(seen):
        for flight in flights_of(part, fewest=_FEWEST):
            places_F2 = part.centroid_F2[flight.first : flight.last + 1]
            breaches.append(float(np.ptp(places_F2 @ (flight.acceleration_2 - pull))))
        for bounce in bounces_of(part):
            growth = float(bounce.after_2 @ bounce.after_2 - bounce.before_2 @ bounce.before_2) / 2
            breaches.append(max(growth, 0.0))
    return float(np.mean([min(breach / strength, WORST_BREACH) for breach in breaches])) if breaches else math.nan


def momentum_error(seen: Track, laws: Laws = REAL_LAWS, *, other: Track | None = None) -> float:
    """How much momentum appears or is lost where none may.

    One body: the change of its sideways velocity (across gravity) in a flight, in units of sqrt(2 g), the speed of a
    fall through the stage; the mean over flights, weighted by their frames. Two bodies: the change of their momentum
    along the floor when they meet, as a share of what the first brought along; masses are those that the prompt asks
    for.

    Returns:
        0 is right; NaN without a flight of four frames, or if the two do not meet away from the walls.
    """
    pull, strength = _gravity(laws)
    if other is not None:
        return _collision_error(seen, other)
    across_2 = np.array([-pull[1], pull[0]]) / strength
    found = [(flight, part.fps) for part in at_rate(seen) for flight in flights_of(part, fewest=_FEWEST)]
    errors = [_sideways_change(flight, across_2, fps) / math.sqrt(2 * strength) for flight, fps in found]
    frames = [flight.last - flight.first + 1 for flight, _ in found]
    return float(np.average(np.minimum(errors, WORST_BREACH), weights=frames)) if found else math.nan


def _gravity(laws: Laws) -> tuple[Floats, float]:
    pull = np.array(laws.gravity)
    strength = float(np.linalg.norm(pull))
    if not strength > 0:
        raise ValueError("energy and momentum are judged by gravity, and these laws have none; give laws that pull")
    return pull, strength


def _sideways_change(flight: Flight, across_2: Floats, fps: float) -> float:
    return abs(float(flight.acceleration_2 @ across_2)) * (flight.last - flight.first) / fps


def _collision_error(first: Track, second: Track) -> float:
    errors = [
        _collision(*pair) for pair in zip(at_rate(first, _MEETING_FPS), at_rate(second, _MEETING_FPS), strict=True)
    ]
    known = [min(error, WORST_BREACH) for error in errors if not math.isnan(error)]
    return float(np.mean(known)) if known else math.nan


def _collision(first: Track, second: Track) -> float:
    """The loss or gain at the first gap of frames, or the one after it, where the speed between the two changes."""
    x_FN = np.stack([first.centroid_F2[:, 0], second.centroid_F2[:, 0]], axis=1)
    step_FN = np.diff(x_FN, axis=0) * first.fps
    change_F = np.abs(np.diff(step_FN[2:] - step_FN[:-2], axis=1)[:, 0])  # of the speed between the two
    pushed = np.flatnonzero(change_F > _PUSH)
    if len(pushed) == 0:
        return math.nan
    gap = int(pushed[0] + np.nanargmax(change_F[pushed[0] : pushed[0] + 2])) + 1
    between = abs(x_FN[gap : gap + 2, 0] - x_FN[gap : gap + 2, 1]).min() - first.body.reach - second.body.reach
    before_N, after_N = step_FN[gap - 1], step_FN[gap + 1]
    farthest = 2 * np.abs(step_FN[gap - 1 : gap + 2]).max() / first.fps
    if between > _TOUCHING or not _away_from_walls((first, second), gap + 1, farthest):
        return math.nan
    mass_N = np.array([first.body.mass, second.body.mass])
    return float(abs((after_N - before_N) @ mass_N) / (np.abs(before_N) @ mass_N))


def _away_from_walls(tracks: tuple[Track, Track], frame: int, farthest: float) -> bool:
    """Whether no body can have met a wall between this frame and the next."""
    return all(bool((clearances(seen)[frame : frame + 2, :2].sum(axis=0) > farthest).all()) for seen in tracks)
