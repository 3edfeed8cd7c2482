"""What a discriminator must not judge by: edges, noise, and the traces of a codec or a file."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from streamstill.config import require_positive


@dataclass(frozen=True, kw_only=True)
class Blindfold:
    """What the discriminator must not judge by: fine edges are averaged away, the rest drowns in noise.

    Without it a discriminator is always right within a few updates: it reads sharpness, not motion (design.md).
    """

    blur: int = 4  # side of the averaged square, pixels
    stride: int = 2  # pixels
    noise: float = 0.15  # standard deviation; pixels lie in [-1, 1]

    def __post_init__(self) -> None:
        require_positive(self, "blur", "stride")
        if not self.noise >= 0:
            raise ValueError(f"the noise of a blindfold is a standard deviation, got {self.noise}; 0 adds none")

    def __call__(self, pixels_BFCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Low-passed, subsampled, noised pixels; differentiable."""
        flat = F.avg_pool2d(pixels_BFCHW.flatten(0, 1), self.blur, self.stride, padding=self.blur // 2)
        return self.noised(flat.unflatten(0, pixels_BFCHW.shape[:2]), generator)

    def noised(self, clips_BFCHW: Tensor, generator: torch.Generator) -> Tensor:
        """The noise alone: for latents, whose cells are averages of many pixels already."""
        noise = torch.randn(clips_BFCHW.shape, generator=generator)
        return clips_BFCHW + self.noise * noise.to(clips_BFCHW)
