"""Causal flow matching: every chunk noised to a level of its own, seen with the clean chunks before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from streamstill.config import require_positive
from streamstill.flow.path import noised
from streamstill.flow.times import training_times
from streamstill.student.student import Student
from streamstill.training.batches import Examples
from streamstill.training.objectives.objective import Loss, Player
from streamstill.training.objectives.regression import (
    require_dropout,
    require_full_weight_from,
    shown_text,
    velocity_loss,
)
from streamstill.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class FlowMatchingConfig:
    """How a student learns from finished clips."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1.5e-3))
    ema_decay: float | None = None
    micro_batch: int = 8
    full_weight_from: float = 0.05  # below this time an error of the clean estimate weighs no more than at it
    prompt_dropout: float = 0.0  # share of clips whose prompt is hidden; guidance needs some, 0.1 is usual

    def __post_init__(self) -> None:
        require_positive(self, "micro_batch")
        require_full_weight_from(self.full_weight_from)
        require_dropout(self.prompt_dropout)


@dataclass(frozen=True, eq=False)
class NoisedExamples:
    """Examples with the noise and the time of each chunk, and whose prompt is hidden (None: nobody's)."""

    examples: Examples
    noise_BFCHW: Tensor
    t_BK: Tensor
    hidden_B: Tensor | None = None


class FlowMatching:
    """Regression of the velocity on clean clips of any origin (rectified flow); one player, ``student``.

    The clean context is the clip itself (teacher forcing). Levels are the sampler's shifted schedule made
    continuous, so training sees the noise that sampling sees.
    """

    def __init__(self, student: Student, config: FlowMatchingConfig) -> None:
        self.student, self.config = student, config

    @property
    def players(self) -> tuple[Player, ...]:
        """The whole student learns, text encoder included."""
        return (Player(name="student", module=self.student, optim=self.config.optim, ema_decay=self.config.ema_decay),)

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """Nothing but the player itself must survive."""
        return {}

    def begin(self, batch: Examples, step: int, generator: torch.Generator) -> Examples:
        """The batch as it is."""
        return batch

    def micro_batches(self, player: str, turn: Examples, generator: torch.Generator) -> Sequence[NoisedExamples]:
        """The batch in parts, each with its noise and times."""
        dropout = self.config.prompt_dropout
        parts = turn.split(self.config.micro_batch)
        return [noised_examples(self.student, part, generator, prompt_dropout=dropout) for part in parts]

    def loss(self, player: str, micro: NoisedExamples) -> Loss:
        """Mean squared error of the velocity; also logs the error of the clean estimate."""
        return flow_loss(self.student, micro, full_weight_from=self.config.full_weight_from)

    def end(self, turn: Examples, step: int) -> Mapping[str, float]:
        """Nothing to do after a step."""
        return {}


def noised_examples(
    student: Student, part: Examples, generator: torch.Generator, *, prompt_dropout: float = 0.0
) -> NoisedExamples:
    """Examples with noise, a time of the student's own schedule for each chunk, and a share of prompts hidden."""
    batch, frames = part.latents_BFCHW.shape[:2]
    chunks = frames // student.network.chunk_frames
    noise = torch.randn(part.latents_BFCHW.shape, generator=generator)
    t_BK = training_times((batch, chunks), shift=student.config.sampling.shift, generator=generator)
    hidden_B = None
    if prompt_dropout:  # without it nothing is drawn: runs from before it stay what they were
        hidden_B = torch.rand(batch, generator=generator) < prompt_dropout
        hidden_B = hidden_B.to(part.latents_BFCHW.device)
    return NoisedExamples(part, noise.to(part.latents_BFCHW), t_BK.to(part.latents_BFCHW.device), hidden_B)


def flow_loss(student: Student, micro: NoisedExamples, *, full_weight_from: float, text_learns: bool = True) -> Loss:
    """Mean squared error of the velocity, teacher-forced; also logs the error of the clean estimate.

    Args:
        text_learns: whether the text encoder gets a gradient; not where this only holds a network to the clips.
    """
    clean, network = micro.examples.latents_BFCHW, student.network
    t_BF = micro.t_BK.repeat_interleave(network.chunk_frames, dim=1)
    x_t = noised(clean, micro.noise_BFCHW, t_BF)
    with torch.set_grad_enabled(text_learns and torch.is_grad_enabled()):
        text_BLD = shown_text(student, micro.examples.prompts, micro.hidden_B)
    velocity = network.velocity_in_context(x_t, micro.t_BK, text_BLD, context_BFCHW=clean)
    return velocity_loss(velocity, clean, micro.noise_BFCHW, t_BF, full_weight_from=full_weight_from)
