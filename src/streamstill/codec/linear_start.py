"""The best linear codec of given clips in closed form: where a decoder begins instead of at noise."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

_RIDGE = 1e-6  # of the mean variance, so that channels that say nothing do no harm
_LEAST = 1e-6  # standard deviation of a channel that says nothing, and length of a column that is not heard


class Moments(NamedTuple):
    """Means and covariances of rows x beside rows y, in float64."""

    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    xy: Tensor


def moments(rows: Iterable[tuple[Tensor, Tensor]]) -> Moments:
    """Of pairs of tables with as many rows, read one after the other.

    Raises:
        ValueError: there is no row.
    """
    count = 0
    sums = [torch.zeros((), dtype=torch.float64) for _ in range(4)]
    for x_NX, y_NY in rows:
        x, y = x_NX.detach().double(), y_NY.detach().double()
        count += len(x)
        sums = [old + new for old, new in zip(sums, (x.sum(0), y.sum(0), x.T @ x, x.T @ y), strict=True)]
    if not count:
        raise ValueError("a linear start is computed from clips, and none was given; give at least one")
    mean_x, mean_y, xx, xy = (total / count for total in sums)
    return Moments(mean_x, mean_y, xx - torch.outer(mean_x, mean_x), xy - torch.outer(mean_x, mean_y))


def principal(found: Moments, channels: int) -> tuple[Tensor, Tensor]:
    """The ``channels`` directions of the largest variance of x as columns, and their standard deviations."""
    variances, directions = torch.linalg.eigh(found.xx)
    floor = _RIDGE * variances.mean().clamp_min(1e-12)
    return directions[:, -channels:].flip(1), variances[-channels:].flip(0).clamp_min(floor).sqrt()


def regression(found: Moments) -> tuple[Tensor, Tensor]:
    """Weight of shape (Y, X) and bias of the least squares of y by x."""
    ridge = _RIDGE * found.xx.diagonal().mean().clamp_min(1e-12)
    weight_YX = torch.linalg.solve(found.xx + ridge * torch.eye(len(found.xx), dtype=torch.float64), found.xy).T
    return weight_YX, found.mean_y - weight_YX @ found.mean_x


def scales(std_C: Tensor, reach_C: Tensor, whitening: float) -> Tensor:
    """What channels are divided by, so that their variances are 1 on average.

    The new standard deviations are as ``(std * reach) ** (1 - whitening)``: at 1 all are equal; at 0 they are as the
    channels' shares of y, and an error of any channel is as large in y.

    Args:
        std_C: standard deviations of the channels.
        reach_C: how far y moves with one unit of a channel.
    """
    reach_C = reach_C.clamp_min(_LEAST)
    told_C = torch.where(std_C < _LEAST, torch.ones_like(std_C), std_C)  # silent channels are not blown up
    size = ((std_C * reach_C) ** (1 - whitening)).square().mean().sqrt()
    return told_C**whitening / reach_C ** (1 - whitening) * torch.where(size > 0, size, torch.ones_like(size))
