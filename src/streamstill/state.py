"""What is remembered between chunks, as values: using a state never changes it.

They are named tuples, so every tool of torch that walks nested tuples (export, compile) can walk them.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

TreeT = TypeVar("TreeT")


class LinearState(NamedTuple):
    """All that causal linear attention remembers of the past; the size does not grow with the video.

    Keys are counted from the start of the next chunk, so positions never grow either. Sums are never kept in less
    than float32.
    """

    kv_BNEE: Tensor  # decayed running sum of rotated phi(k) (x) v
    k_BNE: Tensor  # decayed running sum of phi(k), the normaliser


class ConvCache(NamedTuple):
    """The last latent frames of a causal convolution's input."""

    frames_BFHWD: Tensor


class LchaState(NamedTuple):
    """What an LCHA block remembers: its linear path and its local path; ``()`` for a path it does not have."""

    linear: LinearState | tuple[()]
    local: ConvCache | tuple[()]


class KVCache(NamedTuple):
    """Keys and values of past latent frames: first the sink (the video's first frames), then the window, oldest first.

    One slot W holds the S tokens of one latent frame; keys are not rotated yet. ``seen_B`` counts the latent frames
    behind us, up to the number of slots; slots that no frame has filled are empty.
    """

    key_BWSNE: Tensor
    value_BWSNE: Tensor
    seen_B: Tensor


class StreamState(NamedTuple):
    """What a student remembers of the video so far: one entry per block."""

    blocks: tuple[LchaState | KVCache, ...]


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """Every tensor in a nest of tuples, in order."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for item in tree:
            yield from tensors_of(item)


def map_tensors(function: Callable[..., Tensor], first: TreeT, *others: TreeT) -> TreeT:
    """A nest of the same shape whose tensors are ``function(tensor of first, tensor of others...)``."""
    if isinstance(first, Tensor):
        result: Any = function(first, *others)
        return result
    parts = [map_tensors(function, *items) for items in zip(first, *others, strict=True)]  # type: ignore[call-overload]
    nest: Any = type(first)
    return nest(*parts) if hasattr(first, "_fields") else nest(parts)


def state_bytes(state: Any) -> int:
    """Bytes that a state holds."""
    return sum(tensor.nbytes for tensor in tensors_of(state))
