"""The blindfold keeps a discriminator from judging by edges, and the switch shows what it would read without."""

from typing import Any

import pytest
import torch
from torch import Tensor

from streamstill.training.discriminators.blindfold import Blindfold
from streamstill.training.discriminators.losses import bradley_terry_loss
from streamstill.training.discriminators.motion import MotionDiscriminator
from streamstill.training.optim import OptimConfig, build_optimizer
from tests.training.discriminators.parts import PROMPT, checkerboard, dice, drifting, pixels

OPEN_EYES = Blindfold(blur=1, stride=1, noise=0)


def test_a_fine_checkerboard_becomes_invisible() -> None:
    assert checkerboard().abs().min() == 1
    assert Blindfold(noise=0)(checkerboard(), dice()).abs().max() < 1e-6


def test_a_slow_wave_is_let_through() -> None:
    wave = torch.linspace(-1, 1, 16).expand(1, 4, 3, 16, 16)
    seen = Blindfold(noise=0)(wave, dice())
    assert seen.shape == (1, 4, 3, 9, 9)
    assert seen[..., 1:-1].std() > 0.7 * wave.std()


def test_the_noise_is_the_generators_and_as_strong_as_it_says() -> None:
    grey = torch.zeros(2, 8, 3, 32, 32)
    one, same, other = (Blindfold(noise=0.3)(grey, dice(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.std()) == pytest.approx(0.3, rel=0.05)


def test_latents_are_noised_and_keep_their_shape() -> None:
    latents = torch.zeros(4, 4, 96, 4, 4)
    noised = Blindfold(noise=0.3).noised(latents, dice())
    assert noised.shape == latents.shape
    assert float(noised.std()) == pytest.approx(0.3, rel=0.05)


def test_open_eyes_see_every_pixel() -> None:
    assert torch.equal(OPEN_EYES(pixels(), dice()), pixels())


def test_a_gradient_flows_through_the_blindfold() -> None:
    clips = pixels().requires_grad_()
    Blindfold()(clips, dice()).sum().backward()
    assert clips.grad is not None
    assert (clips.grad > 0).all()


def accuracy(blindfold: Blindfold, teacher: Tensor, student: Tensor, unseen: tuple[Tensor, Tensor]) -> float:
    """How often a discriminator that learnt from the first two is right about the other two."""
    torch.manual_seed(0)
    discriminator, generator = MotionDiscriminator(16), dice()
    optimizer = build_optimizer(discriminator, OptimConfig(lr=3e-3))
    prompts = [PROMPT] * len(teacher)

    def scores(*sides: Tensor) -> list[Tensor]:
        return [discriminator(blindfold(side, generator), prompts) for side in sides]

    for _ in range(20):
        loss = bradley_terry_loss(*scores(teacher, student))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        teacher_B, student_B = scores(*unseen)
    return float((teacher_B > student_B).float().mean())


def test_a_difference_of_texture_alone_is_read_without_the_blindfold_and_not_with_it() -> None:
    """Both sides move alike; the student's clips have a faint checkerboard, as transposed convolutions leave it."""
    trace = 0.1 * checkerboard(frames=8)
    seen, unseen = drifting(16, step=2), (drifting(16, step=2, seed=1), drifting(16, step=2, seed=2) + trace)
    without = accuracy(OPEN_EYES, seen, drifting(16, step=2, seed=3) + trace, unseen)
    with_it = accuracy(Blindfold(), seen, drifting(16, step=2, seed=3) + trace, unseen)
    assert without == 1
    assert 0.2 <= with_it <= 0.8


def test_a_difference_of_motion_is_read_through_the_blindfold() -> None:
    unseen = (drifting(16, step=3, seed=1), drifting(16, step=0, seed=1))
    assert accuracy(Blindfold(), drifting(16, step=3), drifting(16, step=0), unseen) >= 0.9


@pytest.mark.parametrize(
    ("changes", "said"), [({"blur": 0}, "blur"), ({"stride": 0}, "stride"), ({"noise": -1.0}, "noise")]
)
def test_an_impossible_blindfold_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Blindfold(**changes)
