"""How a scene begins: which bodies stand where, how fast they are, what ramp or rod they meet.

Stage units: one stage height; x to the right from the left wall, y *down* from the ceiling; seconds; radians.
The stage is 1 high and ``aspect`` wide. Bodies shrink with the width of a stage narrower than high.
"""

import math
import random
from dataclasses import dataclass, field, replace

from streamstill.worlds.grammar import Scene

RADII = {"small": 0.095, "medium": 0.13, "large": 0.17}  # of a ball, stage heights
STACK_SCALE = 0.75  # stacked boxes are smaller, so that three of them fit
ROD_LENGTH = 0.5
PIVOT_HEIGHT = 0.06
RAMP_TOP, RAMP_RUN = 0.42, 0.85

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Body:
    """One rigid body. A box has the area of the ball of the same radius, and the mass is the area."""

    shape: str
    color: str
    radius: float

    @property
    def half_side(self) -> float:
        """Half the side of the box."""
        return self.radius * math.sqrt(math.pi) / 2

    @property
    def reach(self) -> float:
        """Distance from the centre to the farthest point."""
        return self.radius if self.shape == "ball" else self.half_side * math.sqrt(2)

    @property
    def rest_height(self) -> float:
        """Distance from the centre to a floor on which the body stands."""
        return self.radius if self.shape == "ball" else self.half_side

    @property
    def mass(self) -> float:
        """Area in square stage heights."""
        return math.pi * self.radius**2

    @property
    def moment(self) -> float:
        """Moment of inertia about the centre."""
        return self.mass * (self.radius**2 / 2 if self.shape == "ball" else 2 * self.half_side**2 / 3)


@dataclass(frozen=True, kw_only=True)
class Start:
    """A body at the first frame."""

    body: Body
    position: Point
    velocity: Point = (0.0, 0.0)
    angle: float = 0.0
    spin: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Everything at the first frame. ``ramp`` is a triangle; a body at ``pivot``'s rod turns about it."""

    aspect: float
    background: str
    starts: tuple[Start, ...]
    ramp: tuple[Point, ...] = field(default=())
    pivot: Point | None = None


def bodies_of(scene: Scene, aspect: float) -> tuple[Body, ...]:
    """The bodies of a scene, the one that the sentence is about first."""
    scale = min(1.0, aspect)
    first = Body(shape=scene.shape, color=scene.color, radius=RADII[scene.size] * scale)
    if scene.action == "topple":
        return (replace(first, radius=first.radius * STACK_SCALE),) * 3
    if scene.other_color and scene.other_shape and scene.other_size:
        return first, Body(shape=scene.other_shape, color=scene.other_color, radius=RADII[scene.other_size] * scale)
    return (first,)


def set_stage(scene: Scene, seed: int, aspect: float) -> Stage:
    """The first moment of a scene; ``seed`` moves places, speeds, angles and (unless the scene says) the side."""
    rng = random.Random(f"stage {seed} {scene}")
    stage = _PLACERS[scene.action](rng, bodies_of(scene, aspect), aspect)
    stage = replace(stage, background=scene.background)
    if scene.action in _EITHER_SIDE and rng.random() < 0.5:
        return _mirrored(stage)
    return stage


def _drop(rng: random.Random, bodies: tuple[Body, ...], aspect: float) -> Stage:
    (body,) = bodies
    top, margin = body.reach + 0.03, body.reach + 0.1 * min(1.0, aspect)
    start = Start(
        body=body,
        position=(rng.uniform(margin, aspect - margin), rng.uniform(top, max(top, 0.33))),
        velocity=(rng.uniform(-0.08, 0.08), 0.0),
        angle=rng.uniform(-math.pi, math.pi),
        spin=rng.uniform(-2.0, 2.0),
    )
    return Stage(aspect=aspect, background="", starts=(start,))


def _throw_right(rng: random.Random, bodies: tuple[Body, ...], aspect: float) -> Stage:
    (body,) = bodies
    scale = min(1.0, aspect)
    start = Start(
        body=body,
        position=(body.reach + rng.uniform(0.03, 0.12) * scale, rng.uniform(0.42, 0.62)),
        velocity=(rng.uniform(0.65, 1.05) * scale, -rng.uniform(0.4, 0.8)),
        angle=rng.uniform(-math.pi, math.pi),
        spin=rng.uniform(-3.0, 3.0),
    )
    return Stage(aspect=aspect, background="", starts=(start,))


