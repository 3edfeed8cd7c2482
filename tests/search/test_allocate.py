import math
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamstill.search.allocate import Allocation, Allocations, Budget, allocate, pareto
from streamstill.search.cost_table import CostTable
from streamstill.student.layout import parse_layout
from tests.search.tables import budgets, few, keeps, more, realistic, sixteenths, table, tables

PHONE = {"L": (900 / 32, 4.0, 0.0), "S": (258 / 32, 1.0, 0.0)}  # S2DiT Table 3: 32 blocks take 900 ms or 258 ms


@dataclass(frozen=True)
class Point:
    ms: float
    mb: float
    worth: float

    def beats(self, other: "Point") -> bool:
        return self != other and self.ms <= other.ms and self.mb <= other.mb and self.worth >= other.worth


def all_counts(depth: int, kinds: int) -> Iterator[tuple[int, ...]]:
    if kinds == 1:
        yield (depth,)
        return
    for first in range(depth + 1):
        for rest in all_counts(depth - first, kinds - 1):
            yield (first, *rest)


def cost_of(costs: CostTable, counts: tuple[int, ...], low_runs: int) -> tuple[float, float]:
    """Written out, with no help from the code that is tested."""
    low = sum(count for count, letter in zip(counts, costs.letters, strict=True) if letter == "S")
    runs = min(low, low_runs, sum(counts) - low + 1)
    parts = [costs.ends] + [costs.down, costs.up] * runs
    for block, count in zip(costs.blocks, counts, strict=True):
        parts += [block.cost] * count
    held = sum(part.held_mb for part in parts)
    return sum(part.ms for part in parts), held + max(part.passing_mb for part in parts)


def brute_force(
    costs: CostTable, depth: int, budget: Budget, worths: dict[str, float] | None, low_runs: int
) -> list[Point]:
    points = []
    for counts in all_counts(depth, len(costs.letters)):
        ms, mb = cost_of(costs, counts, low_runs)
        if not keeps(budget, ms, mb):
            continue
        if worths is None:
            gaps = [1 - used / limit for used, limit in ((ms, budget.ms), (mb, budget.mb)) if limit is not None]
            worth = -math.sqrt(sum(gap * gap for gap in gaps))
        else:
            worth = sum(worths[letter] * count for letter, count in zip(costs.letters, counts, strict=True))
        points.append(Point(ms, mb, worth))
    return points


def points_of(found: Allocations) -> list[Point]:
    return [Point(one.ms, one.mb, one.worth) for one in found.front]


def count(found: Allocation, letter: str) -> int:
    return dict(found.counts)[letter]


@settings(deadline=None, max_examples=150)
@given(tables(), st.data(), st.integers(1, 10), budgets(40.0), st.integers(1, 4))
def test_with_worths_it_finds_what_trying_everything_finds(
    costs: CostTable, data: st.DataObject, depth: int, budget: Budget, low_runs: int
) -> None:
    worths = {letter: data.draw(st.one_of(sixteenths(4.0), few(2))) for letter in costs.letters}
    points = brute_force(costs, depth, budget, worths, low_runs)
    if not points:
        with pytest.raises(ValueError, match="no network of"):
            allocate(costs, depth=depth, budget=budget, worths=worths, low_runs=low_runs)
        return
    found = allocate(costs, depth=depth, budget=budget, worths=worths, low_runs=low_runs)
    best = {point for point in points if not any(other.beats(point) for other in points)}
    assert set(points_of(found)) == best
    assert len(found.front) == len(best)
    assert found.chosen in found.front
    assert found.chosen.worth == max(point.worth for point in points)


@settings(deadline=None, max_examples=150)
@given(tables(kinds=2), st.integers(1, 10), budgets(40.0), st.integers(1, 4))
def test_without_worths_it_is_the_feasible_pair_closest_to_the_budgets(
    costs: CostTable, depth: int, budget: Budget, low_runs: int
) -> None:
    points = brute_force(costs, depth, budget, None, low_runs)
    if not points or budget == Budget():
        with pytest.raises(ValueError, match=r"no network of|the budget decides"):
            allocate(costs, depth=depth, budget=budget, low_runs=low_runs)
        return
    found = allocate(costs, depth=depth, budget=budget, low_runs=low_runs)
    assert found.chosen.worth == pytest.approx(max(point.worth for point in points), abs=1e-12)
    assert found.chosen in found.front
    own = points_of(found)
    assert not any(one.beats(other) for one in own for other in own)


@settings(deadline=None, max_examples=100)
@given(tables(), st.data(), st.integers(1, 10), budgets(40.0), sixteenths(20.0), sixteenths(20.0))
def test_a_bigger_budget_is_never_worse(
    costs: CostTable, data: st.DataObject, depth: int, budget: Budget, ms: float, mb: float
) -> None:
    worths = {letter: data.draw(sixteenths(4.0)) for letter in costs.letters}
    if not brute_force(costs, depth, budget, worths, 1):
        return
    before = allocate(costs, depth=depth, budget=budget, worths=worths)
    after = allocate(costs, depth=depth, budget=more(budget, ms, mb), worths=worths)
    assert after.chosen.worth >= before.chosen.worth


