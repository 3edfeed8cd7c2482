"""What a discriminator minimises: pure functions of its scores."""

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(teacher_score_B: Tensor, student_score_B: Tensor) -> Tensor:
    """-log P(the teacher's clip is preferred to the student's), prompt by prompt (AFD Eq. 1).

    It is the relativistic GAN loss: only the difference within a pair counts, so a constant per prompt is free.
    """
    return -F.logsigmoid(teacher_score_B - student_score_B).mean()


def gan_loss(teacher_score_B: Tensor, student_score_B: Tensor) -> Tensor:
    """-log P(each clip is given to the right side), no clip compared with another; the mean of both sides.

    The logistic loss of a GAN. At its optimum the score is the log of how much likelier the teacher is.
    """
    return (F.softplus(-teacher_score_B).mean() + F.softplus(student_score_B).mean()) / 2


def nearby(clips: Tensor, *, distance: float, generator: torch.Generator) -> Tensor:
    """The clips moved by Gaussian noise of standard deviation ``distance``."""
    return clips + distance * torch.randn(clips.shape, generator=generator).to(clips)


def gradient_penalty(score_B: Tensor, nearby_score_B: Tensor, *, distance: float) -> Tensor:
    """The squared norm of the score's gradient by its input, from finite differences: no double backward.

    On the teacher's clips it is R1, on the student's R2. For small distances its expectation over the noise of
    ``nearby`` is the squared norm itself, so its weight does not depend on the distance.
    """
    return ((nearby_score_B - score_B) / distance).square().mean()
