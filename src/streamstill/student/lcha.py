"""LCHA: linear attention + causal convolution + gate, at full resolution (S2DiT section 3.2, s2dit.md 1).

``phi(x) = softplus(W x + b)`` is positive everywhere, so the denominator is too: rotary positions turn the
numerator only. Order of rotation and phi, gate form, kernel size and causal form are our choices (design.md).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.state import ConvCache, LchaState, LinearState
from streamstill.student.positions import rotate, rotations, time_rotation


class LchaChunk(NamedTuple):
    """One chunk by itself: rotated and plain queries, its sums of keys and values, the conv's input."""

    turned_query_RSNE: Tensor
    query_RSNE: Tensor
    kv_RNEE: Tensor
    k_RNE: Tensor
    local_RFHWD: Tensor


class LinearConvAttention(nn.Module):
    """LCHA's two paths and their gate; a ``Mixer``.

    Args:
        retention: share of the past that is kept from chunk to chunk; 1 is the plain running sum, whose newest
            chunk counts less and less as a stream goes on; below 1 every chunk sees a past of the same weight.
    """

    def __init__(self, width: int, *, heads: int, retention: float, theta: float, kernel: int = 3) -> None:
        super().__init__()
        self.heads, self.retention, self.theta, self.kernel = heads, retention, theta, kernel
        head_dim = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm, self.key_norm = nn.LayerNorm(head_dim), nn.LayerNorm(head_dim)
        self.phi_query, self.phi_key = nn.Linear(head_dim, head_dim), nn.Linear(head_dim, head_dim)
        self.depthwise = nn.Conv3d(width, width, kernel, padding=(0, kernel // 2, kernel // 2), groups=width)
        self.channel_mix = nn.Linear(width, width)
        self.gate = nn.Parameter(torch.zeros(width))  # sigmoid(0) = 1/2: both paths count the same at first
        self.out = nn.Linear(width, width)

    def empty(self, batch: int, height: int, width: int, like: Tensor) -> LchaState:
        """The state before the first chunk."""
        channels = self.out.in_features
        head_dim = channels // self.heads
        linear = LinearState(
            kv_BNEE=like.new_zeros(batch, self.heads, head_dim, head_dim),
            k_BNE=like.new_zeros(batch, self.heads, head_dim),
        )
        return LchaState(linear, ConvCache(like.new_zeros(batch, self.kernel - 1, height, width, channels)))

    def project(self, x_RFHWD: Tensor) -> LchaChunk:
        """Queries, the chunk's own sums, and the input of the local path."""
        _, frames, height, width, _ = x_RFHWD.shape
        qkv = self.qkv(x_RFHWD).flatten(1, 3).unflatten(-1, (3, self.heads, -1))
        query, key, value_RSNE = qkv.unbind(2)
        query = F.softplus(self.phi_query(self.query_norm(query)))
        key = F.softplus(self.phi_key(self.key_norm(key)))
        frame_positions = torch.arange(frames, device=x_RFHWD.device)
        angles_S1E = rotations(frame_positions, height, width, head_dim=key.shape[-1], theta=self.theta).unsqueeze(1)
        kv_RNEE = torch.einsum("rsne,rsnf->rnef", rotate(key, angles_S1E), value_RSNE)
        return LchaChunk(rotate(query, angles_S1E), query, kv_RNEE, key.sum(dim=1), x_RFHWD)

    def mix(self, chunk: LchaChunk, past: LchaState) -> Tensor:
        """``out(a * linear + (1 - a) * local)`` with ``a = sigmoid(gate)``."""
        linear_RSD = self._linear(chunk, past.linear)
        local_RFHWD = self._local(chunk.local_RFHWD, past.conv)
        share = torch.sigmoid(self.gate)
        mixed = share * linear_RSD.reshape(local_RFHWD.shape) + (1 - share) * local_RFHWD
        return self.out(mixed)

    def remember(self, chunk: LchaChunk, past: LchaState) -> LchaState:
        """Add the chunk's sums, fade them, and count positions from the next chunk on."""
        frames = chunk.local_RFHWD.shape[1]
        kv_BNEE, k_BNE = past.linear.kv_BNEE + chunk.kv_RNEE, past.linear.k_BNE + chunk.k_RNE
        back_E = time_rotation(frames, head_dim=kv_BNEE.shape[-2], theta=self.theta, device=kv_BNEE.device)
        moved_BNEE = rotate(kv_BNEE.transpose(-1, -2), back_E).transpose(-1, -2)
        linear = LinearState(self.retention * moved_BNEE, self.retention * k_BNE)
        seen_BFHWD = torch.cat([past.conv.frames_BFHWD, chunk.local_RFHWD], dim=1)
        return LchaState(linear, ConvCache(seen_BFHWD[:, seen_BFHWD.shape[1] - self.kernel + 1 :]))

    def _linear(self, chunk: LchaChunk, past: LinearState) -> Tensor:
        """y_i = phi(q_i) (sum phi(k_j) v_j) / phi(q_i) (sum phi(k_j)), over the past and the whole chunk."""
        kv_RNEE, k_RNE = past.kv_BNEE + chunk.kv_RNEE, past.k_BNE + chunk.k_RNE
        weighted_RSNE = torch.einsum("rsne,rnef->rsnf", chunk.turned_query_RSNE, kv_RNEE)
        total_RSN = torch.einsum("rsne,rne->rsn", chunk.query_RSNE, k_RNE)
        return (weighted_RSNE / total_RSN.unsqueeze(-1)).flatten(2)

    def _local(self, x_RFHWD: Tensor, past: ConvCache) -> Tensor:
        """Depthwise causal 3-D convolution over the cached frames and these, then channels mix.

        (Channels stay last in memory: ten times faster on CPU than the default order.)
        """
        seen_RDFHW = torch.cat([past.frames_BFHWD, x_RFHWD], dim=1).permute(0, 4, 1, 2, 3)
        return self.channel_mix(self.depthwise(seen_RDFHW).permute(0, 2, 3, 4, 1))
