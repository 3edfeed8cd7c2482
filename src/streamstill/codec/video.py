"""Frozen video encoders: pixels to latents and back, the way back chunk by chunk."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from streamstill.types import Frames, Geometry


class VideoCodec(Protocol):
    """Clips to latents and back. Pixels are floats in [-1, 1] of shape (B, frames, 3, height, width)."""

    @property
    def latent_channels(self) -> int:
        """C of the latents."""
        ...

    @property
    def compression(self) -> tuple[int, int, int]:
        """Pixel frames, rows and columns per latent frame, row and column."""
        ...

    def encode(self, pixels_BFCHW: Tensor) -> Tensor:
        """Latents of shape (B, latent frames, C, latent height, latent width)."""
        ...

    def decode(self, latents_BFCHW: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Pixels of these latent frames, and what the next call needs; ``None`` starts a video.

        Decoding a video in pieces gives the same pixels as decoding it whole.
        """
        ...


def to_pixels(frames_FCHW: Frames) -> Tensor:
    """uint8 frames as floats in [-1, 1], shape kept."""
    return torch.from_numpy(np.ascontiguousarray(frames_FCHW)).float() / 127.5 - 1


def to_frames(pixels_FCHW: Tensor) -> Frames:
    """Floats in [-1, 1] as uint8 frames; values outside are clipped. Inverse of ``to_pixels``."""
    return ((pixels_FCHW.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


def latent_shape(codec: VideoCodec, geometry: Geometry) -> tuple[int, int, int, int]:
    """(latent frames, C, latent height, latent width) of clips of this geometry.

    Raises:
        ValueError: the clip size is not a multiple of the codec's compression.
    """
    per_frame, per_row, per_column = codec.compression
    sizes = ((geometry.frames, per_frame, "frames"), (geometry.height, per_row, "height"))
    for size, step, name in (*sizes, (geometry.width, per_column, "width")):
        if size % step:
            raise ValueError(
                f"{name} {size} is not divisible by the codec's {step}; "
                f"use {size - size % step or step} or {size - size % step + step}"
            )
    return (
        geometry.frames // per_frame,
        codec.latent_channels,
        geometry.height // per_row,
        geometry.width // per_column,
    )
