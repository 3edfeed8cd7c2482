"""Batches of homework: every clip once a round, with the next of its velocities each round, a function of the step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamstill.teachers.homework import Assignment, HomeworkStore
from streamstill.teachers.homework_collection import collect_homework
from streamstill.training.batches import Examples
from streamstill.training.homework_batches import Taught, Told, homework_batches, path_batches
from tests.teachers.fakes import question
from tests.teachers.open_teachers import GaussianTeacher

REQUESTS = [question(seed, prompt=f"ball {seed}") for seed in range(6)]
PLAIN = Assignment(shift=3.0, dtype="float32")
WITH_PATH = replace(PLAIN, velocities=0, path_levels=2, path_steps=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> HomeworkStore:
    """Six clips with two velocities each, and six with a path."""
    store = HomeworkStore(tmp_path_factory.mktemp("homework") / "store")
    for assignment in (PLAIN, WITH_PATH):
        collect_homework(GaussianTeacher(), REQUESTS, store, assignment)
    return store


def told(taught: Taught) -> Told:
    assert taught.told is not None
    return taught.told


def test_every_clip_comes_once_before_any_comes_again(store: HomeworkStore) -> None:
    batches = homework_batches(store, store.keys(assignment=PLAIN), batch=4, seed=0)
    shown = [prompt for step in range(6) for prompt in batches(step).examples.prompts]
    wanted = sorted(request.prompt for request in REQUESTS)
    rounds = [shown[start : start + 6] for start in range(0, 24, 6)]
    assert [sorted(one) for one in rounds] == [wanted] * 4
    assert len({tuple(one) for one in rounds}) > 1


def test_a_clip_that_comes_again_has_its_next_velocity(store: HomeworkStore) -> None:
    keys = store.keys(assignment=PLAIN)
    batches = homework_batches(store, keys, batch=6, seed=0)
    for one in store.get(keys):
        times = []
        for step in range(4):
            batch = batches(step)
            times.append(float(told(batch).t_B[batch.examples.prompts.index(one.request.prompt)]))
        assert times == [float(one.t_V[step % 2]) for step in range(4)]


def test_velocity_noise_and_time_belong_to_the_clip(store: HomeworkStore) -> None:
    batch = homework_batches(store, store.keys(assignment=PLAIN), batch=5, seed=0)(1)
    said, prompts = told(batch), batch.examples.prompts
    t = said.t_B[:, None, None, None, None]
    x_t = (1 - t) * batch.examples.latents_BFCHW + t * said.noise_BFCHW
    assert torch.equal(said.velocity_BFCHW, GaussianTeacher().velocity(x_t, said.t_B, prompts))
    made = GaussianTeacher().latents(
        [request for prompt in prompts for request in REQUESTS if request.prompt == prompt]
    )
    assert torch.equal(batch.examples.latents_BFCHW, made)


def test_a_batch_is_a_function_of_the_step(store: HomeworkStore) -> None:
    keys = store.keys(assignment=PLAIN)
    one, same, other = (homework_batches(store, keys, batch=4, seed=seed) for seed in (0, 0, 1))
    one(0)
    assert one(7).examples.prompts == same(7).examples.prompts
    assert torch.equal(told(one(7)).velocity_BFCHW, told(same(7)).velocity_BFCHW)
    assert [one(step).examples.prompts for step in range(6)] != [other(step).examples.prompts for step in range(6)]


def test_homework_without_velocities_is_clips_alone(store: HomeworkStore) -> None:
    assert homework_batches(store, store.keys(assignment=WITH_PATH), batch=2, seed=0)(0).told is None


def test_parts_of_a_batch_stay_together(store: HomeworkStore) -> None:
    batch = homework_batches(store, store.keys(assignment=PLAIN), batch=5, seed=0)(0)
    part = batch[1:3]
    assert part.examples.prompts == batch.examples.prompts[1:3]
    for name in ("noise_BFCHW", "t_B", "velocity_BFCHW"):
        assert torch.equal(getattr(told(part), name), getattr(told(batch), name)[1:3])
    assert Taught(Examples(torch.zeros(2, 1), ("a", "b")))[:1].told is None


def test_paths_come_with_their_times(store: HomeworkStore) -> None:
    keys = store.keys(assignment=WITH_PATH)
    paths = path_batches(store, keys, batch=4, seed=0)(3)
    assert paths.points_BJFCHW.shape == (4, 3, 4, 3, 2, 2)
    assert torch.equal(paths.t_J, WITH_PATH.path_times_J)
    assert torch.equal(paths.clean_BFCHW, paths.points_BJFCHW[:, 2])
    by_prompt = {one.request.prompt: one.path_JFCHW for one in store.get(keys)}
    for prompt, points in zip(paths.prompts, paths.points_BJFCHW, strict=True):
        kept = by_prompt[prompt]
        assert kept is not None
        assert torch.equal(points, kept)
    assert paths[1:2].prompts == paths.prompts[1:2]


def test_what_cannot_be_drawn_is_refused(store: HomeworkStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be drawn from 0 clips of homework; collect some first"):
        homework_batches(HomeworkStore(tmp_path / "none"), (), batch=2, seed=0)
    with pytest.raises(ValueError, match="a batch of 0 cannot be drawn"):
        path_batches(store, store.keys(), batch=0, seed=0)
    with pytest.raises(ValueError, match="has not the ODE paths of one assignment; collect it with path_levels"):
        path_batches(store, store.keys(assignment=PLAIN), batch=2, seed=0)(0)
    other = replace(WITH_PATH, path_steps=8)
    collect_homework(GaussianTeacher(), REQUESTS[:1], mixed := HomeworkStore(tmp_path / "mixed"), WITH_PATH)
    collect_homework(GaussianTeacher(), REQUESTS[:1], mixed, other)
    with pytest.raises(ValueError, match="has not the ODE paths of one assignment"):
        path_batches(mixed, mixed.keys(), batch=2, seed=0)(0)
