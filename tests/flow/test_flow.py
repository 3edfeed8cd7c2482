import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamstill.flow.path import (
    T_FLOOR,
    clean_from_velocity,
    noise_from_velocity,
    noised,
    velocity_between,
    velocity_from_clean,
)
from streamstill.flow.samplers import euler, few_step
from streamstill.flow.times import Sampling, random_levels, sampler_times, shifted, training_times

TIMES = st.floats(min_value=0.01, max_value=1.0)


@given(t=TIMES)
def test_velocity_clean_and_noise_lead_to_each_other(t: float) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    t_B = torch.full((3,), t, dtype=torch.float64)
    x_t = noised(clean, noise, t_B)
    velocity = velocity_between(clean, noise)
    torch.testing.assert_close(clean_from_velocity(x_t, velocity, t_B), clean)
    torch.testing.assert_close(noise_from_velocity(x_t, velocity, t_B), noise)
    torch.testing.assert_close(velocity_from_clean(x_t, clean, t_B), velocity)


def test_the_ends_of_the_path() -> None:
    clean, noise = torch.randn(2, 2, 3)
    assert torch.equal(noised(clean, noise, torch.zeros(2)), clean)
    assert torch.equal(noised(clean, noise, torch.ones(2)), noise)


def test_each_row_has_its_own_time() -> None:
    clean, noise = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    x_t = noised(clean, noise, torch.tensor([[0.0, 0.5, 1.0], [0.25, 0.25, 0.25]]))
    assert x_t[:, :, 0].tolist() == [[0.0, 0.5, 1.0], [0.25, 0.25, 0.25]]


def test_at_time_zero_the_velocity_stays_finite() -> None:
    for t in (0.0, T_FLOOR / 2, T_FLOOR):
        velocity = velocity_from_clean(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([t]))
        torch.testing.assert_close(velocity, torch.full((1, 2), 1 / T_FLOOR))


@given(t=st.floats(min_value=0, max_value=1), shift=st.floats(min_value=0.1, max_value=20))
def test_a_shift_keeps_the_ends_and_can_be_undone(t: float, shift: float) -> None:
    there = shifted(torch.tensor(t, dtype=torch.float64), shift)
    assert 0 <= there <= 1
    torch.testing.assert_close(shifted(there, 1 / shift).item(), t, atol=1e-9, rtol=1e-9)


def test_sampler_times_run_from_noise_to_clean() -> None:
    times = sampler_times(4, shift=8.0)
    assert times[0] == 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    torch.testing.assert_close(times[2].item(), 8 * 0.5 / (1 + 7 * 0.5))


@pytest.mark.parametrize(("steps", "shift"), [(0, 1.0), (4, 0.0), (4, float("nan"))])
def test_impossible_schedules_are_refused(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="steps >= 1 and shift > 0"):
        Sampling(steps=steps, shift=shift)


def test_training_and_sampling_share_the_shift() -> None:
    """Half of all training times lie above the shifted middle of the sampler's range."""
    generator = torch.Generator().manual_seed(0)
    t = training_times((20000,), shift=8.0, generator=generator)
    assert t.min() > 0
    assert t.max() <= 1
    assert (t > shifted(torch.tensor(0.5), 8.0)).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_levels_are_those_of_the_sampler_drawn_evenly() -> None:
    levels = random_levels((8000,), steps=4, shift=8.0, generator=torch.Generator().manual_seed(0))
    values, counts = levels.unique(return_counts=True)
    torch.testing.assert_close(values.flip(0), sampler_times(4, shift=8.0)[:-1])
    assert counts.min() > 1800


def test_euler_integrates_a_straight_path_exactly_in_one_step() -> None:
    clean, noise = torch.randn(2, 5, dtype=torch.float64)
    made = euler(lambda _x, _t: noise - clean, noise, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(made, clean)


def test_euler_integrates_a_known_field() -> None:
    """dx/dt = 3 t^2 from t=1 to 0 lowers x by 1."""
    times = torch.linspace(1, 0, 4001, dtype=torch.float64)
    made = euler(lambda x_t, t: 3 * t**2 * torch.ones_like(x_t), torch.zeros(3, dtype=torch.float64), times)
    torch.testing.assert_close(made, -torch.ones(3, dtype=torch.float64), atol=1e-3, rtol=0)


def test_few_step_returns_the_last_clean_estimate_and_draws_from_the_generator() -> None:
    clean = torch.randn(4, 3)
    times = sampler_times(4, shift=8.0)

    def to_clean(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (x_t - clean) / t

    made = few_step(to_clean, torch.randn(4, 3), times, torch.Generator().manual_seed(1))
    torch.testing.assert_close(made, clean)

    seen: list[list[torch.Tensor]] = [[], []]
    for run in seen:

        def remember(x_t: torch.Tensor, t: torch.Tensor, run: list[torch.Tensor] = run) -> torch.Tensor:
            run.append(x_t)
            return to_clean(x_t, t)

        few_step(remember, clean + 1, times, torch.Generator().manual_seed(2))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
