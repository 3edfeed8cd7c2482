"""Before self-forcing: the causal student learns to take few steps, from the teacher's ODE paths or from itself.

S2DiT says nothing of an initialisation; regression on ODE pairs is CausVid's, consistency distillation Song et al.
2023's. How both are done here is ours.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from streamstill.config import require_one_of, require_positive
from streamstill.flow.path import clean_from_velocity, expand_time, noised
from streamstill.flow.times import sampler_times
from streamstill.student.network import Network
from streamstill.student.student import Student
from streamstill.training.batches import Examples, pieces
from streamstill.training.homework_batches import Paths
from streamstill.training.objectives.knowledge import MODES, Mode, velocity_in
from streamstill.training.objectives.objective import Loss, Player
from streamstill.training.optim import OptimConfig

_SAME_TIME = 1e-4


@dataclass(frozen=True, kw_only=True)
class OdeRegressionConfig:
    """How a causal student learns where the teacher's paths end."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-4))
    ema_decay: float | None = None
    micro_batch: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "micro_batch")


@dataclass(frozen=True, eq=False)
class PathPoints:
    """Clips of which every chunk is at one of the kept times of its path, and where the paths end."""

    x_t_BFCHW: Tensor
    t_BK: Tensor
    clean_BFCHW: Tensor
    prompts: tuple[str, ...]


