"""How many blocks of every kind: all counts that are worth a look within budgets of time and memory, and the best.

The paper's rule (S2DiT section 3.3, "budget-aware block allocation") knows two kinds, latencies l, memories m. Of all
pairs N_L + N_S = K with sum l N <= L_max and sum m N <= M_max it takes the one whose (L, M) is closest to
(L_max, M_max).
Here the ends and the switches of resolution are paid, too, and memory is the peak: what all parts hold, plus the most
that one of them needs while it runs. With a worth for every kind there may be any number of kinds, and worth decides.

The programme goes over kinds, low ones first (so the switches are known before the first full one), with labels
(blocks so far, ms, MB held, worth). A label falls when no completion of it fits, or when another one of as many blocks
is not slower, not larger and not worth less. Costs are never rounded. The peak is exact because the programme runs
once for every level that the passing memory can have, with the kinds that stay below it; a layout's own level is the
one where its peak is not overestimated.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from streamstill.search.cost_table import CostTable
from streamstill.student.layout import BlockKind, parse_layout

Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.intp]

SLACK = 1e-9  # a budget is kept if it is exceeded by no more than this part of it: sums of floats have an order
BATCH = 2048  # points that are compared with the front at once


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one velocity pass of one chunk may take.

    Args:
        ms: of time, or None for as much as it takes.
        mb: of peak memory in MB (10^6 bytes), or None for as much as it takes.
    """

    ms: float | None = None
    mb: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"a budget must be positive and finite, or None for no limit, got {name}={value}")

    def __str__(self) -> str:
        limits = [f"{value:g} {unit}" for value, unit in ((self.ms, "ms"), (self.mb, "MB")) if value is not None]
        return " and ".join(limits) or "no limit"

    @property
    def limits(self) -> tuple[float, float]:
        """The most ms and MB that still keep it, infinite without a limit."""
        ms, mb = (math.inf if value is None else value * (1 + SLACK) for value in (self.ms, self.mb))
        return ms, mb

    def distance(self, ms: Floats, mb: Floats) -> Floats:
        """How far below the budgets these costs are: Euclidean, each in parts of its budget; only limits count."""
        gaps = [1 - used / limit for used, limit in ((ms, self.ms), (mb, self.mb)) if limit is not None]
        return np.sqrt(sum((gap**2 for gap in gaps), np.zeros_like(ms)))


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """So many blocks of every kind.

    Args:
        counts: a letter and a number for every kind that was asked for, also where it is 0.
        low_runs: runs of low-resolution blocks whose switches are paid.
        ms, mb: predicted time and peak memory of every layout with these counts and runs.
        worth: the sum over blocks; without worths it is minus the distance to the budgets. More is better.
    """

    counts: tuple[tuple[str, int], ...]
    low_runs: int
    ms: float
    mb: float
    worth: float

    def __str__(self) -> str:
        return " + ".join(f"{count} {letter}" for letter, count in self.counts if count)

    @property
    def layout(self) -> str:
        """One of the layouts with these counts and runs; the order of its blocks is nobody's choice."""
        letters = [letter * count for letter, count in self.counts]
        low = "".join(text for text in letters if text and parse_layout(text)[0].low)
        full = "".join(text for text in letters if text and not parse_layout(text)[0].low)
        if not low:
            return full
        gaps = [0, *[1] * (self.low_runs - 1), 0]  # between two runs there is a full block, or they were one
        for block in range(len(full) - sum(gaps)):
            gaps[block % len(gaps)] += 1
        text, runs = full[: gaps[0]], self.low_runs
        for run in range(runs):
            done = sum(gaps[: run + 1])
            text += low[len(low) * run // runs : len(low) * (run + 1) // runs] + full[done : done + gaps[run + 1]]
        return text


@dataclass(frozen=True, kw_only=True)
class Allocations:
    """What ``allocate`` found.

    Args:
        front: every feasible allocation that no other one beats: not slower, not larger, not worth less, and better in
            one of them. Of several with the same three numbers it has one. In order of time.
        chosen: the one of most worth; of several the fastest, then the smallest.
        why: that choice in a sentence.
    """

    front: tuple[Allocation, ...]
    chosen: Allocation
    why: str


@dataclass(frozen=True, kw_only=True)
class KindCosts:
    """The costs of kinds as arrays of one number per kind, and those of ends and switches.

    Args:
        passing: peak MB beyond what is held in any network with such a block: its own, that of the ends and, for low
            kinds, that of the switches.
        switch_ms, switch_mb: of one down and one up, MB held.
    """

    letters: str
    low: NDArray[np.bool_]
    ms: Floats
    held: Floats
    passing: Floats
    ends_ms: float
    ends_mb: float
    switch_ms: float
    switch_mb: float

    @classmethod
    def of(cls, table: CostTable, kinds: str | None) -> "KindCosts":
        """Those of these letters, or of all that the table knows.

        Raises:
            ValueError: a letter twice, none, or one that is no kind or not in the table.
        """
        parsed = parse_layout(table.letters if kinds is None else kinds)
        if len(set(parsed)) != len(parsed):
            raise ValueError(f"every kind is named once, got {kinds!r}; leave out the repeated letters")
        costs = [table.block(kind) for kind in parsed]
        switch = max(table.down.passing_mb, table.up.passing_mb)
        around = [max(table.ends.passing_mb, switch if kind.low else 0.0) for kind in parsed]
        return cls(
            letters="".join(kind.letter for kind in parsed),
            low=np.array([kind.low for kind in parsed]),
            ms=np.array([cost.ms for cost in costs]),
            held=np.array([cost.held_mb for cost in costs]),
            passing=np.array([max(cost.passing_mb, other) for cost, other in zip(costs, around, strict=True)]),
            ends_ms=table.ends.ms,
            ends_mb=table.ends.held_mb,
            switch_ms=table.down.ms + table.up.ms,
            switch_mb=table.down.held_mb + table.up.held_mb,
        )

    @property
    def levels(self) -> list[float]:
        """What the passing memory of a network can be, MB, from the smallest."""
        return sorted(set(self.passing.tolist()))

    def total(self, counts: NDArray[np.integer], runs: NDArray[np.integer]) -> tuple[Floats, Floats]:
        """ms and peak MB of many networks: ``counts`` is networks x kinds, ``runs`` is low runs of every network."""
        held = self.ends_mb + counts @ self.held + runs * self.switch_mb
        passing = np.where(counts > 0, self.passing, 0.0).max(axis=1)
        return self.ends_ms + counts @ self.ms + runs * self.switch_ms, held + passing


class _Labels(NamedTuple):
    """Beginnings of allocations: ``values`` is labels x (ms, MB held, worth), ``counts`` is labels x kinds."""

    values: Floats
    counts: NDArray[np.int16]


def allocate(
    table: CostTable,
    *,
    depth: int,
    budget: Budget,
    kinds: str | None = None,
    worths: Mapping[str, float] | None = None,
    low_runs: int = 1,
) -> Allocations:
    """The counts of kinds that make the best network of ``depth`` blocks within the budgets.

    With worths the largest sum of them wins. Without, there are at most two kinds and the paper's rule decides: the
    feasible pair with the smallest ``Budget.distance``. (Costs alone cannot say which of many kinds is better.)

    Args:
        kinds: letters; None for all in the table.
        worths: what one block is worth, for each of the kinds; others of the table may be there and do not count.
        low_runs: how many runs of low-resolution blocks the layout will have: as many switches down and up are paid,
            or fewer where the counts do not allow for them, and none without a low block.

    Raises:
        ValueError: no allocation fits (the sentence names the fastest and the smallest one), an unknown kind, a kind
            without a finite worth, more than two kinds or no limit at all without worths, ``depth`` or ``low_runs``
            below 1.
    """
    if depth < 1 or low_runs < 1:
        raise ValueError(f"depth and low_runs must be at least 1, got depth={depth} and low_runs={low_runs}")
    costs = KindCosts.of(table, kinds)
    if worths is None:
        _require_paper_case(costs, budget)
        counts = _pairs(depth, len(costs.letters))
    else:
        values = np.array([worths_of(costs, table, worths)[letter] for letter in costs.letters], dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"worths must be finite numbers, got {dict(worths)}; give every kind one")
        counts = _worth_a_look(costs, depth=depth, budget=budget, worths=values, low_runs=low_runs)
    runs = _runs(counts[:, costs.low].sum(axis=1), depth, low_runs)
    ms, mb = costs.total(counts, runs)
    most_ms, most_mb = budget.limits
    fits = (ms <= most_ms) & (mb <= most_mb)
    if not fits.any():
        raise ValueError(f"no network of {depth} blocks fits {budget}; {cheapest(costs, depth, low_runs)}")
    counts, runs, ms, mb = counts[fits], runs[fits], ms[fits], mb[fits]
    worth = -budget.distance(ms, mb) if worths is None else counts @ values
    front = tuple(
        _allocation(costs, counts[i], int(runs[i]), (ms[i], mb[i], worth[i])) for i in pareto(ms, mb, worth).tolist()
    )
    chosen = min(front, key=lambda one: (-one.worth, one.ms, one.mb))
    return Allocations(front=front, chosen=chosen, why=_why(chosen, len(front), budget, by_worth=worths is not None))


def cheapest(costs: KindCosts, depth: int, low_runs: int) -> str:
    """The fastest and the smallest network of so many blocks, in words, for those whose budgets are too small."""
    nothing = np.zeros(len(costs.letters))
    counts = _worth_a_look(costs, depth=depth, budget=Budget(), worths=nothing, low_runs=low_runs)
    runs = _runs(counts[:, costs.low].sum(axis=1), depth, low_runs)
    ms, mb = costs.total(counts, runs)
    fast, small = (
        _allocation(costs, counts[i], int(runs[i]), (ms[i], mb[i], 0.0))
        for i in (np.lexsort((mb, ms))[0], np.lexsort((ms, mb))[0])
    )
    texts = [f"{one} with {one.ms:.6g} ms and {one.mb:.6g} MB" for one in (fast, small)]
    if texts[0] == texts[1]:
        return f"the cheapest one is {texts[0]}"
    return f"the fastest one is {texts[0]}, the smallest one {texts[1]}"


def pareto(ms: Floats, mb: Floats, worth: Floats) -> Indices:
    """Indices of the points that no other one beats, by ms; of equal points the first is kept.

    A sweep in order of ms with the best worth so far for every MB (a staircase); most points fall many at a time.
    """
    order = np.lexsort((-worth, mb, ms))
    sizes: list[float] = []  # ascending, and so is what they are worth
    best: list[float] = []
    kept: list[int] = []
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        if sizes:
            below = np.searchsorted(sizes, mb[batch], side="right") - 1
            beaten = (below >= 0) & (np.asarray(best)[below] >= worth[batch])
            batch = batch[~beaten]
        for i, size, value in zip(batch.tolist(), mb[batch].tolist(), worth[batch].tolist(), strict=True):
            at = bisect_right(sizes, size)
            if at and best[at - 1] >= value:
                continue
            begin = end = bisect_left(sizes, size)
            while end < len(best) and best[end] <= value:
                end += 1
            sizes[begin:end], best[begin:end] = [size], [value]
            kept.append(i)
    return np.array(kept, dtype=np.intp)


def worths_of(costs: KindCosts, table: CostTable, worths: Mapping[str, object]) -> Mapping[str, object]:
    """The same worths.

    Raises:
        ValueError: a kind has none, or a letter is not in the table.
    """
    missing = [letter for letter in costs.letters if letter not in worths]
    unknown = sorted(set(worths) - set(table.letters))
    if missing or unknown:
        raise ValueError(
            f"worths were given for {sorted(worths)}; missing are {missing}, not in the cost table {unknown}; "
            f"give one for each of {costs.letters}"
        )
    return worths


def _worth_a_look(costs: KindCosts, *, depth: int, budget: Budget, worths: Floats, low_runs: int) -> NDArray[np.int16]:
    """Counts (allocations x kinds) that contain the whole front, and little else."""
    found = [np.zeros((0, len(costs.letters)), np.int16)]
    for level in costs.levels:
        chosen = [int(k) for k in np.flatnonzero(costs.passing <= level)]
        chosen.sort(key=lambda k: not costs.low[k])
        labels = _programme(costs, chosen, depth=depth, budget=budget, level=level, worths=worths, low_runs=low_runs)
        found.append(labels.counts)
    return np.concatenate(found)


def _programme(
    costs: KindCosts, kinds: list[int], *, depth: int, budget: Budget, level: float, worths: Floats, low_runs: int
) -> _Labels:
    """Labels of whole allocations of these kinds, if the passing memory is ``level``."""
    most_ms, most_mb = budget.limits
    room = np.array([most_ms - costs.ends_ms, most_mb - costs.ends_mb - level])
    steps = np.stack([costs.ms, costs.held, worths], axis=1)  # kinds x (ms, MB, worth)
    switches = np.array([costs.switch_ms, costs.switch_mb, 0.0])
    empty = _Labels(np.zeros((0, 3)), np.zeros((0, len(costs.letters)), np.int16))
    groups = [_Labels(np.zeros((1, 3)), np.zeros((1, len(costs.letters)), np.int16)), *[empty] * depth]
    for place, k in enumerate(kinds):
        if place == len(kinds) - 1:
            groups = [empty] * depth + [_joined([_more(group, k, depth - u, steps) for u, group in enumerate(groups)])]
        least = steps[kinds[place:], :2].min(axis=0)
        for used in range(depth + 1):
            grown = [_more(groups[used - 1], k, 1, steps)] if used > 0 and place < len(kinds) - 1 else []
            groups[used] = _pruned(_joined([groups[used], *grown]), room - (depth - used) * least)
        if costs.low[k] and not costs.low[kinds[place + 1 :]].any():
            runs = _runs(np.arange(depth + 1), depth, low_runs)
            groups = [
                _Labels(group.values + run * switches, group.counts) for run, group in zip(runs, groups, strict=True)
            ]
    return _pruned(groups[depth], room)


def _more(labels: _Labels, kind: int, count: int, steps: Floats) -> _Labels:
    """The same labels with so many more blocks of a kind."""
    counts = labels.counts.copy()
    counts[:, kind] += count
    return _Labels(labels.values + count * steps[kind], counts)


def _joined(parts: list[_Labels]) -> _Labels:
    return _Labels(np.concatenate([part.values for part in parts]), np.concatenate([part.counts for part in parts]))


def _pruned(labels: _Labels, room: Floats) -> _Labels:
    """Those within ms and MB of room that no other one beats."""
    fits = np.flatnonzero((labels.values[:, :2] <= room).all(axis=1))
    ms, held, worth = labels.values[fits].T
    kept = fits[pareto(ms, held, worth)]
    return _Labels(labels.values[kept], labels.counts[kept])


def _runs(low: NDArray[np.integer], depth: int, low_runs: int) -> NDArray[np.integer]:
    """Runs of ``low`` blocks among ``depth``: as many as wanted, or as can be kept apart by the full ones."""
    return np.minimum(np.minimum(low, depth - low + 1), low_runs)


def _pairs(depth: int, kinds: int) -> NDArray[np.int16]:
    """All counts of one or two kinds."""
    first = np.arange(depth + 1, dtype=np.int16)
    return np.full((1, 1), depth, np.int16) if kinds == 1 else np.stack([first, depth - first], axis=1)


def _require_paper_case(costs: KindCosts, budget: Budget) -> None:
    if len(costs.letters) > 2:
        raise ValueError(
            f"without worths the paper's rule decides, between two kinds; got {len(costs.letters)}: {costs.letters}; "
            f"name two, such as kinds={BlockKind.LCHA.letter + BlockKind.SSA.letter!r}, or give every kind a worth"
        )
    if budget.ms is None and budget.mb is None:
        raise ValueError("without worths the budget decides, and none was given; give ms or mb, or every kind a worth")


def _allocation(
    costs: KindCosts, counts: NDArray[np.integer], runs: int, numbers: tuple[float, float, float]
) -> Allocation:
    ms, mb, worth = (float(number) for number in numbers)
    pairs = tuple(zip(costs.letters, (int(count) for count in counts), strict=True))
    return Allocation(counts=pairs, low_runs=runs, ms=ms, mb=mb, worth=worth)


def _why(chosen: Allocation, points: int, budget: Budget, *, by_worth: bool) -> str:
    uses = []
    for used, limit, unit in ((chosen.ms, budget.ms, "ms"), (chosen.mb, budget.mb, "MB")):
        uses.append(f"{used:.6g} {unit}" if limit is None else f"{used:.6g} of {limit:.6g} {unit}")
    reason = f"has the most worth, {chosen.worth:.6g}" if by_worth else "uses up the budgets best"
    return f"{chosen} {reason}, of {points} allocations that no other one beats: {' and '.join(uses)}."
