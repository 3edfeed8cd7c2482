"""The one loop: with and without gradients, reproducible, endless, and what the definition says."""

from itertools import islice, repeat

import pytest
import torch
from torch import Tensor

from streamstill.flow.samplers import few_step
from streamstill.streaming.rollout import Sampling, rollout, stream_chunks
from tests.student.conftest import build, tiny

SHAPE, SAMPLING = (6, 4, 4), Sampling(steps=3, shift=4.0)


def text(batch: int = 2) -> Tensor:
    return torch.randn(batch, 7, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def roll(frames: int = 6, seed: int = 0, **changes: object) -> Tensor:
    arguments = {"latent_shape": SHAPE, "sampling": SAMPLING, "generator": torch.Generator().manual_seed(seed)}
    return rollout(build(tiny()), text(), frames=frames, **(arguments | changes))  # type: ignore[arg-type]


def test_it_follows_the_definition() -> None:
    """Noise, Euler steps on the shifted times, then one clean pass for the state; chunk after chunk."""
    network, generator = build(tiny()), torch.Generator().manual_seed(0)
    state, chunks = network.initial_state(2, 4, 4, like=text()), []
    for _ in range(3):
        x = torch.randn(2, 2, *SHAPE, generator=generator).double()
        for t, t_next in zip(SAMPLING.times()[:-1], SAMPLING.times()[1:], strict=True):
            x = x + (t_next - t) * network(x, t.expand(2), text(), state)[0]
        state = network(x, torch.zeros(2, dtype=torch.float64), text(), state)[1]
        chunks.append(x)
    torch.testing.assert_close(roll(), torch.cat(chunks, dim=1))


def test_the_same_seed_makes_the_same_video_and_another_seed_another() -> None:
    assert torch.equal(roll(), roll())
    assert not torch.allclose(roll(), roll(seed=1))


def test_a_longer_rollout_begins_with_the_shorter() -> None:
    assert torch.equal(roll(frames=10)[:, :6], roll(frames=6))


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


def test_a_part_of_a_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="5 latent frames are not a whole number of chunks of 2"):
        roll(frames=5)
