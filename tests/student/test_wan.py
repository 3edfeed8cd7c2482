"""Wan's transformer made causal: the weights and answers of diffusers, the contract of a network that streams."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamstill.state import StreamState, state_bytes, tensors_of
from streamstill.student.student import Student
from streamstill.student.wan import CausalWan, CausalWanConfig
from streamstill.student.wan_block import rotate_pairs, wan_turns
from streamstill.testing import tiny_wan_student

diffusers = pytest.importorskip("diffusers", reason='install the wan extra: pip install "streamstill[wan]"')

CHUNKS, FRAMES, C, H, W, TEXT = 4, 3, 4, 4, 6, 10  # frames of one chunk
TOKENS = H * W // 4
TINY = CausalWanConfig(
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=C,
    out_channels=C,
    text_dim=TEXT,
    freq_dim=32,
    ffn_dim=48,
    num_layers=3,
    rope_max_seq_len=64,
    chunk_frames=FRAMES,
    window_chunks=6,
)


def tiny(dtype: torch.dtype = torch.float64, **changes: object) -> CausalWan:
    """A network in which no path starts switched off."""
    torch.manual_seed(0)
    network = CausalWan(replace(TINY, **changes)).to(dtype)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def clip(dtype: torch.dtype = torch.float64, batch: int = 2, chunks: int = CHUNKS) -> tuple[Tensor, ...]:
    """Clean latents, noised latents, a time per chunk, text that differs by clip."""
    dice = torch.Generator().manual_seed(1)
    clean, x_t = torch.randn(2, batch, chunks * FRAMES, C, H, W, generator=dice, dtype=dtype)
    return clean, x_t, torch.rand(batch, chunks, generator=dice, dtype=dtype), text(batch, dtype)


def text(batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, 7, TEXT, generator=torch.Generator().manual_seed(2), dtype=dtype)


def chunk(clip_BFCHW: Tensor, number: int) -> Tensor:
    return clip_BFCHW[:, number * FRAMES : (number + 1) * FRAMES]


def diffusers_says(network: CausalWan, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor) -> Tensor:
    """The answer of diffusers' own forward: latents with channels first, times from 0 to 1000 for each token."""
    times = t * 1000 if t.ndim == 1 else (t * 1000).repeat_interleave(TOKENS, dim=1)
    answer: Tensor = network.transformer(x_t_BFCHW.transpose(1, 2), times, text_BLD).sample
    return answer.transpose(1, 2)


def streamed(network: CausalWan, clean: Tensor, x_t: Tensor, t_BK: Tensor, text_BLD: Tensor) -> Tensor:
    """The definition: velocity of chunk k after the clean chunks before it were shown one by one."""
    state, velocities = network.initial_state(clean.shape[0], H, W, like=clean), []
    for k in range(t_BK.shape[1]):
        velocities.append(network.velocity(chunk(x_t, k), t_BK[:, k], text_BLD, state))
        state = network.remember(chunk(clean, k), text_BLD, state)
    return torch.cat(velocities, dim=1)


