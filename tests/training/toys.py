"""Two real objectives small enough to run a hundred turns in a blink."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

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
