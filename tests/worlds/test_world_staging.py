import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamstill.worlds import Scene, parse, prompts
from streamstill.worlds.grammar import SHAPES, SIZES, all_actions
from streamstill.worlds.staging import RADII, Body, Start, bodies_of, set_stage

ASPECTS = (0.5, 0.75, 1.0, 16 / 9, 4.0)


def starts_of(prompt: str, aspect: float = 1.0, count: int = 30) -> list[Start]:
    """The first body's start for many seeds."""
    return [set_stage(parse(prompt), seed, aspect).starts[0] for seed in range(count)]


@given(st.sampled_from(SIZES))
def test_a_box_is_as_big_and_as_heavy_as_the_ball_of_its_size(size: str) -> None:
    ball, box = (Body(shape=shape, color="red", radius=RADII[size]) for shape in SHAPES)
    assert (2 * box.half_side) ** 2 == pytest.approx(math.pi * ball.radius**2)
    assert ball.mass == box.mass
    assert ball.reach == ball.rest_height == ball.radius
    assert box.reach == pytest.approx(box.rest_height * math.sqrt(2))


@given(st.floats(0.05, 0.2))
def test_moments_are_those_of_a_disc_and_a_square(radius: float) -> None:
    ball, box = (Body(shape=shape, color="red", radius=radius) for shape in SHAPES)
    side = 2 * box.half_side
    assert ball.moment == pytest.approx(ball.mass * radius**2 / 2)
    assert box.moment == pytest.approx(box.mass * side**2 / 6)


def test_sizes_can_be_told_apart_by_area() -> None:
    small, medium, large = (RADII[size] ** 2 for size in SIZES)
    assert min(medium / small, large / medium) > 1.35 / 0.8


def test_bodies_are_what_the_prompt_says() -> None:
    first, second = bodies_of(parse("A small yellow ball hits a large red box."), 1.0)
    assert (first.shape, first.color, first.radius) == ("ball", "yellow", RADII["small"])
    assert (second.shape, second.color, second.radius) == ("box", "red", RADII["large"])
    stack = bodies_of(parse("A stack of three orange boxes topples."), 1.0)
    assert len(stack) == 3
    assert len(set(stack)) == 1
    assert stack[0].radius < RADII["medium"]


def test_bodies_shrink_with_a_narrow_stage_only() -> None:
    scene = parse("a red ball is dropped")
    radii = [bodies_of(scene, aspect)[0].radius for aspect in ASPECTS]
    assert radii[2:] == [RADII["medium"]] * 3
    assert radii[0] == pytest.approx(RADII["medium"] / 2)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_every_body_starts_inside_the_stage(aspect: float) -> None:
    for seed, prompt in enumerate(prompts(84, 31)):
        for start in set_stage(parse(prompt), seed, aspect).starts:
            margin = start.body.rest_height - 1e-9
            assert margin <= start.position[0] <= aspect - margin
            assert margin <= start.position[1] <= 1 - margin


@pytest.mark.parametrize("action", all_actions())
def test_a_seed_is_one_start_and_seeds_differ(action: str) -> None:
    (prompt,) = prompts(1, 0, actions=(action,))
    stages = [set_stage(parse(prompt), seed, 1.0) for seed in (0, 0, 1)]
    assert stages[0] == stages[1] != stages[2]
    assert stages[0].background == parse(prompt).background


def test_a_drop_starts_in_the_upper_third_nearly_at_rest() -> None:
    for start in starts_of("a small red ball is dropped"):
        assert start.position[1] < 1 / 3
        assert abs(start.velocity[0]) < 0.1
        assert start.velocity[1] == 0


def test_dropped_bodies_start_all_over_the_width() -> None:
    places = [start.position[0] for start in starts_of("a small red ball is dropped", count=200)]
    assert min(places) < 0.25
    assert max(places) > 0.75
    assert np.mean(places) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("side", "sign"), [("left", -1), ("right", 1)])
def test_a_throw_starts_opposite_to_its_goal(side: str, sign: int) -> None:
    for start in starts_of(f"a large blue box is thrown to the {side}"):
        assert sign * (start.position[0] - 0.5) < 0
        assert sign * start.velocity[0] >= 0.65
        assert -0.8 <= start.velocity[1] <= -0.4


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("thing", ["small red ball", "red box", "large red ball", "large red box"])
def test_a_body_lies_on_the_ramp_and_moves_along_it(thing: str, aspect: float) -> None:
    for seed in range(10):
        stage = set_stage(parse(f"a {thing} moves down a ramp"), seed, aspect)
        (start,) = stage.starts
        top, end = np.array(stage.ramp[0]), np.array(stage.ramp[1])
        along = (end - top) / np.linalg.norm(end - top)
        offset = np.array(start.position) - top
        distance = abs(along[0] * offset[1] - along[1] * offset[0])
        assert distance == pytest.approx(start.body.rest_height)
        assert along @ np.array(start.velocity) == pytest.approx(np.linalg.norm(start.velocity))
        assert start.velocity[1] > 0


def test_a_rolling_ball_turns_the_way_it_goes() -> None:
    for start in starts_of("a red ball rolls down a ramp"):
        speed = math.copysign(math.hypot(*start.velocity), start.velocity[0])
        assert start.spin == pytest.approx(speed / start.body.radius)


@pytest.mark.parametrize(
    "prompt",
    [
        "a red ball rolls down a ramp",
        "a red ball hits a blue box",
        "a red pendulum swings",
        "a stack of three red boxes topples",
    ],
)
def test_the_seed_chooses_the_side(prompt: str) -> None:
    rightward = [set_stage(parse(prompt), seed, 1.0).starts[-1].position[0] > 0.5 for seed in range(60)]
    assert 10 < sum(rightward) < 50


def test_the_striker_moves_towards_the_other_body() -> None:
    for seed, prompt in enumerate(prompts(30, 5, actions=("collision",))):
        striker, target = set_stage(parse(prompt), seed, 1.0).starts
        assert (target.position[0] - striker.position[0]) * striker.velocity[0] > 0
        assert target.velocity == (0.0, 0.0)


def test_only_pendulums_have_a_pivot_and_only_ramps_a_ramp() -> None:
    for seed, prompt in enumerate(prompts(42, 6)):
        scene: Scene = parse(prompt)
        stage = set_stage(scene, seed, 1.0)
        assert (stage.pivot is not None) == (scene.action == "pendulum")
        assert bool(stage.ramp) == (scene.action == "ramp")


def test_a_prompt_that_leaves_the_motion_open_gets_every_motion() -> None:
    starts = starts_of("A red ball moves.", count=90)
    speeds = [start.velocity[0] for start in starts]
    left, right = (sum(way * speed > 0.5 for speed in speeds) for way in (-1, 1))
    dropped = sum(abs(speed) < 0.1 for speed in speeds)
    assert left + right + dropped == len(starts)
    assert min(left, right, dropped) > 20
    assert all(start.position[1] < 0.34 for start in starts if abs(start.velocity[0]) < 0.1)  # dropped from above