@settings(deadline=None)
@given(tables(), st.integers(1, 10), st.integers(1, 4))
def test_costs_are_those_of_a_layout_with_these_counts_and_runs(costs: CostTable, depth: int, low_runs: int) -> None:
    worths = {letter: float(i % 3) for i, letter in enumerate(costs.letters)}
    for found in allocate(costs, depth=depth, budget=Budget(), worths=worths, low_runs=low_runs).front:
        assert {letter: found.layout.count(letter) for letter in costs.letters} == dict(found.counts)
        assert len(found.layout) == depth
        low = "".join("S" if kind.low else " " for kind in parse_layout(found.layout))
        assert len(low.split()) == found.low_runs
        predicted = costs.predicted(found.layout)
        assert (predicted.ms, predicted.mb) == (found.ms, found.mb)


@pytest.mark.parametrize(
    ("sizes", "budget", "full"),
    [
        ((4.0, 1.0), Budget(ms=531.0), 13),  # 258 + 20.0625 n <= 531
        ((4.0, 1.0), Budget(mb=60.0), 9),  # 32 + 3 n <= 60
        ((4.0, 1.0), Budget(ms=531.0, mb=60.0), 9),
        ((4.0, 1.0), Budget(ms=258.0), 0),
        ((4.0, 1.0), Budget(ms=900.0), 32),
        # 8 <= n <= 13; squared distances 0.0153 for 11, 0.0137 for 12, 0.0162 for 13
        ((1.0, 3.0), Budget(ms=531.0, mb=80.0), 12),
    ],
)
def test_the_papers_rule_by_hand(sizes: tuple[float, float], budget: Budget, full: int) -> None:
    costs = table({letter: (PHONE[letter][0], size, 0.0) for letter, size in zip("LS", sizes, strict=True)})
    found = allocate(costs, depth=32, budget=budget)
    assert found.chosen.counts == (("L", full), ("S", 32 - full))
    assert found.chosen.ms == 258 + full * (900 - 258) / 32
    assert found.chosen.mb == 32 * sizes[1] + full * (sizes[0] - sizes[1])


def test_the_choice_is_told_with_its_numbers() -> None:
    found = allocate(table(PHONE), depth=32, budget=Budget(ms=531.0, mb=60.0))
    assert len(found.front) == 10
    assert found.why == (
        "9 L + 23 S uses up the budgets best, of 10 allocations that no other one beats: "
        "438.562 of 531 ms and 59 of 60 MB."
    )
    valued = allocate(table(PHONE), depth=32, budget=Budget(ms=531.0), worths={"L": 2.0, "S": 1.0})
    assert valued.why.startswith("13 L + 19 S has the most worth, 45, of 14 allocations")
    assert valued.why.endswith("518.812 of 531 ms and 71 MB.")


def test_the_ends_and_every_run_are_paid() -> None:
    costs = table({"L": (2.0, 1.0, 0.0), "S": (1.0, 1.0, 0.0)}, switch=(0.5, 1.0, 0.0), ends=(3.0, 2.0, 0.0))
    for low_runs, ms in ((1, 3 + 4 + 4 + 0.75), (2, 3 + 4 + 4 + 1.5), (3, 3 + 4 + 4 + 2.25), (4, 3 + 4 + 4 + 2.25)):
        found = allocate(costs, depth=6, budget=Budget(ms=ms), worths={"L": 1.0, "S": 0.0}, low_runs=low_runs)
        assert found.chosen.counts == (("L", 2), ("S", 4))
        assert found.chosen.ms == ms


def test_passing_memory_counts_once_and_only_if_somebody_needs_it() -> None:
    costs = table({"L": (1.0, 1.0, 8.0), "F": (1.0, 1.0, 2.0)}, ends=(0.0, 1.0, 3.0))
    worths = {"L": 2.0, "F": 1.0}
    assert allocate(costs, depth=4, budget=Budget(mb=13.0), worths=worths).chosen.counts == (("L", 4), ("F", 0))
    small = allocate(costs, depth=4, budget=Budget(mb=12.9), worths=worths).chosen
    assert small.counts == (("L", 0), ("F", 4))
    assert small.mb == 1 + 4 + 3


def test_dearer_kinds_that_are_worth_no_more_are_not_on_the_front() -> None:
    costs = table({"L": (2.0, 1.0, 0.0), "F": (3.0, 1.0, 0.0), "S": (1.0, 0.5, 0.0)})
    found = allocate(costs, depth=5, budget=Budget(), worths={"L": 1.0, "F": 1.0, "S": 0.5})
    assert all(count(one, "F") == 0 for one in found.front)
    assert [count(one, "L") for one in found.front] == [0, 1, 2, 3, 4, 5]


def test_of_equal_worth_the_cheaper_wins() -> None:
    costs = table({"L": (2.0, 1.0, 0.0), "F": (1.0, 3.0, 0.0)})
    assert allocate(costs, depth=3, budget=Budget(), worths={"L": 1.0, "F": 1.0}).chosen.counts[1] == ("F", 3)


