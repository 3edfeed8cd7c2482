"""Flights and bounces read from a track: where the body moves freely, and how fast it comes and goes at a side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streamstill.worlds.tracker import Track

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

FLIGHT_FPS = 8.0  # at which flights are read: at a higher rate jitter would drown accelerations
SIDES = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # away from left, right, ceiling, floor

_NEAR = 0.13  # stage heights: a frame next to a bounce is at most so far from the side
_KICK = 0.35  # stage heights per second: a smaller change of speed is no bounce
_LYING = 0.02  # stage heights: two neighbouring frames nearer than this are no flight
_RIM_SHARE = 0.2
_SLACK = 0.5  # frames by which two flights may miss the gap in which they should meet


@dataclass(frozen=True, kw_only=True, eq=False)
class Flight:
    """The parabola through the frames ``first`` to ``last``: place and velocity at time 0, acceleration.

    Stage heights and seconds; time 0 is frame 0 of the track.
    """

    first: int
    last: int
    start_2: Floats
    velocity_2: Floats
    acceleration_2: Floats

    def velocity_at(self, time: float) -> Floats:
        """Velocity in stage heights per second."""
        return self.velocity_2 + self.acceleration_2 * time


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounce:
    """The velocities right before and after a contact with the side whose inner normal is ``away_2``.

    A body that stays on the side counts as standing still afterwards.
    """

    away_2: Floats
    before_2: Floats
    after_2: Floats

    @property
    def approach(self) -> float:
        """Speed towards the side; negative for a body that was leaving it."""
        return -float(self.before_2 @ self.away_2)

    @property
    def leave(self) -> float:
        """Speed away from the side."""
        return float(self.after_2 @ self.away_2)


@dataclass(frozen=True, kw_only=True)
class _Contact:
    gap: int  # between this frame and the next
    side: int


def at_rate(seen: Track, fps: float = FLIGHT_FPS) -> list[Track]:
    """The track at about ``fps``, or its own rate if that is lower, once for every frame it can begin with."""
    stride = max(1, round(seen.fps / fps))
    return [
        replace(
            seen,
            centroid_F2=seen.centroid_F2[phase::stride],
            mass_F=seen.mass_F[phase::stride],
            visible_F=seen.visible_F[phase::stride],
            fps=seen.fps / stride,
        )
        for phase in range(min(stride, len(seen.centroid_F2)))
    ]


def clearances(seen: Track) -> Floats:
    """Distance of the body's farthest point from left, right, ceiling and floor, as (frames, 4)."""
    x_F, y_F = seen.centroid_F2.T
    return np.stack([x_F, seen.aspect - x_F, y_F, 1 - y_F], axis=1) - seen.body.reach


def flights_of(seen: Track, *, fewest: int) -> list[Flight]:
    """The flights of at least ``fewest`` frames (3 or more), each with its own acceleration."""
    parts = [part for part in _free_parts(seen, _contacts(seen)) if len(part) >= fewest]
    return [_fit(seen, part, _acceleration(seen, [part])) for part in parts]


def bounces_of(seen: Track) -> list[Bounce]:
    """Contacts with a side that have a flight of two frames or more before them, and one or rest after them.

    The flights share one acceleration, the best for the whole clip, so that two frames are enough to know a velocity.
    The contact is where the two flights meet; if that is not between their frames, it is no bounce. A body that meets
    two sides between two frames is left out: friction mixes the two.
    """
    contacts = _contacts(seen)
    parts = [part for part in _free_parts(seen, contacts) if len(part) >= 2]
    if not any(len(part) >= 3 for part in parts):
        return []
    shared = _acceleration(seen, parts)
    flights = [_fit(seen, part, shared) for part in parts]
    ends, starts = {flight.last: flight for flight in flights}, {flight.first: flight for flight in flights}
    gaps = [contact.gap for contact in contacts]
    met = [
        _meeting(ends[contact.gap], starts[contact.gap + 1], contact, seen.fps)
        for contact in contacts
        if contact.gap in ends and contact.gap + 1 in starts and gaps.count(contact.gap) == 1
    ]
    return [bounce for bounce in met if bounce] + _landings(seen, flights)


