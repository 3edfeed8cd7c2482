"""AFD's equations by themselves (afd.md 2.1-2.3), in float64."""

import pytest
import torch
from torch import Tensor

from streamstill.flow.path import clean_from_velocity
from streamstill.training.objectives.afd import advantages, negative_aware_error, rewards

SHAPE = (4, 5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reward_of(score_PK: Tensor) -> Tensor:
    return rewards(advantages(score_PK), clip=5.0, slope=0.1)


def gradient(reward: float, *, beta: float, normaliser: str | None = None, step: float = 0.0) -> tuple[Tensor, Tensor]:
    """The gradient at ``old + step * (target - old)``, and the way from old to the target."""
    old, target = normal(*SHAPE), normal(*SHAPE, seed=1)
    new = (old + step * (target - old)).requires_grad_()
    reward_B = torch.full(SHAPE[:1], reward, dtype=torch.float64)
    error_B = negative_aware_error(new, old, target, reward_B, beta=beta, normaliser=normaliser)
    (result,) = torch.autograd.grad(error_B.sum(), new)
    return result, target - old


@pytest.mark.parametrize("normaliser", [None, "lagged", "own"])
@pytest.mark.parametrize("beta", [0.25, 1.0, 2.0])
def test_reward_one_half_gives_exactly_no_gradient_at_the_old_estimate(beta: float, normaliser: str | None) -> None:
    result, _ = gradient(0.5, beta=beta, normaliser=normaliser)
    assert result.abs().max() < 1e-15


@pytest.mark.parametrize("normaliser", [None, "lagged", "own"])
@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize(("reward", "direction"), [(1.0, 1), (0.7, 1), (0.3, -1), (0.0, -1)])
def test_the_reward_decides_the_direction(reward: float, direction: int, beta: float, normaliser: str | None) -> None:
    result, way = gradient(reward, beta=beta, normaliser=normaliser)
    steps_B = -(result * way).sum(dim=1)
    assert (torch.sign(steps_B) == direction).all()


@pytest.mark.parametrize("reward", [0.0, 0.2, 0.9, 1.0])
def test_the_first_step_is_in_proportion_to_the_reward_above_one_half_whatever_beta(reward: float) -> None:
    """d/dv at the old estimate is -2 (2r - 1) (target - old) per dimension."""
    for beta in (0.1, 1.0, 3.0):
        result, way = gradient(reward, beta=beta)
        torch.testing.assert_close(result, -2 * (2 * reward - 1) * way / SHAPE[1])


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
def test_the_minimiser_is_the_closed_form(beta: float) -> None:
    """afd.md 2.3: v - v_old = (1 / beta) E[(2r - 1) u | x_t] with u the target minus v_old."""
    samples, width = 400, 6
    old, target = normal(width), normal(samples, width, seed=1)
    reward_B = torch.rand(samples, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    closed = old + ((2 * reward_B - 1)[:, None] * (target - old)).mean(0) / beta

    def loss(v: Tensor) -> Tensor:
        each = v.expand(samples, width), old.expand(samples, width)
        return negative_aware_error(*each, target, reward_B, beta=beta).mean()

    at = closed.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(at), at)
    assert slope.abs().max() < 1e-12
    for seed in range(3):
        assert loss(closed + 0.01 * normal(width, seed=10 + seed)) > loss(closed)


def test_the_minimiser_splits_into_covariance_and_drift() -> None:
    """The same, as (2 / beta) Cov(r, u) + ((2 E[r] - 1) / beta) E[u]: a mean reward of 1/2 leaves no drift."""
    u, reward_B = normal(300, 3) + 4, torch.rand(300, generator=torch.Generator().manual_seed(2)).double()
    reward_B = reward_B - reward_B.mean() + 0.5
    covariance = ((reward_B - reward_B.mean())[:, None] * (u - u.mean(0))).mean(0)
    torch.testing.assert_close(((2 * reward_B - 1)[:, None] * u).mean(0), 2 * covariance)


def test_clean_estimates_weigh_the_velocity_errors_by_the_square_of_the_time() -> None:
    """The mix of Eq. 4 commutes with the jump from a velocity to its clean estimate."""
    x_t, v, old, target_v = (normal(*SHAPE, seed=seed) for seed in range(4))
    t_B, reward_B = torch.rand(2, SHAPE[0], generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def error_B(new: Tensor, before: Tensor, target: Tensor) -> Tensor:
        return negative_aware_error(new, before, target, reward_B, beta=0.4)

    clean, clean_old, clean_target = (clean_from_velocity(x_t, velocity, t_B) for velocity in (v, old, target_v))
    torch.testing.assert_close(error_B(clean, clean_old, clean_target), t_B.square() * error_B(v, old, target_v))


def test_each_side_may_be_divided_by_its_own_size_without_a_gradient_through_it() -> None:
    new, old, target = normal(*SHAPE).requires_grad_(), normal(*SHAPE, seed=1), normal(*SHAPE, seed=2)
    good_B = torch.ones(SHAPE[0], dtype=torch.float64)
    plain_B = negative_aware_error(new, old, target, good_B, beta=1.0)
    normal_B = negative_aware_error(new, old, target, good_B, beta=1.0, normaliser="own")
    size_B = (new - target).detach().abs().mean(1)
    torch.testing.assert_close(normal_B, plain_B / size_B)
    slopes = [torch.autograd.grad(error.sum(), new)[0] for error in (plain_B, normal_B)]
    torch.testing.assert_close(slopes[1], slopes[0] / size_B[:, None])


def test_the_lagged_estimates_size_divides_both_sides_alike() -> None:
    new, old, target = normal(*SHAPE), normal(*SHAPE, seed=1), normal(*SHAPE, seed=2)
    reward_B = torch.linspace(0, 1, SHAPE[0], dtype=torch.float64)
    plain_B, normal_B = (
        negative_aware_error(new, old, target, reward_B, beta=0.7, normaliser=how) for how in (None, "lagged")
    )
    torch.testing.assert_close(normal_B, plain_B / (old - target).abs().mean(1))


def descended(reward: float, normaliser: str | None) -> float:
    """Where gradient descent ends, in units of the way from old to the target."""
    old, target = torch.zeros(1, 8, dtype=torch.float64), normal(1, 8)
    new, reward_B = old.clone().requires_grad_(), torch.tensor([reward], dtype=torch.float64)
    optimiser = torch.optim.SGD([new], lr=0.2)
    for _ in range(400):
        optimiser.zero_grad()
        negative_aware_error(new, old, target, reward_B, beta=1.0, normaliser=normaliser).sum().backward()
        optimiser.step()
    return float((new.detach() / target).mean())


@pytest.mark.parametrize("reward", [0.55, 0.75, 0.4])
def test_only_what_divides_both_sides_alike_leaves_the_least_where_it_is(reward: float) -> None:
    """With each side's own size nothing holds the estimate back, however small the reward."""
    assert descended(reward, None) == pytest.approx(2 * reward - 1, abs=1e-3)
    assert descended(reward, "lagged") == pytest.approx(2 * reward - 1, abs=1e-3)
    assert abs(descended(reward, "own")) > 0.8


@pytest.mark.parametrize("normaliser", ["lagged", "own"])
def test_a_perfect_estimate_is_not_divided_by_zero(normaliser: str) -> None:
    here, reward_B = normal(*SHAPE), torch.ones(SHAPE[0], dtype=torch.float64)
    assert negative_aware_error(here, here, here, reward_B, beta=1.0, normaliser=normaliser).abs().max() == 0


def test_a_constant_per_prompt_changes_no_advantage() -> None:
    score_PK, constant_P1 = normal(3, 6), torch.tensor([[-7.0], [0.0], [1e3]]).double()
    torch.testing.assert_close(advantages(score_PK + constant_P1), advantages(score_PK))


def test_advantages_keep_the_order_within_a_prompt_and_have_one_global_spread() -> None:
    score_PK = normal(3, 6) * torch.tensor([[0.1], [1.0], [10.0]]).double()
    advantage_PK = advantages(score_PK)
    assert torch.equal(advantage_PK.argsort(1), score_PK.argsort(1))
    assert float(advantage_PK.square().mean()) == pytest.approx(1, abs=1e-3)
    spreads_P = advantage_PK.std(1)
    assert spreads_P[0] < 0.2 * spreads_P[1] < 0.04 * spreads_P[2] * 2


def test_equal_scores_are_worth_one_half() -> None:
    assert torch.equal(reward_of(torch.full((2, 3), 4.0)), torch.full((2, 3), 0.5))


def test_the_mean_reward_is_one_half_for_every_prompt() -> None:
    reward_PK = reward_of(3 * normal(5, 8) + normal(5, 1, seed=1))
    torch.testing.assert_close(reward_PK.mean(1), torch.full((5,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("slope", [0.1, 0.25, 2.0])
def test_the_mean_reward_is_one_half_however_lopsided_the_advantages(slope: float) -> None:
    """A few very bad rollouts are clipped, the many good ones are not; what that adds is given back."""
    advantage = advantages(torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4, -9.0, -8.0, 0.1]]).double() ** 3)
    reward = rewards(advantage, clip=1.5, slope=slope)
    assert float(reward.mean()) == pytest.approx(0.5, abs=1e-9)
    assert 0 <= float(reward.min()) <= float(reward.max()) <= 1
    in_order = reward.gather(1, advantage.argsort(1))
    assert (in_order.diff(dim=1) >= 0).all()
    best = advantage.argmax(1, keepdim=True)
    assert torch.equal(reward.gather(1, best), reward.amax(1, keepdim=True))


def test_rewards_are_clipped_on_both_sides() -> None:
    advantage = torch.tensor([-9.0, -5.0, -1.0, 0.0, 1.0, 5.0, 9.0])
    assert torch.equal(rewards(advantage, clip=5.0, slope=0.1), torch.tensor([0.0, 0.0, 0.4, 0.5, 0.6, 1.0, 1.0]))
    assert torch.equal(rewards(advantage, clip=1.0, slope=0.25).unique(), torch.tensor([0.25, 0.5, 0.75]))
    assert torch.equal(rewards(advantage, clip=5.0, slope=1.0).unique(), torch.tensor([0.0, 0.5, 1.0]))
