"""Causal flow matching: every chunk noised to a level of its own, seen with the clean chunks before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from streamstill.config import require_positive
from streamstill.flow.path import clean_from_velocity, expand_time, noised, velocity_between
from streamstill.flow.times import training_times
from streamstill.student.student import Student
from streamstill.training.batches import Examples
from streamstill.training.objectives.objective import Loss, Player, require_full_weight_from
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
        if not 0 <= self.prompt_dropout < 1:
            raise ValueError(f"prompt_dropout is a share in [0, 1), got {self.prompt_dropout}; 0 hides no prompt")


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
        parts = [turn[i : i + self.config.micro_batch] for i in range(0, len(turn.prompts), self.config.micro_batch)]
        return [self._noised(part, generator) for part in parts]

    def loss(self, player: str, micro: NoisedExamples) -> Loss:
        """Mean squared error of the velocity; also logs the error of the clean estimate."""
        clean, network = micro.examples.latents_BFCHW, self.student.network
        t_BF = micro.t_BK.repeat_interleave(network.chunk_frames, dim=1)
        x_t = noised(clean, micro.noise_BFCHW, t_BF)
        text_BLD = self._text(micro)
        velocity = network.velocity_in_context(x_t, micro.t_BK, text_BLD, context_BFCHW=clean)
        error = velocity.float() - velocity_between(clean, micro.noise_BFCHW)
        error = error * expand_time((t_BF / self.config.full_weight_from).clamp_max(1), error)
        clean_error = clean_from_velocity(x_t, velocity.detach().float(), t_BF) - clean
        return Loss(error.square().mean(), {"clean_mse": clean_error.square().mean()})

    def end(self, turn: Examples, step: int) -> Mapping[str, float]:
        """Nothing to do after a step."""
        return {}

    def _noised(self, part: Examples, generator: torch.Generator) -> NoisedExamples:
        batch, frames = part.latents_BFCHW.shape[:2]
        chunks = frames // self.student.network.chunk_frames
        noise = torch.randn(part.latents_BFCHW.shape, generator=generator)
        t_BK = training_times((batch, chunks), shift=self.student.config.sampling.shift, generator=generator)
        hidden_B = None
        if self.config.prompt_dropout:  # without it nothing is drawn: runs from before it stay what they were
            hidden_B = torch.rand(batch, generator=generator) < self.config.prompt_dropout
            hidden_B = hidden_B.to(part.latents_BFCHW.device)
        return NoisedExamples(part, noise.to(part.latents_BFCHW), t_BK.to(part.latents_BFCHW.device), hidden_B)

    def _text(self, micro: NoisedExamples) -> Tensor:
        """``text_BLD`` of the prompts that are not hidden, and of no prompt where they are."""
        text_BLD = self.student.encode_prompts(micro.examples.prompts)
        if micro.hidden_B is None:
            return text_BLD
        nothing_BLD = self.student.encode_nothing(len(text_BLD))
        return torch.where(micro.hidden_B[:, None, None], nothing_BLD, text_BLD)
