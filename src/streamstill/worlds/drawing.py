"""Antialiased pictures of a stage: every body at its exact place, at any size."""

import math

import aggdraw
import numpy as np

from streamstill.types import Frames, Geometry
from streamstill.worlds.palette import COLORS, NEUTRAL, background
from streamstill.worlds.physics import States
from streamstill.worlds.staging import Body, Point

_ROD_WIDTH = 0.03  # stage heights
_PIVOT_RADIUS = 0.03
# Aggdraw paints this far beyond every edge it fills, in pixels (measured), so bodies are drawn smaller by as much.
_SPREAD_OF_BOX, _SPREAD_OF_DISC = 0.25, 0.19


def draw(states: States, geometry: Geometry) -> Frames:
    """The clip of ``states``: uint8 of shape (frames, 3, height, width), one stage height to the picture's height."""
    height, width = geometry.height, geometry.width
    empty = background(states.stage.background, height, width).tobytes()
    canvas = aggdraw.Draw("RGB", (width, height))
    pictures = []
    for positions, angles in zip(states.position_FN2.tolist(), states.angle_FN.tolist(), strict=True):
        canvas.frombytes(empty)
        _draw_fixtures(canvas, states, positions, height)
        for body, position, angle in zip(states.bodies, positions, angles, strict=True):
            _draw_body(canvas, body, position, angle, height)
        pictures.append(np.frombuffer(canvas.tobytes(), dtype=np.uint8).reshape(height, width, 3))
    return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))


def _draw_fixtures(canvas: aggdraw.Draw, states: States, positions: list[Point], scale: float) -> None:
    stage = states.stage
    brush = aggdraw.Brush(NEUTRAL)
    if stage.ramp:
        canvas.polygon([value * scale for point in stage.ramp for value in point], brush)
    if stage.pivot:
        (x0, y0), (x1, y1) = stage.pivot, positions[0]
        pen = aggdraw.Pen(NEUTRAL, _ROD_WIDTH * scale)
        canvas.line([x0 * scale, y0 * scale, x1 * scale, y1 * scale], pen)
        _disc(canvas, stage.pivot, _PIVOT_RADIUS, scale, brush)


def _draw_body(canvas: aggdraw.Draw, body: Body, position: Point, angle: float, scale: float) -> None:
    brush = aggdraw.Brush(COLORS[body.color])
    if body.shape == "ball":
        _disc(canvas, position, body.radius, scale, brush)
        return
    half = body.half_side - _SPREAD_OF_BOX / scale
    across, along = math.cos(angle) * half, math.sin(angle) * half
    x, y = position
    corners = (
        (x - across + along, y - along - across),
        (x + across + along, y + along - across),
        (x + across - along, y + along + across),
        (x - across - along, y - along + across),
    )
    canvas.polygon([value * scale for corner in corners for value in corner], brush)


def _disc(canvas: aggdraw.Draw, center: Point, radius: float, scale: float, brush: aggdraw.Brush) -> None:
    (x, y), r = (center[0] * scale, center[1] * scale), radius * scale - _SPREAD_OF_DISC
    canvas.ellipse((x - r, y - r, x + r, y + r), brush)
