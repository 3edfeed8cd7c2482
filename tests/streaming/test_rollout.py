"""The one loop: with and without gradients, reproducible, endless, and what the definition says."""

from collections.abc import Iterator
from itertools import islice, repeat

import pytest
import torch
from torch import Tensor

from streamstill.flow.samplers import few_step
from streamstill.flow.times import Sampling
from streamstill.streaming.rollout import rollout, stream_chunks
from tests.student.conftest import build, tiny

SHAPE, SAMPLING = (6, 4, 4), Sampling(steps=3, shift=4.0)


def text(batch: int = 2) -> Tensor:
    return torch.randn(batch, 7, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def roll(frames: int = 6, seed: int = 0, **changes: object) -> Tensor:
    arguments = {"latent_shape": SHAPE, "sampling": SAMPLING, "generator": torch.Generator().manual_seed(seed)}
    return rollout(build(tiny()), text(), frames=frames, **(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("frames", [1, 4, 5, 6])
def test_it_follows_the_definition(frames: int) -> None:
    """Noise, Euler steps on the shifted times, then one clean pass for the state; the last chunk may be short."""
    network, generator = build(tiny()), torch.Generator().manual_seed(0)
    state, chunks = network.initial_state(2, 4, 4, like=text()), []
    for start in range(0, frames, 2):
        x = torch.randn(2, 2, *SHAPE, generator=generator).double()[:, : frames - start]
        for t, t_next in zip(SAMPLING.times()[:-1], SAMPLING.times()[1:], strict=True):
            x = x + (t_next - t) * network(x, t.expand(2), text(), state)[0]
        state = network(x, torch.zeros(2, dtype=torch.float64), text(), state)[1]
        chunks.append(x)
    made = roll(frames=frames)
    assert made.shape == (2, frames, *SHAPE)
    torch.testing.assert_close(made, torch.cat(chunks, dim=1))


def clean(frames: int) -> Tensor:
    return torch.randn(2, frames, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


Memory = tuple[tuple[Tensor, Tensor], ...]


class Watcher:
    """A model that writes down what it remembers, and how much it remembered whenever it was asked."""

    chunk_frames = 2

    def __init__(self) -> None:
        self.remembered: list[tuple[Tensor, Tensor]] = []
        self.depths: list[int] = []

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> Memory:
        return ()

    def velocity(self, x_t: Tensor, t: Tensor, text_BLD: Tensor, state: Memory) -> Tensor:
        self.depths.append(len(state))
        return x_t

    def remember(self, clean: Tensor, text_BLD: Tensor, state: Memory) -> Memory:
        self.remembered.append((clean, text_BLD))
        return (*state, (clean, text_BLD))


def stream(model: Watcher, texts: list[Tensor], opening_BFCHW: Tensor | None = None) -> Iterator[Tensor]:
    return stream_chunks(
        model,
        texts,
        latent_shape=SHAPE,
        sampling=SAMPLING,
        generator=torch.Generator().manual_seed(0),
        opening_BFCHW=opening_BFCHW,
    )


def test_the_same_seed_makes_the_same_video_and_another_seed_another() -> None:
    assert torch.equal(roll(), roll())
    assert not torch.allclose(roll(), roll(seed=1))


def test_a_longer_rollout_begins_with_the_shorter() -> None:
    assert torch.equal(roll(frames=10)[:, :6], roll(frames=6))
    assert torch.equal(roll(frames=7)[:, :6], roll(frames=6))


def test_gradients_flow_from_the_last_chunk_to_the_first_only_if_asked() -> None:
    network = build(tiny())
    arguments = {"frames": 4, "latent_shape": SHAPE, "sampling": SAMPLING}
    made = rollout(network, text(), generator=torch.Generator().manual_seed(0), **arguments)  # type: ignore[arg-type]
    made[:, -1].square().mean().backward()
    assert all(p.grad is not None for name, p in network.named_parameters())
    with torch.no_grad():
        still = rollout(network, text(), generator=torch.Generator().manual_seed(0), **arguments)  # type: ignore[arg-type]
    assert not still.requires_grad
    torch.testing.assert_close(still, made)


def test_the_past_matters_through_the_state_alone() -> None:
    """Two prompts that agree on the second chunk differ there, because their first chunks differ."""
    network = build(tiny())

    def second(first: Tensor) -> Tensor:
        chunks = stream_chunks(
            network,
            iter([first, text()]),
            latent_shape=SHAPE,
            sampling=SAMPLING,
            generator=torch.Generator().manual_seed(0),
        )
        return list(chunks)[1]

    assert not torch.allclose(second(text()), second(-text()))


def test_it_can_go_on_for_ever() -> None:
    chunks = stream_chunks(
        build(tiny()), repeat(text(1)), latent_shape=SHAPE, sampling=SAMPLING, generator=torch.Generator()
    )
    with torch.no_grad():
        assert sum(1 for chunk in islice(chunks, 50) if torch.isfinite(chunk).all()) == 50


def test_another_sampler_can_be_given() -> None:
    assert not torch.allclose(roll(), roll(sampler=few_step))


def test_the_state_moves_on_only_when_the_next_chunk_is_asked_for() -> None:
    model = Watcher()
    chunks = stream(model, [text()] * 3)
    next(chunks)
    assert model.remembered == []
    next(chunks)
    assert len(model.remembered) == 1
    assert len(list(chunks)) == 1
    assert len(model.remembered) == 2  # nobody reads the state after the last chunk


@pytest.mark.parametrize(("given", "sizes"), [(1, [1]), (2, [2]), (3, [1, 2]), (6, [2, 2, 2])])
def test_an_opening_is_remembered_before_the_first_chunk_with_the_first_text(given: int, sizes: list[int]) -> None:
    model, opening = Watcher(), clean(given)
    chunks = stream(model, [text(), -text()], opening_BFCHW=opening)
    assert model.remembered == []
    assert next(chunks).shape == (2, 2, *SHAPE)
    assert [part.shape[1] for part, _ in model.remembered] == sizes
    assert torch.equal(torch.cat([part for part, _ in model.remembered], dim=1), opening)
    assert all(torch.equal(its_text, text()) for _, its_text in model.remembered)
    assert model.depths == [len(sizes)] * SAMPLING.steps
    next(chunks)
    assert len(model.remembered) == len(sizes) + 1
    assert torch.equal(model.remembered[-1][1], text())


@pytest.mark.parametrize("frames", [3, 4, 7])
def test_an_opening_counts_among_the_frames_and_comes_back_as_it_was(frames: int) -> None:
    made = roll(frames=frames, opening_BFCHW=clean(2))
    assert made.shape == (2, frames, *SHAPE)
    assert torch.equal(made[:, :2], clean(2))
    assert not torch.allclose(made[:, 2:], roll(frames=frames - 2))


@pytest.mark.parametrize("given", [2, 4])
def test_a_video_that_is_given_its_own_beginning_goes_on_as_it_did(given: int) -> None:
    whole, generator = roll(frames=7), torch.Generator().manual_seed(0)
    for _ in range(given // 2):
        torch.randn(2, 2, *SHAPE, generator=generator)  # the noise of what is given
    again = roll(frames=7, generator=generator, opening_BFCHW=whole[:, :given])
    assert torch.equal(again, whole)


def test_gradients_reach_the_opening() -> None:
    opening = clean(2).requires_grad_()
    roll(frames=6, opening_BFCHW=opening)[:, -1].square().mean().backward()
    assert opening.grad is not None
    assert opening.grad.abs().sum() > 0


@pytest.mark.parametrize(("frames", "given"), [(0, 0), (-2, 0), (2, 2), (1, 3)])
def test_a_video_with_nothing_to_make_is_refused(frames: int, given: int) -> None:
    opening = clean(given) if given else None
    with pytest.raises(ValueError, match=f"nothing left to make; ask for at least {given + 1}"):
        roll(frames=frames, opening_BFCHW=opening)


@pytest.mark.parametrize("shape", [(1, 2, *SHAPE), (2, 0, *SHAPE), (2, 2, 6, 8, 4), (2, *SHAPE)])
def test_an_opening_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    opening = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"the opening of this video needs the shape \(2, 1 or more, 6, 4, 4\), got"):
        roll(opening_BFCHW=opening)
    with pytest.raises(ValueError, match="the opening of this video"):
        next(stream(Watcher(), [text()], opening_BFCHW=opening))
