"""An open teacher with no network: its clips are Gaussian, so its velocity and its ODE paths are known exactly."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from streamstill.types import Clip, ClipRequest
from tests.teachers.fakes import noise


def gaussian_rate(t: Tensor, spread: float) -> Tensor:
    """E[noise - clean | x_t] / x_t for independent clean values of this standard deviation."""
    return (t - (1 - t) * spread**2) / ((1 - t) ** 2 * spread**2 + t**2)


@dataclass(frozen=True)
class GaussianTeacher:
    spread: float = 0.5
    name: str = "gaussian@1"
    latent_shape: tuple[int, int, int, int] = (4, 3, 2, 2)
    asked: list[ClipRequest] = field(default_factory=list)

    def generate(self, request: ClipRequest) -> Clip:
        return noise(request)

    def latents(self, requests: Sequence[ClipRequest]) -> Tensor:
        self.asked.extend(requests)
        dice = [torch.Generator().manual_seed(request.seed) for request in requests]
        return self.spread * torch.stack([torch.randn(self.latent_shape, generator=one) for one in dice])

    def velocity(self, x_t_BFCHW: Tensor, t_B: Tensor, prompts: Sequence[str]) -> Tensor:
        assert len(prompts) == len(t_B) == len(x_t_BFCHW)
        return gaussian_rate(t_B, self.spread)[:, None, None, None, None] * x_t_BFCHW


@dataclass(frozen=True)
class Reader(GaussianTeacher):
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        return torch.stack([torch.full((2, 5), float(len(prompt))) for prompt in prompts])
