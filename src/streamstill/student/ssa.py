"""Softmax attention in a window: SSA, and the full-resolution kinds it is compared with (S2DiT sections 3.2, 4.4)."""

import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.state import KVCache
from streamstill.student.positions import rotate, token_turns
from streamstill.student.resize import STRIDE, downsample, strided_mean
from streamstill.student.window import Window, WindowChunk


class WindowedSelfAttention(nn.Module):
    """Softmax attention from a chunk to itself and to the past in a window; a ``Mixer``.

    On the low-resolution stream this is SSA: queries, keys and values are strided alike. On the full one it is the
    attention of the usual causal video transformers.

    Args:
        compress: keys and values come from cells of ``STRIDE x STRIDE`` tokens, queries from all tokens.
    """

    def __init__(self, width: int, *, head_dim: int, window: Window, theta: float, compress: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim, self.window, self.theta = width // head_dim, head_dim, window, theta
        self.compress = strided_mean(width) if compress else None
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm, self.key_norm = nn.LayerNorm(head_dim), nn.LayerNorm(head_dim)
        self.out = nn.Linear(width, width)

    @property
    def key_stride(self) -> int:
        """How many rows, and columns, of tokens share a key."""
        return 1 if self.compress is None else STRIDE

    def empty(self, batch: int, height: int, width: int, like: Tensor) -> KVCache:
        """The state before the first chunk, for latent frames of this many rows and columns of tokens."""
        return self.window.empty(batch, height * width // self.key_stride**2, self.heads, self.head_dim, like)

    def project(self, x_RFHWD: Tensor) -> WindowChunk:
        """Normed and rotated queries, normed keys, and values."""
        _, frames, height, width, _ = x_RFHWD.shape
        query, key, value = self._query_key_value(x_RFHWD)
        query_RSNE = self.query_norm(query).flatten(1, 2)
        turns = token_turns(range(frames), height, width, head_dim=self.head_dim, theta=self.theta, like=query_RSNE)
        return WindowChunk(rotate(query_RSNE, turns), self.key_norm(key), value, x_RFHWD[..., :0])

    def mix(self, chunk: WindowChunk, past: KVCache) -> Tensor:
        """Attention over the window, shape (R, F, H, W, D)."""
        height, width = (size // self.key_stride for size in chunk.grid_RFHW0.shape[2:4])
        turns = token_turns(
            self.window.positions(chunk, past),
            height,
            width,
            stride=self.key_stride,
            head_dim=self.head_dim,
            theta=self.theta,
            like=chunk.query_RSNE,
        )
        mixed_RSD = self.window.attend(chunk, past, lambda keys: rotate(keys, turns))
        return self.out(mixed_RSD).reshape(*chunk.grid_RFHW0.shape[:4], -1)

    def remember(self, chunk: WindowChunk, past: KVCache) -> KVCache:
        """Append the chunk to the window."""
        return self.window.append(chunk, past)

    def _query_key_value(self, x_RFHWD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each of shape (R, F, S, N, E); the compressed kind has fewer keys and values than queries."""
        heads = (self.heads, self.head_dim)
        if self.compress is None:
            query, key, value = self.qkv(x_RFHWD).flatten(2, 3).unflatten(-1, (3, *heads)).unbind(3)
            return query, key, value
        width = x_RFHWD.shape[-1]
        weights, biases = self.qkv.weight.split([width, 2 * width]), self.qkv.bias.split([width, 2 * width])
        query = F.linear(x_RFHWD, weights[0], biases[0]).flatten(2, 3).unflatten(-1, heads)
        cells = downsample(self.compress, x_RFHWD)
        key, value = F.linear(cells, weights[1], biases[1]).flatten(2, 3).unflatten(-1, (2, *heads)).unbind(3)
        return query, key, value