def _drop_or_throw(rng: random.Random, bodies: tuple[Body, ...], aspect: float) -> Stage:
    """One of three: a drop, a throw to the right or one to the left, which is the mirror image."""
    return rng.choice((_drop, _throw_right, _throw_left))(rng, bodies, aspect)


def _throw_left(rng: random.Random, bodies: tuple[Body, ...], aspect: float) -> Stage:
    return _mirrored(_throw_right(rng, bodies, aspect))


def _down_a_ramp(rng: random.Random, bodies: tuple[Body, ...], aspect: float) -> Stage:
    (body,) = bodies
    run, rise = RAMP_RUN * min(1.0, aspect), 1.0 - RAMP_TOP
    slope = math.atan2(rise, run)
    along, normal = (math.cos(slope), math.sin(slope)), (math.sin(slope), -math.cos(slope))
    x = body.reach + rng.uniform(0.01, 0.05)
    foot_x = x - normal[0] * body.rest_height
    speed = rng.uniform(0.1, 0.35)
    start = Start(
        body=body,
        position=(x, RAMP_TOP + foot_x * rise / run + normal[1] * body.rest_height),
        velocity=(along[0] * speed, along[1] * speed),
        angle=slope,
        spin=speed / body.radius if body.shape == "ball" else 0.0,
    )
    ramp = ((0.0, RAMP_TOP), (run, 1.0), (0.0, 1.0))
    return Stage(aspect=aspect, background="", starts=(start,), ramp=ramp)


def _hit(rng: random.Random, bodies: tuple[Body, ...], aspect: float) -> Stage:
    first, second = bodies
    speed = rng.uniform(1.0, 1.4)
    striker = Start(
        body=first,
        position=(first.rest_height + rng.uniform(0.02, 0.05), 1.0 - first.rest_height),
        velocity=(speed, 0.0),
        spin=speed / first.radius if first.shape == "ball" else 0.0,
    )
    place = max(aspect * rng.uniform(0.6, 0.68), first.rest_height * 2 + second.rest_height + 0.15)
    place = min(place, aspect - second.rest_height - 0.01)
    return Stage(
        aspect=aspect,
        background="",
        starts=(striker, Start(body=second, position=(place, 1.0 - second.rest_height))),
    )


def _swing(rng: random.Random, bodies: tuple[Body, ...], aspect: float) -> Stage:
    (body,) = bodies
    length = ROD_LENGTH * min(1.0, aspect)
    widest = math.asin(min(0.85, (aspect / 2 - body.reach - 0.01) / length))
    angle = widest * rng.uniform(0.75, 1.0)
    pivot = (aspect / 2, PIVOT_HEIGHT)
    position = (pivot[0] + length * math.sin(angle), pivot[1] + length * math.cos(angle))
    return Stage(aspect=aspect, background="", starts=(Start(body=body, position=position, angle=-angle),), pivot=pivot)


def _topple(rng: random.Random, bodies: tuple[Body, ...], aspect: float) -> Stage:
    """A leaning stack that turns about the right foot of its lowest box."""
    half = bodies[0].half_side
    foot = aspect * rng.uniform(0.4, 0.48)
    turn = rng.uniform(0.7, 1.2)  # rad/s
    starts = []
    for level, body in enumerate(bodies):
        x, y = foot + half * 0.55 * level + rng.uniform(-0.05, 0.05) * half, 1.0 - half * (2 * level + 1)
        lean = turn * level / 2
        starts.append(Start(body=body, position=(x, y), velocity=(lean * (1.0 - y), 0.0)))
    return Stage(aspect=aspect, background="", starts=tuple(starts))


def _mirrored(stage: Stage) -> Stage:
    """The stage seen in a mirror: left and right change places."""

    def flip(point: Point) -> Point:
        return stage.aspect - point[0], point[1]

    starts = tuple(
        replace(
            start,
            position=flip(start.position),
            velocity=(-start.velocity[0], start.velocity[1]),
            angle=-start.angle,
            spin=-start.spin,
        )
        for start in stage.starts
    )
    return replace(stage, starts=starts, ramp=tuple(flip(point) for point in stage.ramp))


_EITHER_SIDE = frozenset(("ramp", "collision", "pendulum", "topple"))
_PLACERS = {
    "drop": _drop,
    "throw left": _throw_left,
    "throw right": _throw_right,
    "move": _drop_or_throw,
    "ramp": _down_a_ramp,
    "collision": _hit,
    "pendulum": _swing,
    "topple": _topple,
}
