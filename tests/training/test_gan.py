"""The GAN through the rollout: its losses, the way of its gradient, its optimum on points."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamstill.flow.times import Sampling
from streamstill.testing import tiny_student
from streamstill.training.discriminators.blindfold import Blindfold
from streamstill.training.discriminators.motion import ChunkMotionDiscriminator, MotionDiscriminator
from streamstill.training.objectives.adversary import AdversaryConfig, Comparison
from streamstill.training.objectives.gan import Kind, RolloutGan, RolloutGanConfig, adversarial_loss, student_loss
from streamstill.training.objectives.rehearsal import RehearsalConfig, Take
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.afd_parts import ADVERSARY, BY_HEART, Brightness, Indifferent, dice, group, weights
from tests.training.toys import (
    CENTRE,
    POINTS,
    SPREAD,
    GaussianNetwork,
    PointStudent,
    StepwiseNetwork,
    Taste,
    point_batches,
)

FAST = OptimConfig(lr=0.015, betas=(0.5, 0.9), max_grad_norm=None, decay="cosine")
OPEN_EYES = Blindfold(blur=1, stride=1, noise=0.0)
TOY = RolloutGanConfig(
    optim=FAST,
    # Weight decay holds the judge back, without which the two would circle round the optimum for ever.
    adversary=AdversaryConfig(
        optim=replace(FAST, lr=0.05, weight_decay=1.0), rollouts_per_prompt=64, blindfold=OPEN_EYES
    ),
    rehearsal=RehearsalConfig(micro_batch=64),
)
SMALL = RolloutGanConfig(optim=OptimConfig(lr=1e-3), adversary=ADVERSARY, rehearsal=RehearsalConfig(micro_batch=8))
every_kind = pytest.mark.parametrize("kind", ["bradley_terry", "gan"])


def small(judge: torch.nn.Module | None = None, **changes: Any) -> RolloutGan:
    torch.manual_seed(1)
    return RolloutGan(tiny_student(), judge or MotionDiscriminator(16), replace(SMALL, **changes))


def take_of(objective: RolloutGan, seed: int = 1) -> Take:
    (take,) = objective.micro_batches("student", objective.begin(group(), 0, dice()), dice(seed))
    assert isinstance(take, Take)
    return take


def scores(seed: int) -> Tensor:
    return torch.randn(5, generator=dice(seed), dtype=torch.float64)


@every_kind
def test_a_judge_that_cannot_decide_costs_log_2(kind: Kind) -> None:
    assert float(student_loss(torch.zeros(4), torch.zeros(4), kind)) == pytest.approx(math.log(2))


@every_kind
def test_a_higher_score_costs_less(kind: Kind) -> None:
    student_B = scores(0).requires_grad_()
    (slope_B,) = torch.autograd.grad(student_loss(student_B, scores(1), kind), student_B)
    assert (slope_B < 0).all()


def test_only_the_paired_loss_is_free_of_a_constant_per_prompt() -> None:
    student_B, teacher_B, constant_B = scores(0), scores(1), 3 * scores(2)

    def change(kind: Kind) -> float:
        moved = student_loss(student_B + constant_B, teacher_B + constant_B, kind)
        return abs(float(moved - student_loss(student_B, teacher_B, kind)))

    assert change("bradley_terry") < 1e-12
    assert change("gan") > 0.1


@every_kind
def test_the_loss_is_that_of_what_the_discriminator_is_shown(kind: Kind) -> None:
    objective = small(Brightness(0.2), adversary=replace(ADVERSARY, loss=kind, blindfold=OPEN_EYES))
    take = take_of(objective)
    assert take.teacher_BFCHW is not None
    clean = objective.rehearsal.perform(take)
    shown = [objective.student.codec.decode(x)[0].clamp(-1, 1) for x in (clean, take.teacher_BFCHW)]
    student_B, teacher_B = (-(pixels.mean((1, 2, 3, 4)) - 0.2).abs() for pixels in shown)
    loss = adversarial_loss(objective.adversary, clean, take)
    torch.testing.assert_close(loss.value, student_loss(student_B, teacher_B, kind))
    assert float(loss.metrics["fooled"]) == float((student_B > teacher_B).float().mean())


def test_the_gradient_comes_through_the_decoded_clip_to_every_part_of_the_network() -> None:
    objective = small()
    objective.loss("student", take_of(objective)).value.backward()
    network = objective.student.network
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())
    assert all(p.grad is None for p in objective.student.text.parameters())


def test_an_indifferent_judge_gives_no_gradient() -> None:
    objective = small(Indifferent())
    loss = objective.loss("student", take_of(objective)).value
    assert float(loss.detach()) == pytest.approx(math.log(2))
    slopes = torch.autograd.grad(loss, list(objective.student.network.parameters()), allow_unused=True)
    assert all(slope is None or slope.abs().max() == 0 for slope in slopes)


@every_kind
def test_the_points_become_the_teachers(tmp_path: Path, kind: Kind) -> None:
    """A judge that is linear in a point and its square: at the optimum mean and spread agree."""
    student = PointStudent(StepwiseNetwork((0.0, 0.0), 0.4, POINTS))
    config = replace(TOY, adversary=replace(TOY.adversary, loss=kind))
    objective, before = RolloutGan(student.as_student(), Taste(), config), student.far
    Trainer(objective, point_batches, TrainerConfig(steps=120), tmp_path).run()
    assert before > 0.2
    assert student.far < 0.06


@pytest.mark.parametrize("target", [-1.0, 1.0])
def test_the_rollouts_become_what_a_known_judge_likes(tmp_path: Path, target: float) -> None:
    adversary = replace(ADVERSARY, optim=BY_HEART, steps_per_turn=1, blindfold=Blindfold(noise=0))
    objective = small(Brightness(target), adversary=adversary)

    def brightness() -> float:
        made = objective.rehearsal.round(group(), 4, dice(99)).rollouts_PKFCHW.flatten(0, 1)
        return float(objective.student.codec.decode(made)[0].clamp(-1, 1).mean())

    before = brightness()
    Trainer(objective, group, TrainerConfig(steps=4), tmp_path).run()
    assert (brightness() - before) * target > 0.01


def test_the_anchor_alone_is_flow_matching_on_the_teachers_clips(tmp_path: Path) -> None:
    """With a judge that has no opinion the anchor finds the mean and the spread of the teacher's points."""
    student = PointStudent(GaussianNetwork((0.0, 0.0), 0.4), Sampling(steps=4, shift=1.0))
    config = replace(TOY, anchor=1.0, optim=replace(FAST, lr=0.03))
    Trainer(
        RolloutGan(student.as_student(), Indifferent(), config), point_batches, TrainerConfig(steps=90), tmp_path
    ).run()
    assert student.network.centre.tolist() == pytest.approx(CENTRE, abs=0.03)
    assert float(student.network.spread.detach()) == pytest.approx(SPREAD, abs=0.03)


