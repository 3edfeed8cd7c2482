"""How tokens of a chunk meet each other and the past: the contract of every mixer, and its three ways to run.

A mixer is three pure steps. ``project`` looks at one chunk alone, ``mix`` joins it with the past, ``remember``
adds it to the past. Streaming runs them for one chunk; teaching runs them for all chunks of a clip at once, where
the clean chunks are the past of the noised ones. Both are the same arithmetic, so they agree.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from streamstill.state import map_tensors

ProjectedT = TypeVar("ProjectedT")
StateT = TypeVar("StateT")

RunMixer = Callable[[Any, Tensor, Any], tuple[Tensor, Any]]
"""``stream``, ``look`` or ``teach``: (mixer, x_RFHWD, past) -> (y_RFHWD, past afterwards)."""


class Mixer(Protocol[ProjectedT, StateT]):
    """One attention-like operation over chunks; ``x_RFHWD`` holds one chunk per row."""

    def project(self, x_RFHWD: Tensor) -> ProjectedT:
        """What the mixer needs of each chunk by itself: a nest of named tuples of tensors, rows first."""
        ...

    def mix(self, chunk: ProjectedT, past: StateT) -> Tensor:
        """The output for each chunk, given what came before it; shape of ``x_RFHWD``."""
        ...

    def remember(self, chunk: ProjectedT, past: StateT) -> StateT:
        """The past as the next chunk will see it."""
        ...


def stream(mixer: Mixer[Any, StateT], x_BFHWD: Tensor, past: StateT) -> tuple[Tensor, StateT]:
    """One chunk per clip: its output and the past including it."""
    chunk = mixer.project(x_BFHWD)
    return mixer.mix(chunk, past), mixer.remember(chunk, past)


def look(mixer: Mixer[Any, StateT], x_BFHWD: Tensor, past: StateT) -> tuple[Tensor, StateT]:
    """One chunk per clip: its output, and the past as it was."""
    return mixer.mix(mixer.project(x_BFHWD), past), past


def teach(mixer: Mixer[Any, StateT], x_RFHWD: Tensor, past: StateT, *, chunks: int) -> tuple[Tensor, StateT]:
    """All chunks of a clip at once: rows are (clip, clean or noised, chunk).

    Every row, clean or noised, sees the *clean* chunks before its own and itself; no row sees the future.
    The returned past includes all clean chunks.
    """
    rows = mixer.project(x_RFHWD)
    pasts = []
    for number in range(chunks):
        pasts.append(past)
        past = mixer.remember(map_tensors(lambda tensor, k=number: _clean_chunk(tensor, k, chunks), rows), past)
    before_rows: StateT = map_tensors(_as_rows, *pasts)
    return mixer.mix(rows, before_rows), past


def _clean_chunk(rows: Tensor, number: int, chunks: int) -> Tensor:
    """The clean rows of one chunk, shape (B, ...)."""
    return rows.unflatten(0, (-1, 2, chunks))[:, 0, number]


def _as_rows(*per_chunk: Tensor) -> Tensor:
    """Stack B... tensors, one per chunk, into rows (B, clean or noised, chunk)."""
    stacked = torch.stack(per_chunk, dim=1)
    return torch.stack([stacked, stacked], dim=1).flatten(0, 2)
