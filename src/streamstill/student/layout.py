"""The order of blocks as data: one letter per block."""

from enum import Enum


class BlockKind(Enum):
    """The kinds of block, by their letter in a layout string."""

    LCHA = "L"  # linear attention + causal conv + gate, full resolution
    SSA = "S"  # strided self-attention, low resolution


def parse_layout(layout: str) -> tuple[BlockKind, ...]:
    """The blocks of a layout string such as ``"LSLSLL"``; spaces may group them.

    Raises:
        ValueError: the string is empty or has a letter that is no block kind.
    """
    letters = layout.replace(" ", "")
    known = {kind.value: kind for kind in BlockKind}
    unknown = sorted(set(letters) - known.keys())
    if unknown or not letters:
        meaning = ", ".join(f"{kind.value} = {kind.name}" for kind in BlockKind)
        raise ValueError(f"the layout {layout!r} has unknown letters {unknown} or is empty; write one of: {meaning}")
    return tuple(known[letter] for letter in letters)
