"""Layout strings: every letter has a meaning; sandwiches and hourglasses of any depth."""

import re
from collections.abc import Callable

import pytest

from streamstill.student.layout import BlockKind, full_count, hourglass, parse_layout, sandwich

DEPTHS = range(1, 65)


def runs(layout: str, letter: str) -> list[int]:
    """How long each run of a letter is."""
    return [len(run) for run in re.findall(f"{letter}+", layout)]


@pytest.mark.parametrize("kind", BlockKind)
def test_every_letter_parses_and_says_what_it_stands_for(kind: BlockKind) -> None:
    assert parse_layout(kind.letter * 3) == (kind,) * 3
    assert len(kind.letter) == 1
    with pytest.raises(ValueError, match=re.escape(f"{kind.letter} = {kind.meaning}")):
        parse_layout("?")


def test_no_two_kinds_share_a_letter_or_a_meaning() -> None:
    assert len({kind.letter for kind in BlockKind}) == len({kind.meaning for kind in BlockKind}) == len(BlockKind)


@pytest.mark.parametrize("kind", BlockKind)
def test_a_kind_is_low_if_its_meaning_says_so(kind: BlockKind) -> None:
    assert kind.low == ("low resolution" in kind.meaning)


def test_spaces_only_group() -> None:
    assert parse_layout(" LS  LSL L ") == parse_layout("LSLSLL")


@pytest.mark.parametrize("make", [sandwich, hourglass])
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_layout_has_its_depth_and_full_blocks_at_both_ends(make: Callable[..., str], depth: int) -> None:
    layout = make(depth)
    assert len(layout) == len(parse_layout(layout)) == depth
    assert set(layout) <= {"L", "S"}
    assert layout[0] == layout[-1] == "L"
    assert ("S" in layout) == (depth >= 3)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_sandwich_is_full_for_five_sixteenths_to_within_one_run(depth: int) -> None:
    layout = sandwich(depth)
    run = max(1, depth // 16)
    assert full_count(depth) - 1 < 5 * depth / 16 <= full_count(depth)
    assert full_count(depth) - run < layout.count("L") <= max(full_count(depth), 2 * run)


@pytest.mark.parametrize("depth", range(3, 65))
def test_the_runs_of_a_sandwich_are_even(depth: int) -> None:
    full, low = runs(sandwich(depth), "L"), runs(sandwich(depth), "S")
    assert set(full) == {max(1, depth // 16)}
    assert max(low) - min(low) <= 1
    assert len(full) == len(low) + 1


@pytest.mark.parametrize("depth", DEPTHS)
def test_no_stretch_of_a_sandwich_has_more_than_its_share_of_low_blocks(depth: int) -> None:
    """Spread evenly: up to any low run, the low blocks are as many as the share of the runs so far, rounded up."""
    low = runs(sandwich(depth), "S")
    for count in range(len(low) + 1):
        assert 0 <= sum(low[:count]) - sum(low) * count / max(len(low), 1) < 1


@pytest.mark.parametrize("depth", range(3, 65))
def test_an_hourglass_has_a_sandwich_s_counts_and_one_low_run_in_the_middle(depth: int) -> None:
    layout = hourglass(depth)
    assert sorted(layout) == sorted(sandwich(depth))
    assert len(runs(layout, "S")) == 1
    before, after = runs(layout, "L")
    assert before - after in (0, 1)


@pytest.mark.parametrize("make", [sandwich, hourglass])
def test_the_full_blocks_may_be_of_another_kind(make: Callable[..., str]) -> None:
    for depth in DEPTHS:
        assert make(depth, full=BlockKind.FULL) == make(depth).replace("L", "F")


@pytest.mark.parametrize(("layout", "unknown"), [("LZS", "['Z']"), ("l", "['l']"), ("L,S;", "[',', ';']"), ("", "[]")])
def test_unknown_letters_are_refused_and_named(layout: str, unknown: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"the layout {layout!r} has unknown letters {unknown} or is empty")):
        parse_layout(layout)
