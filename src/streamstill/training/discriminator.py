"""Who tells teacher from student: a prompt-conditioned score of a clip, and what it may look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.codec.text import WordEncoder, WordEncoderConfig


class Discriminator(Protocol):
    """A score per clip; only differences between clips of one prompt mean anything."""

    def __call__(self, pixels_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """``score_B``: higher looks more like the teacher."""
        ...


@dataclass(frozen=True, kw_only=True)
class Blindfold:
    """What the discriminator must not judge by: fine edges are averaged away, the rest drowns in noise.

    Without it a discriminator is always right within a few updates: it reads sharpness, not motion (design.md).
    """

    blur: int = 4  # side of the averaged square, pixels
    stride: int = 2  # pixels
    noise: float = 0.15  # standard deviation; pixels lie in [-1, 1]

    def __call__(self, pixels_BFCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Low-passed, subsampled, noised pixels."""
        flat = F.avg_pool2d(pixels_BFCHW.flatten(0, 1), self.blur, self.stride, padding=self.blur // 2)
        seen = flat.unflatten(0, pixels_BFCHW.shape[:2])
        noise = torch.randn(seen.shape, generator=generator)
        return seen + self.noise * noise.to(seen)


class MotionDiscriminator(nn.Module):
    """A small spatio-temporal network from scratch: 3-D convolutions over frames and their differences.

    The score is a projection: ``w . f(clip) + e(prompt) . f(clip)``, so it asks whether the clip fits its prompt.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = (6, width, 2 * width, 3 * width)
        strides = ((1, 2, 2), (2, 2, 2), (2, 1, 1))
        self.convolutions = nn.ModuleList(
            nn.Conv3d(a, b, 3, stride=s, padding=1) for a, b, s in zip(sizes[:-1], sizes[1:], strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for b in sizes[1:])
        features = 2 * sizes[-1]
        self.text = WordEncoder(WordEncoderConfig(width=width))
        self.prompt = nn.Linear(width, features)
        self.score = nn.Linear(features, 1)

    def forward(self, pixels_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """``score_B`` of what the blindfold let through."""
        x_BCFHW = torch.cat([pixels_BFCHW, _differences(pixels_BFCHW)], dim=2).transpose(1, 2)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x_BCFHW = F.silu(norm(convolution(x_BCFHW)))
        features_BD = torch.cat([x_BCFHW.mean((2, 3, 4)), x_BCFHW.amax((2, 3, 4))], dim=1)
        wanted_BD = self.prompt(self.text.encode(prompts).mean(dim=1))
        return self.score(features_BD)[:, 0] + (features_BD * wanted_BD).sum(dim=1) / wanted_BD.shape[1] ** 0.5


def build_discriminator(*, seed: int) -> MotionDiscriminator:
    """A discriminator with fresh weights; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MotionDiscriminator()


def bradley_terry_loss(teacher_score_B: Tensor, student_score_B: Tensor) -> Tensor:
    """-log P(the teacher's clip is preferred to the student's), prompt by prompt (AFD Eq. 1)."""
    return -F.logsigmoid(teacher_score_B - student_score_B).mean()


def _differences(pixels_BFCHW: Tensor) -> Tensor:
    """Each frame minus the one before it; zero for the first."""
    change = pixels_BFCHW[:, 1:] - pixels_BFCHW[:, :-1]
    return torch.cat([torch.zeros_like(pixels_BFCHW[:, :1]), change], dim=1)
