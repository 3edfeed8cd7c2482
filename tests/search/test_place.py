import math
import time
import tracemalloc
from collections.abc import Iterable
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamstill.search.allocate import Budget, KindCosts, allocate
from streamstill.search.cost_table import CostTable
from streamstill.search.place import DEFAULT_TICKS, Placement, default_ticks, place
from tests.search.tables import budgets, few, keeps, more, realistic, sixteenths, table, tables

EXACT = 1 / 32  # ms and MB: all costs of ``tables`` are multiples of it
Worths = dict[str, list[float]]
SIMPLE = {"L": (2.0, 1.0, 0.0), "S": (1.0, 1.0, 0.0)}


def some_worths(data: st.DataObject, letters: str, depth: int) -> Worths:
    number = data.draw(st.sampled_from([sixteenths(4.0), few(2)]))
    return {letter: data.draw(st.lists(number, min_size=depth, max_size=depth)) for letter in letters}


def brute_force(costs: CostTable, layouts: Iterable[tuple[str, ...]], budget: Budget, worths: Worths) -> float | None:
    """The most worth of the layouts within the budget, by the table's own prediction."""
    best = None
    for layout in layouts:
        worth = sum(worths[letter][i] for i, letter in enumerate(layout))
        if best is not None and worth <= best:
            continue
        cost = costs.predicted("".join(layout))
        if keeps(budget, cost.ms, cost.mb):
            best = worth
    return best


def check(found: Placement, costs: CostTable, budget: Budget, worths: Worths) -> None:
    """It is what it says, and keeps the budget."""
    cost = costs.predicted(found.layout)
    assert (found.ms, found.mb) == (cost.ms, cost.mb)
    assert keeps(budget, cost.ms, cost.mb)
    assert found.worth == sum(worths[letter][i] for i, letter in enumerate(found.layout))


@settings(deadline=None, max_examples=80)
@given(tables(), st.data(), budgets(24.0))
def test_free_counts_find_what_trying_every_layout_finds(costs: CostTable, data: st.DataObject, budget: Budget) -> None:
    depth = data.draw(st.integers(1, {1: 7, 2: 7, 3: 6, 4: 5}[len(costs.letters)]))
    worths = some_worths(data, costs.letters, depth)
    best = brute_force(costs, product(costs.letters, repeat=depth), budget, worths)
    if best is None:
        with pytest.raises(ValueError, match="no layout of"):
            place(costs, depth=depth, budget=budget, worths=worths, tick_ms=EXACT, tick_mb=EXACT)
        return
    found = place(costs, depth=depth, budget=budget, worths=worths, tick_ms=EXACT, tick_mb=EXACT)
    check(found, costs, budget, worths)
    assert found.worth == best
    assert (found.rounding.ms, found.rounding.mb) == (0, 0)


@settings(deadline=None, max_examples=80)
@given(tables(), st.data(), budgets(24.0))
def test_fixed_counts_find_what_trying_every_order_finds(costs: CostTable, data: st.DataObject, budget: Budget) -> None:
    letters = data.draw(st.lists(st.sampled_from(costs.letters), min_size=1, max_size=6))
    worths = some_worths(data, costs.letters, len(letters))
    counts = {letter: letters.count(letter) for letter in costs.letters}
    best = brute_force(costs, set(permutations(letters)), budget, worths)
    if best is None:
        with pytest.raises(ValueError, match="no order of"):
            place(costs, depth=len(letters), budget=budget, worths=worths, counts=counts)
        return
    found = place(costs, depth=len(letters), budget=budget, worths=worths, counts=counts)
    check(found, costs, budget, worths)
    assert sorted(found.layout) == sorted(letters)
    assert found.worth == best


