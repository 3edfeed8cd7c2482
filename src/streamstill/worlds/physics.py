"""Rigid bodies in a closed box, in stage units (see ``staging``): the motion knows nothing of pixels."""

import math
from dataclasses import dataclass

import numpy as np
import pymunk
from numpy.typing import NDArray

from streamstill.worlds.grammar import Scene
from streamstill.worlds.staging import Body, Point, Stage, Start, set_stage

Floats = NDArray[np.float64]

_STEPS_PER_SECOND = 480  # at least this many
_WALL = 0.5  # thickness outside the frame
_MASS_SPAN = 2.5  # a drifting mass stays within this factor of the first one


@dataclass(frozen=True, kw_only=True)
class Laws:
    """What moves bodies. ``gravity`` is (right, down) in stage heights per second squared.

    Args:
        restitution: share of the approaching speed that a bounce gives back.
        friction: Coulomb coefficient of every contact.
        mass_drift: growth of a body's mass per second (every second body shrinks instead). Momentum is kept, so a
            body that gains mass slows down in flight and gives other bodies a harder push.
        damping: share of speed lost per second, as an exponential rate.
    """

    gravity: Point = (0.0, 1.6)
    restitution: float = 0.75
    friction: float = 0.36
    mass_drift: float = 0.0
    damping: float = 0.0


REAL_LAWS = Laws()


@dataclass(frozen=True, kw_only=True, eq=False)
class States:
    """The true motion: axes F frames, N bodies, 2 for (right, down). Stage heights, seconds, radians clockwise."""

    stage: Stage
    laws: Laws
    fps: float
    position_FN2: Floats
    velocity_FN2: Floats
    angle_FN: Floats
    spin_FN: Floats

    @property
    def bodies(self) -> tuple[Body, ...]:
        """The bodies, in the order of axis N."""
        return tuple(start.body for start in self.stage.starts)


def simulate(
    scene: Scene, seed: int, *, frames: int, fps: float, aspect: float = 1.0, laws: Laws = REAL_LAWS
) -> States:
    """Play a scene: the same arguments give the same bits, whatever was played before.

    Between two frames lies a whole number of equal steps of 1/480 s or less.
    """
    stage = set_stage(scene, seed, aspect)
    space, bodies = _space_of(stage, laws)
    steps = math.ceil(_STEPS_PER_SECOND / fps)
    dt = 1.0 / (fps * steps)
    rows = [_snapshot(bodies)]
    masses = [body.mass for body in bodies]
    for frame in range(1, frames):
        for step in range(steps):
            space.step(dt)
            if laws.mass_drift:
                _drift(bodies, masses, laws.mass_drift, time=((frame - 1) * steps + step + 1) * dt)
        rows.append(_snapshot(bodies))
    table = np.array(rows)
    return States(
        stage=stage,
        laws=laws,
        fps=fps,
        position_FN2=table[..., 0:2],
        velocity_FN2=table[..., 2:4],
        angle_FN=table[..., 4],
        spin_FN=table[..., 5],
    )


def _snapshot(bodies: list[pymunk.Body]) -> list[tuple[float, ...]]:
    return [(*body.position, *body.velocity, body.angle, body.angular_velocity) for body in bodies]


def _drift(bodies: list[pymunk.Body], masses: list[float], rate: float, *, time: float) -> None:
    """Set every body to its mass at ``time`` and keep its momentum."""
    for number, (body, mass) in enumerate(zip(bodies, masses, strict=True)):
        grown = math.exp(rate * time * (-1) ** number)
        target = mass * min(max(grown, 1 / _MASS_SPAN), _MASS_SPAN)
        if target != body.mass:
            ratio = body.mass / target
            body.velocity = body.velocity * ratio
            body.moment /= ratio
            body.mass = target


def _space_of(stage: Stage, laws: Laws) -> tuple[pymunk.Space, list[pymunk.Body]]:
    space = pymunk.Space()
    space.gravity = laws.gravity
    space.damping = math.exp(-laws.damping)
    space.collision_slop = 1e-4  # pymunk's default is a tenth of our stage
    space.iterations = 20
    for solid in _solids(space, stage):
        _set_contact(solid, laws)
        space.add(solid)
    return space, [_add_body(space, start, stage.pivot, laws) for start in stage.starts]


def _solids(space: pymunk.Space, stage: Stage) -> list[pymunk.Shape]:
    """Floor, ceiling, walls and ramp."""
    left, right, low, high = -_WALL, stage.aspect + _WALL, -_WALL, 1.0 + _WALL
    corners = ((left, low), (right, low), (right, high), (left, high))
    sides = zip(corners, (*corners[1:], corners[0]), strict=True)
    solids: list[pymunk.Shape] = [pymunk.Segment(space.static_body, a, b, _WALL) for a, b in sides]
    if stage.ramp:
        solids.append(pymunk.Poly(space.static_body, list(stage.ramp)))
    return solids


def _add_body(space: pymunk.Space, start: Start, pivot: Point | None, laws: Laws) -> pymunk.Body:
    body = pymunk.Body(start.body.mass, start.body.moment)
    body.position, body.angle = start.position, start.angle
    body.velocity, body.angular_velocity = start.velocity, start.spin
    shape = _shape_of(start.body, body)
    _set_contact(shape, laws)
    space.add(body, shape)
    if pivot:
        space.add(pymunk.PivotJoint(space.static_body, body, pivot))
    return body


def _shape_of(described: Body, body: pymunk.Body) -> pymunk.Shape:
    if described.shape == "ball":
        return pymunk.Circle(body, described.radius)
    half = described.half_side
    return pymunk.Poly(body, [(-half, -half), (half, -half), (half, half), (-half, half)])


def _set_contact(shape: pymunk.Shape, laws: Laws) -> None:
    """Pymunk multiplies the values of the two shapes that touch."""
    shape.elasticity = math.sqrt(laws.restitution)
    shape.friction = math.sqrt(laws.friction)
