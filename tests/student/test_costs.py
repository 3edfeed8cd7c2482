"""Counted costs against torch's own counter, part by part, and how they grow."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from streamstill.state import StreamState, state_bytes
from streamstill.student import costs
from streamstill.student.costs import Cost, Workload
from streamstill.student.layout import BlockKind
from streamstill.student.presets import LAYOUTS, PRESETS, preset
from streamstill.student.resize import STRIDE
from streamstill.student.sandwich import SandwichConfig, SandwichDiT
from tests.student.conftest import tiny

LETTERS = "".join(kind.letter for kind in BlockKind)
WORK = Workload(height=8, width=4, frames=2, text_tokens=5, batch=2)
Given = tuple[Tensor, Tensor, Tensor, StreamState]


def chunk(network: SandwichDiT, work: Workload) -> Given:
    """What a velocity pass is given: latents, times, text and state."""
    config = network.config
    x_t = torch.zeros(work.batch, work.frames, config.latent_channels, work.height, work.width)
    text = torch.zeros(work.batch, work.text_tokens, config.text_width)
    return x_t, torch.zeros(work.batch), text, network.initial_state(work.batch, work.height, work.width, like=x_t)


def counter() -> FlopCounterMode:
    return FlopCounterMode(display=False)


def counted(network: SandwichDiT, work: Workload) -> int:
    """Torch's count of one velocity pass.

    The counter has no formula for the CPU's own attention kernel and would count nothing for it; the math backend
    is made of matrix products, which it counts. (Networks on the meta device cannot make a pass: autocast, which
    the network asks about, does not know that device.)
    """
    given = chunk(network, work)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter() as flops:
        network.velocity(*given)
    return flops.get_total_flops()


def counted_by_module(network: SandwichDiT, work: Workload) -> dict[str, int]:
    """Torch's count of one pass of ``forward``, for each submodule by name."""
    given = chunk(network, work)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter() as flops:
        network(*given)
    root = f"{type(network).__name__}."
    return {name.removeprefix(root): sum(ops.values()) for name, ops in flops.get_flop_counts().items()}


def parts(config: SandwichConfig, work: Workload) -> dict[str, Cost]:
    """The cost of each part by the name of its module."""
    named = costs.ends_costs(config, work)
    for index, kind in enumerate(config.kinds):
        if kind.low and not any(before.low for before in config.kinds[max(index - 1, 0) : index]):
            named[f"down.{index}"] = costs.switch_cost(config, work)
        named[f"blocks.{index}"] = costs.block_cost(kind, config, work)
    return named


def empty_state(network: SandwichDiT, work: Workload, dtype: torch.dtype = torch.float32) -> StreamState:
    return network.initial_state(work.batch, work.height, work.width, like=torch.zeros(1, dtype=dtype))


def assert_counts_agree(config: SandwichConfig, work: Workload) -> None:
    """Parameters, operations and bytes of the network and of its every part are what torch finds."""
    network, total = SandwichDiT(config), costs.network_cost(config, work)
    height, width, batch = work.height, work.width, work.batch
    assert network.parameter_count() == total.parameters == sum(p.numel() for p in network.parameters())
    flops = network.flops(height, width, batch=batch, text_tokens=work.text_tokens, frames=work.frames)
    assert flops == total.flops == counted(network, work)
    state = empty_state(network, work)
    assert network.state_bytes(height, width, batch=batch) == total.state_bytes == state_bytes(state)
    named, found = parts(config, work), counted_by_module(network, work)
    for name, cost in named.items():
        assert cost.parameters == sum(p.numel() for p in network.get_submodule(name).parameters()), name
        assert cost.flops == found[name], name
    for index, block in enumerate(state.blocks):
        assert named[f"blocks.{index}"].state_bytes == state_bytes(block)
    assert sum(named.values(), Cost()) == total


