"""Distribution matching through truncated rollouts: its gradient, its optimum, who moves, what is refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamstill.flow.times import Sampling
from streamstill.testing import tiny_student
from streamstill.training.batches import Examples, PromptGroup
from streamstill.training.objectives.adversary import Adversary
from streamstill.training.objectives.rehearsal import RehearsalConfig
from streamstill.training.objectives.score import ScoreFit, ScoreFitConfig, StudentScore, fake_score
from streamstill.training.objectives.self_forcing import (
    SelfForcing,
    SelfForcingConfig,
    matching_direction,
    matching_loss,
)
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.afd_parts import ADVERSARY, Indifferent, dice, disturb, group, weights
from tests.training.toys import (
    CENTRE,
    SPREAD,
    GaussianNetwork,
    PointStudent,
    StepwiseNetwork,
    distance,
    point_batches,
)

FAST = OptimConfig(lr=0.02, betas=(0.5, 0.9), max_grad_norm=None, decay="cosine")
TOY = SelfForcingConfig(
    optim=FAST,
    fake_optim=FAST,
    rollouts_per_prompt=64,
    fake_steps_per_turn=3,
    rehearsal=RehearsalConfig(micro_batch=64),
)
SMALL = SelfForcingConfig(optim=OptimConfig(lr=1e-3), fake_optim=OptimConfig(lr=1e-3), fake_steps_per_turn=2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=dice(seed), dtype=torch.float64)


def small(adversary: bool = False, **changes: Any) -> SelfForcing:
    """On the real network: a disturbed copy as real score, an undisturbed one as fake."""
    student, real = tiny_student(), tiny_student()
    disturb(real.network, seed=3)
    config = replace(SMALL, adversarial=0.5 if adversary else 0.0, **changes)
    judge = Adversary(student, Indifferent(), ADVERSARY) if adversary else None
    return SelfForcing(student, StudentScore(real), fake_score(student), config, adversary=judge)


def points(sampling: Sampling, **changes: Any) -> tuple[SelfForcing, PointStudent, GaussianNetwork]:
    student = PointStudent(StepwiseNetwork((0.0, 0.0), 0.4, sampling), sampling)
    fake = GaussianNetwork((0.0, 0.0), 0.4)
    real = GaussianNetwork(CENTRE, SPREAD)
    return SelfForcing(student.as_student(), real, fake, replace(TOY, **changes)), student, fake


def test_the_direction_is_the_difference_of_the_scores_over_the_distance_to_the_real_one() -> None:
    clean, real, fake = normal(3, 4, 2), normal(3, 4, 2, seed=1), normal(3, 4, 2, seed=2)
    size_B = (clean - real).abs().mean((1, 2))
    torch.testing.assert_close(matching_direction(clean, real, fake), (fake - real) / size_B[:, None, None])


def test_the_gradient_of_the_loss_is_the_direction() -> None:
    clean, real, fake = normal(3, 4, 2).requires_grad_(), normal(3, 4, 2, seed=1), normal(3, 4, 2, seed=2)
    (gradient,) = torch.autograd.grad(matching_loss(clean, real, fake), clean)
    torch.testing.assert_close(gradient, matching_direction(clean.detach(), real, fake) / clean.numel())


@pytest.mark.parametrize("at", ["elsewhere", "at the estimate itself"])
def test_scores_that_agree_leave_exactly_no_gradient(at: str) -> None:
    real = normal(3, 4)
    clean = (normal(3, 4, seed=1) if at == "elsewhere" else real.clone()).requires_grad_()
    (gradient,) = torch.autograd.grad(matching_loss(clean, real, real.clone()), clean)
    assert gradient.abs().max() == 0


def test_a_student_whose_two_scores_are_one_does_not_move() -> None:
    student = tiny_student()
    objective = SelfForcing(student, StudentScore(tiny_student()), fake_score(student), SMALL)
    (take,) = objective.micro_batches("student", objective.begin(group(), 0, dice()), dice())
    loss = objective.loss("student", take)
    loss.value.backward()
    assert float(loss.value.detach()) == float(loss.metrics["score_gap"]) == 0
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in student.network.parameters())


def test_the_optimum_is_the_distribution_of_the_real_score(tmp_path: Path) -> None:
    """One step, Gaussian points: the mean and the spread of what is made become the real score's."""
    objective, student, fake = points(Sampling(steps=1, shift=1.0))
    before = student.far
    Trainer(objective, point_batches, TrainerConfig(steps=100), tmp_path).run()
    assert before > 0.2
    assert student.far < 0.04
    assert fake.centre.tolist() == pytest.approx(CENTRE, abs=0.04)


