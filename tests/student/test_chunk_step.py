"""The chunk step as a program: it compiles in one piece, it exports, and it refuses what does not fit."""

import shutil
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from streamstill.state import StreamState, map_tensors, tensors_of
from streamstill.streaming.compiled import compiled
from streamstill.student.linear import LinearAttention
from streamstill.student.presets import preset
from streamstill.student.sandwich import SandwichDiT
from tests.student.conftest import build, tiny

H, W = 4, 6


def inputs(network: SandwichDiT, batch: int = 1) -> tuple[Tensor, Tensor, Tensor, StreamState]:
    """A noised chunk, its time, a text and the state after one chunk."""
    weight = next(network.parameters())
    generator = torch.Generator().manual_seed(5)
    x_t = torch.randn(batch, network.chunk_frames, 6, H, W, generator=generator).to(weight)
    text, t_B = torch.randn(batch, 7, 10, generator=generator).to(weight), torch.full((batch,), 0.6).to(weight)
    state = network.initial_state(batch, H, W, like=x_t)
    with torch.no_grad():
        return x_t, t_B, text, network.remember(0.5 * x_t, text, state)


@pytest.mark.parametrize("layout", ["LSSL", "FKACRUH"])
def test_the_step_exports_with_its_state_in_and_out_and_gives_the_same(layout: str) -> None:
    network = build(tiny(layout, sink_chunks=1)).eval()
    x_t, t_B, text, state = inputs(network)
    program = torch.export.export(network, (x_t, t_B, text, network.initial_state(1, H, W, like=x_t))).module()
    expected, after = network(x_t, t_B, text, state)
    velocity, exported_after = program(x_t, t_B, text, state)
    torch.testing.assert_close(velocity, expected, rtol=1e-12, atol=1e-12)
    assert isinstance(exported_after, StreamState)
    for one, other in zip(tensors_of(exported_after), tensors_of(after), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["LSSL", "FKACRUH"])
def test_the_step_has_no_graph_breaks(layout: str) -> None:
    """``compiled`` asks for the whole graph: a break would be an error."""
    network = build(tiny(layout, sink_chunks=1)).eval()
    x_t, t_B, text, state = inputs(network)
    torch.compiler.reset()
    fast = compiled(network, backend="aot_eager")
    with torch.inference_mode():
        assert torch.equal(fast.velocity(x_t, t_B, text, state), network.velocity(x_t, t_B, text, state))
        after, expected = fast.remember(x_t, text, state), network.remember(x_t, text, state)
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(after), tensors_of(expected), strict=True))


def test_a_compiled_network_streams_like_the_network() -> None:
    network = build(tiny()).eval()
    x_t, t_B, text, _ = inputs(network)
    torch.compiler.reset()
    fast = compiled(network, backend="aot_eager")
    assert fast.chunk_frames == network.chunk_frames
    states = [fast.initial_state(1, H, W, like=x_t), network.initial_state(1, H, W, like=x_t)]
    with torch.inference_mode():
        for _ in range(3):
            states = [fast.remember(x_t, text, states[0]), network.remember(x_t, text, states[1])]
        assert torch.equal(fast.velocity(x_t, t_B, text, states[0]), network.velocity(x_t, t_B, text, states[1]))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_the_fused_kernels_give_the_same_to_float_tolerance() -> None:
    network = SandwichDiT(tiny("LS")).eval()
    x_t, t_B, text, state = inputs(network)
    torch.compiler.reset()
    with torch.inference_mode():
        fused = compiled(network).velocity(x_t, t_B, text, state)
        torch.testing.assert_close(fused, network.velocity(x_t, t_B, text, state), rtol=1e-4, atol=1e-4)


def test_gradients_flow_through_the_state_to_the_chunk_before() -> None:
    network = build(tiny("LSL"))
    x_t, t_B, text, _ = inputs(network)
    first = x_t.clone().requires_grad_()
    state = network.remember(first, text, network.initial_state(1, H, W, like=x_t))
    network.velocity(x_t, t_B, text, state).square().sum().backward()
    assert first.grad is not None
    assert first.grad.abs().amax(dim=(0, 2, 3, 4)).min() > 0


def refused(network: SandwichDiT, said: str, **changes: object) -> None:
    x_t, t, text, state = inputs(network)
    given: dict[str, object] = {"x_t": x_t, "t": t, "text": text, "state": state} | changes
    for step in (network.velocity, network.forward):
        with pytest.raises(ValueError, match=said):
            step(*given.values())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 3, 6, H, W), r"a chunk has 2 latent frames \(fewer for a video's last\) of 6 channels, got 3 of 6"),
        ((1, 0, 6, H, W), "got 0 of 6"),
        ((1, 2, 5, H, W), "got 2 of 5"),
        ((2, 6, H, W), r"a chunk has the axes B, F, C, H, W; got shape \(2, 6, 4, 6\)"),
        ((1, 2, 6, 3, W), "latents of 3x6 cannot be cut into patches"),
        ((1, 2, 6, H, W + 2), r"the state does not belong to this network, batch, dtype and size of latents: float64"),
        ((3, 2, 6, H, W), r"t must have one time a clip, shape \(3,\), or one a latent frame, shape \(3, 2\)"),
    ],
)
def test_a_chunk_of_another_shape_is_refused(network: SandwichDiT, shape: tuple[int, ...], said: str) -> None:
    refused(network, said, x_t=torch.zeros(shape, dtype=torch.float64))


