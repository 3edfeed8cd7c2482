"""A discriminator with averaged weights, which judges more steadily than the one that learns."""

from copy import deepcopy

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """The average of the weights that learn; frozen ones are shared with the discriminator, and not saved twice."""

    turns: Tensor  # in which it followed

    def __init__(self, discriminator: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        tensors = (*discriminator.parameters(), *discriminator.buffers())
        judge = deepcopy(discriminator, {id(tensor): tensor for tensor in tensors if not tensor.requires_grad})
        learnt = dict(discriminator.named_parameters())
        for name, parameter in judge.named_parameters():
            if learnt[name].requires_grad:
                parameter.requires_grad_(False)
                shared = nn.Parameter(parameter.detach(), requires_grad=False)  # the judge's own memory
                self.register_parameter(name.replace(".", "/"), shared)
        self.register_buffer("turns", torch.zeros((), dtype=torch.int64))
        self._judge = (judge,)  # in a tuple, so that torch does not count its weights again

    @property
    def judge(self) -> nn.Module:
        """The discriminator with the averaged weights."""
        return self._judge[0]

    @torch.no_grad()
    def follow(self, discriminator: nn.Module) -> None:
        """Move towards the discriminator; the n-th call (from 0) keeps ``min(decay, (1 + n) / (10 + n))``."""
        turn = int(self.turns)
        kept = min(self.decay, (1 + turn) / (10 + turn))
        self.turns += 1
        averages = dict(self.named_parameters())
        for name, parameter in discriminator.named_parameters():
            average = averages.get(name.replace(".", "/"))
            if average is not None:
                average.lerp_(parameter, 1 - kept)
