"""Whole runs with the real trainer: AFD goes where its judge points, and stops and resumes bit for bit."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from streamstill.testing import tiny_student
from streamstill.training.batches import PromptGroup
from streamstill.training.discriminators.blindfold import Blindfold
from streamstill.training.discriminators.motion import MotionDiscriminator
from streamstill.training.objectives.adversary import Adversary
from streamstill.training.objectives.afd import AdversarialFlowDistillation
from streamstill.training.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from streamstill.training.objectives.together import Together
from streamstill.training.policies import OldSchedule
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.afd_parts import ADVERSARY, BY_HEART, Brightness, Indifferent, afd, dice, group, lagged, weights
from tests.training.clips import examples

STEPS = 3


def run_afd(folder: Path, steps: int = STEPS, **changes: Any) -> AdversarialFlowDistillation:
    objective = afd(warmup_turns=1, prior=0.1, **changes)
    Trainer(objective, group, TrainerConfig(steps=steps, checkpoint_every=1), folder).run()
    return objective


def state(folder: Path) -> bytes:
    return (folder / "training" / "state.safetensors").read_bytes()


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("afd")
    run_afd(folder)
    return folder


@pytest.mark.parametrize("stop", [1, 2])
def test_afd_stopped_and_resumed_equals_never_stopped(tmp_path: Path, never_stopped: Path, stop: int) -> None:
    run_afd(tmp_path, steps=stop)
    run_afd(tmp_path)
    assert state(tmp_path) == state(never_stopped)


def test_a_finished_run_gives_its_networks_back(never_stopped: Path) -> None:
    """A fresh objective on the folder of a finished run holds all four networks as they were."""
    again, fresh = run_afd(never_stopped), afd(prior=0.1)
    networks = [
        (o.student.network, o.adversary.discriminator, *(o.memory[name] for name in ("old", "start")), o.student.text)
        for o in (again, fresh)
    ]
    changed = [not torch.equal(weights(a), weights(b)) for a, b in zip(*networks, strict=True)]
    assert changed == [True, True, True, False, False]


def test_in_the_warm_up_only_the_discriminator_changes(tmp_path: Path) -> None:
    objective, fresh = run_afd(tmp_path, steps=1), afd()
    assert torch.equal(weights(objective.student), weights(fresh.student))
    assert torch.equal(weights(lagged(objective)), weights(lagged(fresh)))
    assert not torch.equal(weights(objective.adversary.discriminator), weights(fresh.adversary.discriminator))


def test_the_rollouts_lag_behind_the_student_by_its_decay(tmp_path: Path) -> None:
    """After one update from equal copies: old = decay * start + (1 - decay) * student."""
    objective = run_afd(tmp_path, steps=2, old=OldSchedule(decay=0.75))
    expected = 0.75 * weights(objective.memory["start"]) + 0.25 * weights(objective.student.network)
    torch.testing.assert_close(weights(lagged(objective)), expected)


def test_an_indifferent_judge_moves_no_weight(tmp_path: Path) -> None:
    """Reward 1/2 for all: the two regressions cancel exactly where the student equals its lagged copy."""
    objective = afd(Indifferent(), adversary=replace(ADVERSARY, optim=BY_HEART))
    start = weights(objective.student.network)
    Trainer(objective, group, TrainerConfig(steps=2), tmp_path).run()
    moved = weights(objective.student.network) - start
    assert moved.abs().max() == 0


def mean_brightness(objective: AdversarialFlowDistillation) -> float:
    """Of the student's own rollouts, always from the same noise."""
    made = objective.adversary.roll_out(objective.student.network, group(), dice(99)).rollouts_PKFCHW
    return float(objective.student.codec.decode(made.flatten(0, 1))[0].clamp(-1, 1).mean())


@pytest.mark.parametrize("target", [-1.0, 1.0])
def test_the_rollouts_become_what_the_judge_likes(tmp_path: Path, target: float) -> None:
    """A judge of mean brightness alone: the student's clips become brighter or darker with every few updates."""
    adversary = replace(
        ADVERSARY, optim=BY_HEART, steps_per_turn=1, rollouts_per_prompt=12, blindfold=Blindfold(noise=0)
    )
    objective = afd(Brightness(target), adversary=adversary, micro_batch=24, reward_slope=0.25)
    before = mean_brightness(objective)
    Trainer(objective, group, TrainerConfig(steps=5), tmp_path).run()
    assert (mean_brightness(objective) - before) * target > 0.008


