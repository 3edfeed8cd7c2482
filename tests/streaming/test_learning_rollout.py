"""Truncated rollouts: the plain rollout's values, and gradients of the drawn steps and chunks only."""

import pytest
import torch
from torch import Tensor, nn

from streamstill.flow.path import noised
from streamstill.flow.samplers import euler, few_step
from streamstill.flow.times import Sampling
from streamstill.streaming.learning_rollout import RolloutPlan, draw_plan, learning_rollout
from streamstill.streaming.rollout import SamplerFn, rollout
from tests.student.conftest import build, tiny

SHAPE, SAMPLING = (6, 4, 4), Sampling(steps=3, shift=4.0)
every_sampler = pytest.mark.parametrize("sampler", [euler, few_step])


def text(batch: int = 2) -> Tensor:
    return torch.randn(batch, 7, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plan(*last_steps: int, learns: range | None = None, depth: int = 1) -> RolloutPlan:
    return RolloutPlan(last_steps=last_steps, learns=learns or range(len(last_steps)), seed=5, depth=depth)


class Ladder(nn.Module):
    """A model whose velocity at each time is a weight of that time's own, and whose memory is the last clean chunk."""

    chunk_frames = 1

    def __init__(self) -> None:
        super().__init__()
        self.by_step = nn.Parameter(torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64))
        self.of_past = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, 1, *SHAPE)

    def velocity(self, x_t: Tensor, t: Tensor, text_BLD: Tensor, state: Tensor) -> Tensor:
        step = int((SAMPLING.times()[:-1] - t[0]).abs().argmin())
        return self.by_step[step] * x_t + self.of_past * state

    def remember(self, clean: Tensor, text_BLD: Tensor, state: Tensor) -> Tensor:
        return 2 * clean


def climb(model: Ladder, chosen: RolloutPlan, *, sampler: SamplerFn = euler, through_memory: bool = False) -> Tensor:
    return learning_rollout(
        model,
        text(),
        chosen,
        latent_shape=SHAPE,
        sampling=SAMPLING,
        sampler=sampler,
        through_memory=through_memory,
    )


def slope(made: Tensor, of: nn.Parameter) -> Tensor:
    """The gradient of the sum, zero where nothing flows."""
    (gradient,) = torch.autograd.grad(made.sum(), of, retain_graph=True, allow_unused=True)
    return torch.zeros_like(of) if gradient is None else gradient


@every_sampler
def test_with_the_samplers_own_last_steps_it_is_the_plain_rollout(sampler: SamplerFn) -> None:
    network = build(tiny())
    arguments = {"latent_shape": SHAPE, "sampling": SAMPLING, "sampler": sampler}
    made = learning_rollout(network, text(), plan(2, 2, 2), **arguments)  # type: ignore[arg-type]
    plain = rollout(network, text(), frames=6, generator=dice(5), **arguments)  # type: ignore[arg-type]
    assert torch.equal(made, plain)


@every_sampler
@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_truncated_chunk_is_the_clean_estimate_of_its_last_step(sampler: SamplerFn, last: int) -> None:
    """Written out: the steps before, then x_t - t v."""
    model, generator, times = Ladder(), dice(5), SAMPLING.times().double()
    x_t = torch.randn(2, 1, *SHAPE, generator=generator).double()
    for step in range(last):
        v = model.by_step[step] * x_t
        if sampler is euler:
            x_t = x_t + (times[step + 1] - times[step]) * v
        else:
            fresh = torch.randn(x_t.shape, generator=generator, dtype=torch.float64)
            x_t = noised(x_t - times[step] * v, fresh, times[step + 1])
    expected = x_t - times[last] * model.by_step[last] * x_t
    torch.testing.assert_close(climb(model, plan(last), sampler=sampler), expected, rtol=1e-6, atol=1e-6)


@every_sampler
@pytest.mark.parametrize("last", [0, 1, 2])
def test_the_gradient_is_that_of_the_chosen_step_alone(sampler: SamplerFn, last: int) -> None:
    """d(x_t - t w x_t)/dw = -t x_t for the weight w of the last step, and nothing for the others."""
    model = Ladder()
    made = climb(model, plan(last), sampler=sampler)
    gradient, t = slope(made, model.by_step), SAMPLING.times()[last].double()
    x_t = made.detach() / (1 - t * model.by_step[last].detach())
    assert [int(step) for step in gradient.nonzero().flatten()] == [last]
    torch.testing.assert_close(gradient[last], -(t * x_t).sum())


