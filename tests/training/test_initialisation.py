"""Few-step initialisations find the answer where it is known: the end of a Gaussian's ODE path."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamstill.flow.times import sampler_times
from streamstill.testing import tiny_student
from streamstill.training.batches import Examples
from streamstill.training.homework_batches import Paths
from streamstill.training.objectives.initialisation import (
    ConsistencyConfig,
    ConsistencyDistillation,
    OdeRegression,
    OdeRegressionConfig,
)
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.teachers.open_teachers import gaussian_rate
from tests.training.clips import PROMPTS, examples
from tests.training.gaussian import Slope, Table, student_with

SPREAD, LEVELS = 0.5, 4
FAST = OptimConfig(lr=0.05, max_grad_norm=None, decay="cosine")


def euler_factors(times: Tensor) -> Tensor:
    """What the Euler path from each of the times to clean multiplies a Gaussian's value by; 1 at the last."""
    steps = 1 + (times[1:] - times[:-1]) * gaussian_rate(times[:-1], SPREAD)
    return torch.cat([steps.flip(0).cumprod(0).flip(0), torch.ones(1, dtype=times.dtype)])


def level_times(student_shift: float = 8.0) -> Tensor:
    return sampler_times(LEVELS, shift=student_shift).double()


def gaussian_paths(count: int = 8) -> Paths:
    times = level_times()
    noise = torch.randn(count, 1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors = euler_factors(times)
    return Paths(noise * (factors[0] / factors)[:, None, None, None, None], times, PROMPTS[:1] * count)


def clips(count: int = 8) -> Examples:
    noise = torch.randn(count, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Examples(SPREAD * noise, PROMPTS[:1] * count)


def flow_table() -> Table:
    """What flow matching on Gaussian clips ends with: the posterior mean of the clean value."""
    table, times = Table(level_times()), level_times()
    variance = (1 - times) ** 2 * SPREAD**2 + times**2
    table.factor.data.copy_((1 - times) * SPREAD**2 / variance)
    return table


def run(objective: Any, batch: Any, folder: Path, steps: int) -> None:
    Trainer(objective, lambda _: batch, TrainerConfig(steps=steps, checkpoint_every=1000), folder).run()


def test_who_knows_where_paths_end_has_no_loss() -> None:
    table = Table(level_times())
    table.factor.data.copy_(euler_factors(level_times()))
    objective = OdeRegression(student_with(table), OdeRegressionConfig())
    for micro in objective.micro_batches("student", gaussian_paths(), torch.Generator().manual_seed(0)):
        assert float(objective.loss("student", micro).value.detach()) < 1e-12


def test_ode_regression_learns_the_map_from_every_level_to_the_end(tmp_path: Path) -> None:
    table = Table(level_times())
    run(OdeRegression(student_with(table), OdeRegressionConfig(optim=FAST)), gaussian_paths(), tmp_path, 150)
    torch.testing.assert_close(table.factor.detach()[:-1], euler_factors(level_times())[:-1], atol=0.01, rtol=0)
    assert float(table.factor.detach()[-1]) == 0  # the end itself is never asked about


def test_chunks_are_at_kept_times_of_their_own_and_never_at_the_end() -> None:
    paths = gaussian_paths(200)
    objective = OdeRegression(student_with(Table(level_times())), OdeRegressionConfig(micro_batch=150))
    micros = list(objective.micro_batches("student", paths, torch.Generator().manual_seed(0)))
    assert [len(micro.prompts) for micro in micros] == [100, 100]
    (micro, _) = micros
    assert set(micro.t_BK.flatten().tolist()) == set(paths.t_J[:-1].tolist())
    assert (micro.t_BK[:, 0] != micro.t_BK[:, 1]).any()
    for row in range(20):
        for chunk in range(2):
            level = paths.t_J.tolist().index(float(micro.t_BK[row, chunk]))
            frames = slice(2 * chunk, 2 * chunk + 2)
            assert torch.equal(micro.x_t_BFCHW[row, frames], paths.points_BJFCHW[row, level, frames])
    assert torch.equal(micro.clean_BFCHW, paths.points_BJFCHW[:100, -1])


def test_paths_that_the_sampler_does_not_walk_are_refused() -> None:
    objective = OdeRegression(student_with(Table(level_times())), OdeRegressionConfig())
    paths = gaussian_paths(4)
    assert objective.begin(paths, 0, torch.Generator()) is paths
    other = replace(paths, t_J=torch.linspace(1, 0, len(paths.t_J)))
    with pytest.raises(ValueError, match=r"the student's sampler asks at 0\.\d+; make paths for its \d+ steps"):
        objective.begin(other, 0, torch.Generator())


def test_consistency_learns_the_map_from_every_level_to_the_end(tmp_path: Path) -> None:
    """It starts from flow matching's optimum, whose answer to pure noise is 0, and ends with the Euler path's."""
    table = flow_table()
    assert float(table.factor.detach()[0]) == 0
    config = ConsistencyConfig(optim=FAST, levels=LEVELS, target_decay=0.5)
    run(ConsistencyDistillation(student_with(table), config), clips(), tmp_path, 200)
    wanted = euler_factors(level_times())
    assert float(wanted[0]) > 0.09
    torch.testing.assert_close(table.factor.detach()[:-1], wanted[:-1], atol=0.01, rtol=0)


def test_who_agrees_with_himself_along_the_path_has_no_loss() -> None:
    objective = ConsistencyDistillation(student_with(flow_table()), ConsistencyConfig(levels=LEVELS))
    for network in (objective.student.network, objective.target):
        network.get_parameter("factor").data.copy_(euler_factors(level_times()))
    for micro in objective.micro_batches("student", clips(), torch.Generator().manual_seed(0)):
        assert float(objective.loss("student", micro).value.detach()) < 1e-12


def test_at_the_lowest_level_the_answer_is_where_the_teacher_arrives_whatever_the_target_says() -> None:
    student = tiny_student()
    objective = ConsistencyDistillation(student, ConsistencyConfig(levels=1))
    (micro,) = objective.micro_batches("student", examples(), torch.Generator().manual_seed(0))
    before = float(objective.loss("student", micro).value.detach())
    assert before < 1e-9  # one step from the top: the start agrees with its own Euler step
    with torch.no_grad():
        for parameter in objective.target.parameters():
            parameter.add_(1.0)
    assert float(objective.loss("student", micro).value.detach()) == pytest.approx(before)


def test_neighbours_are_one_level_apart_and_each_chunk_has_its_own() -> None:
    objective = ConsistencyDistillation(student_with(flow_table()), ConsistencyConfig(levels=LEVELS, micro_batch=64))
    (micro,) = objective.micro_batches("student", clips(64), torch.Generator().manual_seed(0))
    times = level_times().float().tolist()
    pairs = set(zip(micro.t_BK.flatten().tolist(), micro.t_next_BK.flatten().tolist(), strict=True))
    assert pairs == set(pairwise(times))
    assert (micro.t_BK[:, 0] != micro.t_BK[:, 1]).any()


def test_a_bidirectional_teacher_takes_one_time_for_the_clip_and_steps_by_that_mode() -> None:
    network = Slope()
    network.slope.data.fill_(2.0)
    network.causal.data.fill_(0.25)
    config = ConsistencyConfig(levels=LEVELS, teacher_mode="bidirectional", micro_batch=64)
    objective = ConsistencyDistillation(student_with(network), config)
    (micro,) = objective.micro_batches("student", clips(64), torch.Generator().manual_seed(0))
    assert torch.equal(micro.t_BK[:, 0], micro.t_BK[:, 1])
    t, t_next = (times.repeat_interleave(2, dim=1)[..., None, None, None] for times in (micro.t_BK, micro.t_next_BK))
    x_next = micro.x_t_BFCHW * (1 + 2.0 * (t_next - t) / t)
    wanted = torch.where(t_next > 0, 0.75 * x_next, x_next)  # the student's clean estimate is (1 - causal) x
    loss = objective.loss("student", micro).value.detach()
    torch.testing.assert_close(loss, (0.75 * micro.x_t_BFCHW - wanted).square().mean())


def test_the_target_follows_and_the_teacher_stays() -> None:
    objective = ConsistencyDistillation(student_with(flow_table()), ConsistencyConfig(target_decay=0.75))
    assert set(objective.memory) == {"teacher", "target"}
    networks = (objective.student.network, objective.target, objective.teacher)
    factor, target, teacher = (network.get_parameter("factor") for network in networks)
    start = factor.detach().clone()
    factor.data.add_(1.0)
    objective.end(clips(), 0)
    torch.testing.assert_close(target.detach(), start + 0.25)
    assert torch.equal(teacher, start)


def test_only_the_network_learns_and_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = ConsistencyConfig(optim=OptimConfig(lr=1e-3), levels=LEVELS)
    weights = []
    for stops in ((4,), (2, 4)):
        for steps in stops:
            student = tiny_student()
            run(ConsistencyDistillation(student, config), examples(), tmp_path / str(stops), steps)
        weights.append(student.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    start = tiny_student().state_dict()
    changed = {name.split(".")[0] for name in start if not torch.equal(start[name], weights[0][name])}
    assert changed == {"network"}


def test_a_real_student_learns_from_paths(tmp_path: Path) -> None:
    given, losses = examples(), list[float]()
    noise = torch.randn(given.latents_BFCHW.shape, generator=torch.Generator().manual_seed(0))
    times = sampler_times(4, shift=8.0)
    t_J = times[:, None, None, None, None]
    points = torch.stack([(1 - t_J) * clean + t_J * one for clean, one in zip(given.latents_BFCHW, noise, strict=True)])
    objective = OdeRegression(tiny_student(), OdeRegressionConfig(optim=OptimConfig(lr=5e-3)))
    Trainer(
        objective,
        lambda _: Paths(points, times, given.prompts),
        TrainerConfig(steps=30),
        tmp_path,
        on_step=lambda _, metrics: losses.append(metrics["student/loss"]),
    ).run()
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert objective.players[0].module is objective.student


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"levels": 0}, "levels must be at least 1, got 0"),
        ({"target_decay": 1.0}, r"target_decay must lie in \[0, 1\), got 1.0; 0 copies the student"),
        ({"teacher_mode": "both"}, "unknown teacher_mode 'both': choose one of bidirectional, causal"),
        ({"micro_batch": 0}, "micro_batch must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(ConsistencyConfig(), **changes)


def test_a_regression_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="micro_batch must be at least 1, got 0"):
        OdeRegressionConfig(micro_batch=0)