@settings(deadline=None, max_examples=80)
@given(tables(kinds=3), st.data(), budgets(24.0), st.sampled_from([None, 0.1, 0.37, 2.0]))
def test_rounding_never_breaks_a_budget_and_loses_no_more_than_it_says(
    costs: CostTable, data: st.DataObject, budget: Budget, tick: float | None
) -> None:
    depth = data.draw(st.integers(1, 5))
    worths = some_worths(data, costs.letters, depth)
    layouts = list(product(costs.letters, repeat=depth))
    try:
        found = place(costs, depth=depth, budget=budget, worths=worths, tick_ms=tick, tick_mb=tick)
    except ValueError:
        return
    check(found, costs, budget, worths)
    best = brute_force(costs, layouts, budget, worths)
    assert best is not None
    assert found.worth <= best
    left = [None if limit is None else limit - lost for limit, lost in zip(*_pairs(budget, found), strict=True)]
    if all(limit is None or limit > 0 for limit in left):
        sure = brute_force(costs, layouts, Budget(ms=left[0], mb=left[1]), worths)
        assert sure is None or found.worth >= sure


def _pairs(budget: Budget, found: Placement) -> tuple[tuple[float | None, ...], tuple[float, ...]]:
    return (budget.ms, budget.mb), (found.rounding.ms, found.rounding.mb)


@settings(deadline=None, max_examples=80)
@given(tables(), st.data(), budgets(24.0), sixteenths(12.0), sixteenths(12.0), st.sampled_from([None, 0.37]))
def test_a_bigger_budget_is_never_worse(
    costs: CostTable, data: st.DataObject, budget: Budget, ms: float, mb: float, tick: float | None
) -> None:
    depth = data.draw(st.integers(1, 8))
    worths = some_worths(data, costs.letters, depth)
    try:
        before = place(costs, depth=depth, budget=budget, worths=worths, tick_ms=tick, tick_mb=tick)
    except ValueError:
        return
    after = place(costs, depth=depth, budget=more(budget, ms, mb), worths=worths, tick_ms=tick, tick_mb=tick)
    assert after.worth >= before.worth


@settings(deadline=None, max_examples=80)
@given(tables(), st.data(), budgets(24.0))
def test_an_order_for_chosen_counts_always_fits_where_the_counts_did(
    costs: CostTable, data: st.DataObject, budget: Budget
) -> None:
    depth = data.draw(st.integers(1, 8))
    worths = some_worths(data, costs.letters, depth)
    try:
        chosen = allocate(
            costs, depth=depth, budget=budget, worths={letter: worths[letter][0] for letter in worths}
        ).chosen
    except ValueError:
        return
    found = place(costs, depth=depth, budget=budget, worths=worths, counts=dict(chosen.counts))
    check(found, costs, budget, worths)
    free = place(costs, depth=depth, budget=budget, worths=worths, tick_ms=EXACT, tick_mb=EXACT)
    assert free.worth >= found.worth


def liking(layout: str, *, other: float = 0.0) -> Worths:
    """Worths of 1 where the layout has the letter."""
    return {letter: [1.0 if here == letter else other for here in layout] for letter in "LS"}


@pytest.mark.parametrize("counts", [None, {"L": 3, "S": 5}])
@pytest.mark.parametrize(
    ("wanted", "switches"), [("SSLLLSSS", 2), ("LSSSSSLL", 1), ("LLSSLSSS", 2), ("SLSLSLSS", 4), ("LLLSSSSS", 1)]
)
def test_a_run_pays_one_down_and_one_up_also_where_the_stream_begins_or_ends_low(
    wanted: str, switches: int, counts: dict[str, int] | None
) -> None:
    costs = table(SIMPLE, switch=(0.5, 0.0, 0.0), ends=(3.0, 0.0, 0.0))
    needed = 3 + 3 * 2 + 5 * 1 + switches * 0.75
    worths = liking(wanted)
    found = place(costs, depth=8, budget=Budget(ms=needed), worths=worths, counts=counts, tick_ms=0.25)
    assert (found.layout, found.ms, found.worth) == (wanted, needed, 8.0)
    if switches > 1 or counts is None:
        less = place(costs, depth=8, budget=Budget(ms=needed - 0.25), worths=worths, counts=counts, tick_ms=0.25)
        assert less.worth < 8.0