def masked_reference(network: CausalWan, clean: Tensor, x_t: Tensor, t_BK: Tensor, text_BLD: Tensor) -> Tensor:
    """Diffusers' forward with a mask: the clean chunks 0..k-1 and the noised chunk k, none of which sees the future.

    A chunk sees itself and as many chunks before it as the window holds, at absolute positions.
    """
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    class Masked(WanAttnProcessor):  # type: ignore[misc]
        def __call__(self, attn: Any, x: Tensor, text: Tensor, mask: None, rotary: Any) -> Tensor:
            answer: Tensor = super().__call__(attn, x, text, seen, rotary)
            return answer

    for block in network.transformer.blocks:
        block.attn1.set_processor(Masked())
    velocities = []
    for k in range(t_BK.shape[1]):
        number = torch.arange((k + 1) * FRAMES * TOKENS) // (FRAMES * TOKENS)
        ago = number[:, None] - number[None, :]
        seen = (ago >= 0) & (ago <= network.config.window_chunks)
        x_BFCHW = torch.cat([clean[:, : k * FRAMES], chunk(x_t, k)], dim=1)
        t_BF = torch.zeros(x_BFCHW.shape[:2], dtype=x_t.dtype)
        t_BF[:, -FRAMES:] = t_BK[:, k, None]
        velocities.append(chunk(diffusers_says(network, x_BFCHW, t_BF, text_BLD), k))
    return torch.cat(velocities, dim=1)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-6) -> None:
    """Wan rounds the stream to float32 in every block, so float64 does not buy more than this."""
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2,), (2, CHUNKS * FRAMES)], ids=["a time a clip", "a time a frame"])
def test_without_a_past_and_a_future_it_answers_as_diffusers_does(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    network, (_, x_t, _, text_BLD) = tiny(dtype), clip(dtype)
    t = torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
    ours = network.velocity_bidirectional(x_t, t, text_BLD)
    close(ours, diffusers_says(network, x_t, t, text_BLD), 1e-5 if dtype is torch.float32 else 1e-9)
    assert not torch.allclose(ours, network.velocity_bidirectional(x_t, t * 0.5, text_BLD), atol=1e-3)


@torch.no_grad()
def test_the_first_chunk_is_answered_as_diffusers_answers_a_clip_of_one_chunk() -> None:
    network, (_, x_t, t_BK, text_BLD) = tiny(), clip()
    first = network.velocity(chunk(x_t, 0), t_BK[:, 0], text_BLD, network.initial_state(2, H, W, like=x_t))
    close(first, diffusers_says(network, chunk(x_t, 0), t_BK[:, 0], text_BLD))


@torch.no_grad()
@pytest.mark.parametrize("window_chunks", [0, 1, 2, 6])
def test_streaming_is_diffusers_with_a_block_causal_mask(window_chunks: int) -> None:
    """Positions counted from the chunk at hand agree with absolute ones, as only differences count."""
    network, given = tiny(window_chunks=window_chunks), clip()
    ours = streamed(network, *given)
    close(ours, masked_reference(network, *given), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("window_chunks", "sink_chunks"), [(6, 0), (2, 0), (1, 1), (0, 0), (0, 1)])
@pytest.mark.parametrize("patch", [1, 2])
def test_one_pass_over_a_clip_equals_streaming_it(window_chunks: int, sink_chunks: int, patch: int) -> None:
    network = tiny(window_chunks=window_chunks, sink_chunks=sink_chunks, patch_size=(1, patch, patch))
    clean, x_t, t_BK, text_BLD = clip()
    whole = network.velocity_in_context(x_t, t_BK, text_BLD, context_BFCHW=clean)
    close(whole, streamed(network, clean, x_t, t_BK, text_BLD))


@torch.no_grad()
@pytest.mark.parametrize("changed", range(CHUNKS))
def test_the_future_cannot_change_the_past(changed: int) -> None:
    network, (clean, x_t, t_BK, text_BLD) = tiny(), clip()
    before = network.velocity_in_context(x_t, t_BK, text_BLD, context_BFCHW=clean)
    chunk(clean, changed).add_(1)
    chunk(x_t, changed).sub_(1)
    after = network.velocity_in_context(x_t, t_BK, text_BLD, context_BFCHW=clean)
    past, rest = slice(changed * FRAMES), slice(changed * FRAMES, None)
    assert torch.equal(before[:, past], after[:, past])
    changes = (before - after)[:, rest].abs().amax((0, 2, 3, 4))
    assert (changes > 1e-6).all()


@torch.no_grad()
def test_a_sink_is_seen_for_ever_and_a_window_forgets() -> None:
    clean, x_t, t_BK, text_BLD = clip()
    for sink_chunks, remembered in ((0, False), (1, True)):
        network = tiny(window_chunks=1, sink_chunks=sink_chunks, num_layers=1)  # deeper ones remember through others
        before = network.velocity_in_context(x_t, t_BK, text_BLD, context_BFCHW=clean)
        other = torch.cat([chunk(clean, 0) + 1, clean[:, FRAMES:]], dim=1)
        after = network.velocity_in_context(x_t, t_BK, text_BLD, context_BFCHW=other)
        assert torch.equal(chunk(before, 3), chunk(after, 3)) is not remembered


@torch.no_grad()
def test_velocity_and_remember_are_the_two_answers_of_forward() -> None:
    network, (clean, x_t, t_BK, text_BLD) = tiny(), clip()
    state = network.remember(chunk(clean, 0), text_BLD, network.initial_state(2, H, W, like=clean))
    for t in (t_BK[:, 0], torch.rand(2, FRAMES, dtype=torch.float64)):
        velocity = network.velocity(chunk(x_t, 1), t, text_BLD, state)
        assert torch.equal(velocity, network(chunk(x_t, 1), t, text_BLD, state)[0])
    shown = network(chunk(clean, 1), torch.zeros(2, dtype=torch.float64), text_BLD, state)[1]
    remembered = network.remember(chunk(clean, 1), text_BLD, state)
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(shown), tensors_of(remembered), strict=True))


