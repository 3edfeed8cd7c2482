"""Classifier-free guidance: follow the prompt further than the network itself would (Ho & Salimans 2022)."""

import math

from torch import Tensor

from streamstill.flow.samplers import VelocityFn


def guided(velocity_fn: VelocityFn, unconditional_fn: VelocityFn, scale: float) -> VelocityFn:
    """The velocity ``v_u + scale (v_c - v_u)``; scale 1 is ``velocity_fn`` itself, scale 0 ignores the prompt.

    Every other scale than 1 costs two passes a step.

    Args:
        velocity_fn: v_c, the velocity given the prompt.
        unconditional_fn: v_u, the velocity given no prompt.

    Raises:
        ValueError: the scale is no finite number.
    """
    if not math.isfinite(scale):
        raise ValueError(f"guidance must be a finite number, got {scale}; 1 is none, usual values are 2 to 7")
    if scale == 1:
        return velocity_fn

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        unconditional = unconditional_fn(x_t, t)
        return unconditional + scale * (velocity_fn(x_t, t) - unconditional)

    return velocity
