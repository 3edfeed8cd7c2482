import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from streamstill.types import Clip, ClipRequest
from streamstill.worlds import (
    REAL_LAWS,
    Laws,
    LooseWorld,
    Track,
    World,
    dynamic_degree,
    judge,
    parse,
    physics_error,
    prompt_obedience,
    prompts,
    track,
)
from streamstill.worlds.grammar import all_actions
from streamstill.worlds.judge import FREE_ACTIONS, WORST_ERROR, permanence, size_error
from streamstill.worlds.palette import background
from streamstill.worlds.staging import bodies_of

FREE_PROMPTS = list(enumerate(prompts(40, 21, actions=FREE_ACTIONS)))


def ask(prompt: str, seed: int = 0, *, frames: int = 16, fps: float = 8.0) -> ClipRequest:
    return ClipRequest(prompt=prompt, seed=seed, frames=frames, height=32, width=32, fps=fps)


def mean_judged(world: World | LooseWorld, requests: list[ClipRequest]) -> dict[str, float]:
    judged = [judge(world.render(request), request) for request in requests]
    return {name: float(np.nanmean([values[name] for values in judged])) for name in judged[0]}


def seen_at(centroid_F2: NDArray[np.float64], fps: float = 8.0) -> Track:
    """A small ball's track through these places."""
    visible_F = ~np.isnan(centroid_F2[:, 0])
    body = bodies_of(parse("a small red ball is dropped"), 1.0)[0]
    return Track(centroid_F2=centroid_F2, mass_F=visible_F * 1.0, visible_F=visible_F, fps=fps, aspect=1.0, body=body)


def blurred(clip: Clip) -> Clip:
    """What a weak student might draw: soft edges, noise and haze."""
    frames = clip.frames_FCHW.astype(float)
    for axis in (2, 3):
        frames = (np.roll(frames, 1, axis) + 2 * frames + np.roll(frames, -1, axis)) / 4
    frames += np.random.default_rng(0).normal(0, 6, frames.shape) + 6
    return replace(clip, frames_FCHW=np.clip(frames, 0, 255).astype(np.uint8))


def test_the_tracker_agrees_with_the_truth() -> None:
    sharp: list[NDArray[np.float64]] = []
    soft: list[NDArray[np.float64]] = []
    for seed, prompt in FREE_PROMPTS:
        clip = World().render(ask(prompt, seed))
        place = World().truth(ask(prompt, seed)).position_FN2[:, 0]
        for errors, shown in ((sharp, clip), (soft, blurred(clip))):
            errors.append(np.linalg.norm(track(shown, parse(prompt)).centroid_F2 - place, axis=1) * 32)
    assert np.median(sharp) < 0.02
    assert np.max(sharp) < 0.15
    assert np.median(soft) < 0.15


def test_the_tracker_sees_whole_bodies_and_only_those() -> None:
    for seed, prompt in enumerate(prompts(42, 22)):
        seen = track(World().render(ask(prompt, seed)), parse(prompt))
        assert seen.visible_F.all()
        assert (np.abs(seen.mass_F - 1) < 0.1).all()


def test_an_empty_stage_shows_no_body() -> None:
    request = ask("a red ball is dropped")
    frames = np.repeat(background("dark", 32, 32).transpose(2, 0, 1)[None], 16, axis=0)
    clip = Clip(frames_FCHW=np.ascontiguousarray(frames), fps=8.0)
    assert not track(clip, parse(request.prompt)).visible_F.any()
    values = judge(clip, request)
    assert {name: value for name, value in values.items() if not math.isnan(value)} == {
        "physics_error": WORST_ERROR,
        "permanence": 0.0,
        "dynamic_degree": 0.0,
        "prompt_obedience": 0.0,
    }
    assert set(values) - {name for name, value in values.items() if not math.isnan(value)} == {
        *("restitution_error", "energy_error", "momentum_error", "size_error")
    }