class OdeRegression:
    """From a point of the teacher's ODE path straight to its end, chunk by chunk; one player, ``student``.

    Every chunk is at a kept time of its own and sees the clean chunks before it. The teacher's path also depended on
    the noise of later chunks, which a causal student cannot see: it learns the mean over them, and self-forcing goes
    on from there.
    """

    def __init__(self, student: Student, config: OdeRegressionConfig) -> None:
        self.student, self.config = student, config

    @property
    def players(self) -> tuple[Player, ...]:
        """The whole student learns, text encoder included."""
        return (Player(name="student", module=self.student, optim=self.config.optim, ema_decay=self.config.ema_decay),)

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """Nothing but the player itself must survive."""
        return {}

    def begin(self, batch: Paths, step: int, generator: torch.Generator) -> Paths:
        """The batch as it is.

        Raises:
            ValueError: the paths have no point at some time of the student's own sampler.
        """
        sampling, given = self.student.config.sampling, batch.t_J.cpu()
        missing = [t for t in sampling.times().tolist() if t > 0 and (given - t).abs().min() > _SAME_TIME]
        if missing:
            raise ValueError(
                f"the paths have points at the times {[round(t, 4) for t in given.tolist()]} and the student's sampler "
                f"asks at {missing[0]:.4g}; make paths for its {sampling.steps} steps and its shift {sampling.shift:g}"
            )
        return batch

    def micro_batches(self, player: str, turn: Paths, generator: torch.Generator) -> Sequence[PathPoints]:
        """The batch in parts, every chunk at one of the times before the last."""
        parts = pieces(len(turn.prompts), self.config.micro_batch)
        return [self._drawn(turn[rows], generator) for rows in parts]

    def loss(self, player: str, micro: PathPoints) -> Loss:
        """Mean squared error of the clean estimate."""
        text_BLD, network = self.student.encode_prompts(micro.prompts), self.student.network
        clean = _clean(network, micro.x_t_BFCHW, micro.t_BK, text_BLD, micro.clean_BFCHW)
        return Loss((clean - micro.clean_BFCHW).square().mean())

    def end(self, turn: Paths, step: int) -> Mapping[str, float]:
        """Nothing to do after a step."""
        return {}

    def _drawn(self, part: Paths, generator: torch.Generator) -> PathPoints:
        batch, points, frames = part.points_BJFCHW.shape[:3]
        chunk = self.student.network.chunk_frames
        level_BK = torch.randint(0, points - 1, (batch, frames // chunk), generator=generator)
        level_BF = level_BK.repeat_interleave(chunk, dim=1)
        rows_B1, frames_F = torch.arange(batch)[:, None], torch.arange(frames)
        x_t = part.points_BJFCHW[rows_B1, level_BF, frames_F]
        return PathPoints(x_t, part.t_J[level_BK].to(x_t), part.clean_BFCHW, part.prompts)


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """How a causal student learns to give one answer along a whole path."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-4))
    ema_decay: float | None = None
    levels: int = 16  # times from noise to clean between which the teacher takes its steps
    target_decay: float = 0.95  # target <- decay * target + (1 - decay) * student after every update
    teacher_mode: Mode = "causal"
    micro_batch: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "micro_batch", "levels")
        require_one_of(self.teacher_mode, MODES, "teacher_mode")
        if not 0 <= self.target_decay < 1:
            raise ValueError(f"target_decay must lie in [0, 1), got {self.target_decay}; 0 copies the student")


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Noised clips with the time of each chunk and the next lower one."""

    examples: Examples
    x_t_BFCHW: Tensor
    t_BK: Tensor
    t_next_BK: Tensor


class ConsistencyDistillation:
    """The answer at a time is the averaged student's answer one teacher step lower; one player, ``student``.

    The teacher is a frozen copy of the network that the run starts from, so start from one that knows velocities
    (``Student-KD``, trained in the teacher's mode). At t=0 the answer is the clip itself, whatever the network says,
    and from there it spreads upwards. Every chunk sees the clip's clean chunks before it; a bidirectional teacher
    takes one time for the whole clip, and its step depends on noised chunks that the student does not see.
    The text encoder does not learn: target and teacher share it.
    """

    def __init__(self, student: Student, config: ConsistencyConfig) -> None:
        self.student, self.config = student, config
        self.teacher: Network = deepcopy(student.network).requires_grad_(False)
        self.target: Network = deepcopy(student.network).requires_grad_(False)

    @property
    def players(self) -> tuple[Player, ...]:
        """The network."""
        config = self.config
        return (Player(name="student", module=self.student.network, optim=config.optim, ema_decay=config.ema_decay),)

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """The frozen start and the average that sets the target."""
        return {"teacher": self.teacher, "target": self.target}

    def begin(self, batch: Examples, step: int, generator: torch.Generator) -> Examples:
        """The batch as it is."""
        return batch

    def micro_batches(self, player: str, turn: Examples, generator: torch.Generator) -> Sequence[Neighbours]:
        """The batch in parts, every chunk noised to one of the levels."""
        return [self._noised(part, generator) for part in turn.split(self.config.micro_batch)]

    def loss(self, player: str, micro: Neighbours) -> Loss:
        """Mean squared difference of the two clean estimates."""
        clean, x_t = micro.examples.latents_BFCHW, micro.x_t_BFCHW
        with torch.no_grad():
            text_BLD = self.student.encode_prompts(micro.examples.prompts)
            velocity = velocity_in(self.teacher, self.config.teacher_mode, x_t, micro.t_BK, text_BLD, clean_BFCHW=clean)
            x_next = x_t + expand_time(self._per_frame(micro.t_next_BK - micro.t_BK), x_t) * velocity
            wanted = _clean(self.target, x_next, micro.t_next_BK, text_BLD, clean)
        estimate = _clean(self.student.network, x_t, micro.t_BK, text_BLD, clean)
        return Loss((estimate - wanted).square().mean())

    @torch.no_grad()
    def end(self, turn: Examples, step: int) -> Mapping[str, float]:
        """Let the average follow."""
        for average, new in zip(self.target.parameters(), self.student.network.parameters(), strict=True):
            average.lerp_(new, 1 - self.config.target_decay)
        return {}

    def _noised(self, part: Examples, generator: torch.Generator) -> Neighbours:
        clean, config = part.latents_BFCHW, self.config
        chunks = clean.shape[1] // self.student.network.chunk_frames
        times = sampler_times(config.levels, shift=self.student.config.sampling.shift)
        drawn = 1 if config.teacher_mode == "bidirectional" else chunks
        level_BK = torch.randint(0, config.levels, (len(clean), drawn), generator=generator).expand(-1, chunks)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        t_BK, t_next_BK = times[level_BK].to(clean), times[level_BK + 1].to(clean)
        return Neighbours(part, noised(clean, noise, self._per_frame(t_BK)), t_BK, t_next_BK)

    def _per_frame(self, t_BK: Tensor) -> Tensor:
        return t_BK.repeat_interleave(self.student.network.chunk_frames, dim=1)


def _clean(network: Network, x_t_BFCHW: Tensor, t_BK: Tensor, text_BLD: Tensor, context_BFCHW: Tensor) -> Tensor:
    velocity = network.velocity_in_context(x_t_BFCHW, t_BK, text_BLD, context_BFCHW=context_BFCHW)
    return clean_from_velocity(x_t_BFCHW, velocity.float(), t_BK.repeat_interleave(network.chunk_frames, dim=1))
