"""Guidance on fields whose answer is known."""

import math

import pytest
import torch
from torch import Tensor

from streamstill.flow.guidance import guided
from streamstill.flow.samplers import VelocityFn, euler
from streamstill.flow.times import sampler_times


def linear(slope: float, calls: list[float]) -> VelocityFn:
    """velocity = slope * x + t; notes every call."""

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t))
        return slope * x_t + t

    return velocity


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 2.0, 7.5])
def test_the_difference_that_the_prompt_makes_is_scaled(scale: float) -> None:
    x_t = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.25, dtype=torch.float64)
    velocity = guided(linear(3.0, []), linear(1.0, []), scale)(x_t, t)
    torch.testing.assert_close(velocity, (1 + scale * 2) * x_t + t)


def test_scale_one_is_the_velocity_itself_and_never_asks_the_other() -> None:
    with_prompt: list[float] = []
    without: list[float] = []
    velocity = guided(linear(3.0, with_prompt), linear(1.0, without), 1.0)
    x_t, t = torch.randn(4), torch.tensor(0.7)
    assert torch.equal(velocity(x_t, t), linear(3.0, [])(x_t, t))
    assert (len(with_prompt), len(without)) == (1, 0)


def test_every_other_scale_asks_both_once_a_step() -> None:
    with_prompt: list[float] = []
    without: list[float] = []
    velocity = guided(linear(0.0, with_prompt), linear(0.0, without), 3.0)
    euler(velocity, torch.zeros(2), sampler_times(5, shift=1.0))
    assert with_prompt == without
    assert len(with_prompt) == 5


def test_where_the_prompt_makes_no_difference_guidance_makes_none() -> None:
    x_t, t = torch.randn(4), torch.tensor(0.7)
    velocity = guided(linear(2.0, []), linear(2.0, []), 9.0)
    assert torch.equal(velocity(x_t, t), linear(2.0, [])(x_t, t))


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_no_number_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"guidance must be a finite number, got (nan|inf); 1 is none"):
        guided(linear(1.0, []), linear(1.0, []), scale)
