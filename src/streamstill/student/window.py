"""Softmax attention from a chunk to itself, to a window of past latent frames and to the video's first ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from streamstill.state import KVCache


class WindowChunk(NamedTuple):
    """One chunk by itself: queries of all its tokens, already rotated; keys and values by frame, keys not rotated.

    ``grid`` only carries frames, height and width.
    """

    query_RSNE: Tensor
    key_RFSNE: Tensor
    value_RFSNE: Tensor
    grid_RFHW0: Tensor


@dataclass(frozen=True)
class Window:
    """How much of the past softmax attention sees, in latent frames: the last ``frames``, and the first ``sink``.

    A sink frame is seen as part of the window while it is in it; afterwards it stays right before the window, so
    positions never grow beyond ``slots``.
    """

    frames: int
    sink: int = 0

    def __post_init__(self) -> None:
        if min(self.frames, self.sink) < 0:
            raise ValueError(f"a window cannot be negative, got frames={self.frames} sink={self.sink}")

    @property
    def slots(self) -> int:
        """Latent frames that are kept."""
        return self.frames + self.sink

    def empty(self, batch: int, tokens: int, heads: int, head_dim: int, like: Tensor) -> KVCache:
        """The cache before the first chunk, for latent frames of ``tokens`` tokens."""
        slots = like.new_zeros(batch, self.slots, tokens, heads, head_dim)
        return KVCache(slots, slots.clone(), torch.zeros(batch, dtype=torch.int64, device=like.device))

    def positions(self, chunk: WindowChunk, past: KVCache) -> range:
        """Where the latent frames of all keys lie in time, counted from the chunk at hand."""
        return range(-past.key_BWSNE.shape[1], chunk.key_RFSNE.shape[1])

    def attend(self, chunk: WindowChunk, past: KVCache, turn_keys: Callable[[Tensor], Tensor]) -> Tensor:
        """What every token of the chunk sees, shape (R, S, D); a cache without slots is no past at all."""
        keys = turn_keys(torch.cat([past.key_BWSNE, chunk.key_RFSNE], dim=1).flatten(1, 2))
        values = torch.cat([past.value_BWSNE, chunk.value_RFSNE], dim=1).flatten(1, 2)
        mixed_RNSE = F.scaled_dot_product_attention(
            chunk.query_RSNE.transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2).to(keys.dtype),
            attn_mask=self._mask(chunk, past),
        )
        return mixed_RNSE.transpose(1, 2).flatten(2)

    def append(self, chunk: WindowChunk, past: KVCache) -> KVCache:
        """The cache with the chunk's frames in it; what the window no longer holds is dropped."""
        return KVCache(
            self._appended(past.key_BWSNE, chunk.key_RFSNE, past.seen_B),
            self._appended(past.value_BWSNE, chunk.value_RFSNE, past.seen_B),
            (past.seen_B + chunk.key_RFSNE.shape[1]).clamp_max(self.slots),
        )

    def _mask(self, chunk: WindowChunk, past: KVCache) -> Tensor | None:
        """Which keys exist: shape (R, 1, 1, keys)."""
        if past.key_BWSNE.shape[1] == 0:
            return None
        seen_R1 = past.seen_B[:, None]
        sink = torch.arange(self.sink, device=seen_R1.device) + self.frames < seen_R1
        window = torch.arange(self.frames, device=seen_R1.device) >= self.frames - seen_R1
        own = torch.ones(seen_R1.shape[0], chunk.key_RFSNE.shape[1], dtype=torch.bool, device=seen_R1.device)
        tokens = chunk.key_RFSNE.shape[2]
        return torch.cat([sink, window, own], dim=1).repeat_interleave(tokens, dim=1)[:, None, None, :]

    def _appended(self, past_BWSNE: Tensor, chunk_BFSNE: Tensor, seen_B: Tensor) -> Tensor:
        both = torch.cat([past_BWSNE[:, self.sink :], chunk_BFSNE], dim=1)
        window = both[:, both.shape[1] - self.frames :]
        if not self.sink:
            return window
        slots_1W, seen_B1, frames = torch.arange(self.sink, device=seen_B.device), seen_B[:, None], chunk_BFSNE.shape[1]
        index_BW = (slots_1W - seen_B1).clamp(0, frames - 1)
        fresh = chunk_BFSNE.take_along_dim(index_BW[:, :, None, None, None], dim=1)
        is_new = ((slots_1W >= seen_B1) & (slots_1W < seen_B1 + frames))[:, :, None, None, None]
        return torch.cat([torch.where(is_new, fresh, past_BWSNE[:, : self.sink]), window], dim=1)
