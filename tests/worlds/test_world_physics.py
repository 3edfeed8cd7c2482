import numpy as np
import pytest

from streamstill.worlds import REAL_LAWS, Laws, parse, prompts
from streamstill.worlds.grammar import all_actions
from streamstill.worlds.physics import Floats, States, simulate

FPS = 8.0


def play(prompt: str, seed: int, *, frames: int = 16, aspect: float = 1.0, laws: Laws = REAL_LAWS) -> States:
    return simulate(parse(prompt), seed, frames=frames, fps=FPS, aspect=aspect, laws=laws)


def energy(states: States) -> Floats:
    """Energy per frame: kinetic, of rotation, and of height above the floor."""
    total = np.zeros(len(states.position_FN2))
    for number, body in enumerate(states.bodies):
        speed_squared = (states.velocity_FN2[:, number] ** 2).sum(axis=1)
        height = 1 - states.position_FN2[:, number, 1]
        total += body.mass * (speed_squared / 2 + states.laws.gravity[1] * height)
        total += body.moment * states.spin_FN[:, number] ** 2 / 2
    return total


@pytest.mark.parametrize("prompt", ["a red ball is dropped", "a large blue box is dropped"])
def test_a_falling_body_accelerates_with_gravity(prompt: str) -> None:
    for seed in range(10):
        place = play(prompt, seed).position_FN2[:5, 0]
        acceleration = (place[2:] - 2 * place[1:-1] + place[:-2]) * FPS**2
        np.testing.assert_allclose(acceleration, [REAL_LAWS.gravity] * 3, atol=1e-9)


def test_a_dropped_ball_bounces_once_or_twice_in_two_seconds() -> None:
    for seed in range(20):
        down = play("a red ball is dropped", seed).velocity_FN2[:, 0, 1] > 0
        bounces = int((down[:-1] & ~down[1:]).sum())
        assert 1 <= bounces <= 2


def test_a_bounce_gives_back_the_restitution() -> None:
    states = play("a red ball is dropped", 1, frames=12)
    drop = energy(states)
    floor = states.bodies[0].mass * REAL_LAWS.gravity[1] * states.bodies[0].radius
    fallen, kept = drop[0] - floor, drop[-1] - floor
    assert kept / fallen == pytest.approx(REAL_LAWS.restitution**2, abs=0.05)


@pytest.mark.parametrize("action", all_actions())
def test_energy_never_rises(action: str) -> None:
    for seed, prompt in enumerate(prompts(12, 1, actions=(action,))):
        total = energy(play(prompt, seed))
        assert np.diff(total).max() < 2e-3 * total[0]


@pytest.mark.parametrize("aspect", [0.5, 1.0, 16 / 9, 4.0])
@pytest.mark.parametrize("laws", [REAL_LAWS, Laws(gravity=(-2.0, -1.5), restitution=1.0, mass_drift=-0.5)])
def test_walls_keep_bodies_inside(aspect: float, laws: Laws) -> None:
    for seed, prompt in enumerate(prompts(21, 2)):
        states = play(prompt, seed, frames=24, aspect=aspect, laws=laws)
        for number, body in enumerate(states.bodies):
            place = states.position_FN2[:, number]
            assert (place > body.rest_height - 0.01).all()
            assert (place < np.array([aspect, 1.0]) - body.rest_height + 0.01).all()


@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.0])
def test_bodies_do_not_start_in_one_another(aspect: float) -> None:
    for seed, prompt in enumerate(prompts(30, 3, actions=("collision", "topple"))):
        states = play(prompt, seed, frames=1, aspect=aspect)
        place = states.position_FN2[0]
        for number in range(1, len(place)):
            gap = np.abs(place[number] - place[number - 1])
            room = states.bodies[number].rest_height + states.bodies[number - 1].rest_height
            assert gap.max() > room - 1e-3


@pytest.mark.parametrize(("side", "sign"), [("left", -1), ("right", 1)])
def test_a_throw_goes_to_its_side_and_up(side: str, sign: int) -> None:
    for seed in range(20):
        velocity = play(f"a red ball is thrown to the {side}", seed).velocity_FN2[:3, 0]
        assert (sign * velocity[:, 0] > 0.5).all()
        assert velocity[0, 1] < 0


def test_a_collision_moves_the_body_that_was_hit() -> None:
    for seed in range(10):
        place = play("a yellow ball hits a red box", seed).position_FN2
        assert np.abs(place[-1, 1] - place[0, 1]).max() > 0.02


def test_a_pendulum_keeps_its_length() -> None:
    states = play("a large blue box swings on a rod", 3, frames=40)
    assert states.stage.pivot is not None
    length = np.linalg.norm(states.position_FN2[:, 0] - np.array(states.stage.pivot), axis=1)
    np.testing.assert_allclose(length, length[0], atol=2e-3)


def test_a_stack_comes_down() -> None:
    for seed in range(10):
        top = play("a stack of three red boxes topples", seed).position_FN2[:, 2, 1]
        assert top[-1] > top[0] + 0.1


def test_a_body_that_gains_mass_slows_down_in_flight() -> None:
    still = Laws(gravity=(0.0, 0.0), mass_drift=0.5)
    speed = np.abs(play("a red ball is thrown to the left", 0, frames=4, laws=still).velocity_FN2[:, 0, 0])
    np.testing.assert_allclose(speed[1:] / speed[:-1], np.exp(-0.5 / FPS), rtol=1e-6)


def test_damping_takes_speed() -> None:
    thick = Laws(gravity=(0.0, 0.0), damping=1.0)
    speed = np.abs(play("a red ball is thrown to the left", 0, frames=4, laws=thick).velocity_FN2[:, 0, 0])
    np.testing.assert_allclose(speed[1:] / speed[:-1], np.exp(-1 / FPS), rtol=1e-6)


def test_frame_rates_show_one_motion() -> None:
    scene = parse("a stack of three red boxes topples")
    slow = simulate(scene, 0, frames=16, fps=8.0)
    fast = simulate(scene, 0, frames=46, fps=24.0)
    np.testing.assert_allclose(fast.position_FN2[::3], slow.position_FN2, atol=1e-6)