@pytest.mark.parametrize("sampler", ["euler", "few_step"])
def test_with_more_steps_the_truncated_rollouts_together_match(tmp_path: Path, sampler: str) -> None:
    """The scores see clips that end at either step: it is their mixture that is matched."""
    rehearsal = RehearsalConfig(micro_batch=32, sampler=sampler)  # type: ignore[arg-type]
    objective, _, _ = points(Sampling(steps=2, shift=2.0), rehearsal=rehearsal)

    def far() -> float:
        takes = objective.rehearsal.takes(point_batches(0), 2000, dice(9))
        return distance(objective.rehearsal.watched(takes).flatten(0, 1).flatten(1))

    before = far()
    Trainer(objective, point_batches, TrainerConfig(steps=60), tmp_path).run()
    assert far() < 0.25 * before


def test_the_fake_score_learns_what_the_student_makes(tmp_path: Path) -> None:
    """While the student rests: the Gaussian of its own points, centre 0 and spread 0.4."""
    objective, _, fake = points(Sampling(steps=1, shift=1.0), warmup_turns=60)
    with torch.no_grad():
        fake.centre.copy_(torch.tensor(CENTRE))
        fake.log_spread.fill_(-2.0)
    Trainer(objective, point_batches, TrainerConfig(steps=60), tmp_path).run()
    assert fake.centre.tolist() == pytest.approx([0.0, 0.0], abs=0.03)
    assert float(fake.spread.detach()) == pytest.approx(0.4, abs=0.03)


def test_a_score_fitted_to_clips_alone_serves_as_the_real_one(tmp_path: Path) -> None:
    """The baseline for a teacher that shows nothing but clips: fit, then match."""
    score = PointStudent(GaussianNetwork((0.0, 0.0), 0.5))
    fit = ScoreFit(score.as_student(), ScoreFitConfig(optim=replace(FAST, lr=0.03), micro_batch=64))

    def batch(step: int) -> Examples:
        return Examples(point_batches(step).latents_PMFCHW[0], ("a point",) * 64)

    Trainer(fit, batch, TrainerConfig(steps=80), tmp_path / "score").run()
    objective, student, _ = points(Sampling(steps=1, shift=1.0))
    objective.real = StudentScore(score.as_student())
    Trainer(objective, point_batches, TrainerConfig(steps=120), tmp_path / "student").run()
    assert student.far < 0.06


