"""What the trainer asks of a method. It knows no method by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from streamstill.training.optim import OptimConfig

BatchT = TypeVar("BatchT", contravariant=True)
TurnT = TypeVar("TurnT")
MicroT = TypeVar("MicroT")


def always(_turn: int) -> bool:
    """A player that never rests."""
    return True


@dataclass(frozen=True, kw_only=True)
class Player:
    """A network that learns: its module, its optimiser, and how many optimiser steps it takes in one turn.

    ``moves`` says in which turns, counted from 0, it moves at all: a decay of its rate ends with its own last move.
    """

    name: str
    module: nn.Module
    optim: OptimConfig
    steps_per_turn: int = 1
    ema_decay: float | None = None  # None: no averaged copy is kept
    moves: Callable[[int], bool] = always


class StudentConfig(Protocol):
    """What the configs of methods with a discriminator say of the student."""

    @property
    def optim(self) -> OptimConfig:
        """How it learns."""
        ...

    @property
    def ema_decay(self) -> float | None:
        """Of its average; None keeps none."""
        ...

    @property
    def warmup_turns(self) -> int:
        """Turns at the beginning in which it rests."""
        ...


def student_player(module: nn.Module, config: StudentConfig) -> Player:
    """The student, who rests while those who judge it warm up."""
    return Player(
        name="student",
        module=module,
        optim=config.optim,
        ema_decay=config.ema_decay,
        moves=lambda turn: turn >= config.warmup_turns,
    )


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, and the numbers worth logging (plain floats or scalar tensors)."""

    value: Tensor
    metrics: Mapping[str, float | Tensor] = field(default_factory=dict)


class Objective(Protocol[BatchT, TurnT, MicroT]):
    """A method: who learns, and what each learner minimises.

    One training step is one *turn*::

        turn = objective.begin(batch, step, generator)
        for player in objective.players:
            for _ in range(player.steps_per_turn):
                micros = objective.micro_batches(player.name, turn, generator)   # [] : this player rests
                for micro in micros:
                    objective.loss(player.name, micro).value / len(micros)  -> backward
                clip, check, optimiser step
        metrics = objective.end(turn, step)
    """

    @property
    def players(self) -> tuple[Player, ...]:
        """The networks that learn, in the order in which they move."""
        ...

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """Modules that do not learn by gradient but must survive a resume (a lagged copy, a frozen start)."""
        ...

    def begin(self, batch: BatchT, step: int, generator: torch.Generator) -> TurnT:
        """What all players share in this turn, for instance the rollouts."""
        ...

    def micro_batches(self, player: str, turn: TurnT, generator: torch.Generator) -> Sequence[MicroT]:
        """What this player accumulates gradients over before its optimiser step; empty when it rests."""
        ...

    def loss(self, player: str, micro: MicroT) -> Loss:
        """The loss of one micro batch; the trainer divides by their number."""
        ...

    def end(self, turn: TurnT, step: int) -> Mapping[str, float]:
        """Called after every player has moved: update ``memory``; returns numbers worth logging."""
        ...
