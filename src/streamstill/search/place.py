"""Which kind of block where: the layout of most worth within budgets, in one programme with the switches it pays for.

The paper finds counts by a budget and the order by learning. Here a worth for every kind at every position (from cheap
scores, or from a learned search) lets one programme decide both. A layout costs its ends, its blocks and one down and
one up for every run of low-resolution blocks; the stream begins and ends at full resolution.

Free counts: a programme over positions with states (is the last block low, ms ticks, MB ticks). What is counted in
ticks is only the cost beyond the cheapest kind's, for every layout has the same number of blocks; it is rounded up, so
no layout that is found breaks a budget. ``Placement.rounding`` says what that can lose. Fixed counts: a programme over
the lattice of counts so far, is the last block low, and runs so far; nothing is rounded.

The peak of memory is exact: a programme runs for every level that the passing memory can have, with the kinds that
stay below it, and not for levels whose Lagrangian bound shows that they cannot win.

Own letters: K kinds, I positions, T ticks of ms, U ticks of MB; N cells of the count lattice, E the last block is full
or low, R low runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from streamstill.search.allocate import SLACK, Budget, Floats, KindCosts, cheapest, worths_of
from streamstill.search.cost_table import CostTable, Prediction

_Cell = TypeVar("_Cell", bound=np.generic)

DEFAULT_TICKS = 1500, 800  # that the default divides the whole range of ms and of MB into, at most
DEFAULT_CELLS = 75e6  # ticks of ms times ticks of MB times positions, at most
MOST_BYTES = 450e6  # of memory; a programme that needs more is refused
LAST_BITS = 1e-11  # of a tick: what float division leaves over is no reason to round up
BOUND_STEPS = 60  # of subgradient descent, for the bound of a level


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A layout, what it costs and what it is worth.

    Args:
        layout: a letter for every position.
        ms, mb: as ``CostTable.predicted`` says.
        worth: the sum over positions.
        rounding: the most ms and MB by which any layout was thought dearer than it is. No layout that fits budgets
            smaller by this is worth more; 0 where the answer is exact.
    """

    layout: str
    ms: float
    mb: float
    worth: float
    rounding: Prediction


@dataclass(frozen=True, kw_only=True)
class Ticks:
    """How finely costs are counted: the size of a tick in ms and in MB."""

    ms: float
    mb: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(size) and size > 0 for size in (self.ms, self.mb)):
            raise ValueError(f"a tick must be positive and finite, got {self}; leave it out for a default")


def place(
    table: CostTable,
    *,
    depth: int,
    budget: Budget,
    worths: Mapping[str, Sequence[float]],
    kinds: str | None = None,
    counts: Mapping[str, int] | None = None,
    tick_ms: float | None = None,
    tick_mb: float | None = None,
) -> Placement:
    """The layout of ``depth`` blocks with the largest sum of worths, of those within the budgets.

    Of layouts of equal worth it is one that is cheap in ticks of ms, then of MB.

    Args:
        worths: for each of the kinds a finite number for every position; more kinds of the table may be there.
        kinds: letters; None for all in the table, or those with a count.
        counts: how many blocks of every kind, as ``dict(allocation.counts)``; None to leave them free.
        tick_ms, tick_mb: only for free counts; None for ``default_ticks``, which do not depend on the budget, so that
            more budget never finds less.

    Raises:
        ValueError: no layout fits (the sentence says what would), worths or counts that do not belong to the depth, a
            tick that is not positive, or ticks or counts that would need more than ``MOST_BYTES``.
    """
    if depth < 1:
        raise ValueError(f"a layout has at least one block, got depth={depth}")
    if counts is not None:
        kinds = _counted(counts, kinds, depth)
    costs = KindCosts.of(table, kinds)
    worth_KI = _worths(costs, table, worths, depth)
    default = default_ticks(costs, depth)
    ticks = Ticks(ms=default.ms if tick_ms is None else tick_ms, mb=default.mb if tick_mb is None else tick_mb)
    if counts is not None:
        wanted = np.array([counts[letter] for letter in costs.letters])
        order, rounding = _ordered(costs, wanted, worth_KI, budget), Prediction(ms=0.0, mb=0.0)
    else:
        order, rounding = _best_of_levels(costs, worth_KI, budget, ticks)
    layout = "".join(costs.letters[k] for k in order)
    cost = table.predicted(layout)
    worth = sum(float(worth_KI[k, i]) for i, k in enumerate(order))
    return Placement(layout=layout, ms=float(cost.ms), mb=float(cost.mb), worth=worth, rounding=rounding)


