import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamstill.types import Frames, Geometry
from streamstill.worlds.drawing import draw
from streamstill.worlds.palette import BACKGROUNDS, COLORS, NEUTRAL, background
from streamstill.worlds.physics import REAL_LAWS, Floats, States
from streamstill.worlds.staging import RADII, Body, Point, Stage, Start

SIZE = 48
BODY = {shape: Body(shape=shape, color="red", radius=RADII["medium"]) for shape in ("ball", "box")}


def picture(
    *bodies: Body,
    at: Point = (0.5, 0.5),
    angle: float = 0.0,
    ramp: tuple[Point, ...] = (),
    pivot: Point | None = None,
    size: int = SIZE,
) -> Frames:
    """One frame of bodies at a place, as (height, width, 3)."""
    starts = tuple(Start(body=body, position=at, angle=angle) for body in bodies)
    stage = Stage(aspect=1.0, background="dark", starts=starts, ramp=ramp, pivot=pivot)
    count = len(bodies)
    states = States(
        stage=stage,
        laws=REAL_LAWS,
        fps=8.0,
        position_FN2=np.tile(np.array(at), (1, count, 1)),
        velocity_FN2=np.zeros((1, count, 2)),
        angle_FN=np.full((1, count), angle),
        spin_FN=np.zeros((1, count)),
    )
    frames = draw(states, Geometry(frames=1, height=size, width=size, fps=8.0))
    return frames[0].transpose(1, 2, 0)


def redness(image: Frames) -> Floats:
    """Coverage by red, from the red channel alone."""
    low, high = float(background("dark", 1, 1)[0, 0, 0]), COLORS["red"][0]
    return (image[..., 0].astype(np.float64) - low) / (high - low)


@settings(max_examples=60)
@given(st.sampled_from(["ball", "box"]), st.floats(0.25, 0.75), st.floats(0.25, 0.75), st.floats(-4, 4))
def test_a_body_is_drawn_at_its_place_with_its_area(shape: str, x: float, y: float, angle: float) -> None:
    cover = redness(picture(BODY[shape], at=(x, y), angle=angle))
    grid = (np.arange(SIZE) + 0.5) / SIZE
    mass = cover.sum()
    assert mass / SIZE**2 == pytest.approx(BODY[shape].mass, rel=0.025)
    assert (cover.sum(axis=0) @ grid) / mass == pytest.approx(x, abs=0.05 / SIZE)
    assert (cover.sum(axis=1) @ grid) / mass == pytest.approx(y, abs=0.05 / SIZE)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_the_area_is_right_at_every_size(size: int) -> None:
    for body in BODY.values():
        assert redness(picture(body, size=size)).sum() / size**2 == pytest.approx(body.mass, rel=0.04)


def test_a_box_turns_clockwise_with_its_angle() -> None:
    straight, turned = (redness(picture(BODY["box"], angle=angle)) for angle in (0.0, math.pi / 4))
    corner = round((0.5 + 0.9 * BODY["box"].half_side) * SIZE) - 1
    tip = round((0.5 + 0.95 * BODY["box"].reach) * SIZE) - 1
    assert straight[corner, corner] > 0.9 > 0.1 > turned[corner, corner]
    assert straight[SIZE // 2, tip] < 0.1 < turned[SIZE // 2, tip]
    rightmost = redness(picture(BODY["box"], angle=0.3))[:, round((0.5 + 1.15 * BODY["box"].half_side) * SIZE)]
    row = np.arange(SIZE) @ rightmost / rightmost.sum()
    assert row < 0.45 * SIZE  # the upper right corner has gone to the right


def test_a_quarter_turn_changes_nothing() -> None:
    one, other = (picture(BODY["box"], angle=angle).astype(int) for angle in (0.2, 0.2 + math.pi / 2))
    assert np.abs(one - other).max() <= 2


def test_sub_pixel_moves_show() -> None:
    here, there = picture(BODY["ball"], at=(0.5, 0.5)), picture(BODY["ball"], at=(0.5 + 0.1 / SIZE, 0.5))
    assert not np.array_equal(here, there)


def test_the_ramp_is_grey_and_behind_the_body() -> None:
    image = picture(BODY["ball"], at=(0.5, 0.6), ramp=((0.0, 0.4), (0.85, 1.0), (0.0, 1.0)))
    assert tuple(image[SIZE - 2, 2]) == NEUTRAL
    assert tuple(image[round(0.6 * SIZE), SIZE // 2]) == COLORS["red"]
    assert np.array_equal(image[2], background("dark", SIZE, SIZE)[2])


def test_the_rod_joins_the_pivot_and_the_body() -> None:
    image = picture(BODY["ball"], at=(0.5, 0.7), pivot=(0.5, 0.1)).astype(int)
    middle = image[round(0.1 * SIZE) : round(0.5 * SIZE), SIZE // 2 - 1 : SIZE // 2 + 1].mean(axis=1)
    assert (np.abs(middle - np.array(NEUTRAL)).max(axis=1) < 60).all()
    assert tuple(image[round(0.7 * SIZE), SIZE // 2]) == COLORS["red"]


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_an_empty_stage_cannot_be_changed_by_accident(name: str) -> None:
    stage = background(name, 8, 12)
    assert stage.shape == (8, 12, 3)
    with pytest.raises(ValueError, match="read-only"):
        stage[0, 0] = 0


def test_backgrounds_look_different() -> None:
    stages = [background(name, 16, 16).astype(int) for name in BACKGROUNDS]
    for index, one in enumerate(stages):
        for other in stages[:index]:
            assert np.abs(one - other).mean() > 5


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_every_colour_stands_out_from_every_background(name: str) -> None:
    stage = background(name, 16, 16).astype(float)
    for color in (*COLORS.values(), NEUTRAL):
        assert np.linalg.norm(stage - np.array(color), axis=-1).min() > 60
    for color in COLORS.values():
        assert max(color) - min(color) > 100
