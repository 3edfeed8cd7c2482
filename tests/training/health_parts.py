"""Checkups by hand, and a tiny student beside a teacher that looks exactly like it."""

from dataclasses import fields, replace
from typing import Any

import torch

from streamstill.streaming.rollout import rollout
from streamstill.student.student import Student
from streamstill.training.batches import PromptGroup
from streamstill.training.health_vitals import START, Judgement, Look, Moves, Vitals
from tests.training.afd_parts import dice
from tests.training.clips import PROMPTS

TEACHER = Look(sharpness=10.0, motion=4.0, moving=0.3, flicker=5.0)
FAIR = Judgement(pair_accuracy=0.8, logit_gap=1.5, mean_r=0.3, advantage_spread=0.5, reliability=0.8)
LOOKS, JUDGED = ({field.name for field in fields(table)} for table in (Look, Judgement))


def vitals(step: int = START, **changes: float) -> Vitals:
    """Of a healthy student that looks like the teacher, but for the changes, wherever their names belong."""
    rest: dict[str, Any] = {name: value for name, value in changes.items() if name not in LOOKS | JUDGED}
    return Vitals(
        step=step,
        student=replace(TEACHER, **{name: changes[name] for name in LOOKS & changes.keys()}),
        teacher=TEACHER,
        judgement=replace(FAIR, **{name: changes[name] for name in JUDGED & changes.keys()}),
        moves=Moves(reward=0.5),
        **{"held_out_error": 0.1, **rest},
    )


def history(*checkups: dict[str, float]) -> tuple[Vitals, ...]:
    """A healthy start and what follows, every two steps."""
    return (vitals(), *(vitals(2 * number + 1, **changes) for number, changes in enumerate(checkups)))


@torch.no_grad()
def own_clips(student: Student) -> PromptGroup:
    """The student's own clips as if a teacher had made them, one for each prompt."""
    frames, *shape = student.latent_shape
    made = rollout(
        student.network,
        student.encode_prompts(PROMPTS),
        frames=frames,
        latent_shape=(shape[0], shape[1], shape[2]),
        sampling=student.config.sampling,
        generator=dice(5),
    )
    return PromptGroup(made[:, None], PROMPTS)