def default_ticks(costs: KindCosts, depth: int) -> Ticks:
    """Ticks from the costs and the depth alone.

    The range from the cheapest network to the dearest is divided into ``DEFAULT_TICKS`` (fewer for very deep networks),
    or down to half as many parts; of these divisions it is the one that rounds a block or a switch up the least.
    """
    sizes = []
    part = min(1.0, math.sqrt(DEFAULT_CELLS / (depth * math.prod(DEFAULT_TICKS))))
    for each, switch, most in zip(
        (costs.ms, costs.held), (costs.switch_ms, costs.switch_mb), DEFAULT_TICKS, strict=True
    ):
        beyond = np.append(each - each.min(), switch if costs.low.any() else 0.0)
        span = depth * beyond[:-1].max() + (depth + 1) // 2 * beyond[-1]
        tick = span / np.arange(math.ceil(most * part), most * part / 2, -1)
        lost = (_ticks_up(beyond[:, None] / tick) * tick - beyond[:, None]).max(axis=0) if span else np.zeros(1)
        sizes.append(float(tick[lost.argmin()]) or 1.0)
    return Ticks(ms=sizes[0], mb=sizes[1])


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """What blocks cost in ticks, (ms, MB) each, beyond the cheapest kind; ``room`` is what may be spent."""

    low: list[bool]
    blocks: list[tuple[int, int]]
    switch: tuple[int, int]
    room: tuple[int, int]

    @classmethod
    def of(cls, costs: KindCosts, chosen: list[int], depth: int, budgets: tuple[float, float], ticks: Ticks) -> "_Grid":
        """For some of the kinds; ``budgets`` are what is left without ends and passing memory."""
        blocks, switches, rooms = [], [], []
        prices = (costs.ms, costs.switch_ms, ticks.ms), (costs.held, costs.switch_mb, ticks.mb)
        for budget, (each, switch, tick) in zip(budgets, prices, strict=True):
            limited = math.isfinite(budget)  # what has no limit is not counted
            beyond = _ticks_up((each[chosen] - each.min()) / tick) * limited
            step = int(_ticks_up(np.array(switch / tick))) * limited * bool(costs.low[chosen].any())
            most = depth * int(beyond.max()) + (depth + 1) // 2 * step
            rooms.append(math.floor(min((budget - depth * each.min()) / tick + LAST_BITS, most)) if limited else 0)
            blocks.append([int(number) for number in beyond])
            switches.append(step)
        return cls(
            low=[bool(costs.low[k]) for k in chosen],
            blocks=list(zip(*blocks, strict=True)),
            switch=(switches[0], switches[1]),
            room=(rooms[0], rooms[1]),
        )


def _best_of_levels(costs: KindCosts, worth_KI: Floats, budget: Budget, ticks: Ticks) -> tuple[list[int], Prediction]:
    """The kinds of the best layout over all levels of passing memory, and the rounding."""
    depth = worth_KI.shape[1]
    most_ms, most_mb = budget.limits
    levels = []
    for level in costs.levels:
        chosen = [int(k) for k in np.flatnonzero(costs.passing <= level)]
        room = most_ms - costs.ends_ms, most_mb - costs.ends_mb - level
        levels.append((_bound(costs, chosen, worth_KI, room), chosen, room))
    best, found = -math.inf, list[int]()
    for bound, chosen, room in sorted(levels, key=lambda entry: -entry[0]):
        if found and bound < best - SLACK * (1 + abs(best)):
            continue
        grid = _Grid.of(costs, chosen, depth, room, ticks)
        worth, order = _walk(grid, worth_KI[chosen]) if min(grid.room) >= 0 else (-math.inf, [])
        if worth > best:
            best, found = worth, [chosen[k] for k in order]
    if not found:
        raise ValueError(
            f"no layout of {depth} blocks fits {budget} in ticks of {ticks.ms:.6g} ms and {ticks.mb:.6g} MB; "
            f"{cheapest(costs, depth, 1)}; give that much, or smaller ticks"
        )
    return found, _rounding(costs, depth, budget, ticks)