@torch.no_grad()
def test_a_time_for_each_frame_agrees_with_one_for_all() -> None:
    network, (_, x_t, t_BK, text_BLD) = tiny(), clip()
    state = network.initial_state(2, H, W, like=x_t)
    one = network.velocity(chunk(x_t, 0), t_BK[:, 0], text_BLD, state)
    each = t_BK[:, :1].repeat(1, FRAMES)
    close(network.velocity(chunk(x_t, 0), each, text_BLD, state), one)
    each[:, 1] = 0
    assert not torch.allclose(network.velocity(chunk(x_t, 0), each, text_BLD, state), one, atol=1e-3)


@torch.no_grad()
def test_using_a_state_does_not_change_it_and_its_size_is_constant() -> None:
    """Also far beyond the last of Wan's positions: they are counted from the chunk at hand."""
    network, (clean, _, _, text_BLD) = tiny(rope_max_seq_len=12, window_chunks=2, sink_chunks=1), clip()
    state = network.initial_state(2, H, W, like=clean)
    size, states = state_bytes(state), []
    for number in range(12):
        kept = [tensor.clone() for tensor in tensors_of(state)]
        velocity, after = network(chunk(clean, number % CHUNKS), torch.zeros(2).double(), text_BLD, state)
        assert all(torch.equal(a, b) for a, b in zip(kept, tensors_of(state), strict=True))
        assert torch.isfinite(velocity).all()
        states.append(after)
        state = after
    assert {state_bytes(state) for state in states} == {size}


@torch.no_grad()
def test_a_short_last_chunk_is_answered_as_diffusers_answers_it() -> None:
    """Wan's own mask for a clip whose last chunk has one latent frame: the reference sees all of the past."""
    network, (clean, x_t, t_BK, text_BLD) = tiny(num_layers=1), clip()
    state = network.remember(chunk(clean, 0), text_BLD, network.initial_state(2, H, W, like=clean))
    last = network.velocity(chunk(x_t, 1)[:, :1], t_BK[:, 1], text_BLD, state)
    t_BF = torch.cat([torch.zeros(2, FRAMES), t_BK[:, 1:2]], dim=1)
    both = torch.cat([chunk(clean, 0), chunk(x_t, 1)[:, :1]], dim=1)  # with one block no mask is needed
    close(last, diffusers_says(network, both, t_BF, text_BLD)[:, -1:])
    shown = network.remember(chunk(clean, 1)[:, :1], text_BLD, state)
    assert state_bytes(shown) == state_bytes(state)


def test_turns_are_those_of_diffusers_and_only_differences_count() -> None:
    rope = tiny().transformer.rope
    turns = wan_turns(rope, range(5), H // 2, W // 2)
    cos, sin = rope(torch.zeros(1, C, 5, H, W))
    assert torch.equal(turns.cos, cos[0, ..., ::2])
    assert torch.equal(turns.sin, sin[0, ..., 1::2])
    query, key = torch.randn(2, 1, 1, 12, dtype=torch.float64)
    early, late = ([wan_turns(rope, range(n, n + 1), 1, 1) for n in pair] for pair in ((-7, -2), (3, 8)))
    scores = [(rotate_pairs(query, a) * rotate_pairs(key, b)).sum() for a, b in (early, late)]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-5)  # the tables are float32