@pytest.mark.parametrize("depth", [1, 2, 3, 9])
def test_as_many_of_the_last_steps_learn_as_were_asked_for(depth: int) -> None:
    """Through all steps it is the derivative of the product of (1 + dt w) over the steps, by each weight."""
    model, times = Ladder(), SAMPLING.times().double()
    made = climb(model, plan(2, depth=depth))
    gradient = slope(made, model.by_step)
    assert [int(step) for step in gradient.nonzero().flatten()] == list(range(max(0, 3 - depth), 3))
    factors = 1 + times.diff() * model.by_step.detach()
    expected = made.sum().detach() * times.diff() / factors
    torch.testing.assert_close(gradient[3 - min(depth, 3) :], expected[3 - min(depth, 3) :])


def test_no_gradient_goes_through_the_memory_unless_asked() -> None:
    """The second chunk ends with step 2, the first with step 0: only its memory leads to the weight of step 0."""
    model = Ladder()
    detached, flowing = (climb(model, plan(0, 2), through_memory=through)[:, 1] for through in (False, True))
    torch.testing.assert_close(detached, flowing)
    assert slope(detached, model.by_step)[0] == 0
    assert slope(flowing, model.by_step)[0] != 0


@pytest.mark.parametrize("learns", [range(1), range(1, 3), range(2, 3)])
def test_only_the_window_learns(learns: range) -> None:
    model = Ladder()
    made = climb(model, plan(1, 1, 1, learns=learns))
    assert [slope(made[:, chunk], model.by_step)[1] != 0 for chunk in range(3)] == [i in learns for i in range(3)]
    torch.testing.assert_close(made, climb(model, plan(1, 1, 1)))


def test_nothing_has_a_graph_where_gradients_are_off() -> None:
    with torch.no_grad():
        assert not climb(Ladder(), plan(1, 0)).requires_grad


def test_every_part_of_the_real_network_gets_a_gradient() -> None:
    network = build(tiny())
    made = learning_rollout(network, text(), plan(1, 2), latent_shape=SHAPE, sampling=SAMPLING)
    made.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_plans_draw_every_step_and_every_window_and_only_these() -> None:
    generator = dice()
    plans = [draw_plan(chunks=5, window=2, steps=3, generator=generator) for _ in range(300)]
    starts = [one.learns.start for one in plans]
    assert {(len(one.learns), len(one.last_steps) - one.learns.stop) for one in plans} == {(2, 0)}
    assert set(starts) == {0, 1, 2, 3}
    drawn = [step for one in plans for step in one.last_steps[one.learns.start :]]
    assert min(drawn.count(step) for step in range(3)) > 150  # 200 of 600 are expected
    assert {step for one in plans for step in one.last_steps[: one.learns.start]} == {2}  # as a stream makes them
    assert len({one.seed for one in plans}) == 300


def test_final_chunks_take_every_step() -> None:
    drawn = draw_plan(chunks=5, window=2, steps=3, generator=dice(), ends="final", depth=2)
    assert drawn.last_steps == (2,) * len(drawn.last_steps)
    assert (len(drawn.learns), drawn.depth) == (2, 2)


def test_a_shared_last_step_is_that_of_every_chunk_of_the_window() -> None:
    generator = dice()
    plans = [draw_plan(chunks=3, window=3, steps=3, generator=generator, ends="shared") for _ in range(60)]
    assert {len(set(one.last_steps)) for one in plans} == {1}
    assert {one.last_steps[0] for one in plans} == {0, 1, 2}


def test_a_plan_repeats_itself() -> None:
    assert draw_plan(chunks=4, window=2, steps=3, generator=dice()) == draw_plan(
        chunks=4, window=2, steps=3, generator=dice()
    )
    assert torch.equal(climb(Ladder(), plan(1, 0)), climb(Ladder(), plan(1, 0)))


@pytest.mark.parametrize(("chunks", "window"), [(3, 4), (3, 0)])
def test_a_window_that_does_not_fit_is_refused(chunks: int, window: int) -> None:
    with pytest.raises(ValueError, match=f"a window of {window} chunks does not fit into 3"):
        draw_plan(chunks=chunks, window=window, steps=2, generator=dice())


def test_plans_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one chunk"):
        plan(learns=range(1))
    with pytest.raises(ValueError, match=r"must lie among 0\.\.1, got range\(1, 3\)"):
        plan(0, 0, learns=range(1, 3))
    with pytest.raises(ValueError, match="got depth=0"):
        plan(0, depth=0)
    with pytest.raises(ValueError, match=r"the last steps of 3 are 0\.\.2, got 3"):
        climb(Ladder(), plan(0, 3))