def _bound(costs: KindCosts, chosen: list[int], worth_KI: Floats, room: tuple[float, float]) -> float:
    """No layout of these kinds within the room is worth more: Lagrangian relaxation of the limits, without switches."""
    limits = np.array(room)
    if (limits < 0).any():
        return -math.inf
    limited = np.isfinite(limits)
    scale = np.where(limited & (limits > 0), limits, 1.0)
    used_KX = np.stack([costs.ms, costs.held], axis=1)[chosen] / scale * limited  # X: ms, MB; in parts of the limit
    room_X = np.where(limited, limits / scale, 0.0)
    worth_IK = worth_KI[chosen].T
    spread = float(np.ptp(worth_IK, axis=1).sum())
    price_X, best = np.zeros(2), math.inf
    for step in range(BOUND_STEPS):
        paid_IK = worth_IK - used_KX @ price_X
        best = min(best, float(paid_IK.max(axis=1).sum() + price_X @ room_X))
        left_X = room_X - used_KX[paid_IK.argmax(axis=1)].sum(axis=0)
        price_X = np.maximum(price_X - spread / (step + 1) * left_X, 0.0)
    return best


def _walk(grid: _Grid, worth_KI: Floats) -> tuple[float, list[int]]:
    """The most worth within the grid's room and the kinds that have it; minus infinity and none if nothing fits.

    After every position there is a table for beginnings that end at full resolution and one for those that end low.
    """
    depth = worth_KI.shape[1]
    cells = (grid.room[0] + 1) * (grid.room[1] + 1)
    _require_memory(cells * (4 * depth + 6 * 8), f"{grid.room[0]} ticks of ms and {grid.room[1]} of MB", "larger ticks")
    kinds_of = [[k for k, low in enumerate(grid.low) if low is state] for state in (False, True)]
    ends = [np.zeros((1, 1)), np.zeros((0, 0))]  # full, low
    trail = []
    for i in range(depth):
        before = [_merged(ends, shift, grid.room) for shift in ((0, 0), grid.switch)]
        after = [
            _extended(best_TU, [(k, grid.blocks[k], float(worth_KI[k, i])) for k in kinds], grid.room)
            for (best_TU, _), kinds in zip(before, kinds_of, strict=True)
        ]
        ends = [best_TU for best_TU, _ in after]
        trail.append([(was_low_TU, kind_TU) for (_, was_low_TU), (_, kind_TU) in zip(before, after, strict=True)])
    best_TU, low_TU = _merged(ends, (0, 0), grid.room)
    if not best_TU.size or best_TU.max() == -np.inf:
        return -math.inf, []
    t, u = (int(at) for at in np.unravel_index(int(best_TU.argmax()), best_TU.shape))
    worth, low, order = float(best_TU[t, u]), bool(low_TU[t, u]), list[int]()
    for step in reversed(trail):
        was_low_TU, kind_TU = step[low]
        order.insert(0, int(kind_TU[t, u]))
        t, u = t - grid.blocks[order[0]][0], u - grid.blocks[order[0]][1]
        was_low = bool(was_low_TU[t, u])
        if low and not was_low:
            t, u = t - grid.switch[0], u - grid.switch[1]
        low = was_low
    return worth, order


def _merged(ends: list[Floats], shift: tuple[int, int], room: tuple[int, int]) -> tuple[Floats, NDArray[np.bool_]]:
    """The better one of full (which pays ``shift``) and low in every cell, and whether it is low."""
    full_TU, low_TU = ends
    best_TU = np.full(_reach([(full_TU, shift), (low_TU, (0, 0))], room), -np.inf)
    was_low_TU = np.ones(best_TU.shape, np.bool_)
    best_TU[: low_TU.shape[0], : low_TU.shape[1]] = low_TU
    part, source = _shifted(full_TU, best_TU, shift)
    part_low, _ = _shifted(full_TU, was_low_TU, shift)
    np.greater(part, source, out=part_low)
    np.maximum(part, source, out=part)
    return best_TU, was_low_TU


