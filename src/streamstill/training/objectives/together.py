"""Two objectives side by side in one run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from streamstill.training.devices import device_of, moved
from streamstill.training.objectives.objective import Loss, Objective, Player


@dataclass(frozen=True)
class Turns:
    """A turn of each; the second is None when it rests."""

    first: Any
    second: Any | None


class Together:
    """``first`` moves in every step, ``second`` in every ``every``-th of those after it ``begins``.

    Their players must have different names.
    """

    def __init__(
        self, first: Objective[Any, Any, Any], second: Objective[Any, Any, Any], *, every: int = 1, begins: int = 0
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if begins < 0:
            raise ValueError(f"begins is a step, counted from 0, got {begins}")
        self.first, self.second, self.every, self.begins = first, second, every, begins
        self._of_first = {player.name for player in first.players}

    @property
    def players(self) -> tuple[Player, ...]:
        """The players of both."""
        return (*self.first.players, *(self._at_times(player) for player in self.second.players))

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """What both remember."""
        return {**self.first.memory, **self.second.memory}

    def begin(self, batch: tuple[Any, Callable[[], Any]], step: int, generator: torch.Generator) -> Turns:
        """A turn of each. The batch of the second is a function: it is not made when the second rests."""
        turn = self.first.begin(batch[0], step, generator)
        if not self._both(step):
            return Turns(turn, None)
        made = moved(batch[1](), device_of(self.second.players[0].module))
        return Turns(turn, self.second.begin(made, step, generator))

    def micro_batches(self, player: str, turn: Turns, generator: torch.Generator) -> Sequence[Any]:
        """What the objective that owns the player gives it."""
        if player in self._of_first:
            return self.first.micro_batches(player, turn.first, generator)
        return [] if turn.second is None else self.second.micro_batches(player, turn.second, generator)

    def loss(self, player: str, micro: Any) -> Loss:
        """The loss of the objective that owns the player."""
        return (self.first if player in self._of_first else self.second).loss(player, micro)

    def end(self, turn: Turns, step: int) -> Mapping[str, float]:
        """Both finish their turn."""
        metrics = dict(self.first.end(turn.first, step))
        return metrics if turn.second is None else {**metrics, **self.second.end(turn.second, step)}

    def _both(self, step: int) -> bool:
        """Whether the second has a turn, too."""
        return step >= self.begins and (step - self.begins) % self.every == 0

    def _at_times(self, player: Player) -> Player:
        return replace(player, moves=lambda step: self._both(step) and player.moves(step))
