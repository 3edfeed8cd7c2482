"""Measures of a clip that no objective sees: does it move as it should, does it stay, does it show the prompt?"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from streamstill.types import Clip, ClipRequest
from streamstill.worlds.grammar import Scene, parse
from streamstill.worlds.mechanics import energy_error, momentum_error, restitution_error
from streamstill.worlds.physics import REAL_LAWS, Laws
from streamstill.worlds.tracker import Track, color_masses, track

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

WORST_ERROR = 3.0  # a triple is never more wrong than this; neither is a body that vanished
FREE_ACTIONS = ("drop", "throw left", "throw right", "move")  # where physics_error has a meaning

_CLEARANCE = 0.02  # stage heights
_TRIPLE_STEP = 1 / 8  # seconds between the frames of a triple
_FEWEST_TRIPLES = 2
_SIZE_TOLERANCE = 0.35
_BEFORE_A_WALL = 0.5  # seconds
_FIRST_MOMENT = 1 / 8  # seconds in which a dropped body has no time to go sideways
_SIDEWAYS = 0.3  # stage heights per second
_STIR = 0.05  # stage heights per second: slower than this is standing still
_THROWN = 0.02  # stage heights in the first quarter


def judge(clip: Clip, asked: ClipRequest | str, laws: Laws = REAL_LAWS) -> dict[str, float]:
    """Every measure by name, NaN where it has no meaning.

    The first three are for drops and throws (``momentum_error`` for collisions as well), the others for every scene.
    """
    scene = parse(asked if isinstance(asked, str) else asked.prompt)
    seen = track(clip, scene)
    free = scene.action in FREE_ACTIONS
    return {
        "physics_error": physics_error(seen, laws) if free else math.nan,
        "restitution_error": restitution_error(seen, laws) if free else math.nan,
        "energy_error": energy_error(seen, laws) if free else math.nan,
        "momentum_error": _momentum_error(clip, scene, seen, laws),
        "permanence": permanence(seen),
        "size_error": size_error(seen),
        "dynamic_degree": dynamic_degree(seen),
        "prompt_obedience": prompt_obedience(clip, scene, seen),
    }


def physics_error(seen: Track, laws: Laws = REAL_LAWS) -> float:
    """How wrong free flight is: mean of |a - g| / |g| over flights, each at most ``WORST_ERROR``.

    A flight is a row of triples of frames 1/8 s apart (the nearest whole number of frames) in which the body cannot
    have touched anything: every centroid is clear of floor, ceiling and walls by the body's reach, and no side was
    near enough for a bounce in between. ``a`` is the acceleration of the parabola that fits the flight best in least
    squares, so jitter averages out over a flight. A flight counts as often as it has triples; a triple with a frame
    where the body is not visible counts as ``WORST_ERROR``.

    Returns:
        0 is right, 1 is what a body without gravity gets; NaN if fewer than two triples count.
    """
    pull = np.array(laws.gravity)
    strength = float(np.linalg.norm(pull))
    if not strength > 0:
        raise ValueError("physics_error compares with gravity, and these laws have none; give laws that pull")
    stride = max(1, round(seen.fps * _TRIPLE_STEP))
    first, middle, last = (seen.centroid_F2[i * stride : len(seen.centroid_F2) - (2 - i) * stride] for i in range(3))
    acceleration = (last - 2 * middle + first) * (seen.fps / stride) ** 2
    hidden: Flags = np.isnan(acceleration[:, 0])
    errors = [WORST_ERROR] * int(hidden.sum())
    flying = _in_flight(seen, strength, stride)
    for flight in _flights(acceleration, flying, stride):
        error = float(np.linalg.norm(_parabola(flight) - pull)) / strength
        errors += [min(error, WORST_ERROR)] * len(flight)
    return float(np.mean(errors)) if len(errors) >= _FEWEST_TRIPLES else math.nan


def _flights(acceleration: Floats, flying: Flags, stride: int) -> list[Floats]:
    """Rows of neighbouring triples in flight, each a table of second differences."""
    flights: list[Floats] = []
    for phase in range(stride):
        ups = np.flatnonzero(flying[phase::stride])
        parts = np.split(ups, np.flatnonzero(np.diff(ups) > 1) + 1)
        flights += [acceleration[phase::stride][part] for part in parts if len(part)]
    return flights


def _parabola(second_differences: Floats) -> Floats:
    """Acceleration of the least-squares parabola through a flight: its second differences, the middle ones most."""
    count = len(second_differences)
    place = np.arange(count)
    weight = (place + 1.0) * (place + 2) * (count - place) * (count - place + 1)
    return np.average(second_differences, axis=0, weights=weight)


def dynamic_degree(seen: Track) -> float:
    """Mean speed of the centroid in stage heights per second, over neighbouring frames that both show the body."""
    speeds = np.linalg.norm(np.diff(seen.centroid_F2, axis=0), axis=1) * seen.fps
    speeds = speeds[~np.isnan(speeds)]
    return float(speeds.mean()) if len(speeds) else 0.0


def permanence(seen: Track) -> float:
    """Share of the frames after the first sight of the body in which it is visible with about its mass.

    About means within 35 % of its own median, so a body of a wrong but steady size is permanent.

    Returns:
        1 is right; 0 for a body that is never seen; NaN if no frame follows.
    """
    if not seen.visible_F.any():
        return 0.0
    usual = float(np.median(seen.mass_F[seen.visible_F]))
    steady_F = seen.visible_F & (np.abs(seen.mass_F / usual - 1) <= _SIZE_TOLERANCE)
    later_F = steady_F[int(seen.visible_F.argmax()) + 1 :]
    return float(later_F.mean()) if len(later_F) else math.nan


def size_error(seen: Track) -> float:
    """Mean of |seen area / expected area - 1| over the frames that show the body; NaN if none does."""
    shown = seen.mass_F[seen.visible_F]
    return float(np.abs(shown - 1).mean()) if len(shown) else math.nan


def prompt_obedience(clip: Clip, scene: Scene, seen: Track | None = None) -> float:
    """The share of three attributes that the clip shows: colour, size, motion.

    Colour: of the six colours, those asked for cover most. Size: the body's median mass is within 35 % of the
    expected one. Motion: see ``_motion_obeyed``.
    """
    seen = seen or track(clip, scene)
    obeyed = (_color_obeyed(clip, scene, seen), _size_obeyed(seen), _motion_obeyed(scene, seen))
    return sum(obeyed) / len(obeyed)


def _momentum_error(clip: Clip, scene: Scene, seen: Track, laws: Laws) -> float:
    if scene.action in FREE_ACTIONS:
        return momentum_error(seen, laws)
    if scene.action != "collision" or scene.color == scene.other_color:  # two of one colour cannot be told apart
        return math.nan
    return momentum_error(seen, laws, other=track(clip, _with_the_other_first(scene)))


def _with_the_other_first(scene: Scene) -> Scene:
    """The collision with its bodies exchanged, so that the tracker follows the second."""
    if scene.other_color is None or scene.other_shape is None or scene.other_size is None:
        raise ValueError(f"only a collision has a second body to follow, got {scene}")
    return replace(
        scene,
        color=scene.other_color,
        shape=scene.other_shape,
        size=scene.other_size,
        other_color=scene.color,
        other_shape=scene.shape,
        other_size=scene.size,
    )


def _in_flight(seen: Track, strength: float, stride: int) -> Flags:
    """Which triples of frames ``stride`` apart surely had no contact.

    A bounce between two frames with clearances d1, d2 takes a path of d1 + d2, and a body that fell through the whole
    stage moves at sqrt(2 g). NaN places compare false.
    """
    x_F, y_F = seen.centroid_F2.T
    clear_FN = np.stack([x_F, seen.aspect - x_F, y_F, 1 - y_F], axis=1) - seen.body.reach
    farthest = math.sqrt(2 * strength) * stride / seen.fps
    apart: Flags = np.all(clear_FN[stride:] + clear_FN[:-stride] > farthest, axis=1)
    clear: Flags = np.all(clear_FN > _CLEARANCE, axis=1)
    flying: Flags = clear[2 * stride :] & clear[stride:-stride] & clear[: -2 * stride]
    return flying & apart[stride:] & apart[:-stride]


def _color_obeyed(clip: Clip, scene: Scene, seen: Track) -> bool:
    asked = {color for color in (scene.color, scene.other_color) if color}
    masses = color_masses(clip.frames_FCHW, scene.background)
    most = sorted(masses, key=lambda color: masses[color], reverse=True)[: len(asked)]
    return bool(seen.visible_F.any()) and set(most) == asked


def _size_obeyed(seen: Track) -> bool:
    return bool(abs(float(np.median(seen.mass_F)) - 1) <= _SIZE_TOLERANCE)


def _motion_obeyed(scene: Scene, seen: Track) -> bool:
    """A throw goes to its side in the first quarter, and half a second, before a wall sends it back.

    A drop starts without going sideways, anything else moves.
    """
    start = seen.centroid_F2[0]
    if np.isnan(start).any():
        return False
    frames = len(seen.centroid_F2)
    if scene.action in ("throw left", "throw right"):
        way = -1 if scene.action == "throw left" else 1
        count = max(1, min(frames // 4, round(_BEFORE_A_WALL * seen.fps)))
        later = seen.centroid_F2[min(count, frames - 1), 0]
        return bool(way * (later - start[0]) > _THROWN)
    if scene.action == "drop":
        count = max(1, round(_FIRST_MOMENT * seen.fps))
        later = seen.centroid_F2[min(count, frames - 1), 0]
        return bool(abs(later - start[0]) * seen.fps / count < _SIDEWAYS)
    return dynamic_degree(seen) > _STIR
