"""One training stage by itself: a student, a teacher cache, an objective."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from streamstill.student.student import Student
from streamstill.teachers import ClipStore
from streamstill.training.batches import Examples, encode_clips, example_batches, prompt_batches
from streamstill.training.discriminator import MotionDiscriminator
from streamstill.training.objectives.afd import AdversarialFlowDistillation, AfdConfig
from streamstill.training.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from streamstill.training.objectives.objective import Objective
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import TrainerConfig

OBJECTIVES = ("flow-matching", "afd")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything that fixes the stage."""

    student: str
    objective: str
    steps: int
    batch: int = 8
    prompts_per_update: int = 16
    answers: int = 2
    flow_matching: FlowMatchingConfig = field(
        default_factory=lambda: FlowMatchingConfig(optim=OptimConfig(lr=3e-4, warmup_steps=10))
    )
    afd: AfdConfig = field(default_factory=lambda: AfdConfig(warmup_turns=10))
    seed: int = 0


def taught(
    config: Training, student: Student, cache: Path
) -> tuple[Objective[Any, Any, Any], Callable[[int], Any], TrainerConfig]:
    """The objective, its batches and the trainer's settings.

    Raises:
        ValueError: an unknown objective, or a cache without clips of the student's size.
    """
    if config.objective not in OBJECTIVES:
        near = difflib.get_close_matches(config.objective, OBJECTIVES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown objective {config.objective!r}: choose one of {', '.join(OBJECTIVES)}{hint}")
    examples = cached_examples(cache, student)
    if config.objective == "flow-matching":
        settings = TrainerConfig(steps=config.steps, seed=config.seed, checkpoint_every=100)
        batches = example_batches(examples, batch=config.batch, seed=config.seed)
        return FlowMatching(student, config.flow_matching), batches, settings
    torch.manual_seed(config.seed)
    settings = TrainerConfig(steps=config.steps, seed=config.seed, checkpoint_every=1)
    groups = prompt_batches(
        examples,
        prompts=min(config.prompts_per_update, len(set(examples.prompts))),
        answers=config.answers,
        seed=config.seed,
    )
    return AdversarialFlowDistillation(student, MotionDiscriminator(), config.afd), groups, settings


def cached_examples(cache: Path, student: Student) -> Examples:
    """Every clip of the cache that has the student's size, encoded."""
    if not cache.exists():
        raise ValueError(f"there is no teacher cache at {cache}; make one with `streamstill collect --cache {cache}`")
    store, wanted = ClipStore.open(cache), student.config.geometry
    entries = [entry for entry in store.find() if entry.request.geometry == wanted]
    if not entries:
        raise ValueError(
            f"{cache} has {len(store)} clips and none of the student's size {wanted.frames}x{wanted.height}x"
            f"{wanted.width}@{wanted.fps:g}; collect some with --size {wanted.frames}x{wanted.height}x{wanted.width}"
            f"@{wanted.fps:g}"
        )
    return encode_clips(((entry.request.prompt, store.get(entry.key)) for entry in entries), student.codec)
