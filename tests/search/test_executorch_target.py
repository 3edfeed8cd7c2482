"""The network without 3-D convolutions computes the same, and so does its ExecuTorch program."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from streamstill.search.executorch_target import PlaneConvs, executorch_pass, with_plane_convs
from streamstill.search.probes import ProbePool
from streamstill.search.targets import target_of
from streamstill.state import ConvCache, tensors_of
from streamstill.student.costs import Workload
from streamstill.student.local import CausalConv
from streamstill.student.presets import preset

SMALL = replace(preset("nano"), width=64, latent_channels=4, layout="LS")
WORK = Workload(height=4, width=4, frames=2, text_tokens=3)
EVERY_KIND = "LSKFACRUH"
needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason='no ExecuTorch: pip install "streamstill[executorch]"'
)


def pool(layout: str) -> ProbePool:
    return ProbePool(SMALL, WORK, (layout,), device=torch.device("cpu"), dtype=torch.float32)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 3),
    frames=st.integers(1, 4),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    channels=st.sampled_from([1, 2, 6]),
    kernel=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 99),
)
def test_a_sum_of_plane_convolutions_is_the_causal_convolution(
    rows: int, frames: int, height: int, width: int, channels: int, kernel: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    original = CausalConv(channels, kernel=kernel)
    for parameter in original.parameters():
        nn.init.normal_(parameter, generator=generator)
    x = torch.randn(rows, frames, height, width, channels, generator=generator)
    past = ConvCache(torch.randn(rows, kernel - 1, height, width, channels, generator=generator))
    planes = PlaneConvs(original)
    with torch.no_grad():
        expected = original.mix(original.project(x), past)
        found = planes.mix(planes.project(x), past)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    remembered = planes.remember(planes.project(x), past).frames_BFHWD
    assert torch.equal(remembered, original.remember(original.project(x), past).frames_BFHWD)


def test_the_kernels_frames_are_in_the_order_of_time() -> None:
    """A kernel of 1, 10, 100 at its middle, over the frames 1, 2 (remembered) and 3, 4."""
    original = CausalConv(1)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.zero_()
        original.depthwise.weight[0, 0, :, 1, 1] = torch.tensor([1.0, 10.0, 100.0])
        original.channel_mix.weight.fill_(1)
        clip = torch.tensor([1.0, 2.0, 3.0, 4.0])[None, :, None, None, None].expand(1, 4, 2, 2, 1)
        planes = PlaneConvs(original)
        mixed = planes.mix(planes.project(clip[:, 2:]), ConvCache(clip[:, :2]))
    assert mixed[0, :, 0, 0, 0].tolist() == [321.0, 432.0]


def test_the_weights_are_the_originals() -> None:
    original = CausalConv(2)
    mine = dict(PlaneConvs(original).named_parameters())
    assert {f"original.{name}" for name, _ in original.named_parameters()} == mine.keys()
    assert all(mine[f"original.{name}"] is parameter for name, parameter in original.named_parameters())


@pytest.mark.parametrize("layout", [EVERY_KIND, "LSSL", "FF"])
def test_a_network_without_3d_convolutions_computes_the_same(layout: str) -> None:
    network, inputs = pool(layout).network(layout)
    rewritten = with_plane_convs(network)
    with torch.inference_mode():
        (found, after), (expected, wanted) = rewritten(*inputs), network(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(tensors_of(after), tensors_of(wanted), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_given_network_keeps_its_convolutions_and_weights() -> None:
    network, _ = pool("LSCL").network("LSCL")
    before = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    rewritten = with_plane_convs(network)
    assert sum(isinstance(part, PlaneConvs) for part in rewritten.modules()) == 3
    assert sum(isinstance(part, CausalConv) for part in network.modules()) == 3
    assert not any(isinstance(part, PlaneConvs) for part in network.modules())
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == before


def test_executorch_that_is_not_installed_comes_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sentence = r'executorch is not installed; run: pip install "streamstill\[executorch\]"'
    with pytest.raises(ModuleNotFoundError, match=sentence):
        target_of("executorch", dtype=torch.float32)
    with pytest.raises(ModuleNotFoundError, match=sentence):
        executorch_pass(*pool("L").network("L"))


def test_executorch_is_fed_with_float32_only() -> None:
    with pytest.raises(ValueError, match="executorch measures float32, got float16"):
        target_of("executorch", dtype=torch.float16)


@needs_executorch
@pytest.mark.slow
def test_the_executorch_program_computes_the_same_velocity_every_time() -> None:
    """With tensors of more axes than XNNPACK can hold, weights that are views, and all made in inference mode."""
    target = target_of("executorch", dtype=torch.float32)
    assert target.packages == ("executorch",)
    with torch.inference_mode():
        network, inputs = pool("LK").network("LK")
        expected = network.velocity(*inputs)
        run = target.ready(network, inputs)
    for answer in (run(), run()):
        assert isinstance(answer, list)
        (found,) = answer
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
