"""LCHA's local path: a depthwise 3-D convolution, causal in time, then channels mix (S2DiT section 3.2, s2dit.md 1)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from streamstill.state import ConvCache

KERNEL = 3  # latent frames, rows and columns


class LocalChunk(NamedTuple):
    """One chunk by itself: the convolution's input."""

    x_RFHWD: Tensor


class CausalConv(nn.Module):
    """Every token from its neighbours in space, now and in the latent frames just before; a ``Mixer``."""

    def __init__(self, width: int, *, kernel: int = KERNEL) -> None:
        super().__init__()
        self.width, self.kernel = width, kernel
        self.depthwise = nn.Conv3d(width, width, kernel, padding=(0, kernel // 2, kernel // 2), groups=width)
        self.channel_mix = nn.Linear(width, width)

    def empty(self, batch: int, height: int, width: int, like: Tensor) -> ConvCache:
        """The state before the first chunk."""
        return ConvCache(like.new_zeros(batch, self.kernel - 1, height, width, self.width))

    def project(self, x_RFHWD: Tensor) -> LocalChunk:
        """Nothing is done before the past is known."""
        return LocalChunk(x_RFHWD)

    def mix(self, chunk: LocalChunk, past: ConvCache) -> Tensor:
        """Convolve over the cached frames and these, then mix channels.

        (Channels stay last in memory: ten times faster on CPU than the default order.)
        """
        seen_RDFHW = torch.cat([past.frames_BFHWD, chunk.x_RFHWD], dim=1).permute(0, 4, 1, 2, 3)
        return self.channel_mix(self.depthwise(seen_RDFHW).permute(0, 2, 3, 4, 1))

    def remember(self, chunk: LocalChunk, past: ConvCache) -> ConvCache:
        """The last frames of the convolution's input."""
        seen_BFHWD = torch.cat([past.frames_BFHWD, chunk.x_RFHWD], dim=1)
        return ConvCache(seen_BFHWD[:, seen_BFHWD.shape[1] - self.kernel + 1 :])