class Asked:
    """Batches of both objectives; remembers in which steps the second was asked for its own."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, step: int) -> tuple[Any, Any]:
        return examples(), lambda: self._group(step)

    def _group(self, step: int) -> PromptGroup:
        self.steps.append(step)
        return group(step)


def together(every: int = 2, begins: int = 0) -> tuple[Together, nn.Module, nn.Module]:
    parts = afd()
    judge: nn.Module = parts.adversary.discriminator
    matching = FlowMatching(parts.student, FlowMatchingConfig(ema_decay=0.9))
    return (
        Together(matching, Adversary(parts.student, judge, ADVERSARY), every=every, begins=begins),
        parts.student,
        judge,
    )


def test_the_second_of_two_objectives_rests_between_its_turns(tmp_path: Path) -> None:
    objective, student, judge = together(every=3)
    asked, students, judges = Asked(), [weights(student)], [weights(judge)]

    def look(step: int, metrics: object) -> None:
        students.append(weights(student))
        judges.append(weights(judge))

    Trainer(objective, asked, TrainerConfig(steps=5), tmp_path, on_step=look).run()
    assert asked.steps == [0, 3]
    assert [not torch.equal(a, b) for a, b in pairwise(judges)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert all(not torch.equal(a, b) for a, b in pairwise(students))


def test_the_second_of_two_objectives_may_begin_later(tmp_path: Path) -> None:
    objective, _, judge = together(every=2, begins=2)
    asked, judges = Asked(), [weights(judge)]

    def look(step: int, metrics: object) -> None:
        judges.append(weights(judge))

    Trainer(objective, asked, TrainerConfig(steps=5), tmp_path, on_step=look).run()
    assert asked.steps == [2, 4]
    assert torch.equal(judges[0], judges[2])
    assert not torch.equal(judges[2], judges[3])


def test_two_objectives_stopped_and_resumed_equal_never_stopped(tmp_path: Path) -> None:
    for name, stops in (("whole", (5,)), ("stopped", (1, 2, 4, 5))):
        for steps in stops:
            Trainer(together()[0], Asked(), TrainerConfig(steps=steps), tmp_path / name).run()
    assert state(tmp_path / "whole") == state(tmp_path / "stopped")


def test_two_objectives_have_the_players_of_both_and_a_rhythm_of_at_least_one() -> None:
    objective, _, _ = together()
    assert [player.name for player in objective.players] == ["student", "discriminator"]
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Together(objective.first, objective.second, every=0)
    with pytest.raises(ValueError, match="begins is a step, counted from 0, got -1"):
        Together(objective.first, objective.second, begins=-1)


def test_a_warm_up_makes_the_discriminator_better_than_chance(tmp_path: Path) -> None:
    """Teacher clips and rollouts of an untaught student differ so much that a few turns tell them apart."""
    objective, accuracies = afd(), []
    torch.manual_seed(0)
    adversary = Adversary(objective.student, MotionDiscriminator(16), ADVERSARY)
    Trainer(
        adversary,
        group,
        TrainerConfig(steps=6),
        tmp_path,
        on_step=lambda _, metrics: accuracies.append(metrics["discriminator/pair_accuracy"]),
    ).run()
    assert sum(accuracies[-3:]) / 3 >= 0.8


def rates(objective: Any, folder: Path, steps: int, player: str, batches: Any = group) -> list[float]:
    """The player's learning rate at each of its moves."""
    trainer = Trainer(objective, batches, TrainerConfig(steps=steps), folder)
    logged = [trainer.turn(step) for step in range(steps)]
    return [metrics[f"{player}/lr"] for metrics in logged if f"{player}/lr" in metrics]


def test_a_rate_falls_over_the_turns_in_which_its_player_moves(tmp_path: Path) -> None:
    falling = replace(BY_HEART, decay="linear")
    adversary = replace(ADVERSARY, optim=falling, steps_per_turn=1)
    whole = rates(afd(optim=falling, adversary=adversary), tmp_path, 3, "student")
    assert whole == pytest.approx([falling.lr * left / 3 for left in (3, 2, 1)])
    resting = afd(optim=falling, adversary=adversary, warmup_turns=2, freeze_after=3)
    assert rates(resting, tmp_path, 5, "student") == pytest.approx(whole)
    assert rates(resting, tmp_path, 5, "discriminator") == pytest.approx(whole)


def test_so_it_does_in_a_run_of_two_objectives(tmp_path: Path) -> None:
    falling = replace(BY_HEART, decay="linear")
    student = tiny_student()
    adversary = Adversary(student, MotionDiscriminator(16), replace(ADVERSARY, optim=falling, steps_per_turn=1))
    both = Together(FlowMatching(student, FlowMatchingConfig()), adversary, every=2, begins=1)

    def batches(step: int) -> Any:
        return examples(), lambda: group(step)

    made = rates(both, tmp_path, 6, "discriminator", batches)
    assert made == pytest.approx([falling.lr * left / 3 for left in (3, 2, 1)])
