"""Regression of a velocity on clean clips: the loss, its weights by time, and prompts that are hidden."""

from collections.abc import Sequence

import torch
from torch import Tensor

from streamstill.flow.path import expand_time, velocity_between
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
    """``error_B`` of a velocity on the path from clean to noise, at a time per clip or frame."""
    return weighed_error(velocity, velocity_between(clean, noise), t, full_weight_from=full_weight_from)


def weighed_error(velocity: Tensor, target: Tensor, t: Tensor, *, full_weight_from: float) -> Tensor:
    """``error_B``: mean squared error to a target velocity.

    Times below ``full_weight_from`` weigh an error of the clean estimate as it does.
    """
    error = velocity.float() - target
    error = error * expand_time((t / full_weight_from).clamp_max(1), error)
    return error.square().mean(tuple(range(1, error.ndim)))


def velocity_loss(velocity: Tensor, clean: Tensor, noise: Tensor, t: Tensor, *, full_weight_from: float) -> Loss:
    """The mean ``velocity_error`` of a batch on the path from clean to noise; also logs that of the clean estimate."""
    target = velocity_between(clean, noise)
    error_B = weighed_error(velocity, target, t, full_weight_from=full_weight_from)
    clean_error = expand_time(t, target) * (velocity.detach().float() - target)
    return Loss(error_B.mean(), {"clean_mse": clean_error.square().mean()})


def shown_text(student: Student, prompts: Sequence[str], hidden_B: Tensor | None) -> Tensor:
    """``text_BLD`` of the prompts, and of no prompt where they are hidden."""
    text_BLD = student.encode_prompts(prompts)
    if hidden_B is None:
        return text_BLD
    return torch.where(hidden_B[:, None, None], student.encode_nothing(len(text_BLD)), text_BLD)
