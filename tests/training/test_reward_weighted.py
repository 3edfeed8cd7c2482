"""Reward-weighted flow matching: weights with known values, a minimiser in closed form, an optimum on points."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamstill.flow.path import noised
from streamstill.flow.times import Sampling
from streamstill.testing import tiny_student
from streamstill.training.discriminators.blindfold import Blindfold
from streamstill.training.discriminators.motion import MotionDiscriminator
from streamstill.training.objectives.adversary import AdversaryConfig
from streamstill.training.objectives.afd import Trial
from streamstill.training.objectives.renoised import Renoised
from streamstill.training.objectives.reward_weighted import (
    RewardWeighted,
    RewardWeightedConfig,
    rollout_weights,
)
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.afd_parts import ADVERSARY, BY_HEART, Indifferent, dice, group, weights
from tests.training.toys import CENTRE, GaussianNetwork, Nearness, PointStudent, point_batches

KNOWING = AdversaryConfig(
    optim=BY_HEART, steps_per_turn=1, rollouts_per_prompt=128, blindfold=Blindfold(blur=1, stride=1, noise=0.0)
)
TOY = RewardWeightedConfig(
    optim=OptimConfig(lr=0.02, betas=(0.5, 0.9), max_grad_norm=None), adversary=KNOWING, micro_batch=128
)
SMALL = RewardWeightedConfig(optim=OptimConfig(lr=1e-3), adversary=ADVERSARY, micro_batch=3)
EXPONENTIAL, REWARD = RewardWeightedConfig(), RewardWeightedConfig(weighting="reward")
every_weighting = pytest.mark.parametrize("config", [EXPONENTIAL, REWARD], ids=["exponential", "reward"])


def small(judge: torch.nn.Module | None = None, **changes: Any) -> RewardWeighted:
    torch.manual_seed(1)
    return RewardWeighted(tiny_student(), judge or MotionDiscriminator(16), replace(SMALL, **changes))


def weighted(objective: RewardWeighted, turn: Trial, seed: int = 1) -> list[Renoised]:
    micros = objective.micro_batches("student", turn, dice(seed))
    assert all(isinstance(micro, Renoised) for micro in micros)
    return micros  # type: ignore[return-value]


@every_weighting
def test_weights_are_positive_average_one_and_rise_with_the_advantage(config: RewardWeightedConfig) -> None:
    weight = rollout_weights(torch.linspace(-1.5, 1.5, 12).view(3, 4), config)
    assert (weight > 0).all()
    assert float(weight.mean()) == pytest.approx(1)
    assert (weight.flatten().diff() > 0).all()


@every_weighting
def test_equal_rollouts_weigh_one(config: RewardWeightedConfig) -> None:
    torch.testing.assert_close(rollout_weights(torch.zeros(2, 5), config), torch.ones(2, 5))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_exponential_is_one_of_the_advantage_over_the_temperature(temperature: float) -> None:
    weight = rollout_weights(torch.tensor([[0.3, -0.9]]), RewardWeightedConfig(temperature=temperature))
    assert float((weight[0, 0] / weight[0, 1]).log()) == pytest.approx(1.2 / temperature, rel=1e-4)


def test_no_rollout_outweighs_the_clip() -> None:
    weight = rollout_weights(torch.tensor([[9.0, 0.0]]), RewardWeightedConfig(weight_clip=5.0))
    torch.testing.assert_close(weight, torch.tensor([[5.0, 1.0]]) / 3)


def test_the_worst_rollouts_are_left_out_by_the_reward() -> None:
    weight = rollout_weights(torch.tensor([[-3.0, 0.0, 3.0]]), REWARD)
    torch.testing.assert_close(weight, torch.tensor([[0.0, 1.0, 2.0]]))


def test_the_minimiser_is_the_weighted_mean() -> None:
    """One step from pure noise can only give the centre: the loss is least at the weighted mean of the rollouts."""
    student = PointStudent(GaussianNetwork((0.0, 0.0), 0.4))
    objective = RewardWeighted(student.as_student(), Nearness(), TOY)
    rollouts, noise = (0.3 * torch.randn(50, 2, 2, 1, 1, generator=dice(seed)) for seed in (1, 2))
    weight_B = torch.rand(50, generator=dice(3)) + 0.1
    micro = Renoised(rollouts, noise, torch.ones(50, 2), weight_B[:, None], ("a point",) * 50)
    mean = (weight_B[:, None, None] * rollouts.flatten(2)).sum((0, 1)) / (2 * weight_B.sum())

    def slope(at: Tensor) -> Tensor:
        with torch.no_grad():
            student.network.centre.copy_(at)
        return torch.autograd.grad(objective.loss("student", micro).value, student.network.centre)[0]

    assert slope(mean).abs().max() < 1e-6
    assert (slope(mean + 0.1) > 0.01).all()
    assert (slope(mean - 0.1) < -0.01).all()


@pytest.mark.parametrize("weighting", ["exponential", "reward"])
def test_the_points_gather_where_a_known_judge_likes_them(tmp_path: Path, weighting: str) -> None:
    """The judge likes nearness to a centre: in the end all points are there."""
    student = PointStudent(GaussianNetwork((0.0, 0.0), 0.3), Sampling(steps=8, shift=1.0))
    config = replace(TOY, weighting=weighting)  # type: ignore[arg-type]
    Trainer(
        RewardWeighted(student.as_student(), Nearness(), config), point_batches, TrainerConfig(steps=80), tmp_path
    ).run()
    made = student.made()
    assert made.mean(0).tolist() == pytest.approx(CENTRE, abs=0.04)
    assert made.std(0).max() < 0.1


def test_with_an_indifferent_judge_it_is_plain_flow_matching_on_its_own_rollouts() -> None:
    objective = small(Indifferent())
    turn = objective.begin(group(), 0, dice())
    for micro in weighted(objective, turn):
        t_BF = micro.t_BK.repeat_interleave(2, dim=1)
        x_t = noised(micro.rollouts_BFCHW, micro.noise_BFCHW, t_BF)
        text_BLD = objective.student.encode_prompts(micro.prompts)
        velocity = objective.student.network.velocity_in_context(
            x_t, micro.t_BK, text_BLD, context_BFCHW=micro.rollouts_BFCHW
        )
        plain = (velocity - (micro.noise_BFCHW - micro.rollouts_BFCHW)).square().mean()
        torch.testing.assert_close(objective.loss("student", micro).value, plain)


def test_every_rollout_of_the_student_comes_once_with_its_own_weight_and_prompt() -> None:
    adversary = replace(ADVERSARY, blindfold=Blindfold(noise=0))
    objective = small(adversary=adversary)
    turn = objective.begin(group(), 0, dice())
    made, prompts = turn.round.rollouts_PKFCHW.flatten(0, 1), turn.round.prompts
    advantage_PK = objective.compare(objective.adversary.scores(turn.round, dice()))
    expected_B, seen = rollout_weights(advantage_PK, objective.config).flatten(), []
    for micro in weighted(objective, turn):
        for row, prompt in enumerate(micro.prompts):
            (index,) = [i for i in range(len(made)) if torch.equal(made[i], micro.rollouts_BFCHW[row])]
            assert prompt == prompts[index]
            assert float(micro.worth_BC[row]) == pytest.approx(float(expected_B[index]), abs=1e-3)
            seen.append(index)
    assert sorted(seen) == list(range(len(made)))


def test_noise_levels_are_the_samplers_own() -> None:
    objective = small()
    turn = objective.begin(group(), 0, dice())
    t = {round(t, 6) for seed in range(6) for m in weighted(objective, turn, seed) for t in m.t_BK.flatten().tolist()}
    assert t == {round(t, 6) for t in objective.adversary.sampling.times()[:-1].tolist()}


def test_only_the_discriminator_moves_in_the_warm_up_and_then_both(tmp_path: Path) -> None:
    objective, fresh = small(warmup_turns=1), small()
    moved = []

    def look(step: int, metrics: object) -> None:
        moved.append(
            [
                not torch.equal(weights(a), weights(b))
                for a, b in (
                    (objective.student.network, fresh.student.network),
                    (objective.adversary.discriminator, fresh.adversary.discriminator),
                    (objective.student.text, fresh.student.text),
                )
            ]
        )

    Trainer(objective, group, TrainerConfig(steps=2), tmp_path, on_step=look).run()
    assert moved == [[False, True, False], [True, True, False]]


def run(folder: Path, steps: int) -> bytes:
    objective = small(ema_decay=0.9)
    Trainer(objective, group, TrainerConfig(steps=steps, checkpoint_every=1), folder).run()
    return (folder / "training" / "state.safetensors").read_bytes()


def test_stopped_and_resumed_equals_never_stopped(tmp_path: Path) -> None:
    run(tmp_path / "stopped", 1)
    assert run(tmp_path / "stopped", 2) == run(tmp_path / "whole", 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"micro_batch": 0}, "micro_batch must be at least 1"),
        ({"weighting": "rewards"}, "unknown weighting 'rewards'.*did you mean 'reward'"),
        ({"temperature": 0.0}, "temperature, weight_clip, .* must be positive"),
        ({"weight_clip": 0.0}, "must be positive"),
        ({"advantage_clip": -5.0}, "must be positive"),
        ({"reward_slope": 0.0}, "must be positive"),
        ({"full_weight_from": 0.0}, "full_weight_from is a time"),
    ],
)
def test_configs_are_checked(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RewardWeightedConfig(**changes)
