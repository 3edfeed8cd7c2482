"""Rollouts that the student learns through: which are made, with the teacher's clips beside them, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from streamstill.config import require_one_of, require_positive
from streamstill.flow.samplers import euler, few_step
from streamstill.streaming.learning_rollout import Ends, RolloutPlan, draw_plan, learning_rollout
from streamstill.student.student import Student
from streamstill.training.batches import PromptGroup, pieces, repeated
from streamstill.training.objectives.adversary import Round

SamplerName: TypeAlias = Literal["euler", "few_step"]
_SAMPLERS = {"euler": euler, "few_step": few_step}


@dataclass(frozen=True, kw_only=True)
class RehearsalConfig:
    """How the student's clips are made while it learns through them."""

    frames: int | None = (
        None  # latent frames of a rollout, at least a clip's; a random window of a clip's length learns
    )
    sampler: SamplerName = "euler"
    through_memory: bool = False  # let gradients flow from a chunk to those before it
    ends: Ends = "each"  # the step at which a chunk ends: one drawn for each, one for all, or the final, as in a stream
    depth: int = 1  # how many of a chunk's steps have a gradient, the last of them first; memory grows with it
    micro_batch: int = 4  # rollouts that are made together and share the last step of each chunk

    def __post_init__(self) -> None:
        require_positive(self, "micro_batch", "depth")
        require_one_of(self.ends, get_args(Ends), "end of chunks")
        require_one_of(self.sampler, get_args(SamplerName), "sampler")


@dataclass(frozen=True, eq=False)
class Take:
    """Rollouts to be made; the same take gives the same clips, with and without gradients."""

    plan: RolloutPlan
    prompts: tuple[str, ...]
    teacher_BFCHW: Tensor | None  # an answer of the teacher to each prompt, if there are any
    seed: int  # of what is drawn after the rollout

    @property
    def dice(self) -> torch.Generator:
        """The randomness of what comes after the rollout."""
        return torch.Generator().manual_seed(self.seed)


class Rehearsal:
    """The student's own clips by the truncated rollout, in windows as long as its clips.

    Raises:
        ValueError: the rollouts are shorter than a clip, or cannot be cut into chunks.
    """

    def __init__(self, student: Student, config: RehearsalConfig) -> None:
        self.student, self.config = student, config
        self.frames, chunk = student.latent_shape[0], student.network.chunk_frames
        asked = self.frames if config.frames is None else config.frames
        if asked < self.frames or asked % chunk:
            raise ValueError(
                f"rollouts of {asked} latent frames do not suit a student with clips of {self.frames} and chunks of "
                f"{chunk}; give {self.frames} or more, a multiple of {chunk}"
            )
        self.chunks, self.window = asked // chunk, self.frames // chunk

    def takes(self, group: PromptGroup, count: int, generator: torch.Generator) -> list[Take]:
        """``count`` rollouts for each prompt, in order, cut into micro batches.

        Raises:
            ValueError: the teacher's clips have another length than the student's.
        """
        teacher = self._dealt(group, count, generator)
        prompts = repeated(group.prompts, count)
        return [
            Take(
                plan=draw_plan(
                    chunks=self.chunks,
                    window=self.window,
                    steps=self.student.config.sampling.steps,
                    generator=generator,
                    ends=self.config.ends,
                    depth=self.config.depth,
                ),
                prompts=prompts[rows],
                teacher_BFCHW=None if teacher is None else teacher[rows],
                seed=int(torch.randint(2**62, (), generator=generator)),
            )
            for rows in pieces(len(prompts), self.config.micro_batch)
        ]

    def perform(self, take: Take) -> Tensor:
        """The window of the take's rollouts, clean latents of shape (B, F, C, H, W), with gradients if enabled."""
        with torch.no_grad():
            text_BLD = self.student.encode_prompts(take.prompts)
        made = learning_rollout(
            self.student.network,
            text_BLD,
            take.plan,
            latent_shape=self.student.latent_shape[1:],
            sampling=self.student.config.sampling,
            sampler=_SAMPLERS[self.config.sampler],
            through_memory=self.config.through_memory,
        )
        return made[:, take.plan.learns.start * self.student.network.chunk_frames :].float()

    @torch.no_grad()
    def watched(self, takes: Sequence[Take]) -> Tensor:
        """The windows of all takes, without gradients."""
        return torch.cat([self.perform(take) for take in takes])

    def round(self, group: PromptGroup, count: int, generator: torch.Generator) -> Round:
        """Truncated rollouts as the discriminator compares them: made the way in which the student will learn.

        Raises:
            ValueError: the teacher has no clip for these prompts.
        """
        if group.latents_PMFCHW.shape[1] == 0:
            raise ValueError("a discriminator compares with the teacher; give prompts with at least one clip each")
        return Round(group, self.watched(self.takes(group, count, generator)).unflatten(0, (-1, count)))

    def _dealt(self, group: PromptGroup, count: int, generator: torch.Generator) -> Tensor | None:
        """An answer of the teacher for each rollout, dealt out evenly within the prompt."""
        answers, frames = group.latents_PMFCHW.shape[1:3]
        if answers == 0:
            return None
        if frames != self.frames:
            raise ValueError(
                f"the teacher's clips have {frames} latent frames, the student's {self.frames}; "
                "encode clips of the student's geometry"
            )
        return group.dealt(count, generator)
