"""From noise to clean. Every sampler: ``(velocity_fn, noise, times, generator) -> clean``.

``velocity_fn(x_t, t)`` gets a scalar tensor ``t``; ``times`` runs from 1 down to 0.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from streamstill.flow.path import clean_from_velocity, noised

VelocityFn = Callable[[Tensor, Tensor], Tensor]


def euler(velocity_fn: VelocityFn, noise: Tensor, times: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Follow the ordinary differential equation dx/dt = velocity with one Euler step per interval."""
    del generator  # deterministic: part of the shared signature
    x_t = noise
    for t, t_next in pairwise(times):
        x_t = x_t + (t_next - t) * velocity_fn(x_t, t)
    return x_t


def few_step(velocity_fn: VelocityFn, noise: Tensor, times: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Jump to the clean estimate, noise it afresh to the next time, and so on (consistency sampling)."""
    clean = noise
    x_t = noise
    for t, t_next in pairwise(times):
        clean = clean_from_velocity(x_t, velocity_fn(x_t, t), t)
        fresh = torch.randn(noise.shape, generator=generator, dtype=torch.promote_types(noise.dtype, torch.float32))
        x_t = noised(clean, fresh.to(noise), t_next)
    return clean
