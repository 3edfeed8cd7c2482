"""Knowledge distillation from an open teacher's homework: its clips, and its velocities at cached noised clips.

Stage 1 of S2DiT's 2-in-1 distillation is offline and cached (abstract, App. C.1); what it caches and its loss were
not found. These are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from streamstill.config import require_one_of, require_positive
from streamstill.flow.path import noised, velocity_between
from streamstill.flow.times import training_times
from streamstill.student.network import Network
from streamstill.student.student import Student
from streamstill.training.batches import pieces
from streamstill.training.homework_batches import Taught
from streamstill.training.objectives.objective import Loss, Player
from streamstill.training.objectives.regression import require_full_weight_from, weighed_error
from streamstill.training.optim import OptimConfig

Mode: TypeAlias = Literal["bidirectional", "causal"]
MODES: tuple[str, ...] = ("bidirectional", "causal")


@dataclass(frozen=True, kw_only=True)
class KnowledgeConfig:
    """How a student learns from homework."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1.5e-3))
    ema_decay: float | None = None
    mode: Mode = "bidirectional"
    flow_weight: float = 1.0  # of flow matching on the teacher's clips
    kd_weight: float = 1.0  # of the error to the teacher's cached velocity
    micro_batch: int = 8
    full_weight_from: float = 0.05  # below this time an error of the clean estimate weighs no more than at it

    def __post_init__(self) -> None:
        require_positive(self, "micro_batch")
        require_one_of(self.mode, MODES, "mode")
        if min(self.flow_weight, self.kd_weight) < 0 or self.flow_weight + self.kd_weight == 0:
            raise ValueError(
                f"flow_weight and kd_weight must not be negative and not both 0, "
                f"got {self.flow_weight} and {self.kd_weight}"
            )
        require_full_weight_from(self.full_weight_from)


@dataclass(frozen=True, eq=False)
class NoisedHomework:
    """Homework with fresh noise and times for flow matching; the cached ones are in it."""

    taught: Taught
    noise_BFCHW: Tensor
    t_BK: Tensor


def velocity_in(
    network: Network, mode: Mode, x_t_BFCHW: Tensor, t_BK: Tensor, text_BLD: Tensor, *, clean_BFCHW: Tensor
) -> Tensor:
    """The velocity of whole clips in one of the two modes, which are one set of weights.

    Args:
        t_BK: a time for each chunk; the bidirectional mode takes a clip's first.
        clean_BFCHW: what causal chunks see of the chunks before them; the bidirectional mode does not look at it.
    """
    if mode == "bidirectional":
        return network.velocity_bidirectional(x_t_BFCHW, t_BK[:, 0], text_BLD)
    return network.velocity_in_context(x_t_BFCHW, t_BK, text_BLD, context_BFCHW=clean_BFCHW)


def mode_times(mode: Mode, batch: int, chunks: int, *, shift: float, generator: torch.Generator) -> Tensor:
    """Training times ``t_BK``: one for each chunk, or one for a whole clip in the bidirectional mode."""
    drawn = 1 if mode == "bidirectional" else chunks
    return training_times((batch, drawn), shift=shift, generator=generator).expand(batch, chunks)


class KnowledgeDistillation:
    """``flow_weight |v - (noise - clean)|^2 + kd_weight |v - v_teacher|^2``; one player, ``student``.

    The first term is at fresh noise and times, the second at the cached ones. In the causal mode every chunk sees
    the teacher's clean chunks before it (teacher forcing), and the cached time is that of all chunks. A teacher's
    guidance is in its velocities; the student needs none.
    """

    def __init__(self, student: Student, config: KnowledgeConfig) -> None:
        self.student, self.config = student, config

    @property
    def players(self) -> tuple[Player, ...]:
        """The whole student learns, text encoder included."""
        return (Player(name="student", module=self.student, optim=self.config.optim, ema_decay=self.config.ema_decay),)

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """Nothing but the player itself must survive."""
        return {}

    def begin(self, batch: Taught, step: int, generator: torch.Generator) -> Taught:
        """The batch as it is.

        Raises:
            ValueError: the loss needs velocities and the homework has none.
        """
        if self.config.kd_weight and batch.told is None:
            raise ValueError(
                "this homework has no velocities and kd_weight is not 0; collect it with velocities, or set kd_weight=0"
            )
        return batch

    def micro_batches(self, player: str, turn: Taught, generator: torch.Generator) -> Sequence[NoisedHomework]:
        """The batch in parts, each with fresh noise and times."""
        parts = pieces(len(turn.examples.prompts), self.config.micro_batch)
        return [self._noised(turn[rows], generator) for rows in parts]

    def loss(self, player: str, micro: NoisedHomework) -> Loss:
        """The weighted sum; also logs ``flow`` and ``kd``, the two errors before their weights."""
        text_BLD = self.student.encode_prompts(micro.taught.examples.prompts)
        value, metrics = torch.zeros((), device=text_BLD.device), {}
        if self.config.flow_weight:
            metrics["flow"] = self._flow_error(micro, text_BLD)
            value = value + self.config.flow_weight * metrics["flow"]
        if self.config.kd_weight:
            metrics["kd"] = self._kd_error(micro, text_BLD)
            value = value + self.config.kd_weight * metrics["kd"]
        return Loss(value, metrics)

    def end(self, turn: Taught, step: int) -> Mapping[str, float]:
        """Nothing to do after a step."""
        return {}

    def _noised(self, part: Taught, generator: torch.Generator) -> NoisedHomework:
        clean = part.examples.latents_BFCHW
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        chunks = clean.shape[1] // self.student.network.chunk_frames
        shift = self.student.config.sampling.shift
        t_BK = mode_times(self.config.mode, len(clean), chunks, shift=shift, generator=generator)
        return NoisedHomework(part, noise, t_BK.to(clean))

    def _flow_error(self, micro: NoisedHomework, text_BLD: Tensor) -> Tensor:
        target = velocity_between(micro.taught.examples.latents_BFCHW, micro.noise_BFCHW)
        return self._error(micro.taught, micro.noise_BFCHW, micro.t_BK, target, text_BLD)

    def _kd_error(self, micro: NoisedHomework, text_BLD: Tensor) -> Tensor:
        told = micro.taught.told
        assert told is not None  # begin saw to it
        t_BK = told.t_B[:, None].expand(micro.t_BK.shape)
        return self._error(micro.taught, told.noise_BFCHW, t_BK, told.velocity_BFCHW, text_BLD)

    def _error(self, taught: Taught, noise: Tensor, t_BK: Tensor, target: Tensor, text_BLD: Tensor) -> Tensor:
        clean, network = taught.examples.latents_BFCHW, self.student.network
        t_BF = t_BK.repeat_interleave(network.chunk_frames, dim=1)
        x_t = noised(clean, noise, t_BF)
        velocity = velocity_in(network, self.config.mode, x_t, t_BK, text_BLD, clean_BFCHW=clean)
        return weighed_error(velocity, target, t_BF, full_weight_from=self.config.full_weight_from).mean()
