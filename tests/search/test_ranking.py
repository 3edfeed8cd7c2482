"""Orders by their loss: all of them when they are few, the best by swaps when they are many."""

from collections.abc import Callable
from itertools import combinations
from math import comb

import pytest
import torch

from streamstill.search.ranking import rank_orders


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def early(layout: str) -> float:
    """Full blocks early are good: the sum of their places."""
    return float(sum(place for place, letter in enumerate(layout) if letter == "L"))


def counting(loss_of: Callable[[str], float]) -> tuple[Callable[[str], float], list[str]]:
    asked: list[str] = []

    def loss(layout: str) -> float:
        asked.append(layout)
        return loss_of(layout)

    return loss, asked


def test_few_orders_are_all_asked_once_and_come_best_first() -> None:
    loss, asked = counting(early)
    ranked = rank_orders(loss, "LLSSS", most=10, generator=dice())
    assert len(asked) == len(set(asked)) == len(ranked) == comb(5, 2)
    assert ranked[0].layout == "LLSSS"
    assert ranked[-1].layout == "SSSLL"
    assert [one.loss for one in ranked] == sorted(one.loss for one in ranked)
    assert all(one.loss == early(one.layout) for one in ranked)


@pytest.mark.parametrize("seed", range(5))
def test_many_orders_are_searched_and_the_best_of_a_smooth_loss_is_found(seed: int) -> None:
    loss, asked = counting(early)
    ranked = rank_orders(loss, "L" * 5 + "S" * 11, most=300, generator=dice(seed))
    assert len(set(asked)) == len(asked) <= 300 < comb(16, 5)
    assert ranked[0].layout == "LLLLLSSSSSSSSSSS"
    assert all(one.layout.count("L") == 5 for one in ranked)


def test_no_more_are_asked_than_allowed_even_on_the_way() -> None:
    for most in (1, 2, 7):
        loss, asked = counting(early)
        assert len(rank_orders(loss, "LLLLSSSS", most=most, generator=dice(most))) == len(asked) == most


def test_groups_move_together() -> None:
    ranked = rank_orders(early, "LLSSSSLL", most=10, group_size=2, generator=dice())
    assert {one.layout for one in ranked} == {
        "".join("LL" if group in full else "SS" for group in range(4)) for full in combinations(range(4), 2)
    }


def test_the_same_generator_gives_the_same_ranking() -> None:
    once, again = (rank_orders(early, "LLLLLSSSSSSS", most=50, generator=dice(3)) for _ in range(2))
    assert once == again


@pytest.mark.parametrize(
    ("layout", "most", "size", "said"),
    [
        ("LLSS", 0, 1, "at least 1 order must be ranked"),
        ("LLLL", 5, 1, "has only one kind of block"),
        ("LSFL", 5, 1, "orders of two kinds are ranked, 'LSFL' has 3"),
        ("LSLS", 5, 2, "not made of groups of 2"),
    ],
)
def test_what_cannot_be_ranked_is_refused(layout: str, most: int, size: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rank_orders(early, layout, most=most, group_size=size, generator=dice())


def test_a_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the loss of the layout .* is nan"):
        rank_orders(lambda layout: float("nan"), "LS", most=2, generator=dice())
