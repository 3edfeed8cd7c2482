"""Examples for a tiny student: clean latents that differ by prompt, made without any teacher."""

import torch
from torch import Tensor

from streamstill.testing import tiny_student
from streamstill.training.batches import Examples

PROMPTS = ("a red ball is dropped", "a blue ball is thrown to the left", "a green box falls down")
F, C, H, W = tiny_student().latent_shape


def latents(count: int, seed: int = 0) -> Tensor:
    """Smooth values in [-1, 1]."""
    noise = torch.randn(count, F, C, H, W, generator=torch.Generator().manual_seed(seed))
    return (noise * 0.3).tanh()


def examples(answers: int = 2) -> Examples:
    """``answers`` clips for each of the prompts."""
    prompts = tuple(prompt for prompt in PROMPTS for _ in range(answers))
    return Examples(latents(len(prompts)), prompts)