class Onlooker:
    """A real score that writes down what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor, tuple[str, ...]]] = []

    def velocity(self, x_t_BFCHW: Tensor, t_B: Tensor, prompts: Sequence[str]) -> Tensor:
        self.asked.append((x_t_BFCHW, t_B, tuple(prompts)))
        return torch.zeros_like(x_t_BFCHW)


def test_a_window_of_a_long_rollout_is_judged() -> None:
    student, real = tiny_student(), Onlooker()
    frames = student.latent_shape[0]
    config = replace(SMALL, rehearsal=RehearsalConfig(frames=3 * frames))
    objective = SelfForcing(student, real, fake_score(student), config)
    turn, starts = objective.begin(group(), 0, dice()), set()
    for seed in range(8):
        (take,) = objective.micro_batches("student", turn, dice(seed))
        starts.add(take.plan.learns.start)  # type: ignore[union-attr]
        objective.loss("student", take)
    assert {x_t.shape for x_t, _, _ in real.asked} == {(2, *student.latent_shape)}
    assert {prompts for _, _, prompts in real.asked} == {group().prompts}
    assert len(starts) > 2


def test_scores_are_compared_at_times_within_bounds_and_without_a_gradient() -> None:
    student, real = tiny_student(), Onlooker()
    objective = SelfForcing(student, real, fake_score(student), replace(SMALL, times=(0.4, 0.5)))
    for seed in range(5):
        (take,) = objective.micro_batches("student", objective.begin(group(), 0, dice()), dice(seed))
        value = objective.loss("student", take).value
        assert torch.equal(objective.loss("student", take).value, value)  # a take repeats itself
    t = torch.cat([t_B for _, t_B, _ in real.asked])
    assert 0.4 <= t.min() < t.max() <= 0.5
    assert not any(x_t.requires_grad for x_t, _, _ in real.asked)


@pytest.mark.parametrize("steps", [4, 2, 1])
@pytest.mark.parametrize("adversary", [False, True])
def test_a_turn_moves_the_student_and_those_who_judge_and_nothing_else(
    tmp_path: Path, steps: int, adversary: bool
) -> None:
    objective = small(adversary)
    student, real = objective.student, objective.real
    student.config = replace(student.config, sampling=replace(student.config.sampling, steps=steps))
    assert isinstance(real, StudentScore)
    parts = (student.network, objective.fake.module, student.text, real.student)
    before = [weights(part) for part in parts]
    Trainer(objective, group, TrainerConfig(steps=1), tmp_path).run()
    changed = [not torch.equal(weights(part), was) for part, was in zip(parts, before, strict=True)]
    assert changed == [True, True, False, False]


def test_those_who_judge_move_first_and_the_fake_score_more_often() -> None:
    assert [(p.name, p.steps_per_turn) for p in small().players] == [("fake", 2), ("student", 1)]
    assert [p.name for p in small(adversary=True).players] == ["fake", "discriminator", "student"]


def test_every_move_of_the_fake_score_has_rollouts_of_its_own() -> None:
    objective, generator = small(), dice()
    turn = objective.begin(group(), 0, generator)
    (first,), (second,) = (objective.micro_batches("fake", turn, generator) for _ in range(2))
    assert not torch.equal(first.clean_BFCHW, second.clean_BFCHW)  # type: ignore[union-attr]


def test_prompts_alone_are_enough_without_an_adversary(tmp_path: Path) -> None:
    asked = group()
    prompts = PromptGroup(asked.latents_PMFCHW[:, :0], asked.prompts)
    objective = small()
    Trainer(objective, lambda _: prompts, TrainerConfig(steps=1), tmp_path / "prompts").run()
    again = small()
    Trainer(again, lambda _: prompts, TrainerConfig(steps=1), tmp_path / "again").run()
    assert torch.equal(weights(objective.student), weights(again.student))
    with pytest.raises(ValueError, match="give prompts with at least one clip each"):
        small(adversary=True).begin(prompts, 0, dice())


def run(folder: Path, steps: int) -> bytes:
    objective = small(adversary=True, ema_decay=0.9)
    Trainer(objective, group, TrainerConfig(steps=steps, checkpoint_every=1), folder).run()
    return (folder / "training" / "state.safetensors").read_bytes()


def test_stopped_and_resumed_equals_never_stopped(tmp_path: Path) -> None:
    run(tmp_path / "stopped", 1)
    assert run(tmp_path / "stopped", 2) == run(tmp_path / "whole", 2)


class Overwhelmed(Indifferent):
    """A judge whose score of clips that are learnt through is not finite."""

    def forward(self, pixels_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().forward(pixels_BFCHW, prompts) * (float("nan") if pixels_BFCHW.requires_grad else 1.0)


def test_of_two_terms_the_one_that_is_not_finite_is_named(tmp_path: Path) -> None:
    objective = small(adversary=True)
    objective.adversary = Adversary(objective.student, Overwhelmed(), ADVERSARY)
    before = weights(objective.student)
    with pytest.raises(FloatingPointError) as caught:
        Trainer(objective, group, TrainerConfig(steps=1), tmp_path).run()
    said = str(caught.value)
    for part in ("player 'student'", "at step 0", "student/loss = nan", "student/adversarial = nan"):
        assert part in said
    assert "matching" not in said
    assert torch.equal(weights(objective.student), before)


class Flat(nn.Module):
    """A real score that answers with one number for each clip."""

    def velocity(self, x_t_BFCHW: Tensor, t_B: Tensor, prompts: Sequence[str]) -> Tensor:
        return t_B


def test_what_cannot_be_played_is_refused() -> None:
    student, real = tiny_student(), StudentScore(tiny_student())
    with pytest.raises(ValueError, match=r"shares parameters with the student; give it a copy: fake_score\(student\)"):
        SelfForcing(student, real, StudentScore(student), SMALL)
    for fake, score in ((fake_score(student), StudentScore(student)), (real, real)):
        with pytest.raises(ValueError, match="the real score shares parameters with one that learns"):
            SelfForcing(student, score, fake, SMALL)
    with pytest.raises(ValueError, match=r"adversarial is 0\.5 and the adversary missing"):
        SelfForcing(student, real, fake_score(student), replace(SMALL, adversarial=0.5))
    judge = Adversary(student, Indifferent(), ADVERSARY)
    with pytest.raises(ValueError, match=r"adversarial is 0\.0 and the adversary given"):
        SelfForcing(student, real, fake_score(student), SMALL, adversary=judge)
    objective = SelfForcing(student, Flat(), fake_score(student), SMALL)
    (take,) = objective.micro_batches("student", objective.begin(group(), 0, dice()), dice())
    with pytest.raises(ValueError, match=r"the real score answered with the shape \(2,\)"):
        objective.loss("student", take)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fake_steps_per_turn": 0}, "fake_steps_per_turn must be at least 1"),
        ({"rollouts_per_prompt": 0}, "rollouts_per_prompt must be at least 1"),
        ({"times": (0.5, 0.5)}, "times must be two rising times"),
        ({"times": (0.0, 0.5)}, "times must be two rising times"),
        ({"full_weight_from": 2.0}, "full_weight_from is a time"),
        ({"adversarial": -1.0}, "must not be negative"),
        ({"warmup_turns": -1}, "must not be negative"),
    ],
)
def test_configs_are_checked(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SelfForcingConfig(**changes)
