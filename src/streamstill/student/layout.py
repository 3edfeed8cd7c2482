"""The order of blocks as data: one letter per block."""

from enum import Enum
from itertools import pairwise


class BlockKind(Enum):
    """The kinds of block: a letter for layout strings, and what it stands for (S2DiT Tables 3 and 4)."""

    LCHA = "L", "LCHA: linear attention + causal conv + gate, full resolution"
    SSA = "S", "strided self-attention, low resolution"
    FULL = "F", "full self-attention, full resolution"
    COMPRESSED = "K", "self-attention with compressed keys and values, full resolution"
    LINEAR = "A", "LCHA's linear path alone"
    LOCAL = "C", "LCHA's local path alone"
    RELU = "R", "LCHA with a ReLU feature map"
    UNGATED = "U", "LCHA without its gate"
    WIDE_HEADS = "H", "LCHA with heads twice as wide"

    def __init__(self, letter: str, meaning: str) -> None:
        self.letter, self.meaning = letter, meaning

    @property
    def low(self) -> bool:
        """Whether the block runs at low resolution."""
        return self is BlockKind.SSA


def parse_layout(layout: str) -> tuple[BlockKind, ...]:
    """The blocks of a layout string such as ``"LSLSLL"``; spaces may group them.

    Raises:
        ValueError: the string is empty or has a letter that is no block kind.
    """
    letters = layout.replace(" ", "")
    known = {kind.letter: kind for kind in BlockKind}
    unknown = sorted(set(letters) - known.keys())
    if unknown or not letters:
        meanings = "; ".join(f"{kind.letter} = {kind.meaning}" for kind in BlockKind)
        raise ValueError(f"the layout {layout!r} has unknown letters {unknown} or is empty; write some of: {meanings}")
    return tuple(known[letter] for letter in letters)


def ways_down(kinds: tuple[BlockKind, ...]) -> list[int]:
    """The blocks before which the stream goes down to low resolution; it begins at the full one."""
    low = [False, *(kind.low for kind in kinds)]
    return [index for index, (before, now) in enumerate(pairwise(low)) if now and not before]


def sandwich(depth: int, *, full: BlockKind = BlockKind.LCHA) -> str:
    """An equal-share sandwich: runs of full-resolution blocks with the low ones spread evenly between them.

    The first and the last run are at full resolution. Of ``depth`` blocks 5/16 are full (``full_count``); a search
    on measured costs finds better ones.
    """
    run = max(1, depth // 16)
    slices = max(full_count(depth) // run, 2)
    fillings = [len(part) for part in _even_parts(max(depth - slices * run, 0), slices - 1)]
    letters = "".join(full.letter * run + BlockKind.SSA.letter * filling for filling in fillings)
    return (letters + full.letter * run)[-depth:]


def hourglass(depth: int, *, full: BlockKind = BlockKind.LCHA) -> str:
    """The U-shape of HDiT: the same counts as ``sandwich``, full resolution outside and low in the middle."""
    count = sandwich(depth, full=full).count(full.letter)
    before = (count + 1) // 2
    return full.letter * before + BlockKind.SSA.letter * (depth - count) + full.letter * (count - before)


def full_count(depth: int) -> int:
    """How many of ``depth`` blocks an equal-share sandwich gives to full resolution: 5/16 of them, rounded up.

    With phone-sized blocks this keeps both of the paper's cost ratios: at most 0.59 of all-LCHA, 2.1 of all-SSA.
    """
    return -(-5 * depth // 16)


def _even_parts(count: int, parts: int) -> list[range]:
    bounds = [-(-count * i // parts) for i in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(bounds)]
