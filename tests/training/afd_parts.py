"""AFD on a tiny student, with judges whose opinion is known."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from streamstill.student.network import Network
from streamstill.testing import tiny_student
from streamstill.training.batches import PromptGroup, prompt_batches
from streamstill.training.discriminators.blindfold import Blindfold
from streamstill.training.discriminators.motion import MotionDiscriminator
from streamstill.training.objectives.adversary import AdversaryConfig
from streamstill.training.objectives.afd import AdversarialFlowDistillation, AfdConfig
from streamstill.training.optim import OptimConfig
from tests.training.clips import examples

ROLLOUTS = 4
ADVERSARY = AdversaryConfig(
    optim=OptimConfig(lr=1e-3), steps_per_turn=2, rollouts_per_prompt=ROLLOUTS, blindfold=Blindfold()
)
CONFIG = AfdConfig(optim=OptimConfig(lr=1e-3), adversary=ADVERSARY, micro_batch=3)
BY_HEART = OptimConfig(lr=1e-9)  # a judge that has nothing to learn


class Brightness(nn.Module):
    """Likes clips by how near their mean brightness is to a target; prompts count for nothing."""

    def __init__(self, target: float) -> None:
        super().__init__()
        self.target = target
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, pixels_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.bias - (pixels_BFCHW.mean((1, 2, 3, 4)) - self.target).abs()


class Indifferent(nn.Module):
    """Likes all clips the same."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, pixels_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.bias + torch.zeros(len(prompts))


def afd(judge: nn.Module | None = None, **changes: Any) -> AdversarialFlowDistillation:
    """The objective on a fresh tiny student; without a judge, the real discriminator."""
    torch.manual_seed(1)
    return AdversarialFlowDistillation(tiny_student(), judge or MotionDiscriminator(16), replace(CONFIG, **changes))


def lagged(objective: AdversarialFlowDistillation) -> Network:
    """The copy that lags behind the student."""
    with objective.policies.old() as network:
        return network


def group(step: int = 0) -> PromptGroup:
    """Two prompts with two of the teacher's answers each."""
    return prompt_batches(examples(), prompts=2, answers=2, seed=0)(step)


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def disturb(network: nn.Module, seed: int, scale: float = 0.05) -> None:
    """Move the weights a little, so that two copies differ."""
    generator = dice(seed)
    for parameter in network.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def weights(module: nn.Module) -> Tensor:
    """All parameters in one vector, copied."""
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])