def _extended(
    best_TU: Floats, blocks: list[tuple[int, tuple[int, int], float]], room: tuple[int, int]
) -> tuple[Floats, NDArray[np.uint8]]:
    """The best of one more block (kind, price in ticks, worth) in every cell, and its kind."""
    after_TU = np.full(_reach([(best_TU, price) for _, price, _ in blocks], room), -np.inf)
    kind_TU = np.zeros(after_TU.shape, np.uint8)
    for k, price, worth in blocks:
        part, source = _shifted(best_TU, after_TU, price)
        part_kind, _ = _shifted(best_TU, kind_TU, price)
        candidate = source + worth
        np.copyto(part_kind, k, where=candidate > part)
        np.maximum(part, candidate, out=part)
    return after_TU, kind_TU


def _reach(moves: list[tuple[Floats, tuple[int, int]]], room: tuple[int, int]) -> tuple[int, int]:
    """Ticks of ms and of MB of a table that has place for what these tables become by these prices."""
    sizes = [
        [size + paid for size, paid in zip(table.shape, price, strict=True)] for table, price in moves if table.size
    ]
    ms, mb = (min(max((size[axis] for size in sizes), default=0), room[axis] + 1) for axis in (0, 1))
    return ms, mb


def _shifted(source_TU: Floats, target_TU: NDArray[_Cell], by: tuple[int, int]) -> tuple[NDArray[_Cell], Floats]:
    """The cells of the target where the source comes to, and the cells of the source that find a place there."""
    part = target_TU[by[0] : by[0] + source_TU.shape[0], by[1] : by[1] + source_TU.shape[1]]
    return part, source_TU[: part.shape[0], : part.shape[1]]


