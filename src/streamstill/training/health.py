"""The health of a run: every few steps the student answers held-out prompts, and what drifts is told by name."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamstill.config import require_positive
from streamstill.flow.path import clean_from_velocity, noised
from streamstill.flow.times import random_levels
from streamstill.streaming.rollout import rollout
from streamstill.student.student import Student
from streamstill.training.batches import PromptGroup
from streamstill.training.devices import device_of, moved
from streamstill.training.health_rules import HealthRules, History, alarms, new_alarms
from streamstill.training.health_vitals import (
    START,
    Judgement,
    Look,
    Vitals,
    flat,
    from_flat,
    judgement,
    look,
    moves,
    relative_distance,
)
from streamstill.training.metric_log import MetricLog
from streamstill.training.objectives.adversary import Adversary, Round
from streamstill.training.objectives.afd import AdversarialFlowDistillation
from streamstill.training.progress import Progress, SilentProgress

LOG = "health.jsonl"
_SCORINGS = 4  # of each rollout, each with noise of its own
_ALARM = "alarm/"  # before the name of an alarm that holds, in the log


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """How often a student is examined, from which noise, and when a number is an alarm."""

    every: int = 2  # steps
    rollouts_per_prompt: int = 2
    seed: int = 0
    rules: HealthRules = field(default_factory=HealthRules)

    def __post_init__(self) -> None:
        require_positive(self, "every")
        if self.rollouts_per_prompt < 2:
            raise ValueError(
                f"rollouts_per_prompt is {self.rollouts_per_prompt}, it must be at least 2: "
                "the spread of scores within a prompt is examined"
            )


class Weights:
    """What the optimiser moves of a student (all weights, or the factors of an adapter), and how far it has come.

    Args:
        start: a frozen copy from before the first step; None makes one.
    """

    def __init__(self, trained: nn.Module, *, old: nn.Module, start: nn.Module | None = None) -> None:
        self.trained, self.old = trained, old
        self.start = deepcopy(trained).requires_grad_(False) if start is None else start

    def to_old(self) -> float:
        """|weights - those of the lagged student| / |those|."""
        return relative_distance(self.trained, self.old)

    def to_start(self) -> float:
        """|weights - those before the first step| / |those|."""
        return relative_distance(self.trained, self.start)


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkup:
    """Who is examined, and on what: always the same prompts from the same noise, so that checkups can be compared.

    Nothing is drawn from the run's own randomness, and nothing that learns is changed.
    """

    student: Student
    held_out: PromptGroup  # nobody learns from these prompts; the teacher's clips for them
    config: HealthConfig = field(default_factory=HealthConfig)
    adversary: Adversary | None = None  # None: there is no discriminator to examine
    weights: Weights | None = None  # None: no distances are measured

    @classmethod
    def of(cls, afd: AdversarialFlowDistillation, held_out: PromptGroup, config: HealthConfig) -> "Checkup":
        """Of everybody who takes part in AFD; before its first step, for the student of now counts as the start."""
        (trained,) = (player.module for player in afd.players if player.name == "student")
        weights = Weights(trained, old=afd.memory["old"], start=afd.memory.get("start"))
        return cls(student=afd.student, held_out=held_out, config=config, adversary=afd.adversary, weights=weights)

    @torch.no_grad()
    def examine(self, step: int, metrics: Mapping[str, float]) -> Vitals:
        """Everything about the student of now; ``metrics`` are the trainer's of the step."""
        generator, weights = torch.Generator().manual_seed(self.config.seed), self.weights
        held_out = moved(self.held_out, device_of(self.student))
        with _at_rest(self.student, self.adversary.judge if self.adversary else None):
            made_PKFCHW = torch.stack(
                [self._rollouts(held_out, generator) for _ in range(self.config.rollouts_per_prompt)], dim=1
            )
            return Vitals(
                step=step,
                student=self._look(made_PKFCHW),
                teacher=self._look(held_out.latents_PMFCHW),
                held_out_error=self._held_out_error(held_out, generator),
                judgement=self._judgement(held_out, made_PKFCHW, generator),
                moves=moves(metrics),
                distance_to_old=weights.to_old() if weights else None,
                distance_to_start=weights.to_start() if weights else None,
            )

    def _rollouts(self, held_out: PromptGroup, generator: torch.Generator) -> Tensor:
        """One rollout for each prompt."""
        return rollout(
            self.student.network,
            self.student.encode_prompts(held_out.prompts),
            frames=held_out.latents_PMFCHW.shape[2],
            latent_shape=self.student.latent_shape[1:],
            sampling=self.student.config.sampling,
            generator=generator,
        )

    def _look(self, latents_PKFCHW: Tensor) -> Look:
        """Of what a screen would show."""
        pixels, _ = self.student.codec.decode(latents_PKFCHW.flatten(0, 1).float())
        return look(pixels.clamp(-1, 1))

    def _held_out_error(self, held_out: PromptGroup, generator: torch.Generator) -> float:
        """Of the clean estimate, every chunk of the teacher's first clips at one of the sampler's levels."""
        clean, network = held_out.latents_PMFCHW[:, 0], self.student.network
        sampling, chunks = self.student.config.sampling, clean.shape[1] // network.chunk_frames
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        t_BK = random_levels((len(clean), chunks), steps=sampling.steps, shift=sampling.shift, generator=generator)
        t_BK = t_BK.to(clean)
        t_BF = t_BK.repeat_interleave(network.chunk_frames, dim=1)
        x_t = noised(clean, noise, t_BF)
        text_BLD = self.student.encode_prompts(held_out.prompts)
        velocity = network.velocity_in_context(x_t, t_BK, text_BLD, context_BFCHW=clean).float()
        return float((clean_from_velocity(x_t, velocity, t_BF) - clean).square().mean())

    def _judgement(self, held_out: PromptGroup, made_PKFCHW: Tensor, generator: torch.Generator) -> Judgement | None:
        if self.adversary is None:
            return None
        teacher, student = Round(held_out, held_out.latents_PMFCHW), Round(held_out, made_PKFCHW)
        scorings = [self.adversary.scores(student, generator) for _ in range(_SCORINGS)]
        return judgement(self.adversary.scores(teacher, generator), scorings)


