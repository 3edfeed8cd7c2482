"""One training stage by itself: a student, a teacher cache, an objective."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamstill.config import require_one_of
from streamstill.student.student import Student
from streamstill.teachers import ClipStore
from streamstill.training.batches import Examples, encode_clips, example_batches, prompt_batches
from streamstill.training.discriminator import build_discriminator
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
    teacher: str = ""  # whose clips of the cache; may be left out when the cache has one teacher's only
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
    require_one_of(config.objective, OBJECTIVES, "objective")
    examples = cached_examples(cache, student, teacher=config.teacher)
    if config.objective == "flow-matching":
        settings = TrainerConfig(steps=config.steps, seed=config.seed, checkpoint_every=100)
        batches = example_batches(examples, batch=config.batch, seed=config.seed)
        return FlowMatching(student, config.flow_matching), batches, settings
    settings = TrainerConfig(steps=config.steps, seed=config.seed, checkpoint_every=1)
    groups = prompt_batches(
        examples,
        prompts=min(config.prompts_per_update, len(set(examples.prompts))),
        answers=config.answers,
        seed=config.seed,
    )
    return AdversarialFlowDistillation(student, build_discriminator(seed=config.seed), config.afd), groups, settings


def cached_examples(cache: Path, student: Student, *, teacher: str) -> Examples:
    """Every clip of the cache that the teacher made in the student's size, encoded.

    Raises:
        ValueError: there is no such clip, or the clips have several teachers and none was chosen.
    """
    if not cache.exists():
        raise ValueError(f"there is no teacher cache at {cache}; make one with `streamstill collect --cache {cache}`")
    store, wanted = ClipStore.open(cache), student.config.geometry
    entries = [entry for entry in store.find(teacher=teacher or None) if entry.request.geometry == wanted]
    if not entries:
        size = f"{wanted.frames}x{wanted.height}x{wanted.width}@{wanted.fps:g}"
        of = f" of the teacher {teacher!r}" if teacher else ""
        raise ValueError(
            f"{cache} has {len(store)} clips and none{of} in the student's size {size}; collect some with --size {size}"
        )
    teachers = sorted({entry.teacher for entry in entries})
    if len(teachers) > 1:
        raise ValueError(f"{cache} has clips of the teachers {teachers}; choose one with --set teacher=NAME")
    return encode_clips(((entry.request.prompt, store.get(entry.key)) for entry in entries), student.codec)
