"""The one place that knows the time convention: t=0 clean, t=1 noise, velocity = noise - clean.

``x_t = (1 - t) clean + t noise`` (rectified flow; Eq. 3 of AFD with alpha = 1 - t, sigma = t).
Every function works on any shape; ``t`` is broadcast from the left (shape B against B...).
"""

from torch import Tensor

T_FLOOR = 1e-3  # far below every time that a sampler visits


def expand_time(t: Tensor, like: Tensor) -> Tensor:
    """``t`` with trailing axes of size one, so that it multiplies ``like`` row by row."""
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim)).to(like.dtype)


def noised(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The point x_t on the straight path from clean to noise."""
    t = expand_time(t, clean)
    return (1 - t) * clean + t * noise


def velocity_between(clean: Tensor, noise: Tensor) -> Tensor:
    """The path's velocity dx_t/dt: the same at every t."""
    return noise - clean


def clean_from_velocity(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Where the straight line through x_t meets t=0."""
    return x_t - expand_time(t, x_t) * velocity


def noise_from_velocity(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Where the straight line through x_t meets t=1."""
    return x_t + (1 - expand_time(t, x_t)) * velocity


def velocity_from_clean(x_t: Tensor, clean: Tensor, t: Tensor) -> Tensor:
    """The velocity that leads from x_t to ``clean``; times below ``T_FLOOR`` count as it, for nothing leads on at 0."""
    return (x_t - clean) / expand_time(t, x_t).clamp_min(T_FLOOR)
