"""Worths from swaps: exact where losses are sums over positions, averaged over orders where they are not."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from streamstill.search.allocate import Budget
from streamstill.search.place import place
from streamstill.search.worths import swap_worths
from tests.search.tables import table

TRUE = {"L": [0.1, 0.6, 0.2, 0.5], "S": [0.3, 0.1, 0.2, 0.1], "F": [0.2, 0.9, 0.4, 0.0]}


def additive(layout: str) -> float:
    """A loss that is a sum of what each block is worth where it is."""
    return 7.0 - sum(TRUE[letter][position] for position, letter in enumerate(layout))


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("layout", ["LLSS", "LSFS"])
def test_worths_of_a_sum_are_its_terms_but_for_a_constant_at_each_position(layout: str) -> None:
    found = swap_worths(additive, layout, generator=dice())
    letters = sorted(set(layout))
    assert sorted(found.worths) == letters
    for position in range(4):
        mean = sum(TRUE[letter][position] for letter in letters) / len(letters)
        for letter in letters:
            assert found.worths[letter][position] == pytest.approx(TRUE[letter][position] - mean)
            assert found.errors[letter][position] == pytest.approx(0, abs=1e-12)


def test_the_layout_with_the_most_worth_has_the_least_loss() -> None:
    found = swap_worths(additive, "LLSS", generator=dice())
    orders = {"".join(order) for order in itertools.permutations("LLSS")}
    best = max(orders, key=lambda order: sum(found.worths[letter][position] for position, letter in enumerate(order)))
    assert best == min(orders, key=additive) == "SLSL"


def test_a_programme_places_by_these_worths() -> None:
    found = swap_worths(additive, "LLSS", generator=dice())
    costs = table({"L": (2.0, 1.0, 0.0), "S": (1.0, 1.0, 0.0)})
    counts = {"L": 2, "S": 2}
    assert place(costs, depth=4, budget=Budget(), worths=found.worths, counts=counts).layout == "SLSL"


def test_groups_are_swapped_together_and_share_their_worth() -> None:
    asked: list[str] = []

    def loss_of(layout: str) -> float:
        asked.append(layout)
        return 4.0 - 3.0 * (layout[:2] == "LL") - 1.0 * (layout[2:4] == "LL")

    found = swap_worths(loss_of, "LLSSSS", group_size=2, generator=dice())
    assert all(layout[i] == layout[i + 1] for layout in asked for i in (0, 2, 4))
    assert found.worths["L"] == pytest.approx([0.75, 0.75, 0.25, 0.25, 0, 0])
    assert [-worth for worth in found.worths["S"]] == pytest.approx(list(found.worths["L"]))


def test_what_positions_do_to_each_other_is_averaged_and_shows_in_the_errors() -> None:
    def loss_of(layout: str) -> float:
        return 1.0 - (layout[0] == "L") * (layout[1] == "L")

    found = swap_worths(loss_of, "LLSS", bases=400, generator=dice())
    assert found.worths["L"][0] == pytest.approx(0.25, abs=0.05)  # in half of the orders the neighbour is L
    assert 0 < found.errors["L"][0] < 0.02
    assert found.worths["L"][2] == found.errors["L"][2] == 0


def test_no_layout_is_asked_twice_and_the_same_seed_gives_the_same_worths() -> None:
    asked: list[str] = []

    def loss_of(layout: str) -> float:
        asked.append(layout)
        return additive(layout)

    found = swap_worths(loss_of, "LLSS", bases=8, generator=dice(3))
    assert len(asked) == len(set(asked)) == found.evaluations
    assert swap_worths(additive, "LLSS", bases=8, generator=dice(3)) == found


def test_bases_keep_the_counts_and_swaps_change_them_by_one() -> None:
    asked: list[str] = []

    def loss_of(layout: str) -> float:
        asked.append(layout)
        return 0.0

    swap_worths(loss_of, "LLLSSSSS", generator=dice())
    assert {layout.count("L") for layout in asked} == {2, 3, 4}
    assert {len(layout) for layout in asked} == {8}


@pytest.mark.parametrize(
    ("layout", "bases", "group_size", "loss_of", "said"),
    [
        ("LLSS", 1, 1, additive, "at least 2 base layouts, to know how much they differ, got 1"),
        ("LLLL", 2, 1, additive, "'LLLL' has only one kind"),
        ("LSSL", 2, 2, additive, "'LSSL' is not made of groups of 2 blocks"),
        ("LLSSS", 2, 2, additive, "'LLSSS' is not made of groups of 2 blocks"),
        ("LLSS", 2, 0, additive, "groups of 0 blocks"),
        ("LXSS", 2, 1, additive, "unknown letters"),
        ("LLSS", 2, 1, lambda layout: math.nan, "the loss of the layout .* is nan"),
    ],
)
def test_bad_questions_are_refused(
    layout: str, bases: int, group_size: int, loss_of: Callable[[str], float], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        swap_worths(loss_of, layout, bases=bases, group_size=group_size, generator=dice())
