"""A tiny learned codec, and pixels for it."""

import torch
from torch import Tensor

from streamstill.codec.learned import LearnedCodec, LearnedCodecConfig

TINY_CODEC = LearnedCodecConfig(compression=(2, 4, 4), latent_channels=6, width=8, blocks=1)


def codec(config: LearnedCodecConfig = TINY_CODEC, *, seed: int = 0) -> LearnedCodec:
    """A codec with fresh weights that do not vanish."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LearnedCodec(config).eval()


def pixels(batch: int = 2, frames: int = 8, height: int = 8, width: int = 12, *, seed: int = 0) -> Tensor:
    """Noise in [-1, 1]."""
    noise = torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return noise.mul(0.5).tanh()


def smooth_pixels(batch: int = 4, frames: int = 8, height: int = 16, width: int = 16, *, seed: int = 0) -> Tensor:
    """Colours that change slowly over place and time: what a linear codec keeps most of."""
    coarse = torch.randn(batch, 3, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear", align_corners=True)
    return fine.mul(0.4).tanh().transpose(1, 2)
