"""The pictures of a search show what they should: blocks at their heights, choices at their places."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamstill.report.search_pictures import Point, draw_front, draw_layout

ORANGE, BLUE, RED = (225, 150, 60), (90, 140, 205), (190, 80, 90)


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.array(Image.open(path).convert("RGB"))


def count(path: Path, colour: tuple[int, int, int]) -> int:
    return int((pixels(path) == colour).all(axis=-1).sum())


def middle(path: Path, colour: tuple[int, int, int]) -> tuple[float, float]:
    """Mean x and y of the pixels of a colour."""
    rows, columns = np.nonzero((pixels(path) == colour).all(axis=-1))
    return float(columns.mean()), float(rows.mean())


def test_a_full_block_has_twice_the_height_of_a_low_one(tmp_path: Path) -> None:
    draw_layout("L", tmp_path / "full.png")
    draw_layout("S", tmp_path / "low.png")
    ratio = count(tmp_path / "full.png", ORANGE) / count(tmp_path / "low.png", BLUE)
    assert 1.7 < ratio < 2.1


def test_each_block_is_drawn_once_in_order(tmp_path: Path) -> None:
    draw_layout("LSSL", tmp_path / "a.png")
    draw_layout("LLLSSL", tmp_path / "b.png")
    assert count(tmp_path / "b.png", ORANGE) > 1.8 * count(tmp_path / "a.png", ORANGE) - 1000
    draw_layout("LLSS", tmp_path / "c.png")
    assert middle(tmp_path / "c.png", ORANGE)[0] < middle(tmp_path / "c.png", BLUE)[0]


@pytest.mark.parametrize("layout", ["SSLFKACRUHSS", "L" * 40, "SLSLSLS", "S"])
def test_every_layout_can_be_drawn(tmp_path: Path, layout: str) -> None:
    draw_layout(layout, tmp_path / "layout.png")
    assert pixels(tmp_path / "layout.png").std() > 0
    assert [path.name for path in tmp_path.iterdir()] == ["layout.png"]


def test_a_wrong_layout_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown letters"):
        draw_layout("LX", tmp_path / "layout.png")
    assert list(tmp_path.iterdir()) == []


def test_slower_is_to_the_right_and_larger_is_higher(tmp_path: Path) -> None:
    slow_small, quick_large = Point(ms=9, mb=10, name="a"), Point(ms=3, mb=40, name="b")
    draw_front([slow_small, quick_large], quick_large, tmp_path / "one.png", budget_ms=10, budget_mb=50)
    draw_front([slow_small, quick_large], slow_small, tmp_path / "two.png", budget_ms=10, budget_mb=50)
    (left, high), (right, low) = middle(tmp_path / "one.png", ORANGE), middle(tmp_path / "two.png", ORANGE)
    assert left < right
    assert high < low  # rows of a picture count downwards


def test_a_budget_without_limit_has_no_line(tmp_path: Path) -> None:
    point, none = Point(ms=3, mb=4, name="a"), float("inf")
    draw_front([point], point, tmp_path / "both.png", budget_ms=5, budget_mb=6)
    draw_front([point], point, tmp_path / "one.png", budget_ms=5, budget_mb=none)
    draw_front([point], point, tmp_path / "free.png", budget_ms=none, budget_mb=none)
    assert count(tmp_path / "both.png", RED) > count(tmp_path / "one.png", RED) > count(tmp_path / "free.png", RED) == 0


def test_a_front_without_points_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without points"):
        draw_front([], Point(ms=1, mb=1, name=""), tmp_path / "front.png", budget_ms=1, budget_mb=1)
