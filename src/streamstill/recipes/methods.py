"""Ways to learn from a black-box teacher's clips, by name: AFD and the baselines that it is compared with."""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from streamstill.config import require_one_of, require_positive
from streamstill.recipes.stages import averaged, settle
from streamstill.student.student import Student
from streamstill.training.batches import ExampleRows, PromptGroup, example_batches, prompt_batches
from streamstill.training.objectives.adversary import AdversaryConfig
from streamstill.training.objectives.afd import AdversarialFlowDistillation, AfdConfig, advantages
from streamstill.training.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from streamstill.training.objectives.gan import RolloutGan, RolloutGanConfig
from streamstill.training.objectives.objective import Objective
from streamstill.training.objectives.reward_weighted import RewardWeighted, RewardWeightedConfig
from streamstill.training.objectives.score import RealScore, ScoreFit, ScoreFitConfig, StudentScore, fake_score
from streamstill.training.objectives.self_forcing import SelfForcing, SelfForcingConfig
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig

METHODS = ("sft", "afd", "gan", "dmd", "reward-weighted")
FEW = AdversaryConfig(rollouts_per_prompt=4)
TRIED = 4  # turns, from which the price of a turn is known
LONGEST_WARMUP = 10_000  # turns among which one is looked for in which everybody moves


@dataclass(frozen=True, kw_only=True)
class Methods:
    """The numbers of every method; one that is not used changes nothing."""

    batch: int = 8  # clips of a step of flow matching
    prompts_per_update: int = 16
    answers: int = 2
    sft: FlowMatchingConfig = field(
        default_factory=lambda: FlowMatchingConfig(optim=OptimConfig(lr=3e-4, warmup_steps=10), ema_decay=0.97)
    )
    afd: AfdConfig = field(default_factory=lambda: AfdConfig(optim=OptimConfig(lr=2e-4)))
    gan: RolloutGanConfig = field(
        default_factory=lambda: RolloutGanConfig(optim=OptimConfig(lr=3e-5), adversary=FEW, ema_decay=0.9)
    )
    score: ScoreFitConfig = field(default_factory=lambda: ScoreFitConfig(optim=OptimConfig(lr=5e-4), ema_decay=0.97))
    dmd: SelfForcingConfig = field(
        default_factory=lambda: SelfForcingConfig(optim=OptimConfig(lr=3e-5), ema_decay=0.9, fake_steps_per_turn=2)
    )
    reward_weighted: RewardWeightedConfig = field(
        default_factory=lambda: RewardWeightedConfig(optim=OptimConfig(lr=2e-4))
    )

    def __post_init__(self) -> None:
        require_positive(self, "batch", "prompts_per_update", "answers")


@dataclass(frozen=True, eq=False)
class Method:
    """An objective with its batches; ``averaged`` is the module whose player ``student`` may keep an average."""

    objective: Objective[Any, Any, Any]
    batches: Callable[[int], Any]
    averaged: nn.Module


def build_method(
    name: str,
    student: Student,
    discriminator: nn.Module,
    examples: ExampleRows,
    config: Methods,
    *,
    seed: int,
    real: RealScore | None = None,
    compare: Callable[[Tensor], Tensor] = advantages,
) -> Method:
    """A method that teaches the student, in place, from encoded clips.

    Args:
        discriminator: for the methods that ask one; it goes on from what it knows.
        real: the score that ``dmd`` matches; ``score_of`` makes the one that is fitted to the clips.
        compare: scores to advantages, for ``afd`` and ``reward-weighted``.

    Raises:
        ValueError: an unknown name, too few prompts, or ``dmd`` without a real score.
    """
    require_one_of(name, METHODS, "method")
    if name == "sft":
        clips = example_batches(examples, batch=config.batch, seed=seed)
        return Method(FlowMatching(student, config.sft), clips, student)
    groups = _groups(examples, config, seed)
    if name == "afd":
        afd = AdversarialFlowDistillation(student, discriminator, config.afd, compare=compare)
        return Method(afd, groups, afd.policies.trained)
    if name == "gan":
        return Method(RolloutGan(student, discriminator, config.gan), groups, student.network)
    if name == "reward-weighted":
        weighted = RewardWeighted(student, discriminator, config.reward_weighted, compare=compare)
        return Method(weighted, groups, student.network)
    if real is None:
        raise ValueError(
            "dmd matches a score of the teacher's clips and none was given; fit one with score_of(student, ...)"
        )
    fake = fake_score(real.student if isinstance(real, StudentScore) else student)  # one that sees whole clips already
    return Method(SelfForcing(student, real, fake, config.dmd), groups, student.network)


def score_of(student: Student, examples: ExampleRows, config: Methods, *, seed: int) -> Method:
    """Fit a copy of the student to whole clips; ``averaged`` is the copy, for ``StudentScore``."""
    copy = deepcopy(student)
    return Method(ScoreFit(copy, config.score), example_batches(examples, batch=config.batch, seed=seed), copy)


def teach(method: Method, turns: int, *, seed: int, player: str = "student") -> float:
    """Run a method and keep nothing of the run; afterwards the player's module holds its average, where one is kept.

    Returns:
        Seconds of processor time.
    """
    begun = time.process_time()
    trainer = Trainer(method.objective, method.batches, TrainerConfig(steps=turns, seed=seed), Path())
    for each in method.objective.players:
        each.module.train()
    for step in range(turns):
        trainer.turn(step)
    if isinstance(method.objective, AdversarialFlowDistillation):
        settle(trainer, method.objective)
    else:
        averaged(trainer, player, method.averaged)
    return time.process_time() - begun


def turns_worth(seconds: float, trial: Method) -> int:
    """How many turns so much processor time pays for, by the price of a few; the method that is tried is used up."""
    trainer = Trainer(trial.objective, trial.batches, TrainerConfig(steps=100), Path())
    first = _first_full_turn(trial.objective)
    trainer.turn(first)
    begun = time.process_time()
    for step in range(first + 1, first + 1 + TRIED):
        trainer.turn(step)
    return max(1, round(seconds * TRIED / (time.process_time() - begun)))


def _first_full_turn(objective: Objective[Any, Any, Any]) -> int:
    """The first turn in which nobody rests who moves at all."""
    tried = range(LONGEST_WARMUP)
    return next((turn for turn in tried if all(player.moves(turn) for player in objective.players)), 0)


def _groups(examples: ExampleRows, config: Methods, seed: int) -> Callable[[int], PromptGroup]:
    prompts = min(config.prompts_per_update, len(set(examples.prompts)))
    return prompt_batches(examples, prompts=prompts, answers=config.answers, seed=seed)