def test_the_anchor_is_added_with_its_weight() -> None:
    plain, anchored = small(), small(anchor=0.25)
    take = take_of(plain)
    alone, both = (objective.loss("student", take) for objective in (plain, anchored))
    assert set(both.metrics) - set(alone.metrics) == {"anchor"}
    torch.testing.assert_close(both.value, alone.value + 0.25 * both.metrics["anchor"])


def test_the_discriminator_moves_first_and_sees_truncated_rollouts_of_the_student() -> None:
    objective = small(adversary=replace(ADVERSARY, blindfold=OPEN_EYES))
    assert [player.name for player in objective.players] == ["discriminator", "student"]
    turn = objective.begin(group(), 0, dice())
    made = objective.rehearsal.watched(objective.rehearsal.takes(group(), ADVERSARY.rollouts_per_prompt, dice()))
    assert torch.equal(turn.round.rollouts_PKFCHW.flatten(0, 1), made)
    (micro,) = objective.micro_batches("discriminator", turn, dice())
    assert isinstance(micro, Comparison)
    torch.testing.assert_close(micro.student_BFCHW, objective.student.codec.decode(made)[0].clamp(-1, 1))


@pytest.mark.parametrize(("step", "rests"), [(0, True), (1, True), (2, False)])
def test_the_student_rests_while_the_discriminator_warms_up(step: int, rests: bool) -> None:
    objective = small(warmup_turns=2)
    turn = objective.begin(group(), step, dice())
    assert (objective.micro_batches("student", turn, dice()) == []) is rests
    assert objective.micro_batches("discriminator", turn, dice()) != []


def test_a_turn_moves_both_players_and_not_the_text_encoder(tmp_path: Path) -> None:
    objective, fresh = small(), small()
    Trainer(objective, group, TrainerConfig(steps=1), tmp_path).run()
    parts: tuple[Callable[[RolloutGan], torch.nn.Module], ...] = (
        lambda o: o.student.network,
        lambda o: o.adversary.discriminator,
        lambda o: o.student.text,
    )
    assert [not torch.equal(weights(part(objective)), weights(part(fresh))) for part in parts] == [True, True, False]


def run(folder: Path, steps: int) -> bytes:
    adversary = replace(ADVERSARY, ema_decay=0.9)
    objective = small(ema_decay=0.9, anchor=0.1, adversary=adversary)
    Trainer(objective, group, TrainerConfig(steps=steps, checkpoint_every=1), folder).run()
    return (folder / "training" / "state.safetensors").read_bytes()


def test_stopped_and_resumed_equals_never_stopped(tmp_path: Path) -> None:
    run(tmp_path / "stopped", 1)
    assert run(tmp_path / "stopped", 2) == run(tmp_path / "whole", 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"anchor": -0.1}, "must not be negative"),
        ({"warmup_turns": -1}, "must not be negative"),
        ({"full_weight_from": 0.0}, "full_weight_from is a time"),
    ],
)
def test_configs_are_checked(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RolloutGanConfig(**changes)


def test_the_average_judges_the_student_with_as_many_looks_as_were_asked_for() -> None:
    objective = small(adversary=replace(ADVERSARY, ema_decay=0.9, looks=3))
    asked: list[int] = []
    objective.adversary.judge.register_forward_hook(lambda *_: asked.append(1))
    objective.adversary.discriminator.register_forward_hook(lambda *_: pytest.fail("the newest one was asked"))
    loss = objective.loss("student", take_of(objective))
    loss.value.backward()
    assert len(asked) == 2 * 3  # the student's clips and the teacher's
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.student.network.parameters())


def test_a_judge_of_chunks_gives_the_student_the_mean_of_their_scores() -> None:
    torch.manual_seed(3)
    objective = small(ChunkMotionDiscriminator(16), adversary=replace(ADVERSARY, blindfold=OPEN_EYES))
    clips, prompts = group().latents_PMFCHW.flatten(0, 1), ("a", "b", "c", "d")
    score_B = objective.adversary.clip_scores(clips, prompts, dice())
    pixels = objective.adversary.seen(clips, dice())
    chunk_BK = objective.adversary.discriminator.chunk_scores(pixels, prompts, chunks=2)  # type: ignore[operator]
    torch.testing.assert_close(score_B, chunk_BK.mean(dim=1))