def test_text_and_times_of_another_shape_are_refused(network: SandwichDiT) -> None:
    refused(network, r"text must have shape \(1, tokens, 10\) for 1 clips", text=torch.zeros(1, 7, 9).double())
    refused(network, r"text must have shape \(1, tokens, 10\) for 1 clips", text=torch.zeros(2, 7, 10).double())
    refused(network, r"got shape \(1, 3\)", t=torch.zeros(1, 3).double())


@pytest.mark.parametrize("layout", ["SLS", "LSLL", "LS"])
def test_a_state_of_another_layout_is_refused(network: SandwichDiT, layout: str) -> None:
    x_t, *_ = inputs(network)
    other = SandwichDiT(tiny(layout)).double().initial_state(1, H, W, like=x_t)
    refused(network, r"the state does not belong to this network.*begin with initial_state\(...\)", state=other)


def test_a_state_of_another_preset_is_refused(network: SandwichDiT) -> None:
    nano = SandwichDiT(replace(preset("nano", latent_channels=6, text_width=10), layout="LSL")).double()
    state = nano.initial_state(1, H, W, like=torch.zeros(1).double())
    refused(network, r"float64 \(1, 3, 32, 32\) where float64 \(1, 2, 16, 16\) belongs", state=state)


def test_another_dtype_is_refused_but_not_under_autocast() -> None:
    network = SandwichDiT(tiny())
    x_t, t_B, text, state = inputs(network)
    refused(network, r"the network's weights are torch.float32, latents torch.float64", x_t=x_t.double())
    refused(network, r"the network's weights are torch.float32, text torch.float16", text=text.half())
    refused(network, "bfloat16 .* where float32 .* belongs", state=map_tensors(torch.Tensor.bfloat16, state))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(network.velocity(x_t, t_B, text.bfloat16(), state)).all()


def test_another_device_is_refused(network: SandwichDiT) -> None:
    x_t, _, _, state = inputs(network)
    refused(network, "the network is on cpu, latents on meta; move one of them", x_t=x_t.to("meta"))
    away = map_tensors(lambda tensor: tensor.to("meta"), state)
    refused(network, "the network is on cpu, state on meta", state=away)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_streams_and_stays_near(dtype: torch.dtype) -> None:
    """Running sums are kept in float32; the rest follows the weights."""
    torch.manual_seed(0)
    network = SandwichDiT(tiny("LSFKL")).eval()
    half = SandwichDiT(network.config).eval().to(dtype)
    half.load_state_dict(network.state_dict())
    x_t, t_B, text, _ = inputs(network)
    answers = []
    with torch.no_grad():
        for model in (network, half):
            x, t, words = (tensor.to(next(model.parameters())) for tensor in (x_t, t_B, text))
            state = model.initial_state(1, H, W, like=x)
            for _ in range(3):
                state = model.remember(x, words, state)
            answers.append(model.velocity(x, t, words, state).float())
    assert {tensor.dtype for tensor in tensors_of(state)} == {dtype, torch.float32, torch.int64}
    assert (answers[1] - answers[0]).abs().mean() < 0.05 * answers[0].abs().mean()


def test_long_sums_of_a_large_picture_fit_into_float16() -> None:
    """Queries times the sum over 2,304 keys a chunk and 128 features are beyond 65,504."""
    torch.manual_seed(0)
    mixer = LinearAttention(
        128, head_dim=128, retention=0.9, chunk_frames=1, theta=100.0, feature_map="softplus"
    ).eval()
    half = deepcopy(mixer).half()
    x = torch.randn(1, 1, 36, 64, 128)
    with torch.no_grad():
        answers = []
        for model, clip in ((mixer, x), (half, x.half())):
            past = model.empty(1, clip)
            for _ in range(3):
                chunk = model.project(clip)
                answer, past = model.mix(chunk, past), model.remember(chunk, past)
            answers.append(answer.float())
    assert torch.isfinite(answers[1]).all()
    assert (answers[1] - answers[0]).abs().mean() < 0.01 * answers[0].abs().mean()


def test_tables_made_while_streaming_serve_training_too() -> None:
    """Kept tables must not be inference tensors: autograd would refuse them."""
    network: nn.Module = SandwichDiT(tiny(theta=77.0))
    x_t, t_B, text, state = inputs(network)  # type: ignore[arg-type]
    with torch.inference_mode():
        network.velocity(x_t, t_B, text, state)  # type: ignore[operator]
    network.velocity(x_t, t_B, text, state).sum().backward()  # type: ignore[operator]
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
