"""What a discriminator minimises, at points where the value is known."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streamstill.training.discriminators.losses import bradley_terry_loss, gan_loss, gradient_penalty, nearby
from tests.training.discriminators.parts import dice


@pytest.mark.parametrize("score", [-3.0, 0.0, 40.0])
def test_bradley_terry_of_equal_scores_is_log_2(score: float) -> None:
    equal = torch.full((5,), score, dtype=torch.float64)
    assert float(bradley_terry_loss(equal, equal)) == pytest.approx(math.log(2), abs=1e-12)


def test_bradley_terry_is_minus_the_log_of_the_chance_that_the_teacher_wins() -> None:
    teacher, student = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 3.0]).double()
    expected = -(math.log(1 / (1 + math.exp(-1))) + math.log(1 / (1 + math.exp(3)))) / 2
    assert float(bradley_terry_loss(teacher, student)) == pytest.approx(expected, abs=1e-12)


def test_bradley_terry_sees_differences_alone_and_the_gan_does_not() -> None:
    teacher, student = torch.randn(2, 6, dtype=torch.float64, generator=dice())
    constant = torch.randn(6, dtype=torch.float64, generator=dice(1))
    one, other = bradley_terry_loss(teacher, student), bradley_terry_loss(teacher + constant, student + constant)
    torch.testing.assert_close(one, other)
    assert not torch.allclose(gan_loss(teacher, student), gan_loss(teacher + constant, student + constant))


@pytest.mark.parametrize("loss", [bradley_terry_loss, gan_loss])
def test_losses_stay_finite_when_one_side_is_sure(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    far = torch.tensor([1000.0], requires_grad=True)
    value = loss(-far, far)
    value.backward()
    assert value.item() == pytest.approx(2000 if loss is bradley_terry_loss else 1000)
    assert far.grad is not None
    assert torch.isfinite(far.grad).all()


def test_the_gan_loss_of_scores_that_say_nothing_is_log_2() -> None:
    nothing = torch.zeros(4, dtype=torch.float64)
    assert float(gan_loss(nothing, nothing)) == pytest.approx(math.log(2), abs=1e-12)


def test_the_gan_loss_is_minus_the_log_of_the_chance_of_the_right_side() -> None:
    teacher, student = torch.tensor([1.0]).double(), torch.tensor([3.0]).double()
    expected = -(math.log(1 / (1 + math.exp(-1))) + math.log(1 - 1 / (1 + math.exp(-3)))) / 2
    assert float(gan_loss(teacher, student)) == pytest.approx(expected, abs=1e-12)


def test_the_gan_loss_compares_no_clip_with_another() -> None:
    teacher, student = torch.randn(2, 8, dtype=torch.float64, generator=dice())
    order = torch.randperm(8, generator=dice(1))
    torch.testing.assert_close(gan_loss(teacher, student), gan_loss(teacher, student[order]))
    assert not torch.allclose(bradley_terry_loss(teacher, student), bradley_terry_loss(teacher, student[order]))


@given(ratio=st.floats(0.05, 20.0))
def test_the_best_score_of_a_gan_is_the_log_of_the_ratio_of_the_densities(ratio: float) -> None:
    """A clip that is the teacher's ``ratio`` times as often as the student's: the loss is least at log ratio."""

    def loss(score: float) -> float:
        teacher = gan_loss(torch.tensor([score]).double(), torch.tensor([-math.inf]).double())
        student = gan_loss(torch.tensor([math.inf]).double(), torch.tensor([score]).double())
        return float(ratio * teacher + student)

    best = math.log(ratio)
    assert loss(best) <= min(loss(best - 0.1), loss(best + 0.1))


@pytest.mark.parametrize("distance", [0.01, 1.0])
def test_the_penalty_of_a_linear_score_is_its_squared_gradient_at_any_distance(distance: float) -> None:
    weight = torch.randn(12, dtype=torch.float64, generator=dice())
    clips = torch.randn(20_000, 12, dtype=torch.float64, generator=dice(1))
    moved = nearby(clips, distance=distance, generator=dice(2))
    penalty = gradient_penalty(clips @ weight, moved @ weight, distance=distance)
    assert float(penalty) == pytest.approx(float(weight.square().sum()), rel=0.03)


def test_the_penalty_of_a_curved_score_is_that_of_double_backward() -> None:
    clips = torch.randn(20_000, 6, dtype=torch.float64, generator=dice()).requires_grad_()
    score_B = clips.sin().prod(dim=1)
    (gradient,) = torch.autograd.grad(score_B.sum(), clips)
    moved_B = nearby(clips.detach(), distance=1e-3, generator=dice(1)).sin().prod(dim=1)
    penalty = gradient_penalty(score_B.detach(), moved_B, distance=1e-3)
    assert float(penalty) == pytest.approx(float(gradient.square().sum(dim=1).mean()), rel=0.05)


def test_a_score_that_is_flat_pays_nothing() -> None:
    assert float(gradient_penalty(torch.ones(3), torch.ones(3), distance=0.01)) == 0


def test_clips_are_moved_by_the_generators_noise_as_far_as_was_said() -> None:
    clips = torch.zeros(50, 8, 3, 8, 8)
    one, same, other = (nearby(clips, distance=0.2, generator=dice(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.std()) == pytest.approx(0.2, rel=0.02)
