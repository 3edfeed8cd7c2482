"""The order of the sandwich (S2DiT eqs. 2-6), what it refuses, and that every parameter learns."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from streamstill.student.layout import BlockKind, parse_layout
from streamstill.student.sandwich import SandwichDiT
from tests.student.conftest import build, tiny

H, W = 4, 6


def once(network: SandwichDiT, **changes: Tensor) -> Tensor:
    """The velocity of one chunk."""
    generator = torch.Generator().manual_seed(2)
    x_t = torch.randn(1, network.chunk_frames, 6, H, W, generator=generator, dtype=torch.float64)
    text = torch.randn(1, 5, 10, generator=generator, dtype=torch.float64)
    arguments = {"x_t": x_t, "t": torch.full((1,), 0.5, dtype=torch.float64), "text": text} | changes
    state = network.initial_state(1, H, W, like=x_t)
    return network(arguments["x_t"], arguments["t"], arguments["text"], state)[0]


class Trace:
    """What went into each block and came out of it, and what reached the head."""

    def __init__(self, network: SandwichDiT) -> None:
        self.into: list[Tensor] = []
        self.out: list[Tensor] = []
        self.last = torch.empty(0)
        for block in network.blocks:
            block.register_forward_hook(self._block)
        network.final_norm.register_forward_hook(self._final)
        once(network)

    def _block(self, block: nn.Module, given: tuple[Tensor, ...], answer: tuple[Tensor, object]) -> None:
        self.into.append(given[0])
        self.out.append(answer[0])

    def _final(self, norm: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        self.last = given[0]


def up(x_RFHWD: Tensor) -> Tensor:
    """Nearest, written with loops."""
    rows = [x_RFHWD[:, :, y // 2, x // 2] for y in range(2 * x_RFHWD.shape[2]) for x in range(2 * x_RFHWD.shape[3])]
    return torch.stack(rows, dim=2).unflatten(2, (2 * x_RFHWD.shape[2], 2 * x_RFHWD.shape[3]))


def down(conv: nn.Module, x_RFHWD: Tensor) -> Tensor:
    """Eq. (3): one depthwise 2x2 kernel per channel, written out."""
    weight, bias = conv.get_parameter("weight")[:, 0], conv.get_parameter("bias")
    return bias + sum(x_RFHWD[:, :, y::2, x::2] * weight[:, y, x] for y in (0, 1) for x in (0, 1))


def assert_same(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_sandwich_goes_down_once_up_once_and_skips_from_the_last_full_block() -> None:
    network = build(tiny("LLSSL"))
    trace = Trace(network)
    assert_same(
        [
            (trace.into[1], trace.out[0]),
            (trace.into[2], down(network.down["2"], trace.out[1])),
            (trace.into[3], trace.out[2]),
            (trace.into[4], up(trace.out[3]) + trace.out[1]),
            (trace.last, trace.out[4]),
        ]
    )
    assert trace.into[2].shape[2:4] == (H // 2, W // 2)


def test_each_switch_has_its_own_way_down_and_its_own_skip() -> None:
    network = build(tiny("LSLSL"))
    trace = Trace(network)
    assert sorted(network.down) == ["1", "3"]
    assert_same(
        [
            (trace.into[3], down(network.down["3"], trace.out[2])),
            (trace.into[4], up(trace.out[3]) + trace.out[2]),
        ]
    )


def test_a_sandwich_that_ends_low_is_brought_up_without_a_skip() -> None:
    trace = Trace(build(tiny("LS")))
    assert_same([(trace.last, up(trace.out[1]))])


def test_low_blocks_alone_start_from_the_tokens_and_end_at_full_size() -> None:
    network = build(tiny("SS"))
    trace = Trace(network)
    assert trace.into[0].shape[2:4] == (H // 2, W // 2)
    assert_same([(trace.into[1], trace.out[0]), (trace.last, up(trace.out[1]))])
    assert once(network).shape == (1, 2, 6, H, W)


def test_a_sandwich_that_starts_low_skips_from_the_tokens() -> None:
    network = build(tiny("SL"))
    seen: list[Tensor] = []
    network.down["0"].register_forward_hook(lambda _, given, __: seen.append(given[0]))
    trace = Trace(network)
    tokens = seen[0].permute(0, 2, 3, 1).unflatten(0, (1, 2))
    assert_same([(trace.into[1], up(trace.out[0]) + tokens)])


def test_the_way_down_starts_as_a_mean() -> None:
    conv = SandwichDiT(tiny("LS")).down["1"]
    x_RFHWD = torch.randn(1, 1, H, W, 32)
    mean = x_RFHWD.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    torch.testing.assert_close(down(conv, x_RFHWD), mean)


def test_a_fresh_network_predicts_within_reach_of_clean_latents() -> None:
    """The network answers with clean latents; the velocity is what leads there."""
    network, t = build(tiny()), torch.full((1,), 0.25, dtype=torch.float64)
    x_t = torch.randn(1, 2, 6, H, W, dtype=torch.float64)
    clean = x_t - 0.25 * once(network, x_t=x_t, t=t)
    near_zero = torch.full((1,), 1e-9, dtype=torch.float64)
    assert torch.isfinite(once(network, x_t=x_t, t=near_zero)).all()
    assert clean.abs().max() < 50


@pytest.mark.parametrize("layout", ["L", "S", "LSSL", "SL", "LS", "FKACRUH"])
def test_the_loss_reaches_every_parameter(layout: str) -> None:
    network = build(tiny(layout))
    x_t = torch.randn(2, 4, 6, H, W, dtype=torch.float64)
    text, t_BK = torch.randn(2, 5, 10, dtype=torch.float64), torch.rand(2, 2, dtype=torch.float64)
    network.velocity_in_context(x_t, t_BK, text, context_BFCHW=x_t + 1).square().mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_a_pass_in_bfloat16_is_finite_and_near_float32() -> None:
    torch.manual_seed(0)
    network = SandwichDiT(tiny("LSSLFKACRUH"))
    x_t, text, t_BK = torch.randn(2, 4, 6, H, W), torch.randn(2, 5, 10), torch.rand(2, 2)
    exact = network.velocity_in_context(x_t, t_BK, text, context_BFCHW=x_t)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network.velocity_in_context(x_t, t_BK, text, context_BFCHW=x_t)
        state = network.initial_state(2, H, W, like=x_t)
        velocity, state = network(x_t[:, :2], t_BK[:, 0], text, state)
        velocity, _ = network(x_t[:, 2:], t_BK[:, 1], text, state)
    rough.float().square().mean().backward()
    assert torch.isfinite(velocity).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert (rough.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_a_prompt_and_a_time_change_the_answer() -> None:
    network = build(tiny())
    for change in ({"text": torch.zeros(1, 5, 10).double()}, {"t": torch.full((1,), 0.9).double()}):
        assert not torch.allclose(once(network), once(network, **change))


@pytest.mark.parametrize("layout", ["", "  ", "LXS", "ls"])
def test_a_layout_of_other_letters_is_refused_with_the_letters_there_are(layout: str) -> None:
    with pytest.raises(
        ValueError, match=r"has unknown letters .* or is empty; write some of: L = LCHA: .*; S = strided"
    ):
        parse_layout(layout)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 0}, "width=0"),
        ({"head_dim": 5}, "head_dim=5"),
        ({"head_dim": 24}, "head_dim=24"),
        ({"patch": 0}, "patch=0"),
        ({"chunk_frames": 0}, "chunk_frames=0"),
        ({"retention": 1.5}, r"retention must lie in \[0, 1\], got 1.5"),
        ({"layout": "LXL"}, "unknown letters"),
    ],
)
def test_a_shape_that_cannot_be_built_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny(**change)  # type: ignore[arg-type]


def test_spaces_group_the_letters_of_a_layout() -> None:
    assert parse_layout("LL S L") == (BlockKind.LCHA, BlockKind.LCHA, BlockKind.SSA, BlockKind.LCHA)


@pytest.mark.parametrize(
    ("layout", "patch", "height", "step"), [("LS", 1, 3, 2), ("LS", 2, 6, 4), ("LL", 2, 3, 2), ("S", 1, 5, 2)]
)
def test_latents_that_cannot_be_cut_into_tokens_are_refused(layout: str, patch: int, height: int, step: int) -> None:
    network = SandwichDiT(tiny(layout, patch=patch))
    assert network.latent_step == step
    with pytest.raises(ValueError, match=f"latents of {height}x8 .* must be divisible by {step}"):
        network.initial_state(1, height, 8, like=torch.zeros(1))