@st.composite
def cases(draw: st.DrawFn) -> tuple[SandwichConfig, Workload]:
    """A small network, and a chunk that it takes."""
    config = tiny(
        draw(st.text(LETTERS, min_size=1, max_size=4)),
        latent_channels=draw(st.integers(1, 3)),
        text_width=draw(st.integers(1, 12)),
        patch=draw(st.sampled_from([1, 2, 3])),
        head_dim=draw(st.sampled_from([4, 8, 16])),
        mlp_ratio=draw(st.sampled_from([1.0, 2.7])),
        chunk_frames=draw(st.integers(1, 3)),
        window_chunks=draw(st.integers(0, 2)),
        full_window_chunks=draw(st.integers(0, 3)),
        sink_chunks=draw(st.integers(0, 1)),
    )
    work = Workload(
        height=draw(st.integers(1, 2)) * config.patch * STRIDE,
        width=draw(st.integers(1, 3)) * config.patch * STRIDE,
        frames=draw(st.integers(1, config.chunk_frames)),
        text_tokens=draw(st.integers(1, 4)),
        batch=draw(st.integers(1, 2)),
    )
    return config, work


@pytest.mark.parametrize("kind", BlockKind)
def test_every_kind_of_block_costs_what_torch_counts(kind: BlockKind) -> None:
    assert_counts_agree(tiny(kind.letter * 2), WORK)


@settings(max_examples=40)
@given(cases())
def test_any_network_and_any_chunk_cost_what_torch_counts(case: tuple[SandwichConfig, Workload]) -> None:
    assert_counts_agree(*case)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_phone_sized_pass_costs_what_torch_counts(layout: str) -> None:
    """Fake tensors have shapes and no memory."""
    config, work = preset("phone", layout=layout), phone_work()
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = SandwichDiT(config)
        assert counted(network, work) == costs.network_cost(config, work).flops


