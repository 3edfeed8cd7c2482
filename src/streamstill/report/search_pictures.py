"""Pictures of a search: the sandwich as a row of blocks, and the Pareto front of what fits."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from streamstill.config import write_bytes
from streamstill.student.layout import BlockKind, parse_layout

_PAPER, _INK, _FAINT = (255, 255, 255), (40, 40, 48), (200, 200, 208)
_COLOURS = {
    BlockKind.LCHA: (225, 150, 60),
    BlockKind.SSA: (90, 140, 205),
    BlockKind.FULL: (190, 80, 90),
    BlockKind.COMPRESSED: (150, 110, 180),
    BlockKind.LINEAR: (235, 195, 110),
    BlockKind.LOCAL: (150, 190, 110),
    BlockKind.RELU: (210, 170, 90),
    BlockKind.UNGATED: (200, 135, 110),
    BlockKind.WIDE_HEADS: (175, 125, 60),
}
_BLOCK, _GAP, _MARGIN, _FULL_HEIGHT = 26, 4, 16, 92
_LOW_HEIGHT = _FULL_HEIGHT // 2  # half the rows and columns


@dataclass(frozen=True, kw_only=True)
class Point:
    """One choice: its time a pass in ms, its peak of memory in MB, and a name."""

    ms: float
    mb: float
    name: str


def draw_layout(layout: str, path: Path) -> None:
    """Write a PNG of the layout: a bar for each block, half as high at low resolution, with an arc for each long skip.

    Raises:
        ValueError: no layout.
    """
    kinds = parse_layout(layout)
    runs = [len(list(run)) for _, run in groupby(kinds, key=lambda kind: kind.low)]
    width = 2 * _MARGIN + len(kinds) * (_BLOCK + _GAP) - _GAP
    used = [kind for kind in BlockKind if kind in kinds]
    height = 2 * _MARGIN + 2 * _FULL_HEIGHT + (len(used) + 1) * 20
    width = max(width, 2 * _MARGIN + max(_text_width(_meaning(kind)) for kind in used) + 24)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw, floor = ImageDraw.Draw(sheet), _MARGIN + 2 * _FULL_HEIGHT
    for number, kind in enumerate(kinds):
        left = _MARGIN + number * (_BLOCK + _GAP)
        top = floor - (_LOW_HEIGHT if kind.low else _FULL_HEIGHT)
        draw.rounded_rectangle((left, top, left + _BLOCK, floor), radius=4, fill=_COLOURS[kind])
        draw.text((left + _BLOCK / 2, floor - 12), kind.letter, _PAPER, _font(), anchor="mm")
    _skips(draw, runs, starts_low=kinds[0].low, floor=floor)
    for line, kind in enumerate(used):
        y = floor + 22 + line * 20
        draw.rounded_rectangle((_MARGIN, y - 7, _MARGIN + 14, y + 7), radius=3, fill=_COLOURS[kind])
        draw.text((_MARGIN + 22, y), _meaning(kind), _INK, _font(), anchor="lm")
    _save(sheet, path)


def draw_front(points: Sequence[Point], chosen: Point, path: Path, *, budget_ms: float, budget_mb: float) -> None:
    """Write a PNG of choices by time and memory, with the budgets as lines and the chosen one marked.

    An infinite budget has no line.

    Raises:
        ValueError: there is no point to draw.
    """
    if not points:
        raise ValueError("a Pareto front without points cannot be drawn; give the feasible choices")
    width, height = 640, 420
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    x = _scale([point.ms for point in (*points, chosen)] + [budget_ms], 64, width - 40)
    y = _scale([point.mb for point in (*points, chosen)] + [budget_mb], height - 48, 30)
    draw.line((64, height - 48, width - 20, height - 48), _INK)
    draw.line((64, height - 48, 64, 20), _INK)
    draw.text((width - 20, height - 14), "ms a pass", _INK, _font(), anchor="rm")
    draw.text((10, 10), "MB at the peak", _INK, _font(), anchor="lm")
    _ticks(draw, [point.ms for point in points], lambda v: (x(v), height - 34), anchor="mm")
    _ticks(draw, [point.mb for point in points], lambda v: (58, y(v)), anchor="rm")
    if math.isfinite(budget_ms):
        draw.line((x(budget_ms), 20, x(budget_ms), height - 48), _COLOURS[BlockKind.FULL], 2)
    if math.isfinite(budget_mb):
        draw.line((64, y(budget_mb), width - 20, y(budget_mb)), _COLOURS[BlockKind.FULL], 2)
    for point in points:
        _dot(draw, x(point.ms), y(point.mb), 4, _COLOURS[BlockKind.SSA])
    _dot(draw, x(chosen.ms), y(chosen.mb), 7, _COLOURS[BlockKind.LCHA])
    side = "rm" if x(chosen.ms) > width / 2 else "lm"
    draw.text((x(chosen.ms) + (-12 if side == "rm" else 12), y(chosen.mb)), chosen.name, _INK, _font(), anchor=side)
    _save(sheet, path)


def _skips(draw: ImageDraw.ImageDraw, runs: list[int], *, starts_low: bool, floor: int) -> None:
    """An arc over every low run between two full ones."""
    place, low = 0, starts_low
    for number, length in enumerate(runs):
        before, after = place - 1, place + length
        if low and number + 1 < len(runs):
            left = _MARGIN + max(before, 0) * (_BLOCK + _GAP) + (_BLOCK / 2 if before >= 0 else -_GAP)
            right = _MARGIN + after * (_BLOCK + _GAP) + _BLOCK / 2
            rise = min(_FULL_HEIGHT - 10, 20 + 6 * length)
            top = floor - _FULL_HEIGHT
            draw.arc((left, top - rise, right, top + rise), 180, 360, _INK, 2)
        place, low = after, not low


def _scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """Where a value lies between two pixels; the finite values fill the space."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    room = (high - low) * 0.08 or max(abs(high), 1.0) * 0.1
    low, high = low - room, high + room
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _ticks(
    draw: ImageDraw.ImageDraw, values: Sequence[float], at: Callable[[float], tuple[float, float]], *, anchor: str
) -> None:
    for value in sorted({min(values), max(values)}):
        draw.text(at(value), f"{value:.4g}", _INK, _font(), anchor=anchor)


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=_PAPER)


def _meaning(kind: BlockKind) -> str:
    return f"{kind.letter}  {kind.meaning}"


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(13)


def _text_width(text: str) -> int:
    return math.ceil(_font().getlength(text))


def _save(sheet: Image.Image, path: Path) -> None:
    """Whole or not at all."""
    drawn = BytesIO()
    sheet.save(drawn, format="PNG")
    write_bytes(path, drawn.getvalue())
