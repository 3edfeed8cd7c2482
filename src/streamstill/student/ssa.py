"""SSA: softmax attention on the low-resolution stream, over a window of chunks (S2DiT section 3.2, s2dit.md 2)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.state import KVCache
from streamstill.student.positions import rotate, rotations


class SsaChunk(NamedTuple):
    """One chunk by itself; keys are not rotated yet. ``grid`` only carries frames, height and width."""

    query_RSNE: Tensor
    key_RSNE: Tensor
    value_RSNE: Tensor
    grid_RFHW0: Tensor


class StridedSelfAttention(nn.Module):
    """Softmax attention from a chunk to itself and to the ``window`` chunks before it; a ``Mixer``."""

    def __init__(self, width: int, *, heads: int, window: int, theta: float) -> None:
        super().__init__()
        self.heads, self.window, self.theta = heads, window, theta
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm, self.key_norm = nn.LayerNorm(width // heads), nn.LayerNorm(width // heads)
        self.out = nn.Linear(width, width)

    def empty(self, batch: int, tokens: int, like: Tensor) -> KVCache:
        """The state before the first chunk, for chunks of ``tokens`` tokens."""
        slots = like.new_zeros(batch, self.window, tokens, self.heads, self.out.in_features // self.heads)
        return KVCache(slots, slots.clone(), torch.zeros(batch, dtype=torch.int64, device=like.device))

    def project(self, x_RFHWD: Tensor) -> SsaChunk:
        """Normed queries and keys, and values."""
        qkv = self.qkv(x_RFHWD).flatten(1, 3).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.unbind(2)
        return SsaChunk(self.query_norm(query), self.key_norm(key), value, x_RFHWD[..., :0])

    def mix(self, chunk: SsaChunk, past: KVCache) -> Tensor:
        """Attention over the window; slots that no chunk has filled yet are masked."""
        frames, height, width = chunk.grid_RFHW0.shape[1:4]
        tokens = frames * height * width
        first = -self.window * frames
        positions = torch.arange(first, frames, device=chunk.query_RSNE.device)
        angles_S1E = rotations(positions, height, width, head_dim=chunk.key_RSNE.shape[-1], theta=self.theta).unsqueeze(
            1
        )
        keys = rotate(torch.cat([past.key_BWSNE.flatten(1, 2), chunk.key_RSNE], dim=1), angles_S1E)
        values = torch.cat([past.value_BWSNE.flatten(1, 2), chunk.value_RSNE], dim=1)
        query = rotate(chunk.query_RSNE, angles_S1E[-tokens:])
        mixed_RNSE = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2).to(keys.dtype),
            attn_mask=self._filled(past.seen_B, tokens),
        )
        return self.out(mixed_RNSE.transpose(1, 2).flatten(2)).unflatten(1, (frames, height, width))

    def remember(self, chunk: SsaChunk, past: KVCache) -> KVCache:
        """Drop the oldest chunk of the window, append this one."""
        key = torch.cat([past.key_BWSNE, chunk.key_RSNE.unsqueeze(1)], dim=1)
        value = torch.cat([past.value_BWSNE, chunk.value_RSNE.unsqueeze(1)], dim=1)
        return KVCache(key[:, 1:], value[:, 1:], (past.seen_B + 1).clamp_max(self.window))

    def _filled(self, seen_R: Tensor, tokens: int) -> Tensor:
        """Which keys exist: shape (R, 1, 1, (window + 1) * tokens)."""
        slots = torch.arange(self.window + 1, device=seen_R.device)
        filled = slots >= self.window - seen_R[:, None]
        return filled.repeat_interleave(tokens, dim=1)[:, None, None, :]
