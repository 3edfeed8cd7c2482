"""Layers of the learned codec and the light decoder: they look at neighbours in space and into the past alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.state import ConvCache

KERNEL = 3  # latent frames, rows and columns
CodecState = tuple[ConvCache, ...]  # one entry for each block, in order


class CausalBlock(nn.Module):
    """Norm, SiLU and one dense 3x3x3 convolution whose last latent frame is the present; residual.

    Channels stay last in memory: dense convolutions are fastest so on a CPU.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv3d(width, width, KERNEL, padding=(0, KERNEL // 2, KERNEL // 2))

    def forward(self, x_BFHWD: Tensor, past: ConvCache | None) -> tuple[Tensor, ConvCache]:
        """The latent frames mixed with their past, and what the next ones need; nothing lies before a video."""
        now_BFHWD = F.silu(self.norm(x_BFHWD))
        before = _nothing(now_BFHWD) if past is None else past.frames_BFHWD
        seen_BFHWD = torch.cat([before, now_BFHWD], dim=1)
        mixed_BDFHW = self.conv(seen_BFHWD.permute(0, 4, 1, 2, 3))
        last = seen_BFHWD[:, seen_BFHWD.shape[1] - KERNEL + 1 :]
        return x_BFHWD + mixed_BDFHW.permute(0, 2, 3, 4, 1), ConvCache(last)


class CausalEncoder(nn.Module):
    """Pixels to latents: a linear map of each latent's own pixels, and what a network adds to it.

    The network has two resolutions: cells of half the codec's rows and columns, then whole ones.

    Args:
        compression: frames, rows and columns of one latent; rows and columns are even.
        channels: C of the latents.
        width: features at the coarse resolution; the fine one has half.
        blocks: of either resolution.
    """

    def __init__(self, compression: tuple[int, int, int], channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.whole, self.cell = compression, _fine_cell(compression)
        self.linear = nn.Linear(_pixels(self.whole), channels)
        self.enter = nn.Linear(_pixels(self.cell), width // 2)
        self.fine = nn.ModuleList(CausalBlock(width // 2) for _ in range(blocks))
        self.down = nn.Linear(2 * width, width)
        self.coarse = nn.ModuleList(CausalBlock(width) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))

    def forward(self, pixels_BFCHW: Tensor) -> Tensor:
        """``latents_BFCHW``; a latent frame depends on its own pixel frames and on earlier ones."""
        pixels_BFHWC = pixels_BFCHW.permute(0, 1, 3, 4, 2)
        x_BFHWD = self.enter(folded(pixels_BFHWC, *self.cell))
        for block in self.fine:
            x_BFHWD, _ = block(x_BFHWD, None)
        x_BFHWD = self.down(folded(x_BFHWD, 1, 2, 2))
        for block in self.coarse:
            x_BFHWD, _ = block(x_BFHWD, None)
        latents_BFHWC = self.linear(folded(pixels_BFHWC, *self.whole)) + self.leave(x_BFHWD)
        return latents_BFHWC.permute(0, 1, 4, 2, 3)


class CausalDecoder(nn.Module):
    """Latents to pixels, the mirror of ``CausalEncoder``; piece by piece it gives what it gives in one go."""

    def __init__(self, compression: tuple[int, int, int], channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.whole, self.cell = compression, _fine_cell(compression)
        self.linear = nn.Linear(channels, _pixels(self.whole))
        self.enter = nn.Linear(channels, width)
        self.coarse = nn.ModuleList(CausalBlock(width) for _ in range(blocks))
        self.up = nn.Linear(width, 2 * width)
        self.fine = nn.ModuleList(CausalBlock(width // 2) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width // 2), nn.Linear(width // 2, _pixels(self.cell)))

    def forward(self, latents_BFCHW: Tensor, state: CodecState | None) -> tuple[Tensor, CodecState]:
        """``pixels_BFCHW`` of these latent frames, and the state after them."""
        latents_BFHWC = latents_BFCHW.permute(0, 1, 3, 4, 2)
        x_BFHWD, caches = self.enter(latents_BFHWC), []
        pasts = iter(state or [None] * (len(self.coarse) + len(self.fine)))
        for block in self.coarse:
            x_BFHWD, cache = block(x_BFHWD, next(pasts))
            caches.append(cache)
        x_BFHWD = unfolded(self.up(x_BFHWD), 1, 2, 2)
        for block in self.fine:
            x_BFHWD, cache = block(x_BFHWD, next(pasts))
            caches.append(cache)
        pixels_BFHWC = unfolded(self.linear(latents_BFHWC), *self.whole) + unfolded(self.leave(x_BFHWD), *self.cell)
        return pixels_BFHWC.permute(0, 1, 4, 2, 3), tuple(caches)

    def require_fitting(self, latents_BFCHW: Tensor, state: CodecState | None) -> None:
        """Check what is to be decoded.

        Raises:
            ValueError: the latents have other channels, or the state belongs to clips of another number or size.
        """
        batch, _, channels, height, width = latents_BFCHW.shape
        if channels != self.enter.in_features:
            raise ValueError(f"this decoder takes latents of {self.enter.in_features} channels, got {channels}")
        if state:
            known = state[0].frames_BFHWD.shape
            if (known[0], known[2], known[3]) != (batch, height, width):
                raise ValueError(
                    f"the decoder's state belongs to {known[0]} clips of {known[2]}x{known[3]} latents, got {batch} of "
                    f"{height}x{width}; begin a video with None as its state"
                )


@torch.no_grad()
def begin_linear(part: CausalEncoder | CausalDecoder, weight: Tensor, bias: Tensor) -> None:
    """Give the linear map these values for good, and let the network begin by adding nothing.

    (Many of its weights are as small as a step of Adam, which would shake it to pieces before the network helps.)
    """
    part.linear.requires_grad_(False).weight.copy_(weight)
    part.linear.bias.copy_(bias)
    last = part.leave[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def cells(pixels_BFCHW: Tensor, compression: tuple[int, int, int]) -> Tensor:
    """``cells_ND``: a row for each latent, of its own pixels, as the linear maps order them."""
    return folded(pixels_BFCHW.permute(0, 1, 3, 4, 2), *compression).flatten(0, 3)


def folded(x_BFHWD: Tensor, frames: int, rows: int, columns: int) -> Tensor:
    """Blocks of frames, rows and columns moved into the features; inverse of ``unfolded``."""
    batch, f, h, w, d = x_BFHWD.shape
    cells = x_BFHWD.reshape(batch, f // frames, frames, h // rows, rows, w // columns, columns, d)
    return cells.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)


def unfolded(x_BFHWD: Tensor, frames: int, rows: int, columns: int) -> Tensor:
    """Features spread out over blocks of frames, rows and columns."""
    batch, f, h, w, _ = x_BFHWD.shape
    cells = x_BFHWD.reshape(batch, f, h, w, frames, rows, columns, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return cells.reshape(batch, f * frames, h * rows, w * columns, -1)


def require_shape(compression: tuple[int, int, int], width: int) -> None:
    """For the ``__post_init__`` of a config.

    Raises:
        ValueError: a compression that two resolutions cannot share, or a width that cannot be halved.
    """
    frames, rows, columns = compression
    if min(compression) < 1 or rows % 2 or columns % 2:
        raise ValueError(
            f"compression is frames, rows and columns, the last two even, got {list(compression)}; "
            f"use [{max(frames, 1)}, {max(rows + rows % 2, 2)}, {max(columns + columns % 2, 2)}]"
        )
    if width < 2 or width % 2:
        raise ValueError(f"width must be even, got {width}; use {max(width + width % 2, 2)}")


def _nothing(x_BFHWD: Tensor) -> Tensor:
    """What a convolution sees before a video begins."""
    batch, _, height, width, features = x_BFHWD.shape
    return x_BFHWD.new_zeros(batch, KERNEL - 1, height, width, features)


def _fine_cell(compression: tuple[int, int, int]) -> tuple[int, int, int]:
    frames, rows, columns = compression
    return frames, rows // 2, columns // 2


def _pixels(cell: tuple[int, int, int]) -> int:
    """Values of the RGB pixels of a cell."""
    frames, rows, columns = cell
    return 3 * frames * rows * columns
