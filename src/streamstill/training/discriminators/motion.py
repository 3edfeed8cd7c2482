"""Small spatio-temporal discriminators from scratch: 3-D convolutions over frames and their differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.training.discriminators.discriminator import Sees, require_clips, require_whole_chunks
from streamstill.training.discriminators.head import WORDS, PromptHead

GROUPS = 8  # of the group norms: widths are multiples of it
STRIDES = ((1, 2, 2), (2, 2, 2), (2, 1, 1))  # frames, rows, columns
LATENT_STRIDES = ((1, 2, 2), (2, 1, 1), (1, 1, 1))  # a latent frame is several frames already, a cell many pixels
KERNEL = 3


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """A network from scratch: its width, what it sees, and whether it judges every chunk by itself."""

    kind: Literal["motion"] = "motion"
    width: int = 32
    sees: Sees = "pixels"
    per_chunk: bool = False  # one score per chunk, of the frames up to the chunk's end

    def __post_init__(self) -> None:
        if self.width < GROUPS or self.width % GROUPS:
            raise ValueError(f"width must be a multiple of {GROUPS}, got {self.width}; use {GROUPS}, 16 or 32")


class MotionDiscriminator(nn.Module):
    """Three 3-D convolutions over a whole clip, pooled by mean and maximum, and a score that knows the prompt.

    Args:
        in_channels: 3 for pixels, the codec's ``latent_channels`` for latents.
    """

    def __init__(self, width: int = 32, *, in_channels: int = 3, sees: Sees = "pixels", words: int = WORDS) -> None:
        super().__init__()
        self.in_channels, self.sees = in_channels, sees
        self.strides = LATENT_STRIDES if sees == "latents" else STRIDES
        sizes = (2 * in_channels, width, 2 * width, 3 * width)
        self.convolutions = nn.ModuleList(
            nn.Conv3d(a, b, KERNEL, stride=s, padding=1)
            for a, b, s in zip(sizes[:-1], sizes[1:], self.strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, b) for b in sizes[1:])
        self.head = PromptHead(2 * sizes[-1], width, words=words)

    def forward(self, clips_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """``score_B`` of what the blindfold let through.

        Raises:
            ValueError: the clips have other axes or channels, or there is not one prompt for each.
        """
        require_clips(clips_BFCHW, prompts, channels=self.in_channels)
        x_BCFHW = with_changes(clips_BFCHW).transpose(1, 2)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x_BCFHW = F.silu(norm(convolution(x_BCFHW)))
        return self.head(torch.cat([x_BCFHW.mean((2, 3, 4)), x_BCFHW.amax((2, 3, 4))], dim=1), prompts)


class ChunkMotionDiscriminator(nn.Module):
    """The same layers, causal: one score per chunk, which nothing after the chunk's end can change.

    Kernels look into the past alone, norms at one frame, and pooling at the chunk's own frames. Where a chunk has
    too few frames for a stride in time, the stride is left out.
    """

    per_chunk = True

    def __init__(self, width: int = 32, *, in_channels: int = 3, sees: Sees = "pixels", words: int = WORDS) -> None:
        super().__init__()
        self.in_channels, self.sees = in_channels, sees
        self.motion = MotionDiscriminator(width, in_channels=in_channels, sees=sees, words=words)

    def forward(self, clips_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """``score_B``, the whole clip taken as one chunk."""
        return self.chunk_scores(clips_BFCHW, prompts, chunks=1)[:, 0]

    def chunk_scores(self, clips_BFCHW: Tensor, prompts: Sequence[str], *, chunks: int) -> Tensor:
        """``score_BK`` of the ``chunks`` equal parts of each clip.

        Raises:
            ValueError: the clips do not fit, or cannot be cut into so many equal chunks.
        """
        require_clips(clips_BFCHW, prompts, channels=self.in_channels)
        left = require_whole_chunks(clips_BFCHW.shape[1], chunks)  # frames of a chunk, less with every stride
        x_BCFHW = with_changes(clips_BFCHW).transpose(1, 2)
        layers = zip(self.motion.convolutions, self.motion.norms, self.motion.strides, strict=True)
        for convolution, norm, (frames, rows, columns) in layers:
            stride = 1 if left % frames else frames
            left //= stride
            x_BCFHW = _in_the_past(convolution, x_BCFHW, (stride, rows, columns))
            x_BCFHW = F.silu(_frame_by_frame(norm, x_BCFHW))
        x_BCKFHW = x_BCFHW.unflatten(2, (chunks, left))
        features_BDK = torch.cat([x_BCKFHW.mean((3, 4, 5)), x_BCKFHW.amax((3, 4, 5))], dim=1)
        return self.motion.head(features_BDK.transpose(1, 2), prompts)


def with_changes(clips_BFCHW: Tensor) -> Tensor:
    """Each frame, and beside it in the channels that frame minus the one before it; zero for the first."""
    change = clips_BFCHW[:, 1:] - clips_BFCHW[:, :-1]
    return torch.cat([clips_BFCHW, torch.cat([torch.zeros_like(clips_BFCHW[:, :1]), change], dim=1)], dim=2)


def _in_the_past(convolution: nn.Module, x_BCFHW: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """The convolution, each output ending with the last of the ``stride`` frames that it stands for."""
    assert isinstance(convolution, nn.Conv3d)
    padded = F.pad(x_BCFHW, (1, 1, 1, 1, KERNEL - stride[0], 0))
    return F.conv3d(padded, convolution.weight, convolution.bias, stride)


def _frame_by_frame(norm: nn.Module, x_BCFHW: Tensor) -> Tensor:
    frames = x_BCFHW.shape[2]
    return norm(x_BCFHW.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, frames)).transpose(1, 2)
