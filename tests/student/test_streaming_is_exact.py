"""One pass over a clip equals its chunks one by one; the future cannot reach the past; the state stays small."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamstill.state import StreamState, state_bytes, tensors_of
from streamstill.student.presets import preset
from streamstill.student.sandwich import SandwichDiT
from tests.student.conftest import build, tiny

CHUNKS, H, W = 5, 4, 6


def clip(batch: int = 2, frames: int = 2 * CHUNKS, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clean latents, noised latents, a time per chunk, text."""
    generator = torch.Generator().manual_seed(seed)
    clean, x_t = torch.randn(2, batch, frames, 6, H, W, generator=generator, dtype=torch.float64)
    t_BK = torch.rand(batch, frames // 2, generator=generator, dtype=torch.float64)
    return clean, x_t, t_BK, torch.randn(batch, 7, 10, generator=generator, dtype=torch.float64)


def streamed(
    network: SandwichDiT, clean: Tensor, x_t: Tensor, t_BK: Tensor, text: Tensor
) -> tuple[Tensor, StreamState]:
    """The definition: velocity of chunk k after the clean chunks before it were shown one by one."""
    size, velocities = network.chunk_frames, []
    state = network.initial_state(clean.shape[0], H, W, like=clean)
    for k in range(t_BK.shape[1]):
        here = slice(k * size, (k + 1) * size)
        velocities.append(network(x_t[:, here], t_BK[:, k], text, state)[0])
        state = network(clean[:, here], torch.zeros_like(t_BK[:, k]), text, state)[1]
    return torch.cat(velocities, dim=1), state


layouts = st.text("LSFKACRUH", min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(layout=layouts, chunk_frames=st.sampled_from([1, 2, 5]), window=st.integers(0, 3), sink=st.integers(0, 2))
def test_one_pass_over_a_clip_equals_streaming_it(layout: str, chunk_frames: int, window: int, sink: int) -> None:
    shape = {"window_chunks": window, "full_window_chunks": window + 1, "sink_chunks": sink}
    network = build(tiny(layout, chunk_frames=chunk_frames, **shape))
    clean, x_t, _, text = clip()
    t_BK = torch.rand(2, 2 * CHUNKS // chunk_frames, dtype=torch.float64)
    whole = network.velocity_in_context(x_t, t_BK, text, context_BFCHW=clean)
    torch.testing.assert_close(whole, streamed(network, clean, x_t, t_BK, text)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("retention", "patch"), [(1.0, 1), (0.3, 1), (0.6, 2)])
def test_it_holds_for_other_retentions_and_patches(retention: float, patch: int) -> None:
    network = build(tiny("LSL" if patch == 1 else "LL", retention=retention, patch=patch))
    clean, x_t, t_BK, text = clip()
    whole = network.velocity_in_context(x_t, t_BK, text, context_BFCHW=clean)
    torch.testing.assert_close(whole, streamed(network, clean, x_t, t_BK, text)[0], rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(layout=layouts, frames=st.integers(1, 3), shown=st.integers(0, 3))
def test_velocity_and_remember_are_the_two_halves_of_the_step(layout: str, frames: int, shown: int) -> None:
    network = build(tiny(layout, chunk_frames=3, sink_chunks=1))
    clean, x_t, _, text = clip(frames=3)
    state, zero = network.initial_state(2, H, W, like=clean), torch.zeros(2, dtype=torch.float64)
    for _ in range(shown):
        state = network.remember(clean, text, state)
    t = torch.full((2,), 0.7, dtype=torch.float64)
    assert torch.equal(network.velocity(x_t[:, :frames], t, text, state), network(x_t[:, :frames], t, text, state)[0])
    after, both = network.remember(clean[:, :frames], text, state), network(clean[:, :frames], zero, text, state)[1]
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(after), tensors_of(both), strict=True))


def test_a_chunk_may_carry_a_time_for_each_latent_frame(network: SandwichDiT) -> None:
    clean, x_t, t_BK, text = clip(frames=2)
    state = network.initial_state(2, H, W, like=clean)
    same = network.velocity(x_t, t_BK[:, 0], text, state)
    torch.testing.assert_close(network.velocity(x_t, t_BK.expand(2, 2), text, state), same, rtol=1e-12, atol=1e-12)
    other = torch.cat([t_BK, t_BK + 0.1], dim=1)
    assert not torch.allclose(network.velocity(x_t, other, text, state), same)


@pytest.mark.parametrize("layout", ["LSSL", "FKSA", "CRUH"])
def test_bidirectional_is_one_chunk_as_long_as_the_clip(layout: str) -> None:
    """The same weights; nothing is masked, nothing has faded."""
    network = build(tiny(layout, window_chunks=2, sink_chunks=1))
    _, x_t, _, text = clip()
    long = SandwichDiT(replace(network.config, chunk_frames=x_t.shape[1])).double()
    long.load_state_dict(network.state_dict())
    t_B = torch.tensor([0.3, 0.8], dtype=torch.float64)
    state = long.initial_state(2, H, W, like=x_t)
    torch.testing.assert_close(
        network.velocity_bidirectional(x_t, t_B, text), long.velocity(x_t, t_B, text, state), rtol=1e-9, atol=1e-9
    )


def test_bidirectional_frames_see_the_future_and_given_frames_may_be_clean(network: SandwichDiT) -> None:
    clean, x_t, _, text = clip()
    t_BF = torch.full((2, 2 * CHUNKS), 0.6, dtype=torch.float64)
    t_BF[:, 0] = 0
    x_t[:, 0] = clean[:, 0]
    before = network.velocity_bidirectional(x_t, t_BF, text)
    x_t[:, -1] += 1
    assert not torch.allclose(network.velocity_bidirectional(x_t, t_BF, text)[:, 1], before[:, 1])


@pytest.mark.parametrize("changed", range(CHUNKS))
def test_the_future_cannot_change_the_past(network: SandwichDiT, changed: int) -> None:
    clean, x_t, t_BK, text = clip()
    before = network.velocity_in_context(x_t, t_BK, text, context_BFCHW=clean)
    clean2, x_t2 = clean.clone(), x_t.clone()
    here = slice(changed * 2, changed * 2 + 2)
    clean2[:, here] += 1
    x_t2[:, here] -= 1
    after = network.velocity_in_context(x_t2, t_BK, text, context_BFCHW=clean2)
    assert torch.equal(before[:, : changed * 2], after[:, : changed * 2])
    assert not torch.allclose(before[:, here], after[:, here])


def test_every_chunk_sees_the_past(network: SandwichDiT) -> None:
    clean, x_t, t_BK, text = clip()
    before = network.velocity_in_context(x_t, t_BK, text, context_BFCHW=clean)
    clean[:, :2] += 1
    after = network.velocity_in_context(x_t, t_BK, text, context_BFCHW=clean)
    changes = (before - after).abs().amax((0, 2, 3, 4)).view(CHUNKS, 2).amax(1)
    assert changes[0] == 0
    assert (changes[1:] > 0).all()


def test_a_clean_chunk_does_not_see_itself_through_its_context(network: SandwichDiT) -> None:
    """The velocity of chunk k must not leak its own clean content."""
    clean, x_t, t_BK, text = clip()
    before = network.velocity_in_context(x_t, t_BK, text, context_BFCHW=clean)
    clean[:, -2:] += 1
    assert torch.equal(before, network.velocity_in_context(x_t, t_BK, text, context_BFCHW=clean))


def test_using_a_state_does_not_change_it(network: SandwichDiT) -> None:
    clean, _, _, text = clip()
    state = network.initial_state(2, H, W, like=clean)
    zero = torch.zeros(2, dtype=torch.float64)
    state = network(clean[:, :2], zero, text, state)[1]
    kept = [tensor.clone() for tensor in tensors_of(state)]
    one, _ = network(clean[:, 2:4], zero, text, state)
    two, _ = network(clean[:, 2:4], zero, text, state)
    assert torch.equal(one, two)
    assert all(torch.equal(a, b) for a, b in zip(kept, tensors_of(state), strict=True))


@pytest.mark.slow
def test_ten_thousand_chunks_leave_no_trace_in_size_range_or_positions() -> None:
    """nano, 20,000 latent frames of noise: the state keeps its size, and the next chunk is as finite as the first."""
    network = SandwichDiT(replace(preset("nano", latent_channels=6, text_width=10), sink_chunks=1)).eval()
    generator = torch.Generator().manual_seed(0)
    chunks, text = torch.randn(10, 1, 2, 6, H, W, generator=generator), torch.randn(1, 7, 10, generator=generator)
    state = network.initial_state(1, H, W, like=chunks[0])
    size, largest = state_bytes(state), []
    with torch.inference_mode():
        for number in range(10_000):
            state = network.remember(chunks[number % 10], text, state)
            if (number + 1) % 1000 == 0:
                largest.append(max(float(tensor.abs().max()) for tensor in tensors_of(state)))
                assert torch.isfinite(network.velocity(chunks[0], torch.ones(1), text, state)).all()
    assert state_bytes(state) == size
    assert largest == pytest.approx([largest[0]] * 10, rel=1e-5)  # ten chunks over and over: the state repeats, too


def test_an_unchanging_video_settles(network: SandwichDiT) -> None:
    """Positions count from the chunk at hand, so the thousandth chunk is computed like the hundredth."""
    clean, _, _, text = clip(batch=1, frames=2)
    state = network.initial_state(1, H, W, like=clean)
    outputs = []
    with torch.no_grad():
        for _ in range(120):
            velocity, state = network(clean, torch.zeros(1, dtype=torch.float64), text, state)
            outputs.append(velocity)
    torch.testing.assert_close(outputs[-1], outputs[-2], rtol=1e-9, atol=1e-9)


def test_the_window_forgets_what_is_too_old() -> None:
    network = build(tiny("S", window_chunks=1))
    clean, x_t, t_BK, text = clip()
    before = network.velocity_in_context(x_t, t_BK, text, context_BFCHW=clean)
    clean[:, :2] += 1  # chunk 0: seen by chunk 1, gone for chunk 2
    after = network.velocity_in_context(x_t, t_BK, text, context_BFCHW=clean)
    assert not torch.equal(before[:, 2:4], after[:, 2:4])
    assert torch.equal(before[:, 4:], after[:, 4:])
