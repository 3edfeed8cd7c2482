"""A discriminator that sees where things are and nothing of how they look: learnt points, and their motion.

A few convolutions turn each frame into non-negative maps; of every map only its centre of mass is passed on. What is
judged is the points' places, velocities and accelerations, locally in time, so that every chunk has a score of its own.
After the spatial soft-argmax of Finn et al., "Deep Spatial Autoencoders" (arXiv 1509.06113); as a discriminator, ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.config import require_positive
from streamstill.training.discriminators.discriminator import require_clips, require_whole_chunks
from streamstill.training.discriminators.head import PromptHead

MAP_WIDTH = 16  # features before the maps
KERNEL = 3
EMPTY = 1e-4  # mass of every cell, so that an empty map has its centre in the middle
CHANGE = 5.0  # velocities and accelerations are small beside places


@dataclass(frozen=True, kw_only=True)
class KeypointConfig:
    """How many points are followed, and how many features judge their motion."""

    kind: Literal["keypoints"] = "keypoints"
    points: int = 4
    hidden: int = 64

    def __post_init__(self) -> None:
        require_positive(self, "points", "hidden")


class KeypointDiscriminator(nn.Module):
    """Points of a frame by two convolutions and a centre of mass, their motion by two causal convolutions in time.

    Sub-pixel motion passes, edges and textures do not: a map's centre stays where it is when the map is scaled. What
    the points can still tell of looks, for example a body's size, an augmentation with random blur hides.
    """

    per_chunk = True
    sees: Literal["pixels"] = "pixels"

    def __init__(self, points: int = 4, hidden: int = 64, *, in_channels: int = 3) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.maps = nn.Sequential(
            nn.Conv2d(in_channels, MAP_WIDTH, KERNEL, padding=1),
            nn.SiLU(),
            nn.Conv2d(MAP_WIDTH, points, KERNEL, padding=1),
        )
        seen = 2 * 3 * 2 * points  # as they are and squared; places, velocities, accelerations; x and y
        self.motion = nn.ModuleList([nn.Conv1d(seen, hidden, KERNEL), nn.Conv1d(hidden, hidden, KERNEL)])
        self.head = PromptHead(hidden, 32)

    def forward(self, clips_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """``score_B``: the mean over the clip's frames."""
        return self.chunk_scores(clips_BFCHW, prompts, chunks=1)[:, 0]

    def chunk_scores(self, clips_BFCHW: Tensor, prompts: Sequence[str], *, chunks: int) -> Tensor:
        """``score_BK`` of the ``chunks`` equal parts of each clip: means of the scores of frames and their past.

        Raises:
            ValueError: the clips do not fit, or cannot be cut into so many equal chunks.
        """
        require_clips(clips_BFCHW, prompts, channels=self.in_channels)
        frames = require_whole_chunks(clips_BFCHW.shape[1], chunks)
        x_BDF = motion_of(self.points(clips_BFCHW)).transpose(1, 2)
        for convolution in self.motion:
            x_BDF = F.silu(convolution(F.pad(x_BDF, (KERNEL - 1, 0))))
        return self.head(x_BDF.transpose(1, 2), prompts).unflatten(1, (chunks, frames)).mean(dim=2)

    def points(self, clips_BFCHW: Tensor) -> Tensor:
        """``points_BFD``, x and y of each point in each frame; the picture reaches from -1 to 1."""
        maps = F.relu(self.maps(clips_BFCHW.flatten(0, 1))).square() + EMPTY
        mass_NPHW = maps / maps.sum(dim=(2, 3), keepdim=True)
        (y_NP, x_NP) = (_centre(mass_NPHW.sum(dim=axis)) for axis in (3, 2))
        return torch.cat([x_NP, y_NP], dim=1).unflatten(0, clips_BFCHW.shape[:2])


def motion_of(points_BFD: Tensor) -> Tensor:
    """Places, velocities and accelerations, and their squares, in the last axis; zero where the past is missing."""
    velocity = _change(points_BFD, first=1)
    acceleration = _change(velocity, first=2)
    seen = torch.cat([points_BFD, CHANGE * velocity, CHANGE * acceleration], dim=-1)
    return torch.cat([seen, seen.square()], dim=-1)


def _change(x_BFD: Tensor, *, first: int) -> Tensor:
    """Each frame minus the one before it; the first ``first`` are zero, also where there is nothing else."""
    change = x_BFD[:, first:] - x_BFD[:, first - 1 : -1]
    return F.pad(change, (0, 0, x_BFD.shape[1] - change.shape[1], 0))


def _centre(mass_NPS: Tensor) -> Tensor:
    places_S = torch.linspace(-1, 1, mass_NPS.shape[-1], device=mass_NPS.device, dtype=mass_NPS.dtype)
    return (mass_NPS * places_S).sum(dim=-1)
