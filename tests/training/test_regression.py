"""The velocity regression is right for mistakes that are known, and hides the prompts that it is told to."""

import pytest
import torch
from torch import Tensor

from streamstill.flow.path import velocity_between
from streamstill.testing import tiny_student
from streamstill.training.objectives.regression import (
    require_dropout,
    require_full_weight_from,
    shown_text,
    velocity_error,
    velocity_loss,
)
from tests.training.afd_parts import dice


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=dice(seed), dtype=torch.float64)


@pytest.mark.parametrize("axes", [1, 2])
def test_the_velocity_error_is_known_for_a_known_mistake(axes: int) -> None:
    """A velocity that is wrong by c everywhere errs by c^2, and below the full weight by (c t / t_full)^2."""
    clean, noise = normal(3, 4, 2, seed=0).float(), normal(3, 4, 2, seed=1).float()
    t = torch.tensor([0.05, 0.4, 1.0])
    wrong = velocity_between(clean, noise) + torch.tensor([2.0, 3.0, 1.0])[:, None, None]
    times = t if axes == 1 else t[:, None].expand(3, 4)
    error_B = velocity_error(wrong, clean, noise, times, full_weight_from=0.2)
    torch.testing.assert_close(error_B, torch.tensor([(2 * 0.25) ** 2, 9.0, 1.0]), rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_mean_error_and_logs_that_of_the_clean_estimate() -> None:
    """A velocity that is wrong by c is a clean estimate that is wrong by c t."""
    clean, noise = normal(2, 4, 3, seed=0).float(), normal(2, 4, 3, seed=1).float()
    t = torch.tensor([0.5, 1.0])
    wrong = velocity_between(clean, noise) + torch.tensor([2.0, 3.0])[:, None, None]
    loss = velocity_loss(wrong, clean, noise, t, full_weight_from=0.05)
    torch.testing.assert_close(loss.value, torch.tensor((4.0 + 9.0) / 2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.metrics["clean_mse"], torch.tensor((1.0 + 9.0) / 2), rtol=1e-5, atol=1e-5)


def test_hidden_prompts_read_as_no_prompt_and_the_others_as_they_are() -> None:
    student = tiny_student()
    prompts = ("A red ball drops.", "A blue ball drops.")
    said_BLD, nothing_BLD = student.encode_prompts(prompts), student.encode_nothing(2)
    text_BLD = shown_text(student, prompts, torch.tensor([True, False]))
    assert torch.equal(text_BLD[0], nothing_BLD[0])
    assert torch.equal(text_BLD[1], said_BLD[1])
    assert not torch.equal(said_BLD[0], nothing_BLD[0])
    assert torch.equal(shown_text(student, prompts, None), said_BLD)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_of_hidden_prompts_beyond_its_bounds_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share in"):
        require_dropout(share)


@pytest.mark.parametrize("time", [0.0, 1.5])
def test_a_time_of_full_weight_beyond_its_bounds_is_refused(time: float) -> None:
    with pytest.raises(ValueError, match="a time in"):
        require_full_weight_from(time)
