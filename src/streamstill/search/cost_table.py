"""What the parts of a network cost on a device: one JSON file, measured here, measured elsewhere, or counted."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from streamstill.config import from_dict, to_dict, write_json
from streamstill.student.costs import Workload
from streamstill.student.layout import BlockKind, parse_layout, ways_down
from streamstill.student.sandwich import SandwichConfig

FORMAT = 1
MB = 1e6  # bytes


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """What one part of a network costs in one velocity pass of one chunk.

    Args:
        ms: median time; ``ms_low`` and ``ms_high`` are the 10th and 90th percentile of it.
        weight_bytes: of its parameters.
        state_bytes: what it remembers between chunks.
        activation_bytes: most memory beyond these while it runs.
    """

    ms: float
    ms_low: float
    ms_high: float
    weight_bytes: int
    state_bytes: int
    activation_bytes: int

    def __post_init__(self) -> None:
        wrong = {name: value for name, value in vars(self).items() if not (math.isfinite(value) and value >= 0)}
        if wrong:
            raise ValueError(f"a cost must be a finite number and not negative, got {wrong}")

    @property
    def held_mb(self) -> float:
        """MB (10^6 bytes) that stay as long as the network lives: weights and state."""
        return (self.weight_bytes + self.state_bytes) / MB

    @property
    def passing_mb(self) -> float:
        """MB (10^6 bytes) that are only needed while it runs."""
        return self.activation_bytes / MB


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """The cost of one block of a kind."""

    letter: str
    cost: PartCost

    def __post_init__(self) -> None:
        if len(parse_layout(self.letter)) != 1:
            raise ValueError(f"a block's cost belongs to one letter, got {self.letter!r}")


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Costs of all parts, for one shape of network and one size of chunk.

    Args:
        source: "measured" on this kind of device, "counted" from operations and bytes, or "given" by somebody else.
        target: how it was run: cpu, cuda, onnx, ...
        network: the shape; its layout is of no meaning here.
        down, up: one switch of resolution, to low and back to full (with the long skip).
        ends: all that comes before the first block and after the last one.
        decode: the decoder's time for one chunk, if it was measured; it is not part of a pass.
        threads: of the processor, while it was measured; 0 where nobody says.
        rounds: of measuring; 0 where nobody says.
    """

    source: Literal["measured", "counted", "given"]
    target: str
    device: str
    dtype: str
    versions: str
    note: str
    network: SandwichConfig
    workload: Workload
    blocks: tuple[BlockCost, ...]
    down: PartCost
    up: PartCost
    ends: PartCost
    decode: PartCost | None = None
    threads: int = 0
    rounds: int = 0

    def __post_init__(self) -> None:
        letters = [block.letter for block in self.blocks]
        if not letters or len(set(letters)) != len(letters):
            raise ValueError(f"a cost table has each kind of block once and at least one, got {letters}")

    @property
    def letters(self) -> str:
        """The kinds it knows, a letter each."""
        return "".join(block.letter for block in self.blocks)

    def block(self, kind: BlockKind) -> PartCost:
        """The cost of a block of this kind.

        Raises:
            ValueError: the table does not know the kind.
        """
        for block in self.blocks:
            if block.letter == kind.letter:
                return block.cost
        raise ValueError(f"the cost table knows the blocks {self.letters}, not {kind.letter}; measure it, too")

    def predicted(self, layout: str) -> "Prediction":
        """Time and memory of a network with this layout."""
        kinds = parse_layout(layout)
        parts = [self.ends, *(self.block(kind) for kind in kinds)] + [self.down, self.up] * len(ways_down(kinds))
        return Prediction(
            ms=sum(part.ms for part in parts),
            mb=sum(part.held_mb for part in parts) + max(part.passing_mb for part in parts),
        )

    def save(self, path: Path) -> None:
        """Write whole or not at all."""
        write_json(path, {"format": FORMAT, "table": to_dict(self)})

    @classmethod
    def load(cls, path: Path) -> "CostTable":
        """Read what ``save`` wrote.

        Raises:
            ValueError: no such file, not a cost table, another format version, or a cost that is none.
        """
        if not path.is_file():
            raise ValueError(f"there is no cost table {path}; make one with `streamstill search measure`")
        try:
            values: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); measure it again") from error
        version = values.get("format") if isinstance(values, dict) else None
        if version != FORMAT or not isinstance(values.get("table"), dict):
            raise ValueError(f"{path} has format {version!r}, this version reads cost tables of format {FORMAT}")
        return from_dict(cls, values["table"], where=str(path))

    def require_shape(self, network: SandwichConfig, workload: Workload) -> None:
        """Raise a ``ValueError`` unless the table was made for this network (whatever its layout) and this chunk."""
        for name, mine, wanted in self._other_shape(network, workload):
            raise ValueError(
                f"the cost table was made for {name}={mine}, this network has {name}={wanted}; "
                "measure a table for it with `streamstill search measure`"
            )

    def has_shape(self, network: SandwichConfig, workload: Workload) -> bool:
        """Whether the table was made for this network, whatever its layout, and this chunk."""
        return not list(self._other_shape(network, workload))

    def _other_shape(self, network: SandwichConfig, workload: Workload) -> Iterator[tuple[str, Any, Any]]:
        """Names that differ, with the table's value and the one that is asked for."""
        for mine, wanted in ((self.network, network), (self.workload, workload)):
            for name, value in vars(wanted).items():
                if name != "layout" and getattr(mine, name) != value:
                    yield name, getattr(mine, name), value


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Time of one velocity pass in milliseconds, and the peak of memory in MB (10^6 bytes)."""

    ms: float
    mb: float
