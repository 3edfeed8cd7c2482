"""Which requests a process answers when many share the work, as torchrun starts them."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from streamstill.types import ClipRequest


@dataclass(frozen=True, kw_only=True)
class Share:
    """One of ``processes`` that ask the same teacher; they need not talk to each other, the store joins their work."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0  # the accelerator of this machine that it uses

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.processes and self.local_rank >= 0):
            raise ValueError(
                f"rank {self.rank} of {self.processes} processes (local rank {self.local_rank}) is no share of the "
                "work; ranks count from 0"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Share":
        """By RANK, WORLD_SIZE and LOCAL_RANK, as torchrun sets them; without them, all of the work.

        Raises:
            ValueError: only some of them are set, or one is no whole number.
        """
        given = os.environ if environment is None else environment
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        found = {name: given[name] for name in names if name in given}
        if not found:
            return cls()
        if len(found) < len(names) or not all(value.isdecimal() for value in found.values()):
            raise ValueError(
                f"{', '.join(names)} must all be whole numbers, got {found}; start with torchrun, or unset them"
            )
        rank, processes, local_rank = (int(found[name]) for name in names)
        return cls(rank=rank, processes=processes, local_rank=local_rank)

    def of(self, requests: Iterable[ClipRequest]) -> list[ClipRequest]:
        """The requests of this process, in their order.

        A request's process follows from what it asks alone, so a longer list moves none of the others.
        """
        return [request for request in requests if _number(request) % self.processes == self.rank]

    def device(self, kind: str) -> str:
        """The device of this process among those of a kind: ``cuda`` is ``cuda:1`` for local rank 1."""
        return kind if kind == "cpu" or ":" in kind else f"{kind}:{self.local_rank}"


def _number(request: ClipRequest) -> int:
    text = json.dumps(asdict(request), sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
