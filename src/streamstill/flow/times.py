"""How training times are drawn and which times a sampler visits: the same shift in both."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a chunk is made from noise: number of steps and schedule shift, the same as in training."""

    steps: int = 4
    shift: float = 8.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.shift < math.inf:
            raise ValueError(f"a sampler needs steps >= 1 and shift > 0, got steps={self.steps}, shift={self.shift}")

    def times(self) -> Tensor:
        """The sampler's times, from 1 down to 0."""
        return sampler_times(self.steps, shift=self.shift)


def shifted(t: Tensor, shift: float) -> Tensor:
    """Move times towards noise: ``shift * t / (1 + (shift - 1) * t)``; shift 1 changes nothing."""
    return shift * t / (1 + (shift - 1) * t)


def training_times(shape: tuple[int, ...], *, shift: float, generator: torch.Generator) -> Tensor:
    """Times in (0, 1], uniform before the shift."""
    return shifted(1 - torch.rand(shape, generator=generator), shift)


def sampler_times(steps: int, *, shift: float) -> Tensor:
    """The ``steps + 1`` times of a sampler, from 1 down to 0."""
    return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def random_levels(shape: tuple[int, ...], *, steps: int, shift: float, generator: torch.Generator) -> Tensor:
    """Times drawn evenly from the noise levels that a sampler of ``steps`` visits (never 0)."""
    levels = sampler_times(steps, shift=shift)[:-1]
    return levels[torch.randint(0, steps, shape, generator=generator)]