def test_kinds_can_be_left_out() -> None:
    costs = table({**PHONE, "F": (1.0, 1.0, 0.0)})
    found = allocate(costs, depth=32, budget=Budget(ms=531.0), kinds="SL")
    assert found.chosen.counts == (("S", 19), ("L", 13))


def test_a_budget_that_is_met_to_the_last_bit_is_kept() -> None:
    costs = table({"L": (0.1, 0.1, 0.0), "S": (0.07, 0.3, 0.0)}, switch=(0.013, 0.1, 0.7), ends=(0.3, 0.7, 0.1))
    wanted = costs.predicted("LLLSSSSSSLL")
    found = allocate(costs, depth=11, budget=Budget(ms=wanted.ms), worths={"L": 1.0, "S": 0.0})
    assert found.chosen.counts == (("L", 5), ("S", 6))


@settings(deadline=None)
@given(st.lists(st.tuples(few(6), few(6), few(6)), max_size=60))
def test_the_front_is_what_nothing_beats(numbers: list[tuple[float, float, float]]) -> None:
    points = [Point(*number) for number in numbers]
    array = np.array(numbers, dtype=np.float64).reshape(-1, 3)
    kept = [points[i] for i in pareto(array[:, 0], array[:, 1], array[:, 2])]
    assert len(set(kept)) == len(kept)
    assert set(kept) == {point for point in points if not any(other.beats(point) for other in points)}


def test_the_front_of_more_points_than_a_batch() -> None:
    ms, mb, worth = np.random.default_rng(0).integers(0, 40, (3, 9000)).astype(np.float64)
    kept = pareto(ms, mb, worth)
    for i in range(0, 9000, 7):
        beaten = (ms[kept] <= ms[i]) & (mb[kept] <= mb[i]) & (worth[kept] >= worth[i])
        assert beaten.any()
    for i in kept:
        better = (ms <= ms[i]) & (mb <= mb[i]) & (worth >= worth[i])
        assert not (better & ((ms < ms[i]) | (mb < mb[i]) | (worth > worth[i]))).any()


def test_what_does_not_fit_is_answered_with_the_cheapest() -> None:
    costs = table({"L": (2.0, 1.0, 0.0), "F": (1.0, 3.0, 0.0)})
    message = (
        r"no network of 4 blocks fits 3 ms and 9 MB; the fastest one is 4 F with 4 ms and 12 MB, "
        r"the smallest one 4 L with 8 ms and 4 MB"
    )
    with pytest.raises(ValueError, match=message):
        allocate(costs, depth=4, budget=Budget(ms=3.0, mb=9.0))
    with pytest.raises(ValueError, match="fits 100 ms; the cheapest one is 32 S with 258 ms and 32 MB"):
        allocate(table(PHONE), depth=32, budget=Budget(ms=100.0), worths={"L": 1.0, "S": 1.0})


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_is_positive_and_finite(value: float) -> None:
    for limits in ({"ms": value}, {"mb": value}):
        with pytest.raises(ValueError, match="a budget must be positive and finite"):
            Budget(**limits)


@pytest.mark.parametrize(
    ("depth", "low_runs", "kinds", "worths", "message"),
    [
        (0, 1, None, None, "at least 1, got depth=0"),
        (4, 0, None, None, "low_runs=0"),
        (4, 1, "LLS", None, "every kind is named once"),
        (4, 1, "LX", None, "unknown letters"),
        (4, 1, "LK", None, "the cost table knows the blocks LSF, not K"),
        (4, 1, None, None, "between two kinds; got 3: LSF"),
        (4, 1, None, {"L": 1.0}, r"missing are \['S', 'F'\]"),
        (4, 1, "LS", {"L": 1.0, "S": 1.0, "x": 1.0}, r"not in the cost table \['x'\]"),
        (4, 1, "LS", {"L": 1.0, "S": math.nan}, "worths must be finite"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    depth: int, low_runs: int, kinds: str | None, worths: dict[str, float] | None, message: str
) -> None:
    costs = table({**PHONE, "F": (1.0, 1.0, 0.0)})
    with pytest.raises(ValueError, match=message):
        allocate(costs, depth=depth, budget=Budget(ms=9.0), kinds=kinds, worths=worths, low_runs=low_runs)


def test_without_worths_and_limits_nothing_could_decide() -> None:
    with pytest.raises(ValueError, match="the budget decides, and none was given"):
        allocate(table(PHONE), depth=4, budget=Budget())


@pytest.mark.slow
@pytest.mark.parametrize(("kinds", "depth"), [(5, 60), (9, 32)])
def test_many_kinds_and_blocks_take_seconds(kinds: int, depth: int) -> None:
    costs, worths = realistic(kinds, seed=3)
    budget = Budget(ms=1.6 * depth, mb=8.0 * depth)
    start = time.perf_counter()
    found = allocate(costs, depth=depth, budget=budget, worths=worths)
    assert time.perf_counter() - start < 10  # about 1 s on one core
    assert len(found.front) > 1000
    tracemalloc.start()
    allocate(costs, depth=depth, budget=budget, worths=worths)
    assert tracemalloc.get_traced_memory()[1] < 500e6
    tracemalloc.stop()