class HealthMonitor:
    """The trainer's ``on_step``: examines every few steps, writes ``health.jsonl``, tells alarms.

    What an earlier attempt wrote is read back; what it wrote beyond the step that a run resumes from is dropped.
    """

    def __init__(self, checkup: Checkup, folder: Path, progress: Progress | None = None) -> None:
        self.checkup = checkup
        self.log = MetricLog(folder / LOG)
        self.progress = progress or SilentProgress()
        self.history: History = ()

    def begin(self, *, resumed: bool) -> None:
        """Examine the start, before the first step; of a run that is ``resumed``, read what is there."""
        self.log.rewind(sys.maxsize if resumed else START)
        self.history = read_history(self.log.path)
        if not self.history:
            self._examine(START, {})

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step ``step``, counted from 0, is done."""
        if self.history and self.history[-1].step >= step:
            self.log.rewind(step)
            self.history = read_history(self.log.path)
        if (step + 1) % self.checkup.config.every == 0:
            self._examine(step, metrics)

    def verdict(self) -> str:
        """One line about the whole run."""
        return verdict(health_summary(self.log.path.parent))

    def _examine(self, step: int, metrics: Mapping[str, float]) -> None:
        began, rules = time.perf_counter(), self.checkup.config.rules
        vitals = self.checkup.examine(step, metrics)
        self.history = (*self.history, vitals)
        held = {_ALARM + alarm.name: 1.0 for alarm in alarms(self.history, rules)}
        self.log.record(step, time.perf_counter() - began, {**flat(vitals), **held})
        for alarm in new_alarms(self.history, rules):
            self.progress.say(f"health: {alarm}")


def read_history(path: Path) -> History:
    """The checkups of a ``health.jsonl``, the start first; none when there is no file.

    Raises:
        ValueError: a line is not one that a monitor wrote.
    """
    return tuple(from_flat(int(line["step"]), _numbers(line), where=str(path)) for line in _lines(path))


def health_summary(folder: Path) -> dict[str, Any]:
    """What a report says of the health of a stage: plain JSON values.

    ``checkups`` is their number after the start, ``seconds`` what all took, ``start`` and ``last`` their numbers by
    name, and ``alarms`` the steps after which each alarm held.

    Raises:
        ValueError: the stage was not watched, or its ``health.jsonl`` is damaged.
    """
    lines = _lines(folder / LOG)
    if not lines:
        raise ValueError(f"{folder} has no {LOG}: the stage was not watched; give it a Checkup and train it again")
    steps: dict[str, list[int]] = {}
    for line in lines:
        for name in (key.removeprefix(_ALARM) for key in line if key.startswith(_ALARM)):
            steps.setdefault(name, []).append(int(line["step"]))
    return {
        "checkups": len(lines) - 1,
        "seconds": round(sum(line["seconds"] for line in lines), 2),
        "start": _numbers(lines[0]),
        "last": _numbers(lines[-1]),
        "alarms": steps,
    }


def verdict(summary: Mapping[str, Any]) -> str:
    """``health: no alarm in 4 checkups``, or the alarms with the first step after which each held."""
    told = [f"{name} after step {steps[0]}" for name, steps in summary["alarms"].items()]
    count = summary["checkups"]
    return f"health: {', '.join(told) or 'no alarm'} in {count} checkup{'' if count == 1 else 's'}"


def _lines(path: Path) -> list[dict[str, Any]]:
    """Without a last line that was cut off."""
    if not path.exists():
        return []
    whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    try:
        return [{"step": json.loads(line)["step"], **json.loads(line)} for line in whole]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a log of checkups ({error}); move the file away and run again") from error


def _numbers(line: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        name: value for name, value in line.items() if name not in ("step", "seconds") and not name.startswith(_ALARM)
    }


@contextmanager
def _at_rest(*modules: nn.Module | None) -> Iterator[None]:
    """Inside the block the modules are in evaluation mode; afterwards every part is as it was."""
    parts = [part for module in modules if module is not None for part in module.modules()]
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
