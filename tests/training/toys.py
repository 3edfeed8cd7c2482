"""Objectives small enough to run a hundred turns in a blink, and a student whose clips are points in a plane."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from streamstill.flow.path import velocity_from_clean
from streamstill.flow.times import Sampling
from streamstill.streaming.rollout import rollout
from streamstill.student.student import Student
from streamstill.training.batches import PromptGroup
from streamstill.training.objectives.objective import Loss, Player
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig

OPTIM = OptimConfig(lr=0.02, weight_decay=0.1, warmup_steps=3)
ROWS = 8


class Regression:
    """Find the matrix that made y from x."""

    def __init__(
        self, *, optim: OptimConfig = OPTIM, micros: int = 1, width: int = 3, ema_decay: float | None = 0.9
    ) -> None:
        generator = torch.Generator().manual_seed(5)
        self.micros = micros
        self.answer = torch.randn(width, 2, generator=generator)
        self.module = nn.Linear(width, 2)
        with torch.no_grad():
            self.module.weight.copy_(torch.randn(2, width, generator=generator))
            self.module.bias.zero_()
        self.players: tuple[Player, ...] = (
            Player(name="student", module=self.module, optim=optim, ema_decay=ema_decay),
        )
        self.memory: Mapping[str, nn.Module] = {}

    def begin(self, batch: Tensor, step: int, generator: torch.Generator) -> Tensor:
        return batch

    def micro_batches(self, player: str, turn: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
        return turn.chunk(self.micros)

    def loss(self, player: str, micro: Tensor) -> Loss:
        error = self.module(micro) - micro @ self.answer
        return Loss(error.square().mean(), {"bias": error.mean()})

    def end(self, turn: Tensor, step: int) -> Mapping[str, float]:
        return {}


class Duel:
    """A student that wants a high score, a critic that wants to tell it from its own lagged copy."""

    def __init__(self, *, rest_until: int = 2) -> None:
        torch.manual_seed(3)
        self.rest_until = rest_until
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)
        self.student = nn.Sequential(self.first, nn.BatchNorm1d(4), nn.Tanh(), self.last)
        self.critic = nn.Linear(3, 1)
        self.lagged = copy.deepcopy(self.student).requires_grad_(False)
        fast = replace(OPTIM, decay="cosine", total_steps=60, max_grad_norm=None)
        self.players: tuple[Player, ...] = (
            Player(name="critic", module=self.critic, optim=fast, steps_per_turn=2),
            Player(name="student", module=self.student, optim=OPTIM, ema_decay=0.99),
        )
        self.memory: Mapping[str, nn.Module] = {"lagged": self.lagged}
        self.step = 0

    def begin(self, batch: Tensor, step: int, generator: torch.Generator) -> Tensor:
        self.step = step
        return batch + 0.1 * torch.randn(batch.shape, generator=generator)

    def micro_batches(self, player: str, turn: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
        if player == "student" and self.step < self.rest_until:
            return []
        order = torch.randperm(len(turn), generator=generator)
        return turn[order].chunk(2)

    def loss(self, player: str, micro: Tensor) -> Loss:
        score_B = self.critic(self.student(micro))
        if player == "student":
            return Loss(-score_B.mean())
        gap_B = self.critic(self.lagged(micro)) - score_B
        return Loss(-nn.functional.logsigmoid(gap_B).mean(), {"pairs": (gap_B > 0).float().mean()})

    def end(self, turn: Tensor, step: int) -> Mapping[str, float]:
        with torch.no_grad():
            for old, new in zip(self.lagged.parameters(), self.student.parameters(), strict=True):
                old.lerp_(new, 0.25)
            gap = self.lagged.get_parameter("0.weight") - self.first.weight
        return {"lag": gap.norm().item()}


def rows(step: int) -> Tensor:
    """The batch of a step: a function of the step alone."""
    return torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(100 + step))


def duel(folder: Path, steps: int, checkpoint_every: int = 4) -> Trainer[Tensor, Tensor, Tensor]:
    """A trainer that knows nothing but its folder."""
    return Trainer(Duel(), rows, TrainerConfig(steps=steps, seed=7, checkpoint_every=checkpoint_every), folder)


CENTRE, SPREAD = (0.35, -0.25), 0.15  # of the teacher's points: far enough from the edges of the screen
POINTS = Sampling(steps=1, shift=1.0)


class GaussianNetwork(nn.Module):
    """The exact flow of a Gaussian in two dimensions: its clean estimate is E[clean | x_t], every frame by itself.

    It is a streaming network and a score; flow matching on Gaussian points is solved by their mean and spread.
    """

    chunk_frames = 1

    def __init__(self, centre: tuple[float, float], spread: float) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.tensor(centre))
        self.log_spread = nn.Parameter(torch.tensor(spread).log())

    @property
    def spread(self) -> Tensor:
        return self.log_spread.exp()

    @property
    def module(self) -> nn.Module:
        return self

    def clean(self, x_t: Tensor, t: Tensor) -> Tensor:
        t = t[..., None, None, None] if t.ndim == 2 else t[:, None, None, None, None]
        centre, variance = self.centre[:, None, None], self.spread.square()
        gain = (1 - t) * variance / ((1 - t).square() * variance + t.square())
        return centre + gain * (x_t - (1 - t) * centre)

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> tuple[()]:
        return ()

    def remember(self, clean: Tensor, text_BLD: Tensor, state: tuple[()]) -> tuple[()]:
        return ()

    def velocity(self, x_t: Tensor, t: Tensor, text_BLD: object, state: tuple[()] = ()) -> Tensor:
        return velocity_from_clean(x_t, self.clean(x_t, t), t)

    def velocity_bidirectional(self, x_t: Tensor, t: Tensor, text_BLD: object) -> Tensor:
        return self.velocity(x_t, t, text_BLD)

    def velocity_in_context(self, x_t: Tensor, t_BK: Tensor, text_BLD: Tensor, *, context_BFCHW: Tensor) -> Tensor:
        return self.velocity(x_t, t_BK, text_BLD)


class StepwiseNetwork(GaussianNetwork):
    """Linear in x_t with a mean and a gain for each step: in one or few steps it can make any Gaussian of any noise."""

    def __init__(self, centre: tuple[float, float], spread: float, sampling: Sampling) -> None:
        super().__init__(centre, spread)
        self.log_spread.requires_grad_(False)
        self.levels = sampling.times()[:-1]
        self.means = nn.Parameter(self.centre.detach().expand(len(self.levels), 2).clone())
        self.gains = nn.Parameter(torch.full((len(self.levels), 1), spread))
        self.centre.requires_grad_(False)

    def clean(self, x_t: Tensor, t: Tensor) -> Tensor:
        step = (t.flatten(1)[:, 0] if t.ndim > 1 else t)[:, None].sub(self.levels).abs().argmin(1)
        return self.means[step][:, None, :, None, None] + self.gains[step][:, None, :, None, None] * x_t


class Screen:
    """A codec for points: a frame of one pixel whose channels are its coordinates."""

    latent_channels = 2

    def decode(self, latents_BFCHW: Tensor, state: None = None) -> tuple[Tensor, None]:
        return latents_BFCHW, None


@dataclass(frozen=True)
class PointConfig:
    sampling: Sampling


class PointStudent(nn.Module):
    """What objectives ask of a student, for clips of ``frames`` points."""

    def __init__(self, network: GaussianNetwork, sampling: Sampling = POINTS, frames: int = 2) -> None:
        super().__init__()
        self.network, self.config, self.codec = network, PointConfig(sampling), Screen()
        self.latent_shape = (frames, 2, 1, 1)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), 1, 1)

    def encode_nothing(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1, 1)

    def made(self, count: int = 2000) -> Tensor:
        """Points that it makes as it streams, always of the same noise."""
        with torch.no_grad():
            clips = rollout(
                self.network,
                torch.zeros(count, 1, 1),
                frames=self.latent_shape[0],
                latent_shape=(2, 1, 1),
                sampling=self.config.sampling,
                generator=torch.Generator().manual_seed(99),
            )
        return clips.flatten(0, 1).flatten(1)

    @property
    def far(self) -> float:
        """How far the centre and the spread of its points are from the teacher's."""
        return distance(self.made())

    def as_student(self) -> Student:
        """The same for the type checker: it answers everything that is asked of a student here."""
        return cast(Student, self)


def point_batches(step: int, answers: int = 64, frames: int = 2) -> PromptGroup:
    """The teacher's points of a step."""
    noise = torch.randn(1, answers, frames, 2, generator=torch.Generator().manual_seed(step))
    points = torch.tensor(CENTRE) + SPREAD * noise
    return PromptGroup(points[..., None, None], ("a point",))


def distance(points: Tensor) -> float:
    """The largest error of mean and spread of points, in either coordinate."""
    centre, spread = points.mean(0) - torch.tensor(CENTRE), points.std(0) - SPREAD
    return float(torch.cat([centre, spread]).abs().max())


class Taste(nn.Module):
    """A judge that learns: linear in the coordinates of a point and in their squares, mean over the frames."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 1)
        nn.init.zeros_(self.line.weight)

    def forward(self, clips_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        points_BFC = clips_BFCHW.flatten(2)
        return self.line(torch.cat([points_BFC, points_BFC.square()], dim=2)).mean(dim=1)[:, 0]


class Nearness(nn.Module):
    """A judge that has nothing to learn: how near the points are to the teacher's centre."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, clips_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.bias - (clips_BFCHW.flatten(2) - torch.tensor(CENTRE)).square().mean((1, 2))