def _meeting(before: Flight, after: Flight, contact: _Contact, fps: float) -> Bounce | None:
    """The bounce between two flights of one acceleration, so that along the normal they meet exactly once."""
    away_2 = SIDES[contact.side]
    change = float((after.velocity_2 - before.velocity_2) @ away_2)
    time = float((before.start_2 - after.start_2) @ away_2) / change if change > 0 else -1.0
    if not contact.gap - _SLACK <= time * fps <= contact.gap + 1 + _SLACK:
        return None
    return Bounce(away_2=away_2, before_2=before.velocity_at(time), after_2=after.velocity_at(time))


def _landings(seen: Track, flights: Sequence[Flight]) -> list[Bounce]:
    """Flights that end with the body lying on a side for two frames or more."""
    lying_F4 = _lying(seen)
    return [
        Bounce(away_2=SIDES[side], before_2=flight.velocity_at((flight.last + 1) / seen.fps), after_2=np.zeros(2))
        for flight in flights
        for side in range(4)
        if flight.last + 2 < len(lying_F4) and lying_F4[flight.last + 1 : flight.last + 3, side].all()
    ]


def _contacts(seen: Track) -> list[_Contact]:
    """Where the speed along a side's normal changes more than in the rest of the clip, next to that side."""
    near_F4 = clearances(seen)
    bend_F4 = np.full_like(near_F4, np.nan)
    bend_F4[1:-1] = np.diff(near_F4, n=2, axis=0)
    known_F = ~np.isnan(bend_F4[:, 0])
    if not known_F.any():
        return []
    bend_F4 -= np.median(bend_F4[known_F], axis=0)
    return [
        _Contact(gap=int(frame) - int(_came_before(bend_F4[frame - 1 : frame + 2, side])), side=int(side))
        for frame, side in np.argwhere(near_F4 < _NEAR)
        if 0 < frame < len(near_F4) - 1
        and near_F4[frame, side] <= np.nanmin(near_F4[[frame - 1, frame + 1], side], initial=_NEAR)
        and np.nansum(bend_F4[frame - 1 : frame + 2, side]) * seen.fps > _KICK
    ]


def _came_before(bends_3: Floats) -> bool:
    """Whether a contact came before the frame nearest to the side, rather than after it.

    A contact bends the path at the two frames around it, so the stronger neighbour tells. At the rim of the clip one
    neighbour is not known, and the other has to be bent by a fifth of what the frame itself is.
    """
    before, here, after = bends_3
    if np.isnan(before):
        return bool(after <= _RIM_SHARE * here)
    return bool(before > (_RIM_SHARE * here if np.isnan(after) else after))


def _lying(seen: Track) -> Flags:
    """Which frames show the body lying on which side, as (frames, 4)."""
    low_F4: Flags = clearances(seen) < _LYING
    lying_F4 = np.zeros_like(low_F4)
    lying_F4[1:] = low_F4[1:] & low_F4[:-1]
    lying_F4[:-1] |= low_F4[1:] & low_F4[:-1]
    return lying_F4


def _free_parts(seen: Track, contacts: Sequence[_Contact]) -> list[NDArray[np.intp]]:
    """Rows of neighbouring frames in which the body is seen, lies nowhere and meets nothing."""
    free = np.flatnonzero(seen.visible_F & ~_lying(seen).any(axis=1))
    after_contact = [contact.gap + 1 for contact in contacts]
    cuts = np.flatnonzero((np.diff(free) > 1) | np.isin(free[1:], after_contact)) + 1
    return [part for part in np.split(free, cuts) if len(part)]


def _acceleration(seen: Track, parts: Sequence[NDArray[np.intp]]) -> Floats:
    """The acceleration that fits all parts best in least squares, each with a place and a velocity of its own."""
    top_2, bottom = np.zeros(2), 0.0
    for part in parts:
        time = (part - part.mean()) / seen.fps
        curve = time**2 / 2
        curve -= curve.mean()  # no slope is left in it: the times are symmetric
        top_2 = top_2 + curve @ seen.centroid_F2[part]
        bottom += float(curve @ curve)
    return top_2 / bottom


def _fit(seen: Track, part: NDArray[np.intp], acceleration_2: Floats) -> Flight:
    time = part / seen.fps
    straight_F2 = seen.centroid_F2[part] - time[:, None] ** 2 / 2 * acceleration_2
    offset = time - time.mean()
    velocity_2 = offset @ straight_F2 / float(offset @ offset)
    return Flight(
        first=int(part[0]),
        last=int(part[-1]),
        start_2=straight_F2.mean(axis=0) - velocity_2 * time.mean(),
        velocity_2=velocity_2,
        acceleration_2=acceleration_2,
    )
