"""Any codec on overlapping tiles, for pictures that do not fit into memory at once; streams as the codec does."""

from collections.abc import Sequence
from itertools import product
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from streamstill.codec.counting import clip_latents, first_frames
from streamstill.codec.video import VideoCodec
from streamstill.types import Geometry

Tile: TypeAlias = tuple[slice, slice]  # rows and columns


class Tiled:
    """A codec that works tile by tile and blends what overlaps.

    Near the seams the pixels differ a little from those of the codec itself, because a tile does not see beyond its
    edge. The state is a tuple with one state of the codec for every tile, so pieces equal the whole as they do there.

    Args:
        size: latent rows and columns of a tile.
        overlap: latent rows and columns that neighbours share at least.

    Raises:
        ValueError: the overlap does not leave a tile anything of its own.
    """

    def __init__(self, codec: VideoCodec, *, size: int, overlap: int) -> None:
        if not 0 <= overlap < size:
            raise ValueError(f"tiles of {size} latents cannot share {overlap}; the overlap must be 0 to {size - 1}")
        self.codec, self.size, self.overlap = codec, size, overlap

    @property
    def latent_channels(self) -> int:
        """C of the latents."""
        return self.codec.latent_channels

    @property
    def compression(self) -> tuple[int, int, int]:
        """Pixel frames, rows and columns per latent frame, row and column."""
        return self.codec.compression

    @property
    def first_frames(self) -> int:
        """Pixel frames that the first latent frame of a video makes."""
        return first_frames(self.codec)

    def encode(self, pixels_BFCHW: Tensor) -> Tensor:
        """Latents of shape (B, F, C, H, W).

        Raises:
            ValueError: the clips cannot be cut into the codec's latents.
        """
        frames, height, width = pixels_BFCHW.shape[1], *pixels_BFCHW.shape[3:]
        clip_latents(self, Geometry(frames=frames, height=height, width=width, fps=1))
        _, rows, columns = self.compression
        tiles = self._tiles(pixels_BFCHW.shape[3] // rows, pixels_BFCHW.shape[4] // columns)
        made = [self.codec.encode(_cut(pixels_BFCHW, _scaled(tile, rows, columns))) for tile in tiles]
        return _blended(made, tiles, margins=(self.overlap, self.overlap))

    def decode(self, latents_BFCHW: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Pixels of these latent frames, and the states of all tiles."""
        _, rows, columns = self.compression
        tiles = self._tiles(*latents_BFCHW.shape[3:])
        past = [None] * len(tiles) if state is None else state
        answers = [
            self.codec.decode(_cut(latents_BFCHW, tile), before) for tile, before in zip(tiles, past, strict=True)
        ]
        pixel_tiles = [_scaled(tile, rows, columns) for tile in tiles]
        margins = (self.overlap * rows, self.overlap * columns)
        pixels_BFCHW = _blended([pixels for pixels, _ in answers], pixel_tiles, margins=margins)
        return pixels_BFCHW, tuple(after for _, after in answers)

    def _tiles(self, height: int, width: int) -> list[Tile]:
        return list(product(self._spans(height), self._spans(width)))

    def _spans(self, length: int) -> list[slice]:
        """Spans of one size that cover the length, the last one at its end."""
        last = max(length - self.size, 0)
        starts = [*range(0, last, self.size - self.overlap), last]
        return [slice(start, min(start + self.size, length)) for start in starts]


def _cut(x_BFCHW: Tensor, tile: Tile) -> Tensor:
    rows, columns = tile
    return x_BFCHW[:, :, :, rows, columns]


def _scaled(tile: Tile, rows: int, columns: int) -> Tile:
    """The pixels of a tile of latents."""
    down, across = tile
    return slice(down.start * rows, down.stop * rows), slice(across.start * columns, across.stop * columns)


def _blended(pieces: Sequence[Tensor], tiles: Sequence[Tile], *, margins: tuple[int, int]) -> Tensor:
    """One picture of all tiles: where they overlap, a mean in which each fades out towards its edges."""
    if len(pieces) == 1:
        return pieces[0]
    height, width = (max(tile[axis].stop for tile in tiles) for axis in (0, 1))
    total, weight = pieces[0].new_zeros(1), pieces[0].new_zeros(1)
    for piece, (rows, columns) in zip(pieces, tiles, strict=True):
        fade_HW = _fade(piece.shape[3], margins[0], piece)[:, None] * _fade(piece.shape[4], margins[1], piece)
        around = (columns.start, width - columns.stop, rows.start, height - rows.stop)
        total, weight = total + pad(piece * fade_HW, around), weight + pad(fade_HW, around)
    return total / weight


def _fade(length: int, margin: int, like: Tensor) -> Tensor:
    """1 in the middle, and down to 1 / (margin + 1) at both ends."""
    steps = torch.arange(1, length + 1, device=like.device, dtype=like.dtype)
    return (torch.minimum(steps, steps.flip(0)) / (margin + 1)).clamp(max=1)