def test_dear_switches_merge_the_runs() -> None:
    worths = liking("LSSLSSLL")
    for switch, layout in ((0.5, "LSSLSSLL"), (2.0, "LSSSSSLL")):
        costs = table(SIMPLE, switch=(switch, 0.0, 0.0))
        assert place(costs, depth=8, budget=Budget(ms=17.0), worths=worths, tick_ms=0.25).layout == layout


def test_passing_memory_counts_once_and_decides_who_may_come() -> None:
    costs = table({"L": (1.0, 1.0, 8.0), "F": (1.0, 1.0, 2.0)}, ends=(0.0, 1.0, 3.0))
    worths = {"L": [2.0] * 4, "F": [1.0] * 4}
    assert place(costs, depth=4, budget=Budget(mb=13.0), worths=worths).layout == "LLLL"
    small = place(costs, depth=4, budget=Budget(mb=12.75), worths=worths)
    assert (small.layout, small.mb) == ("FFFF", 8.0)


def test_a_level_that_promises_more_than_it_holds_does_not_win() -> None:
    costs = table({"L": (1.0, 4.0, 8.0), "F": (1.0, 1.0, 2.0), "K": (1.0, 0.5, 2.0)})
    worths = {"L": [2.5] * 4, "F": [1.0] * 4, "K": [0.875] * 4}
    # with 8 MB passing 3.75 are left: 4 K and 7/16 of a step to L promise 4.3, no L fits, nor do 4 F
    found = place(costs, depth=4, budget=Budget(mb=11.75), worths=worths, tick_mb=0.25)
    assert (found.layout, found.mb) == ("FFFF", 6.0)


def test_without_limits_every_position_takes_what_is_worth_most() -> None:
    found = place(table(SIMPLE), depth=5, budget=Budget(), worths=liking("LSLSS"))
    assert found.layout == "LSLSS"


def test_of_equal_worth_the_faster_wins() -> None:
    costs = table({"L": (2.0, 1.0, 0.0), "F": (1.0, 3.0, 0.0)})
    found = place(costs, depth=3, budget=Budget(ms=100.0, mb=100.0), worths={"L": [1.0] * 3, "F": [1.0] * 3})
    assert found.layout == "FFF"


