"""A discriminator that sees where the moving part of a picture is, and nothing of how it looks.

What differs from the clip's own background has a centre of mass in every frame; that track is all that is judged.
Nothing before the track is learned: maps that learn attend to looks, because looks tell teacher and student apart
sooner than motion does (docs/log.md). For a camera that stands still; ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.config import require_positive
from streamstill.training.discriminators.discriminator import require_clips
from streamstill.training.discriminators.head import WORDS, PromptHead

KERNEL = 3
EMPTY = 1e-5  # mass of every pixel, so that a picture in which nothing moves has its centre in the middle
SPANS = (1, 2)  # frames between which changes are seen: over two frames an acceleration has less jitter
CHANGE = 5.0  # velocities and accelerations are small beside places


@dataclass(frozen=True, kw_only=True)
class CentroidConfig:
    """What counts as moving, and how many features judge the track."""

    kind: Literal["centroid"] = "centroid"
    threshold: float = 0.15  # of the sum over colours of |pixel - background|; the blindfold's noise stays below it
    features: int = 32

    def __post_init__(self) -> None:
        require_positive(self, "features")
        if not self.threshold >= 0:
            raise ValueError(f"threshold must not be negative, got {self.threshold}; pixels lie between -1 and 1")


class CentroidDiscriminator(nn.Module):
    """Places, velocities and accelerations of the centre of what moves, judged by two causal convolutions in time."""

    sees: Literal["pixels"] = "pixels"

    def __init__(
        self, features: int = 32, *, threshold: float = 0.15, in_channels: int = 3, words: int = WORDS
    ) -> None:
        super().__init__()
        self.in_channels, self.threshold = in_channels, threshold
        seen = 2 * 2 * (1 + 2 * len(SPANS))  # x and y, as they are and squared; place, and changes over each span
        self.motion = nn.ModuleList([nn.Conv1d(seen, features, KERNEL), nn.Conv1d(features, features, KERNEL)])
        self.head = PromptHead(features, 32, words=words)

    def forward(self, clips_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """``score_B``: the mean over the clip's frames, each judged with its past."""
        require_clips(clips_BFCHW, prompts, channels=self.in_channels)
        x_BDF = motion_of(self.track(clips_BFCHW)).transpose(1, 2)
        for convolution in self.motion:
            x_BDF = F.silu(convolution(F.pad(x_BDF, (KERNEL - 1, 0))))
        return self.head(x_BDF.transpose(1, 2), prompts).mean(dim=1)

    def track(self, clips_BFCHW: Tensor) -> Tensor:
        """``place_BF2``, x and y of the moving part in each frame; the picture reaches from -1 to 1."""
        apart_BFHW = (clips_BFCHW - background_of(clips_BFCHW)).abs().sum(dim=2)
        mass = F.relu(apart_BFHW - self.threshold).square() + EMPTY
        mass_BFHW = mass / mass.sum(dim=(2, 3), keepdim=True)
        return torch.stack([_centre(mass_BFHW.sum(dim=2)), _centre(mass_BFHW.sum(dim=3))], dim=-1)


def background_of(clips_BFCHW: Tensor) -> Tensor:
    """``background_B1CHW``: of each pixel's values over time the one nearest to the clip's median colour.

    The median of a pixel's own values is the body itself where a body stays or comes back for most of the time.
    """
    usual_BC = clips_BFCHW.transpose(1, 2).flatten(2).median(dim=-1).values
    apart_BFHW = (clips_BFCHW - usual_BC[:, None, :, None, None]).abs().sum(dim=2)
    emptiest_B11HW = apart_BFHW.argmin(dim=1, keepdim=True).unsqueeze(2)
    return clips_BFCHW.gather(1, emptiest_B11HW.expand(-1, -1, clips_BFCHW.shape[2], -1, -1))


def motion_of(place_BF2: Tensor) -> Tensor:
    """The place, its changes and their changes over every span, then all of these squared; zero without a past."""
    seen = [place_BF2]
    for span in SPANS:
        velocity = _change(place_BF2, span, first=span) / span
        seen += [CHANGE * velocity, CHANGE * _change(velocity, span, first=2 * span)]
    moved = torch.cat(seen, dim=-1)
    return torch.cat([moved, moved.square()], dim=-1)


def _change(x_BFD: Tensor, span: int, *, first: int) -> Tensor:
    """Each frame minus the one ``span`` before it; the first ``first`` are zero, also where there is nothing else."""
    change = x_BFD[:, first:] - x_BFD[:, first - span : -span]
    return F.pad(change, (0, 0, x_BFD.shape[1] - change.shape[1], 0))


def _centre(mass_BFS: Tensor) -> Tensor:
    places_S = torch.linspace(-1, 1, mass_BFS.shape[-1], device=mass_BFS.device, dtype=mass_BFS.dtype)
    return (mass_BFS * places_S).sum(dim=-1)