def test_the_loss_reaches_every_parameter() -> None:
    network, (clean, x_t, t_BK, text_BLD) = tiny(), clip()
    network.velocity_in_context(x_t, t_BK, text_BLD, context_BFCHW=clean).square().mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_told_to_save_memory_it_keeps_less_and_has_the_same_gradients() -> None:
    network, (clean, x_t, t_BK, text_BLD) = tiny(), clip()
    gradients, kept = [], [0, 0]
    for run in range(2):

        def count(tensor: Tensor, run: int = run) -> Tensor:
            kept[run] += tensor.nbytes
            return tensor

        network.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = network.velocity_in_context(x_t, t_BK, text_BLD, context_BFCHW=clean).square().mean()
        loss.backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
        network.transformer.enable_gradient_checkpointing()
    assert kept[1] < 0.2 * kept[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's, of any RMSNorm under autocast
def test_a_pass_in_bfloat16_is_finite_and_near_float32() -> None:
    network, (clean, x_t, t_BK, text_BLD) = tiny(torch.float32), clip(torch.float32)
    exact = network.velocity_in_context(x_t, t_BK, text_BLD, context_BFCHW=clean)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network.velocity_in_context(x_t, t_BK, text_BLD, context_BFCHW=clean)
        by_chunk = streamed(network, clean, x_t, t_BK, text_BLD)
    rough.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    for answer in (rough, by_chunk):
        assert answer.dtype is torch.float32
        assert (answer - exact).abs().mean() < 0.05 * exact.abs().mean()


@torch.no_grad()
def test_what_diffusers_saved_is_read_and_answers_the_same(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason='install the wan extra: pip install "streamstill[wan]"')
    network, (clean, x_t, t_BK, text_BLD) = tiny(torch.float32), clip(torch.float32)
    network.transformer.save_pretrained(tmp_path / "transformer")
    back = CausalWan.from_pretrained(tmp_path, chunk_frames=FRAMES, window_chunks=6)
    assert back.config == network.config
    given = (x_t, t_BK, text_BLD)
    assert torch.equal(
        back.velocity_in_context(*given, context_BFCHW=clean), network.velocity_in_context(*given, context_BFCHW=clean)
    )
    assert {f"transformer.{name}" for name in back.transformer.state_dict()} == set(network.state_dict())


@torch.no_grad()
def test_half_precision_is_diffusers_mixture_and_answers_the_same(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason='install the wan extra: pip install "streamstill[wan]"')
    tiny(torch.float32).transformer.save_pretrained(tmp_path)
    window = {"chunk_frames": FRAMES, "window_chunks": 1}
    half = CausalWan.from_pretrained(tmp_path, subfolder=None, dtype=torch.bfloat16, **window)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16, torch.float32}
    clean, x_t, t_BK, text_BLD = clip(torch.bfloat16)
    ours = half.velocity_bidirectional(x_t, t_BK[:, 0].float(), text_BLD)
    assert torch.equal(ours, diffusers_says(half, x_t, t_BK[:, 0].float(), text_BLD))
    assert streamed(half, clean, x_t, t_BK, text_BLD).dtype is torch.bfloat16


@torch.no_grad()
def test_a_student_made_of_wan_is_saved_and_read_whole(tmp_path: Path) -> None:
    student = tiny_wan_student()
    student.save_pretrained(tmp_path)
    back = Student.from_pretrained(tmp_path)
    assert isinstance(back.network, CausalWan)
    assert (back.config, back.fingerprint) == (student.config, student.fingerprint)
    x_t = torch.randn(1, *student.latent_shape)
    text_BLD, t = student.encode_prompts(["a ball"]), torch.rand(1)
    answers = [made.network.velocity_bidirectional(x_t, t, text_BLD) for made in (student, back)]
    assert torch.equal(answers[0], answers[1])


