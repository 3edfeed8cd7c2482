"""Find the bodies of a scene in pixels alone: coverage maps, centroids and masses. Truth is never read here."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamstill.types import Clip, Frames
from streamstill.worlds.grammar import Scene
from streamstill.worlds.palette import COLORS, NEUTRAL, Color, background
from streamstill.worlds.staging import Body, bodies_of

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_HAZE = 0.25  # fainter coverage starts no body
_EDGE = 0.05  # fainter coverage is not even the rim of one
_FOREIGN = (0.2, 0.4)  # distance from the line in units of its length: below is ours, above is foreign
_VISIBLE_MASS = 0.25  # of the expected area


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """Where the scene's first body is seen. Stage heights, x to the right, y down.

    ``centroid_F2`` is NaN where the body is not visible; ``mass_F`` is its seen area over the expected area. The three
    boxes of a stack are one body.
    """

    centroid_F2: Floats
    mass_F: Floats
    visible_F: Flags
    fps: float
    aspect: float
    body: Body


def track(clip: Clip, scene: Scene) -> Track:
    """Follow the scene's first body through a clip.

    The body is the connected blob of its colour around the place where a window of its size sees most of that
    colour. It counts as visible from a quarter of its expected area on.
    """
    height, width = clip.geometry.height, clip.geometry.width
    bodies = bodies_of(scene, width / height)
    cover_FHW = _coverage(clip.frames_FCHW, scene)
    window = max(1, round(2 * bodies[0].radius * height))
    if scene.action != "topple":
        cover_FHW = cover_FHW * _blob(cover_FHW, window)
    mass_F, centroid_F2 = _moments(cover_FHW)
    share_F = mass_F / (expected_mass(scene, width / height) * height**2)
    visible_F = share_F >= _VISIBLE_MASS
    return Track(
        centroid_F2=np.where(visible_F[:, None], centroid_F2 / height, np.nan),
        mass_F=share_F,
        visible_F=visible_F,
        fps=clip.fps,
        aspect=width / height,
        body=bodies[0],
    )


def expected_mass(scene: Scene, aspect: float) -> float:
    """Area of everything that has the scene's first colour, in square stage heights."""
    return sum(body.mass for body in bodies_of(scene, aspect) if body.color == scene.color)


def color_masses(frames_FCHW: Frames, ground: str) -> dict[str, float]:
    """The summed coverage of each colour of the palette, every pixel counted for the nearest colour only."""
    seen = {name: _projected(frames_FCHW, color, ground) for name, color in COLORS.items()}
    nearest_FHW = _projected(frames_FCHW, NEUTRAL, ground)[1]
    for _, distance_FHW in seen.values():
        nearest_FHW = np.minimum(nearest_FHW, distance_FHW)
    return {name: float(cover[distance <= nearest_FHW].sum()) for name, (cover, distance) in seen.items()}


def _coverage(frames_FCHW: Frames, scene: Scene) -> Floats:
    """How much of each pixel the scene's first colour covers, as (frames, height, width).

    Pixels that look more like a ramp or like the other body do not count, and neither does haze: coverage that does
    not touch a pixel of a quarter or more.
    """
    cover_FHW, distance_FHW = _projected(frames_FCHW, COLORS[scene.color], scene.background)
    for rival in (NEUTRAL, COLORS[scene.other_color or scene.color]):
        cover_FHW = cover_FHW * (distance_FHW <= _projected(frames_FCHW, rival, scene.background)[1])
    return np.where(_grown(cover_FHW >= _HAZE) & (cover_FHW >= _EDGE), cover_FHW, 0.0)


def _projected(frames_FCHW: Frames, color: Color, ground: str) -> tuple[Floats, Floats]:
    """Coverage of each pixel by this colour (0..1.2), and how far the pixel is from the colours that explain it.

    A pixel is projected on the line from the empty stage to the colour; pixels far off that line have no coverage.
    """
    _, _, height, width = frames_FCHW.shape
    empty_CHW = background(ground, height, width).transpose(2, 0, 1).astype(np.float64)
    axis_CHW = np.array(color, dtype=np.float64)[:, None, None] - empty_CHW
    length_HW = np.sqrt((axis_CHW**2).sum(axis=0))
    pixels_FCHW = frames_FCHW - empty_CHW
    cover_FHW = np.clip((pixels_FCHW * axis_CHW).sum(axis=1) / length_HW**2, 0.0, 1.2)
    distance_FHW = np.sqrt(((pixels_FCHW - cover_FHW[:, None] * axis_CHW) ** 2).sum(axis=1))
    ours_FHW = np.clip((_FOREIGN[1] - distance_FHW / length_HW) / (_FOREIGN[1] - _FOREIGN[0]), 0.0, 1.0)
    return cover_FHW * ours_FHW, distance_FHW


def _blob(cover_FHW: Floats, window: int) -> Flags:
    """The connected pixels around the fullest window of every frame, with their rim."""
    solid_FHW = cover_FHW >= _HAZE
    sums_FHW = _window_sums(cover_FHW, window)
    frames, height, width = cover_FHW.shape
    rows, columns = np.unravel_index(sums_FHW.reshape(frames, -1).argmax(axis=1), sums_FHW.shape[1:])
    near_row = np.abs(np.arange(height)[None, :] - rows[:, None]) <= window / 4
    near_column = np.abs(np.arange(width)[None, :] - columns[:, None]) <= window / 4
    found_FHW = solid_FHW & near_row[:, :, None] & near_column[:, None, :]
    for _ in range(height + width):
        grown_FHW = _grown(found_FHW) & solid_FHW
        if np.array_equal(grown_FHW, found_FHW):
            break
        found_FHW = grown_FHW
    return _grown(found_FHW)


def _window_sums(cover_FHW: Floats, window: int) -> Floats:
    """Sum over a square of ``window`` pixels about every pixel."""
    before, after = window // 2 + 1, (window - 1) // 2
    padded = np.pad(cover_FHW, ((0, 0), (before, after), (before, after)))
    total = padded.cumsum(axis=1).cumsum(axis=2)
    return (
        total[:, window:, window:]
        - total[:, :-window, window:]
        - total[:, window:, :-window]
        + (total[:, :-window, :-window])
    )


def _grown(mask_FHW: Flags) -> Flags:
    """The mask and its neighbours in eight directions."""
    padded = np.pad(mask_FHW, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    return rows[:, :, :-2] | rows[:, :, 1:-1] | rows[:, :, 2:]


def _moments(cover_FHW: Floats) -> tuple[Floats, Floats]:
    """Summed coverage (pixels) and its centroid (pixels from the top left corner) per frame."""
    _, height, width = cover_FHW.shape
    mass_F = cover_FHW.sum(axis=(1, 2))
    safe_F = np.maximum(mass_F, 1e-9)
    x_F = (cover_FHW.sum(axis=1) * (np.arange(width) + 0.5)).sum(axis=1) / safe_F
    y_F = (cover_FHW.sum(axis=2) * (np.arange(height) + 0.5)).sum(axis=1) / safe_F
    return mass_F, np.stack([x_F, y_F], axis=1)
