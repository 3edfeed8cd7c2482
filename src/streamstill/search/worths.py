"""What a kind of block is worth at each position, from cheap scores: the loss increase when one block is swapped.

The paper has no worths (S2DiT places by learning alone). These are ours: they let an exact programme place blocks in
seconds, given one network that was trained with many layouts, such as a ``PlacementNet``.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from streamstill.student.layout import parse_layout


@dataclass(frozen=True, kw_only=True)
class SwapWorths:
    """Worths for a programme that places kinds along the depth.

    Args:
        worths: for each letter, what a block of the kind is worth at each position, in units of the loss; more is
            better. At one position the worths of all letters sum to 0.
        errors: their standard errors over the base layouts.
        evaluations: how many different layouts the loss was asked of.
    """

    worths: Mapping[str, tuple[float, ...]]
    errors: Mapping[str, tuple[float, ...]]
    evaluations: int


def swap_worths(
    loss_of: Callable[[str], float],
    layout: str,
    *,
    bases: int = 4,
    group_size: int = 1,
    generator: torch.Generator,
) -> SwapWorths:
    """The worths that explain how the loss changes when the blocks at one position are of another kind.

    In ``bases`` random orders of the layout (its counts, so that the worths are not tied to one order) every position
    takes every kind in turn, all others as they are. The worth of a kind is how far the loss is below its mean over
    the kinds there. If losses were sums over positions, the worths would be exact; what positions do to each other
    shows in the errors. A swap changes the counts by one, so ``loss_of`` must take layouts with other counts.

    Args:
        loss_of: a loss that a layout of these letters has; the same layout must always have the same loss (the same
            held-out clips, times and noise for all layouts), or the noise would drown what a swap does.
        layout: the kinds and their counts.
        group_size: blocks that are swapped together; a group's worth is shared evenly by its blocks.

    Raises:
        ValueError: fewer than two kinds or bases, groups of several kinds, or a loss that is not finite.
    """
    groups = groups_of(layout, group_size)
    kinds = sorted(set(groups))
    if bases < 2:
        raise ValueError(f"worths need at least 2 base layouts, to know how much they differ, got {bases}")
    asked = cache(finite(loss_of))
    orders = [[groups[i] for i in torch.randperm(len(groups), generator=generator)] for _ in range(bases)]
    gains = [[_gains(asked, order, place, kinds) for order in orders] for place in range(len(groups))]
    worths, errors = {}, {}
    for row, kind in enumerate(kinds):
        samples = [[gain[row] / group_size for gain in at_place] for at_place in gains]
        blocks = [sample for sample in samples for _ in range(group_size)]
        worths[kind[0]] = tuple(statistics.fmean(sample) for sample in blocks)
        errors[kind[0]] = tuple(statistics.stdev(sample) / bases**0.5 for sample in blocks)
    return SwapWorths(worths=worths, errors=errors, evaluations=asked.cache_info().currsize)


def _gains(loss_of: Callable[[str], float], order: Sequence[str], place: int, kinds: Sequence[str]) -> list[float]:
    """How far below their mean the loss is with each kind at one place."""
    losses = [loss_of("".join([*order[:place], kind, *order[place + 1 :]])) for kind in kinds]
    return [statistics.fmean(losses) - loss for loss in losses]


def groups_of(layout: str, size: int) -> list[str]:
    """The layout cut into groups of one kind, of which there are at least two.

    Raises:
        ValueError: it cannot be cut so.
    """
    letters = "".join(kind.letter for kind in parse_layout(layout))
    groups = [letters[start : start + size] for start in range(0, len(letters), max(size, 1))]
    if size < 1 or any(group != group[0] * size for group in groups):
        raise ValueError(
            f"the layout {layout!r} is not made of groups of {size} blocks of one kind; choose another group size"
        )
    if len(set(groups)) < 2:
        raise ValueError(f"the layout {layout!r} has only one kind of block, so there is nothing to place")
    return groups


def finite(loss_of: Callable[[str], float]) -> Callable[[str], float]:
    """The same, and a ``ValueError`` for a loss that is not finite."""

    def checked(layout: str) -> float:
        loss = float(loss_of(layout))
        if not torch.tensor(loss).isfinite():
            raise ValueError(f"the loss of the layout {layout} is {loss}; train the network that answers, or mend it")
        return loss

    return checked