def test_real_clips_are_right_and_loose_ones_are_not() -> None:
    requests = [ask(prompt, seed) for seed, prompt in FREE_PROMPTS]
    real, loose = mean_judged(World(), requests), mean_judged(LooseWorld(), requests)
    assert real["physics_error"] < 0.05
    assert loose["physics_error"] > 0.9
    assert real["prompt_obedience"] >= 0.97
    assert 0.8 < loose["dynamic_degree"] / real["dynamic_degree"] < 1.1
    for seen in (real, loose):
        assert seen["permanence"] == 1.0
        assert seen["size_error"] < 0.02


def test_every_real_scene_obeys_its_prompt() -> None:
    obeyed = [
        prompt_obedience(World().render(ask(prompt, seed)), parse(prompt))
        for seed, prompt in enumerate(prompts(84, 23))
    ]
    assert np.mean(obeyed) >= 0.97


@pytest.mark.parametrize(
    ("shown", "asked", "obedience"),
    [
        ("a red ball is dropped", "a red ball is dropped", 1.0),
        ("a large red ball is dropped", "a small red ball is dropped", 2 / 3),
        ("a red ball is thrown to the left", "a red ball is thrown to the right", 2 / 3),
        ("a red ball is thrown to the left", "a red ball is dropped", 2 / 3),
        ("a red ball is dropped", "a blue ball is dropped", 0.0),
    ],
)
def test_disobedience_costs_a_third_each(shown: str, asked: str, obedience: float) -> None:
    for seed in range(5):
        assert prompt_obedience(World().render(ask(shown, seed)), parse(asked)) == pytest.approx(obedience)


def test_physics_error_of_known_motions() -> None:
    time = np.arange(6)[:, None] / 8
    fall = np.array([0.5, 0.2]) + 0.5 * time**2 * np.array(REAL_LAWS.gravity)
    assert physics_error(seen_at(fall)) == pytest.approx(0.0, abs=1e-9)
    assert physics_error(seen_at(np.full((6, 2), 0.5))) == pytest.approx(1.0)
    assert physics_error(seen_at(np.array([0.5, 0.2]) + time * [0.2, 0.3])) == pytest.approx(1.0)
    assert physics_error(seen_at(fall), Laws(gravity=(0.0, 0.8))) == pytest.approx(1.0)
    jumping = 0.5 + 0.25 * np.array([[0, 0], [1, -1]] * 3)
    assert physics_error(seen_at(jumping[:5])) == WORST_ERROR


def test_the_acceleration_of_a_flight_is_that_of_the_best_parabola() -> None:
    dice = np.random.default_rng(0)
    time = np.arange(9) / 8
    path = np.stack([0.5 + 0.1 * time, 0.35 + 0.2 * time**2], axis=1) + dice.normal(0, 0.01, (9, 2))
    fitted = 2 * np.polyfit(time, path, 2)[0]
    pull = np.array(REAL_LAWS.gravity)
    expected = np.linalg.norm(fitted - pull) / np.linalg.norm(pull)
    assert physics_error(seen_at(path)) == pytest.approx(expected)


def test_physics_error_of_bodies_that_vanish_or_never_fly() -> None:
    still = np.full((6, 2), 0.5)
    assert physics_error(seen_at(np.full((6, 2), np.nan))) == WORST_ERROR
    half = still.copy()
    half[4:] = np.nan
    assert physics_error(seen_at(half)) == pytest.approx((1 + 1 + WORST_ERROR * 2) / 4)
    assert math.isnan(physics_error(seen_at(still + np.array([0.0, 0.4]))))
    assert math.isnan(physics_error(seen_at(still[:2])))
    with pytest.raises(ValueError, match="gravity"):
        physics_error(seen_at(still), Laws(gravity=(0.0, 0.0)))


def test_physics_error_needs_no_tuning_to_the_frame_rate() -> None:
    for seed, prompt in FREE_PROMPTS[:6]:
        request = ask(prompt, seed, frames=48, fps=24.0)
        assert judge(World().render(request), request)["physics_error"] < 0.1