def _rounding(costs: KindCosts, depth: int, budget: Budget, ticks: Ticks) -> Prediction:
    lost = []
    prices = (budget.ms, costs.ms, costs.switch_ms, ticks.ms), (budget.mb, costs.held, costs.switch_mb, ticks.mb)
    for limit, each, switch, tick in prices:
        beyond = np.append(each - each.min(), switch if costs.low.any() else 0.0)
        over = np.maximum(_ticks_up(beyond / tick) * tick - beyond, 0.0) * (limit is not None)
        lost.append(float(depth * over[:-1].max() + (depth + 1) // 2 * over[-1]))
    return Prediction(ms=lost[0], mb=lost[1])


def _ordered(costs: KindCosts, wanted_K: NDArray[np.int64], worth_KI: Floats, budget: Budget) -> list[int]:
    """The kinds of the best layout with these counts, each at least 1.

    ``best_NER`` is the worth of the best beginning that has used the counts of a cell, ends full or low, and has begun
    so many low runs.
    """
    runs = _most_runs(costs, wanted_K, budget)
    shape = tuple(int(count) + 1 for count in wanted_K)
    cells, kinds = math.prod(shape), range(len(shape))
    stride_K = [math.prod(shape[k + 1 :]) for k in kinds]
    _require_memory(cells * (8 * (len(shape) + 2) + 20 * (runs + 1)), f"counts of {list(wanted_K)}", "fewer kinds")
    used_NK = np.stack(np.unravel_index(np.arange(cells), shape), axis=1)
    used_N = used_NK.sum(axis=1)
    layers = np.split(np.argsort(used_N, kind="stable"), np.cumsum(np.bincount(used_N))[:-1])
    best_NER = np.full((cells, 2, runs + 1), -np.inf)
    best_NER[0, 0, 0] = 0.0
    for i, layer in enumerate(layers[1:]):
        for k in kinds:
            cell_N = layer[used_NK[layer, k] > 0]
            after_NR = _before(best_NER[cell_N - stride_K[k]], low=bool(costs.low[k])).max(axis=1) + worth_KI[k, i]
            best_NER[cell_N, int(costs.low[k])] = np.maximum(best_NER[cell_N, int(costs.low[k])], after_NR)
    cell, run = cells - 1, int(best_NER[-1].max(axis=0).argmax())  # of equals the one with the fewest runs
    state, order = int(best_NER[-1, :, run].argmax()), list[int]()
    for i in reversed(range(len(layers) - 1)):
        options = [k for k in kinds if costs.low[k] == state and used_NK[cell, k]]
        before_E = [_before(best_NER[[cell - stride_K[k]]], low=bool(state))[0, :, run] for k in options]
        taken = int(np.argmax([before.max() + worth_KI[k, i] for before, k in zip(before_E, options, strict=True)]))
        order.insert(0, options[taken])
        came_from = int(before_E[taken].argmax())
        cell, run, state = cell - stride_K[options[taken]], run - (state and not came_from), came_from
    return order


def _before(best_NER: Floats, *, low: bool) -> Floats:
    """The same by the runs that there will be after a block at this resolution: a low one after a full one adds one."""
    if not low:
        return best_NER
    moved_NER = best_NER.copy()
    moved_NER[:, 0, 0] = -np.inf
    moved_NER[:, 0, 1:] = best_NER[:, 0, :-1]
    return moved_NER


def _most_runs(costs: KindCosts, wanted_K: NDArray[np.int64], budget: Budget) -> int:
    """How many runs of low blocks the counts and the budget allow; more runs never cost less."""
    low = int(wanted_K[costs.low].sum())
    runs = np.arange(min(low, 1), min(low, int(wanted_K.sum()) - low + 1) + 1)
    ms, mb = costs.total(np.tile(wanted_K, (len(runs), 1)), runs)
    most_ms, most_mb = budget.limits
    fits = runs[(ms <= most_ms) & (mb <= most_mb)]
    if not len(fits):
        counts = " + ".join(f"{count} {letter}" for letter, count in zip(costs.letters, wanted_K, strict=True))
        raise ValueError(
            f"no order of {counts} fits {budget}; with {runs[0]} runs of low blocks, the fewest, "
            f"it takes {ms[0]:.6g} ms and {mb[0]:.6g} MB"
        )
    return int(fits[-1])


def _worths(costs: KindCosts, table: CostTable, worths: Mapping[str, Sequence[float]], depth: int) -> Floats:
    """Worths as an array, kinds x positions."""
    worths_of(costs, table, worths)
    lengths = {letter: len(worths[letter]) for letter in costs.letters}
    if set(lengths.values()) != {depth}:
        raise ValueError(f"every kind has a worth for each of {depth} positions, got so many: {lengths}")
    worth_KI = np.array([worths[letter] for letter in costs.letters], dtype=np.float64)
    if not np.isfinite(worth_KI).all():
        bad = [letter for letter, row in zip(costs.letters, worth_KI, strict=True) if not np.isfinite(row).all()]
        raise ValueError(
            f"worths must be finite numbers, those of {bad} are not; give a very low one to rule a kind out"
        )
    return worth_KI


def _counted(counts: Mapping[str, int], kinds: str | None, depth: int) -> str:
    """The letters with a count of at least 1."""
    stray = sorted(letter for letter in counts if kinds is not None and letter not in kinds)
    if stray or min(counts.values(), default=0) < 0 or sum(counts.values()) != depth:
        raise ValueError(
            f"counts must not be negative and must sum to {depth} blocks"
            f"{'' if kinds is None else f' of the kinds {kinds}'}, got {dict(counts)}"
        )
    return "".join(letter for letter, count in counts.items() if count)


def _ticks_up(parts: Floats) -> NDArray[np.int64]:
    """Rounded up to whole ticks, unless they are whole but for the last bits."""
    return np.asarray(np.ceil(parts - LAST_BITS), dtype=np.int64)


def _require_memory(wanted: float, what: str, instead: str) -> None:
    if wanted > MOST_BYTES:
        raise ValueError(
            f"{what} would take {wanted / 1e6:.0f} MB of working memory, {MOST_BYTES / 1e6:.0f} are allowed; "
            f"take {instead}"
        )