def test_default_ticks_are_exact_where_a_division_of_the_range_is() -> None:
    costs = KindCosts.of(table({"L": (3.0, 5.0, 0.0), "F": (1.0, 2.0, 0.0), "K": (1.5, 3.0, 0.0)}), None)
    ticks = default_ticks(costs, 30)
    for tick, steps, most in ((ticks.ms, (0.5, 2.0), DEFAULT_TICKS[0]), (ticks.mb, (1.0, 3.0), DEFAULT_TICKS[1])):
        assert all(step / tick == pytest.approx(round(step / tick), abs=1e-9) for step in steps)
        assert most / 2 <= 30 * max(steps) / tick <= most
    found = place(
        table({"L": (3.0, 5.0, 0.0), "F": (1.0, 2.0, 0.0), "K": (1.5, 3.0, 0.0)}),
        depth=30,
        budget=Budget(ms=60.0, mb=100.0),
        worths={letter: [1.0] * 30 for letter in "LFK"},
    )
    assert (found.rounding.ms, found.rounding.mb) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_what_does_not_fit_is_answered_with_the_cheapest() -> None:
    costs = table(SIMPLE, switch=(0.5, 0.0, 0.0))
    worths = liking("LSLS")
    with pytest.raises(ValueError, match=r"no layout of 4 blocks fits 4 ms .* the cheapest one is 4 S with 4.75 ms"):
        place(costs, depth=4, budget=Budget(ms=4.0), worths=worths)
    with pytest.raises(ValueError, match=r"no order of 3 L \+ 1 S fits 7 ms; with 1 runs .* it takes 7.75 ms and 4 MB"):
        place(costs, depth=4, budget=Budget(ms=7.0), worths=worths, counts={"L": 3, "S": 1})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 0}, "at least one block, got depth=0"),
        ({"worths": {"L": [1.0] * 4, "S": [1.0] * 3}}, r"each of 4 positions, got so many: {'L': 4, 'S': 3}"),
        ({"worths": {"L": [1.0] * 4}}, r"missing are \['S'\]"),
        ({"worths": {"L": [1.0] * 4, "S": [1.0] * 4, "x": [1.0] * 4}}, r"not in the cost table \['x'\]"),
        ({"worths": {"L": [1.0] * 4, "S": [1.0, 1.0, math.nan, 1.0]}}, r"those of \['S'\] are not"),
        ({"kinds": "LQ"}, "unknown letters"),
        ({"kinds": "LK"}, "the cost table knows the blocks LS, not K"),
        ({"kinds": "LL"}, "every kind is named once"),
        ({"tick_ms": 0.0}, "a tick must be positive and finite"),
        ({"tick_mb": -1.0}, "a tick must be positive and finite"),
        ({"tick_ms": math.nan}, "a tick must be positive and finite"),
        ({"tick_ms": 1e-6, "tick_mb": 1e-6}, "MB of working memory, 450 are allowed; take larger ticks"),
        ({"counts": {"L": 1, "S": 1}}, "must sum to 4 blocks, got"),
        ({"counts": {"L": 5, "S": -1}}, "must not be negative"),
        ({"counts": {"L": 2, "S": 2}, "kinds": "L"}, "4 blocks of the kinds L, got"),
        ({"counts": {"L": 2, "K": 2}}, "the cost table knows the blocks LS, not K"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(wrong: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"depth": 4, "budget": Budget(ms=7.0, mb=50.0), "worths": liking("LSLS")}
    costs = table({"L": (2.0, 1.5, 0.0), "S": (1.0, 1.0, 0.0)})
    with pytest.raises(ValueError, match=message):
        place(costs, **(good | wrong))  # type: ignore[arg-type]


def test_a_lattice_that_would_not_fit_is_refused() -> None:
    costs, worths = realistic(9, seed=0)
    with pytest.raises(ValueError, match="450 are allowed; take fewer kinds"):
        place(
            costs,
            depth=90,
            budget=Budget(),
            worths={letter: [worth] * 90 for letter, worth in worths.items()},
            counts=dict.fromkeys(costs.letters, 10),
        )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("budget", "ticks", "fixed"),
    [
        (Budget(ms=100.0, mb=500.0), (0.1, 1.0), False),
        (Budget(ms=150.0, mb=900.0), (0.1, 1.0), False),
        (Budget(ms=150.0, mb=900.0), (None, None), False),
        (Budget(), (None, None), True),
    ],
)
def test_five_kinds_and_sixty_blocks_take_a_second(
    seed: int, budget: Budget, ticks: tuple[float | None, float | None], fixed: bool
) -> None:
    costs, worth = realistic(5, seed=seed)
    random = np.random.default_rng(seed)
    worths = {letter: (value * random.uniform(0.5, 1.5, 60)).tolist() for letter, value in worth.items()}
    counts = dict.fromkeys(costs.letters, 12) if fixed else None

    def search() -> Placement:
        return place(costs, depth=60, budget=budget, worths=worths, counts=counts, tick_ms=ticks[0], tick_mb=ticks[1])

    start = time.perf_counter()
    found = search()
    assert time.perf_counter() - start < 10  # about 0.1 to 1 s on one core
    assert keeps(budget, found.ms, found.mb)
    tracemalloc.start()
    search()
    assert tracemalloc.get_traced_memory()[1] < 500e6
    tracemalloc.stop()