def test_dynamic_degree_is_the_mean_speed() -> None:
    assert dynamic_degree(seen_at(np.arange(8)[:, None] * np.array([0.03, 0.04]))) == pytest.approx(0.4)
    assert dynamic_degree(seen_at(np.full((4, 2), np.nan))) == 0.0


def test_one_frame_can_be_judged() -> None:
    values = judge(World().render(ask("a red ball is dropped", frames=1)), "a red ball is dropped")
    assert values["dynamic_degree"] == 0.0
    assert math.isnan(values["physics_error"])


def test_only_flight_is_judged_by_gravity() -> None:
    request = ask("a purple pendulum swings")
    assert math.isnan(judge(World().render(request), request)["physics_error"])


def weighing(masses: list[float]) -> Track:
    """A body in the middle with these seen areas; it is visible from a quarter on."""
    mass_F = np.array(masses)
    place_F2 = np.where(mass_F[:, None] >= 0.25, 0.5, np.nan) * np.ones((len(masses), 2))
    return replace(seen_at(place_F2), mass_F=mass_F)


@pytest.mark.parametrize(
    ("masses", "share"),
    [
        ([1.0] * 6, 1.0),
        ([1.0, 1.0, 0.0, 0.0, 1.0], 0.5),  # gone for two of the four frames after the first
        ([0.0, 0.0, 1.0, 1.0, 1.0], 1.0),  # what comes late is right from then on
        ([1.6] * 5, 1.0),  # a wrong size that stays is size_error's business
        ([1.0, 1.0, 1.0, 2.0, 0.5, 1.2], 3 / 5),
        ([1.0, 0.0, 0.0], 0.0),
        ([0.0] * 4, 0.0),
    ],
)
def test_permanence_of_known_masses(masses: list[float], share: float) -> None:
    assert permanence(weighing(masses)) == pytest.approx(share)


def test_permanence_needs_a_frame_after_the_first_sight() -> None:
    assert math.isnan(permanence(weighing([1.0])))
    assert math.isnan(permanence(weighing([0.0, 1.0])))


def test_size_error_of_known_masses() -> None:
    assert size_error(weighing([1.0] * 4)) == 0
    assert size_error(weighing([1.2, 0.8, 1.5, 0.5])) == pytest.approx(0.35)
    assert size_error(weighing([1.2, 0.0, 0.8])) == pytest.approx(0.2)  # hidden frames have no size
    assert math.isnan(size_error(weighing([0.0, 0.1])))


def test_a_body_of_another_size_is_as_wrong_as_its_area() -> None:
    clip = World().render(ask("a large red ball is dropped"))
    assert judge(clip, "a red ball is dropped")["size_error"] == pytest.approx((0.17 / 0.13) ** 2 - 1, abs=0.05)


def test_a_body_that_flickers_is_not_permanent() -> None:
    clip = World().render(ask("a red ball is dropped"))
    frames = clip.frames_FCHW.copy()
    frames[3::4] = background("dark", 32, 32).transpose(2, 0, 1)
    values = judge(replace(clip, frames_FCHW=frames), "a red ball is dropped")
    assert values["permanence"] == pytest.approx(11 / 15)
    assert values["size_error"] < 0.02


@pytest.mark.parametrize("action", all_actions())
def test_what_is_real_stays(action: str) -> None:
    for seed, prompt in enumerate(prompts(6, 24, actions=(action,))):
        seen = track(World().render(ask(prompt, seed)), parse(prompt))
        assert permanence(seen) == 1.0
        assert size_error(seen) < 0.05


@pytest.mark.parametrize(("frames", "fps"), [(16, 8.0), (64, 8.0), (16, 2.0), (81, 16.0)])
def test_the_worlds_own_throws_are_obeyed_however_long_the_clip(frames: int, fps: float) -> None:
    for seed in range(4):
        for prompt in ("A red ball is thrown to the left.", "A blue ball is thrown to the right."):
            clip = World().render(ask(prompt, seed, frames=frames, fps=fps))
            assert prompt_obedience(clip, parse(prompt)) == 1