def test_a_loaded_model_is_used_as_it_is() -> None:
    transformer = tiny().transformer
    network = CausalWan.of(transformer, chunk_frames=1, window_chunks=4, sink_chunks=2)
    assert network.transformer is transformer
    assert network.config == replace(TINY, chunk_frames=1, window_chunks=4, sink_chunks=2)
    assert (network.chunk_frames, network.latent_step) == (1, 2)


@pytest.mark.parametrize("change", [{"image_dim": 8, "added_kv_proj_dim": 24}, {"in_channels": 2 * C}])
def test_a_model_that_wants_images_is_refused_before_its_weights_are_read(
    change: dict[str, int], tmp_path: Path
) -> None:
    window = {"chunk_frames": FRAMES, "window_chunks": 1}
    arguments = TINY.transformer_arguments | change
    transformer = diffusers.WanTransformer3DModel(**arguments)
    with pytest.raises(ValueError, match=r"conditioned on images \(image_dim=.*only text-to-video models can stream"):
        CausalWan.of(transformer, **window)
    transformer.save_config(tmp_path / "transformer")  # no weights at all
    with pytest.raises(ValueError, match="conditioned on images"):
        CausalWan.from_pretrained(tmp_path, **window)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_size": (2, 2, 2)}, r"patch_size \(2, 2, 2\) cannot stream: .* one latent frame"),
        ({"patch_size": (1, 2, 1)}, r"patch_size \(1, 2, 1\) cannot stream"),
        ({"attention_head_dim": 7}, "attention_head_dim must be even for rotary positions, got 7"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"window_chunks": -1}, "a window cannot be negative, got frames=-3"),
        ({"window_chunks": 21}, "the window holds 63 latent frames, Wan's positions end at 64"),
        ({"out_channels": 8}, "conditioned on images"),
    ],
)
def test_a_config_that_cannot_stream_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(TINY, **change)  # type: ignore[arg-type]


def test_a_chunk_or_a_state_that_does_not_fit_is_refused() -> None:
    network, (clean, _, _, text_BLD) = tiny(), clip()
    state, t = network.initial_state(2, H, W, like=clean), torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"a chunk has 3 latent frames .* of 4 channels, got 4 of 4"):
        network.velocity(clean[:, :4], t, text_BLD, state)
    with pytest.raises(ValueError, match="the state does not belong to this network"):
        network.velocity(chunk(clean, 0), t, text_BLD, tiny(window_chunks=2).initial_state(2, H, W, like=clean))
    with pytest.raises(ValueError, match="it has 6 tensors, 9 belong"):
        network.remember(chunk(clean, 0), text_BLD, StreamState(state.blocks[:2]))
    with pytest.raises(ValueError, match=r"weights are torch\.float64, latents torch\.float32"):
        network(chunk(clean, 0).float(), t, text_BLD, state)
    with pytest.raises(ValueError, match=r"text must have shape \(2, tokens, 10\)"):
        network(chunk(clean, 0), t, text_BLD[..., 1:], state)
    with pytest.raises(ValueError, match=r"latents of 5x6 do not fit .* divisible by 2 and at most 128"):
        network.initial_state(2, 5, 6, like=clean)
    with pytest.raises(ValueError, match="positions end at 64 latent frames, got 65"):
        network.velocity_bidirectional(torch.zeros(1, 65, C, 2, 2).double(), t[:1], text_BLD[:1])


@pytest.mark.parametrize("missing", ["diffusers", "accelerate"])
def test_without_what_it_needs_the_message_is_the_pip_line(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else there(name))
    with pytest.raises(
        ModuleNotFoundError, match=rf'{missing} is not installed; run: pip install "streamstill\[wan\]"'
    ):
        CausalWan.from_pretrained("nowhere", chunk_frames=3, window_chunks=1)


def test_a_student_is_imported_without_diffusers() -> None:
    program = "import sys, streamstill.student.student, streamstill.testing; sys.exit('diffusers' in sys.modules)"
    home = str(Path(sys.modules["streamstill"].__file__ or "").parents[1])
    assert subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": home}).returncode == 0
