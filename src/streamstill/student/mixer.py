"""How tokens of a chunk meet each other and the past: the contract of LCHA and SSA, and its two ways to run.

A mixer is three pure steps. ``project`` looks at one chunk alone, ``mix`` joins it with the past, ``remember``
adds it to the past. Streaming runs them for one chunk; teaching runs them for all chunks of a clip at once, where
the clean chunks are the past of the noised ones. Both are the same arithmetic, so they agree.
"""

from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from streamstill.state import map_tensors, tensors_of

ProjectedT = TypeVar("ProjectedT")
StateT = TypeVar("StateT")


class Mixer(Protocol[ProjectedT, StateT]):
    """One attention-like operation over chunks; ``x_RFHWD`` holds one chunk per row."""

    def project(self, x_RFHWD: Tensor) -> ProjectedT:
        """What the mixer needs of each chunk by itself: a flat named tuple of tensors, rows first."""
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


def teach(mixer: Mixer[Any, StateT], x_RFHWD: Tensor, past: StateT, *, chunks: int) -> tuple[Tensor, StateT]:
    """All chunks of a clip at once: rows are (clip, clean or noised, chunk).

    Every row, clean or noised, sees the *clean* chunks before its own and itself; no row sees the future.
    The returned past includes all clean chunks.
    """
    rows = mixer.project(x_RFHWD)
    tensors_by_chunk = [_clean_chunks(tensor, chunks) for tensor in tensors_of(rows)]
    pasts = []
    for clean_chunk in zip(*tensors_by_chunk, strict=True):
        pasts.append(past)
        past = mixer.remember(type(rows)(*clean_chunk), past)
    before_rows: StateT = map_tensors(_as_rows, *pasts)
    return mixer.mix(rows, before_rows), past


def _clean_chunks(rows: Tensor, chunks: int) -> tuple[Tensor, ...]:
    """The clean rows, one tensor of shape (B, ...) per chunk."""
    clean, _ = rows.unflatten(0, (-1, 2, chunks)).unbind(1)
    return clean.unbind(1)


def _as_rows(*per_chunk: Tensor) -> Tensor:
    """Stack B... tensors, one per chunk, into rows (B, clean or noised, chunk)."""
    stacked = torch.stack(per_chunk, dim=1)
    return torch.stack([stacked, stacked], dim=1).flatten(0, 2)
