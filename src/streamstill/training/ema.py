"""An averaged copy of a network."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TypedDict

import torch
from torch import Tensor, nn


class EmaState(TypedDict):
    """What an :class:`Ema` remembers."""

    updates: int
    averages: dict[str, Tensor]


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied ones once; the tensors are the module's own."""
    persistent = module.state_dict().keys()
    tensors = chain(module.named_parameters(), module.named_buffers())
    return {name: tensor.detach() for name, tensor in tensors if name in persistent}


class Ema:
    """The exponential moving average of a module's parameters and floating-point buffers.

    The n-th update (from 0) keeps ``min(decay, (1 + n) / (10 + n))`` of the average, so that a short run is not
    dominated by its random start. Buffers of integers are copied. Averages of half precision are kept in float32.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(
                f"the decay of an average must lie in [0, 1), got {decay}; usual values are 0.99 to 0.9999"
            )
        self.decay = decay
        self.updates = 0
        self.averages = {name: _start(tensor) for name, tensor in named_tensors(module).items()}

    @property
    def kept(self) -> float:
        """The share of the old average that the next update keeps."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module as it is now."""
        for name, tensor in named_tensors(module).items():
            average = self.averages[name]
            if average.is_floating_point():
                average.lerp_(tensor.to(average.dtype), 1 - self.kept)
            else:
                average.copy_(tensor)
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the averages into a module of the same architecture."""
        _copy(self.averages, module)

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """Inside the block the module holds the averages; afterwards it holds exactly what it held before."""
        before = {name: tensor.clone() for name, tensor in named_tensors(module).items()}
        try:
            self.copy_to(module)
            yield
        finally:
            _copy(before, module)

    def state_dict(self) -> EmaState:
        """The state; its tensors are the live ones, not copies."""
        return {"updates": self.updates, "averages": self.averages}

    @torch.no_grad()
    def load_state_dict(self, state: EmaState) -> None:
        """Take over a saved state of the same architecture.

        Raises:
            ValueError: the saved names or shapes differ from those of this average.
        """
        _require_same_shapes(self.averages, state["averages"])
        for name, average in self.averages.items():
            average.copy_(state["averages"][name])
        self.updates = state["updates"]


def _start(tensor: Tensor) -> Tensor:
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.to(torch.float32 if half else tensor.dtype, copy=True)


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], module: nn.Module) -> None:
    targets = named_tensors(module)
    _require_same_shapes(targets, tensors)
    for name, target in targets.items():
        target.copy_(tensors[name])


def _require_same_shapes(here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> None:
    different = sorted(
        name
        for name in here.keys() | there.keys()
        if name not in here or name not in there or here[name].shape != there[name].shape
    )
    if different:
        raise ValueError(
            f"the average belongs to another architecture: {len(different)} tensors differ, the first is "
            f"{different[0]!r}; use a module built from the same config"
        )
