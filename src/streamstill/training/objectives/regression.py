"""Regression of a velocity on clean clips: the loss, its weights by time, and prompts that are hidden."""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamstill.flow.path import clean_from_velocity, expand_time, noised, velocity_between
from streamstill.student.student import Student
from streamstill.training.objectives.objective import Loss


def require_full_weight_from(time: float) -> None:
    """For the ``__post_init__`` of a config: the time below which an error of the clean estimate weighs no more.

    Raises:
        ValueError: it is no time in (0, 1].
    """
    if not 0 < time <= 1:
        raise ValueError(f"full_weight_from is a time in (0, 1], got {time}; the default is 0.05")


def require_dropout(share: float) -> None:
    """For the ``__post_init__`` of a config: the share of clips whose prompt is hidden.

    Raises:
        ValueError: it does not lie in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"prompt_dropout is a share in [0, 1), got {share}; 0 hides no prompt")


def velocity_error(velocity: Tensor, clean: Tensor, noise: Tensor, t: Tensor, *, full_weight_from: float) -> Tensor:
    """``error_B``: mean squared error of a velocity on the path from clean to noise, at a time per clip or frame.

    Times below ``full_weight_from`` weigh an error of the clean estimate as it does.
    """
    error = velocity.float() - velocity_between(clean, noise)
    error = error * expand_time((t / full_weight_from).clamp_max(1), error)
    return error.square().mean(tuple(range(1, error.ndim)))


def velocity_loss(velocity: Tensor, clean: Tensor, noise: Tensor, t: Tensor, *, full_weight_from: float) -> Loss:
    """The mean ``velocity_error`` of a batch; also logs the error of the clean estimate."""
    error_B = velocity_error(velocity, clean, noise, t, full_weight_from=full_weight_from)
    estimate = clean_from_velocity(noised(clean, noise, t), velocity.detach().float(), t)
    return Loss(error_B.mean(), {"clean_mse": (estimate - clean).square().mean()})


def shown_text(student: Student, prompts: Sequence[str], hidden_B: Tensor | None) -> Tensor:
    """``text_BLD`` of the prompts, and of no prompt where they are hidden."""
    text_BLD = student.encode_prompts(prompts)
    if hidden_B is None:
        return text_BLD
    return torch.where(hidden_B[:, None, None], student.encode_nothing(len(text_BLD)), text_BLD)
