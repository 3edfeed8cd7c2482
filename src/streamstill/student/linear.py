"""LCHA's linear path: attention through a positive feature map, whose past is a sum (S2DiT section 3.2, s2dit.md 1).

``phi(x) = softplus(W x + b)`` is positive everywhere, so the denominator is too: rotary positions turn the
numerator only. Order of rotation and phi, and the causal form, are our choices (design.md).
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.state import LinearState
from streamstill.student.positions import rotate, time_turns, token_turns

FeatureMap = Literal["softplus", "relu"]
TINY = 1e-6  # keeps a denominator of ReLU features above zero


class LinearChunk(NamedTuple):
    """One chunk by itself: rotated and plain queries, its sums of keys and values; ``grid`` only carries its size."""

    turned_query_RSNE: Tensor
    query_RSNE: Tensor
    kv_RNEE: Tensor
    k_RNE: Tensor
    grid_RFHW0: Tensor


class LinearAttention(nn.Module):
    """y_i = phi(q_i) (sum phi(k_j) v_j) / phi(q_i) (sum phi(k_j)), over the past and the whole chunk; a ``Mixer``.

    Args:
        retention: share of the past that is kept over ``chunk_frames`` latent frames; 1 is the plain running sum,
            whose newest chunk counts less and less as a stream goes on; below 1 every chunk sees a past of the
            same weight.
    """

    def __init__(
        self, width: int, *, head_dim: int, retention: float, chunk_frames: int, theta: float, feature_map: FeatureMap
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = width // head_dim, head_dim
        self.frame_retention, self.theta = retention ** (1 / chunk_frames), theta
        self.activation = F.softplus if feature_map == "softplus" else F.relu
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm, self.key_norm = nn.LayerNorm(head_dim), nn.LayerNorm(head_dim)
        self.phi_query, self.phi_key = nn.Linear(head_dim, head_dim), nn.Linear(head_dim, head_dim)

    def empty(self, batch: int, like: Tensor) -> LinearState:
        """The state before the first chunk."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        return LinearState(
            kv_BNEE=like.new_zeros(batch, self.heads, self.head_dim, self.head_dim, dtype=dtype),
            k_BNE=like.new_zeros(batch, self.heads, self.head_dim, dtype=dtype),
        )

    def project(self, x_RFHWD: Tensor) -> LinearChunk:
        """Queries, and the chunk's own sums."""
        _, frames, height, width, _ = x_RFHWD.shape
        qkv = self.qkv(x_RFHWD).flatten(1, 3).unflatten(-1, (3, self.heads, -1))
        query, key, value_RSNE = qkv.unbind(2)
        query = self.activation(self.phi_query(self.query_norm(query)))
        key = self.activation(self.phi_key(self.key_norm(key)))
        turns = token_turns(range(frames), height, width, head_dim=self.head_dim, theta=self.theta, like=key)
        kv_RNEE = torch.einsum("rsne,rsnf->rnef", rotate(key, turns), value_RSNE)
        return LinearChunk(rotate(query, turns), query, kv_RNEE, key.sum(dim=1), x_RFHWD[..., :0])

    def mix(self, chunk: LinearChunk, past: LinearState) -> Tensor:
        """The weighted mean of the values, shape (R, F, H, W, D)."""
        query_RSNE = chunk.query_RSNE
        kv_RNEE, k_RNE = past.kv_BNEE + chunk.kv_RNEE, past.k_BNE + chunk.k_RNE
        if query_RSNE.dtype == torch.float16:  # its numbers end at 65,504; over a common size both say the same
            size_RN1 = k_RNE.mean(dim=-1, keepdim=True).clamp_min(TINY)
            kv_RNEE, k_RNE = kv_RNEE / size_RN1.unsqueeze(-1), k_RNE / size_RN1
        kv_RNEE, k_RNE = kv_RNEE.to(query_RSNE.dtype), k_RNE.to(query_RSNE.dtype)
        weighted_RSNE = torch.einsum("rsne,rnef->rsnf", chunk.turned_query_RSNE, kv_RNEE)
        total_RSN = torch.einsum("rsne,rne->rsn", query_RSNE, k_RNE) + TINY
        return (weighted_RSNE / total_RSN.unsqueeze(-1)).reshape(*chunk.grid_RFHW0.shape[:4], -1)

    def remember(self, chunk: LinearChunk, past: LinearState) -> LinearState:
        """Add the chunk's sums, fade them, and count positions from the next chunk on."""
        frames = chunk.grid_RFHW0.shape[1]
        kv_BNEE, k_BNE = past.kv_BNEE + chunk.kv_RNEE, past.k_BNE + chunk.k_RNE
        back = time_turns(frames, head_dim=self.head_dim, theta=self.theta, like=kv_BNEE)
        moved_BNEE = rotate(kv_BNEE.transpose(-1, -2), back).transpose(-1, -2)
        kept = self.frame_retention**frames
        return LinearState(kept * moved_BNEE, kept * k_BNE)
