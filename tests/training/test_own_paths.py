"""A student's own paths begin at its noise, end where its many-step rollout ends, and can be learned in few steps."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamstill.flow.times import Sampling
from streamstill.streaming.rollout import CLIPS_AT_ONCE, rollout
from streamstill.student.student import Student
from streamstill.testing import tiny_student
from streamstill.training.objectives.initialisation import OdeRegression, OdeRegressionConfig
from streamstill.training.optim import OptimConfig
from streamstill.training.own_paths import own_path_batches, own_paths
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.clips import PROMPTS

FINE = 6


def answered(student: Student, steps: int, *, seed: int = 0, prompts: tuple[str, ...] = PROMPTS) -> Tensor:
    """What the student makes of the prompts in so many steps."""
    with torch.no_grad():
        return rollout(
            student.network,
            student.encode_prompts(prompts),
            frames=student.latent_shape[0],
            latent_shape=student.latent_shape[1:],
            sampling=Sampling(steps=steps, shift=student.config.sampling.shift),
            generator=torch.Generator().manual_seed(seed),
        )


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_paths_go_from_the_noise_to_the_end_of_the_many_step_rollout(kept: int) -> None:
    student = tiny_student().with_steps(kept).eval()
    paths = own_paths(student, PROMPTS, steps=FINE, seed=5)
    assert paths.points_BJFCHW.shape == (len(PROMPTS), kept + 1, *student.latent_shape)
    torch.testing.assert_close(paths.clean_BFCHW, answered(student, FINE, seed=5))
    torch.testing.assert_close(paths.t_J, student.config.sampling.times())
    noise = paths.points_BJFCHW[:, 0]
    assert abs(float(noise.std()) - 1) < 0.05
    assert not torch.equal(noise[:, :2], noise[:, 2:4])  # every chunk has its own


def test_a_kept_point_is_the_rollouts_own_at_that_time() -> None:
    student = tiny_student().with_steps(2).eval()
    points = own_paths(student, PROMPTS, steps=4, seed=0).points_BJFCHW
    times = Sampling(steps=4, shift=student.config.sampling.shift).times()
    text, x_t = student.encode_prompts(PROMPTS), points[:, 0, : student.network.chunk_frames]
    state = student.network.initial_state(len(PROMPTS), *student.latent_shape[2:], like=x_t)
    with torch.no_grad():
        for t, t_next in pairwise(times[:3]):  # two of the four steps: the middle of the path
            x_t = x_t + (t_next - t) * student.network.velocity(x_t, t.expand(len(PROMPTS)), text, state)
    torch.testing.assert_close(points[:, 1, : student.network.chunk_frames], x_t)


def test_more_paths_than_fit_a_batch_are_made_in_order() -> None:
    student = tiny_student().with_steps(1).eval()
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(CLIPS_AT_ONCE + 3)]
    paths = own_paths(student, prompts, steps=2, seed=0)
    assert paths.prompts == tuple(prompts)
    assert len(paths.points_BJFCHW) == CLIPS_AT_ONCE + 3
    assert paths.points_BJFCHW.flatten(1).unique(dim=0).shape[0] == CLIPS_AT_ONCE + 3


@pytest.mark.parametrize(("steps", "kept"), [(4, 4), (2, 4), (6, 4)])
def test_paths_that_miss_the_kept_times_are_refused(steps: int, kept: int) -> None:
    with pytest.raises(ValueError, match=f"paths of {steps} steps .* student with {kept}; use a multiple"):
        own_paths(tiny_student().with_steps(kept), PROMPTS, steps=steps, seed=0)


def test_no_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="give at least one"):
        own_paths(tiny_student(), [], steps=8, seed=0)


def test_every_path_comes_once_before_any_comes_again() -> None:
    student = tiny_student().with_steps(1).eval()
    paths = own_paths(student, PROMPTS, steps=2, seed=0)
    batches = own_path_batches(paths, batch=1, seed=3)
    singles = [batches(step) for step in range(len(PROMPTS))]
    assert sorted(single.prompts[0] for single in singles) == sorted(PROMPTS)
    for single in singles:
        assert torch.equal(single.points_BJFCHW[0], paths.points_BJFCHW[PROMPTS.index(single.prompts[0])])
    assert torch.equal(batches(0).points_BJFCHW, singles[0].points_BJFCHW)


def test_one_step_learns_to_end_where_many_steps_end(tmp_path: Path) -> None:
    student = tiny_student().with_steps(1).eval()
    wanted, before = answered(student, FINE), answered(student, 1)
    paths = own_paths(student, PROMPTS, steps=FINE, seed=0)
    objective = OdeRegression(student, OdeRegressionConfig(optim=OptimConfig(lr=3e-3)))
    batches = own_path_batches(paths, batch=len(PROMPTS), seed=0)
    Trainer(objective, batches, TrainerConfig(steps=60, checkpoint_every=1000), tmp_path).run()
    after = answered(student.eval(), 1)
    assert float((after - wanted).square().mean()) < 0.3 * float((before - wanted).square().mean())
