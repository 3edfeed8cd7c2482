"""How tokens of a chunk meet each other and the past: the contract of every mixer, and its three ways to run.

A mixer is three pure steps. ``project`` looks at one chunk alone, ``mix`` joins it with the past, ``remember``
adds it to the past. Streaming runs them for one chunk; teaching runs them for all chunks of a clip at once, where
the clean chunks are the past of the noised ones. Both are the same arithmetic, so they agree.
"""

from collections.abc import Callable
from functools import partial
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


def lesson(
    x_t_BFCHW: Tensor, t_BK: Tensor, *, context_BFCHW: Tensor, chunk_frames: int
) -> tuple[Tensor, Tensor, RunMixer]:
    """Whole clips as the rows that ``teach`` expects, the time of each row, and ``teach`` for them."""
    chunks = t_BK.shape[1]
    both = torch.stack([context_BFCHW, x_t_BFCHW], dim=1).unflatten(2, (chunks, chunk_frames))
    times = torch.stack([torch.zeros_like(t_BK), t_BK], dim=1)
    return both.flatten(0, 2), times.flatten(), partial(teach, chunks=chunks)


def noised_clips(rows: Tensor, *, chunks: int) -> Tensor:
    """What was answered for the noised rows of a ``lesson``, as whole clips again."""
    return rows.unflatten(0, (-1, 2, chunks))[:, 1].flatten(1, 2)


def _clean_chunk(rows: Tensor, number: int, chunks: int) -> Tensor:
    """The clean rows of one chunk, shape (B, ...)."""
    return rows.unflatten(0, (-1, 2, chunks))[:, 0, number]


def _as_rows(*per_chunk: Tensor) -> Tensor:
    """Stack B... tensors, one per chunk, into rows (B, clean or noised, chunk)."""
    stacked = torch.stack(per_chunk, dim=1)
    return torch.stack([stacked, stacked], dim=1).flatten(0, 2)