def phone_work() -> Workload:
    size = PRESETS["phone"]
    return Workload(
        height=size.latent_height, width=size.latent_width, frames=size.chunk_frames, text_tokens=size.text_tokens
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("letter", LETTERS)
def test_bytes_of_state_are_those_of_the_tensors_in_every_dtype(letter: str, dtype: torch.dtype) -> None:
    network = SandwichDiT(tiny(letter, sink_chunks=1))
    bytes_held = state_bytes(empty_state(network, WORK, dtype))
    assert network.state_bytes(WORK.height, WORK.width, batch=WORK.batch, dtype=dtype) == bytes_held
    work = replace(WORK, value_bytes=dtype.itemsize)
    assert costs.network_cost(network.config, work).state_bytes == bytes_held


def test_a_state_keeps_its_size_whatever_it_has_seen() -> None:
    network = SandwichDiT(tiny(LETTERS))
    x, _, text, state = chunk(network, WORK)
    for _ in range(3):
        state = network.remember(x, text, state)
        assert state_bytes(state) == network.state_bytes(WORK.height, WORK.width, batch=WORK.batch)


def test_remembering_is_not_counted() -> None:
    network = SandwichDiT(tiny(LETTERS))
    assert counted_by_module(network, WORK)["Global"] == counted(network, WORK)


def test_a_sum_over_one_token_is_counted_here_and_not_by_torch() -> None:
    config, work = tiny("A"), Workload(height=1, width=1, frames=1, text_tokens=1)
    network = SandwichDiT(config)
    assert network.flops(1, 1, frames=1, text_tokens=1) - counted(network, work) == 2 * config.width * config.head_dim


def test_a_pass_is_over_a_whole_chunk_unless_told() -> None:
    network = SandwichDiT(tiny("LS", chunk_frames=3))
    assert network.flops(4, 4, text_tokens=3) == network.flops(4, 4, text_tokens=3, frames=3)


@given(cases())
def test_parameters_do_not_depend_on_the_workload(case: tuple[SandwichConfig, Workload]) -> None:
    config, work = case
    assert costs.parameter_count(config) == costs.network_cost(config, work).parameters


@given(cases())
def test_each_frame_and_each_text_token_costs_more(case: tuple[SandwichConfig, Workload]) -> None:
    config, work = replace(case[0], chunk_frames=4), case[1]
    cost = costs.network_cost(config, work)
    for more in (replace(work, frames=work.frames + 1), replace(work, text_tokens=work.text_tokens + 1)):
        other = costs.network_cost(config, more)
        assert other.flops > cost.flops
        assert (other.parameters, other.state_bytes) == (cost.parameters, cost.state_bytes)


@given(cases())
def test_clips_share_nothing_but_the_table_of_places(case: tuple[SandwichConfig, Workload]) -> None:
    config, work = case
    one, two = (costs.network_cost(config, replace(work, batch=batch)) for batch in (1, 2))
    shared = costs.ends_costs(config, work)["place"].flops
    assert two.flops - shared == 2 * (one.flops - shared)
    assert two.state_bytes == 2 * one.state_bytes


@pytest.mark.parametrize("kind", BlockKind)
def test_only_softmax_grows_faster_than_the_area(kind: BlockKind) -> None:
    config = tiny("L")
    areas = [costs.block_cost(kind, config, replace(WORK, height=4 * n)).flops for n in (1, 2, 3)]
    bend = areas[2] - 2 * areas[1] + areas[0]
    if kind in (BlockKind.SSA, BlockKind.FULL, BlockKind.COMPRESSED):
        assert bend > 0
    else:
        assert bend == 0


def test_the_linear_path_s_sums_do_not_grow_with_the_latents_and_caches_do() -> None:
    def held(letter: str, height: int) -> int:
        return SandwichDiT(tiny(letter)).state_bytes(height, 4)

    assert held("A", 8) == held("A", 4)
    assert held("C", 8) == 2 * held("C", 4)
    seen_bytes = torch.int64.itemsize
    assert held("S", 8) - seen_bytes == 2 * (held("S", 4) - seen_bytes)


def test_a_phone_sized_block_costs_as_much_as_it_sees() -> None:
    config = preset("phone")
    flops = {kind.letter: costs.block_cost(kind, config, phone_work()).flops for kind in BlockKind}
    assert flops["S"] < flops["C"] < flops["K"] < flops["A"] < flops["L"] < flops["H"] < flops["F"]
    assert flops["R"] == flops["U"] == flops["L"]


def test_the_phone_sandwich_keeps_the_paper_s_cost_ratios() -> None:
    """S2DiT Table 4: at most 0.59 of all-LCHA, 2.1 of all-SSA."""
    flops = {name: costs.network_cost(preset("phone", layout=name), phone_work()).flops for name in LAYOUTS}
    assert flops["sandwich"] <= 0.59 * flops["lcha-only"]
    assert flops["sandwich"] <= 2.1 * flops["ssa-only"]
    assert flops["lcha-only"] < flops["full"]


def test_sandwich_and_hourglass_differ_by_their_ways_down() -> None:
    of = {name: costs.network_cost(preset("phone", layout=name), phone_work()) for name in ("sandwich", "hourglass")}
    layout = preset("phone").layout
    more = [costs.switch_cost(preset("phone"), phone_work())] * (layout.count("LS") - 1)
    assert of["sandwich"] == sum(more, of["hourglass"])


@pytest.mark.parametrize("size", ["height", "width", "frames", "text_tokens", "batch", "value_bytes"])
def test_a_workload_of_nothing_is_refused(size: str) -> None:
    with pytest.raises(ValueError, match=f"must be at least 1, got .*{size}=0"):
        replace(WORK, **{size: 0})


@pytest.mark.parametrize("layout", ["L", "S", "K"])
@pytest.mark.parametrize(("height", "width"), [(8, 7), (7, 8), (6, 8), (8, 8)])
def test_costs_refuse_the_latents_that_the_network_refuses(layout: str, height: int, width: int) -> None:
    network = SandwichDiT(tiny(layout, patch=2))
    if height % network.latent_step or width % network.latent_step:
        with pytest.raises(
            ValueError, match=f"latents of {height}x{width} .* must be divisible by {network.latent_step}"
        ):
            network.flops(height, width, text_tokens=1)
        with pytest.raises(ValueError, match="cannot be cut"):
            network.state_bytes(height, width)
        with pytest.raises(ValueError, match="cannot be cut"):
            network.initial_state(1, height, width, like=torch.zeros(1))
    else:
        assert network.flops(height, width, text_tokens=1) > 0


def test_a_chunk_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 2 latent frames, got 3"):
        SandwichDiT(tiny("L")).flops(4, 4, text_tokens=1, frames=3)


def test_a_block_that_cannot_be_built_has_no_cost() -> None:
    config = tiny("H", width=24, head_dim=8)
    said = "blocks of kind H have heads of 16; 24 is no multiple of it"
    with pytest.raises(ValueError, match=said):
        SandwichDiT(config)
    with pytest.raises(ValueError, match=said):
        costs.block_cost(BlockKind.WIDE_HEADS, config, WORK)
