"""A codec without weights: small blocks of pixels, reshaped into channels. Lossless."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from streamstill.codec.video import latent_shape
from streamstill.types import Geometry


@dataclass(frozen=True, kw_only=True)
class PatchCodec:
    """Every latent holds ``frames x size x size`` RGB pixels; encode and decode are exact inverses."""

    frames: int = 2
    size: int = 4

    def __post_init__(self) -> None:
        if min(self.frames, self.size) < 1:
            raise ValueError(f"a patch has at least one frame and one pixel, got frames={self.frames} size={self.size}")

    @property
    def latent_channels(self) -> int:
        """C of the latents: three colours times the pixels of a patch."""
        return 3 * self.frames * self.size * self.size

    @property
    def compression(self) -> tuple[int, int, int]:
        """Pixel frames, rows and columns per latent frame, row and column."""
        return self.frames, self.size, self.size

    def encode(self, pixels_BFCHW: Tensor) -> Tensor:
        """Latents of shape (B, F/frames, C, H/size, W/size).

        Raises:
            ValueError: frames, height or width is not divisible by the patch.
        """
        batch, frames, colours, height, width = pixels_BFCHW.shape
        f, c, h, w = latent_shape(self, Geometry(frames=frames, height=height, width=width, fps=1))
        patches = pixels_BFCHW.reshape(batch, f, self.frames, colours, h, self.size, w, self.size)
        return patches.permute(0, 1, 3, 2, 5, 7, 4, 6).reshape(batch, f, c, h, w)

    def decode(self, latents_BFCHW: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Pixels of shape (B, frames * F, 3, size * H, size * W); every latent frame stands alone."""
        batch, f, _, h, w = latents_BFCHW.shape
        patches = latents_BFCHW.reshape(batch, f, 3, self.frames, self.size, self.size, h, w)
        pixels = patches.permute(0, 1, 3, 2, 6, 4, 7, 5)
        return pixels.reshape(batch, f * self.frames, 3, h * self.size, w * self.size), state
