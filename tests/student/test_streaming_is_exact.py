"""One pass over a clip equals its chunks one by one; the future cannot reach the past; the state stays small."""

import pytest
import torch
from torch import Tensor

from streamstill.state import StreamState, state_bytes, tensors_of
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


@pytest.mark.parametrize("layout", ["L", "S", "LS", "SL", "LSLSL", "SSLLS"])
@pytest.mark.parametrize("retention", [1.0, 0.6])
def test_one_pass_over_a_clip_equals_streaming_it(layout: str, retention: float) -> None:
    network = build(tiny(layout, retention=retention))
    clean, x_t, t_BK, text = clip()
    whole = network.velocity_in_context(x_t, t_BK, text, context_BFCHW=clean)
    torch.testing.assert_close(whole, streamed(network, clean, x_t, t_BK, text)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("chunk_frames", "window", "patch"), [(1, 1, 1), (1, 3, 1), (5, 2, 1), (2, 0, 1), (2, 2, 2)])
def test_it_holds_for_other_chunks_windows_and_patches(chunk_frames: int, window: int, patch: int) -> None:
    network = build(tiny("LSL" if patch == 1 else "LL", chunk_frames=chunk_frames, window_chunks=window, patch=patch))
    clean, x_t, _, text = clip()
    t_BK = torch.rand(2, 2 * CHUNKS // chunk_frames, dtype=torch.float64)
    whole = network.velocity_in_context(x_t, t_BK, text, context_BFCHW=clean)
    torch.testing.assert_close(whole, streamed(network, clean, x_t, t_BK, text)[0], rtol=1e-9, atol=1e-9)


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


def test_the_state_does_not_grow_and_stays_finite_over_a_thousand_chunks() -> None:
    network = build(tiny()).float()
    clean, _, _, text = (x.float() for x in clip(batch=1, frames=2))
    state = network.initial_state(1, H, W, like=clean)
    size = state_bytes(state)
    with torch.no_grad():
        for _ in range(1000):
            velocity, state = network(clean, torch.zeros(1), text, state)
    assert state_bytes(state) == size
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(state))
    assert torch.isfinite(velocity).all()


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


def test_with_full_retention_the_linear_state_is_the_plain_sum() -> None:
    """In relative positions the state equals the sum over all keys, rotated back by their age."""
    from streamstill.student.lcha import LinearConvAttention
    from streamstill.student.positions import rotate, rotations

    torch.manual_seed(0)
    mixer = LinearConvAttention(16, heads=2, retention=1.0, theta=100.0).double()
    x = torch.randn(1, 6, 2, 2, 16, dtype=torch.float64)
    state = mixer.empty(1, 2, 2, like=x)
    for k in range(3):
        state = mixer.remember(mixer.project(x[:, 2 * k : 2 * k + 2]), state)
    _, key, value = mixer.qkv(x).flatten(1, 3).unflatten(-1, (3, 2, -1)).unbind(2)
    key = torch.nn.functional.softplus(mixer.phi_key(mixer.key_norm(key)))
    ages = rotations(torch.arange(-6, 0), 2, 2, head_dim=8, theta=100.0).unsqueeze(1)
    torch.testing.assert_close(
        state.linear.kv_BNEE, torch.einsum("bsne,bsnf->bnef", rotate(key, ages), value), atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(state.linear.k_BNE, key.sum(1))


def test_the_window_forgets_what_is_too_old() -> None:
    network = build(tiny("S", window_chunks=1))
    clean, x_t, t_BK, text = clip()
    before = network.velocity_in_context(x_t, t_BK, text, context_BFCHW=clean)
    clean[:, :2] += 1  # chunk 0: seen by chunk 1, gone for chunk 2
    after = network.velocity_in_context(x_t, t_BK, text, context_BFCHW=clean)
    assert not torch.equal(before[:, 2:4], after[:, 2:4])
    assert torch.equal(before[:, 4:], after[:, 4:])
