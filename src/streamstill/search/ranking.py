"""Orders of the same blocks, ranked by the loss that each has with shared weights.

One network that was trained with many orders is asked about each of them; the better ones are then worth training by
themselves. This is one-shot search with uniform or learnt sampling (Guo et al. 2020, "Single Path One-Shot Neural
Architecture Search"); S2DiT reads the order from its logits instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import comb

import torch

from streamstill.search.worths import finite, groups_of


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """An order and its loss with shared weights."""

    layout: str
    loss: float


def rank_orders(
    loss_of: Callable[[str], float], layout: str, *, most: int, group_size: int = 1, generator: torch.Generator
) -> tuple[Ranked, ...]:
    """Orders of the layout's two kinds, best first: all of them if they are at most ``most``, else a search.

    The search starts at random orders and swaps two groups as long as that helps; it asks about ``most`` orders in all.

    Args:
        loss_of: the same layout must always have the same loss, and losses must be comparable (the same held-out
            clips, times and noise for all).

    Raises:
        ValueError: not two kinds in whole groups, or ``most`` below 1.
    """
    if most < 1:
        raise ValueError(f"at least 1 order must be ranked, got most={most}")
    groups, loss_of = groups_of(layout, group_size), finite(loss_of)
    kinds = sorted(set(groups))
    if len(kinds) != 2:
        raise ValueError(f"orders of two kinds are ranked, {layout!r} has {len(kinds)}; give a layout of two")
    first = groups.count(kinds[0])

    def of(places: frozenset[int]) -> str:
        return "".join(kinds[0] if place in places else kinds[1] for place in range(len(groups)))

    if comb(len(groups), first) <= most:
        asked = [of(frozenset(places)) for places in combinations(range(len(groups)), first)]
        found = {order: loss_of(order) for order in asked}
    else:
        found = _climbed(loss_of, of, len(groups), first, most=most, generator=generator)
    return tuple(Ranked(layout=order, loss=loss) for order, loss in sorted(found.items(), key=lambda pair: pair[1]))


def _climbed(
    loss_of: Callable[[str], float],
    of: Callable[[frozenset[int]], str],
    groups: int,
    count: int,
    *,
    most: int,
    generator: torch.Generator,
) -> dict[str, float]:
    """Losses of all orders on the way up from random starts, until ``most`` were asked about."""
    found: dict[str, float] = {}

    def loss(places: frozenset[int]) -> float:
        order = of(places)
        if order not in found:
            found[order] = loss_of(order)
        return found[order]

    while len(found) < most:
        here = frozenset(torch.randperm(groups, generator=generator)[:count].tolist())
        best = loss(here)
        while len(found) < most:
            swaps = [(here - {out}) | {into} for out in sorted(here) for into in range(groups) if into not in here]
            near = [swaps[i] for i in torch.randperm(len(swaps), generator=generator).tolist()]
            better = next((p for p in near if (of(p) in found or len(found) < most) and loss(p) < best), None)
            if better is None:
                break
            here, best = better, loss(better)
    return found
