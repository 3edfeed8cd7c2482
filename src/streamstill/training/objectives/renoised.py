"""Own rollouts on their way to noise: what AFD and reward-weighted flow matching learn from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from streamstill.flow.path import noised
from streamstill.flow.times import Sampling, random_levels
from streamstill.training.batches import pieces
from streamstill.training.objectives.adversary import Round


@dataclass(frozen=True, eq=False)
class Renoised:
    """Rollouts with what each is worth, noised once for every chunk.

    ``worth_BC`` is a reward or a weight: one column for whole rollouts, or as many as there are parts with their own.
    """

    rollouts_BFCHW: Tensor
    noise_BFCHW: Tensor
    t_BK: Tensor
    worth_BC: Tensor
    prompts: tuple[str, ...]

    @property
    def t_BF(self) -> Tensor:
        """The time of every frame."""
        frames, chunks = self.rollouts_BFCHW.shape[1], self.t_BK.shape[1]
        return self.t_BK.repeat_interleave(frames // chunks, dim=1)

    @property
    def x_t(self) -> Tensor:
        """The rollouts, each chunk at its own time."""
        return noised(self.rollouts_BFCHW, self.noise_BFCHW, self.t_BF)


def renoised(
    turn: Round,
    worth_BC: Tensor,
    *,
    sampling: Sampling,
    chunk_frames: int,
    micro_batch: int,
    generator: torch.Generator,
) -> list[Renoised]:
    """The turn's rollouts at the sampler's own noise levels, cut into micro batches in random order."""
    rollouts, prompts = turn.rollouts_PKFCHW.flatten(0, 1), turn.prompts
    noise = torch.randn(rollouts.shape, generator=generator).to(rollouts)
    levels = (len(prompts), rollouts.shape[1] // chunk_frames)
    t_BK = random_levels(levels, steps=sampling.steps, shift=sampling.shift, generator=generator).to(rollouts)
    order = torch.randperm(len(prompts), generator=generator)
    parts = [order[rows] for rows in pieces(len(prompts), micro_batch)]
    return [
        Renoised(rollouts[rows], noise[rows], t_BK[rows], worth_BC[rows], tuple(prompts[i] for i in rows.tolist()))
        for rows in parts
    ]
