"""Averaged weights that judge: they follow what learns and share what is frozen."""

import numpy as np
import pytest
import torch
from torch import nn

from streamstill.training.discriminators.average import Average
from streamstill.training.discriminators.motion import MotionDiscriminator
from tests.training.discriminators.parts import PROMPT, pixels


def frozen_and_learning() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    module[0].requires_grad_(False)
    return module


@torch.no_grad()
def fill(module: nn.Module, value: float) -> None:
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.fill_(value)


def test_the_first_turns_follow_the_warm_up_and_later_ones_the_decay() -> None:
    module = frozen_and_learning()
    fill(module, 0.0)
    average = Average(module, decay=0.5)
    fill(module, 1.0)
    seen = []
    for _ in range(12):
        average.follow(module)
        seen.append(float(average.judge.get_parameter("1.weight").flatten()[0]))
    left = np.cumprod([min(0.5, (1 + turn) / (10 + turn)) for turn in range(12)])
    assert seen == pytest.approx(list(1 - left))


def test_it_begins_as_the_discriminator_and_does_not_learn() -> None:
    torch.manual_seed(0)
    discriminator = MotionDiscriminator(16)
    average = Average(discriminator, decay=0.9)
    assert torch.equal(average.judge(pixels(), [PROMPT] * 2), discriminator(pixels(), [PROMPT] * 2))
    assert not any(parameter.requires_grad for parameter in average.judge.parameters())
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
    fill(discriminator, 0.01)
    assert not torch.allclose(average.judge(pixels(), [PROMPT] * 2), discriminator(pixels(), [PROMPT] * 2))


def test_frozen_weights_are_shared_and_not_saved() -> None:
    module = frozen_and_learning()
    average = Average(module, decay=0.9)
    assert average.judge.get_parameter("0.weight") is module.get_parameter("0.weight")
    assert average.judge.get_parameter("1.weight") is not module.get_parameter("1.weight")
    assert set(average.state_dict()) == {"1/weight", "1/bias", "turns"}


def test_what_is_restored_judges() -> None:
    module = frozen_and_learning()
    before, after = Average(module, decay=0.9), Average(module, decay=0.9)
    fill(module, 2.0)
    before.follow(module)
    after.load_state_dict(before.state_dict())
    x = torch.ones(2, 3)
    assert torch.equal(after.judge(x), before.judge(x))


@pytest.mark.parametrize("decay", [0.0, 0.99])
def test_a_discriminator_that_rests_is_its_own_average(decay: float) -> None:
    module = frozen_and_learning()
    average, x = Average(module, decay=decay), torch.ones(2, 3)
    for _ in range(5):
        average.follow(module)
    assert torch.equal(average.judge(x), module(x))
