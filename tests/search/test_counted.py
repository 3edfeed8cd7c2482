"""Counted tables: bytes against networks that were built, activations against what really lives, times by roofline."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from streamstill.search.cost_table import CostTable
from streamstill.search.counted import Rates, counted_table, rates_of
from streamstill.state import state_bytes
from streamstill.student.costs import Workload, block_cost, network_cost
from streamstill.student.layout import BlockKind
from streamstill.student.presets import preset
from streamstill.student.sandwich import SandwichConfig, SandwichDiT

WORK = Workload(height=16, width=16, frames=2, text_tokens=24)
MICRO = preset("micro")
ALL = "".join(kind.letter for kind in BlockKind)


def counted(
    kinds: str = ALL, *, config: SandwichConfig = MICRO, work: Workload = WORK, flops: float = 1e11
) -> CostTable:
    return counted_table(config, work, kinds=kinds, flops_per_second=flops, bytes_per_second=1e10)


class Living(TorchDispatchMode):
    """The most bytes of tensors that lived at once, of those made while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: set[int] = set()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage._cdata for storage in storages((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for storage in storages(made):
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self.known and storage.device.type != "meta":
                self.known.add(key)
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._forget, key, size)
        return made

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))


def most_alive(config: SandwichConfig, work: Workload) -> int:
    """Bytes at the fullest moment of a velocity pass, its noised latents included."""
    network = SandwichDiT(config).eval()
    x_t = torch.randn(work.batch, work.frames, config.latent_channels, work.height, work.width)
    text = torch.randn(work.batch, work.text_tokens, config.text_width)
    state = network.initial_state(work.batch, work.height, work.width, x_t)
    with torch.no_grad():
        network.velocity(x_t, torch.ones(work.batch), text, state)  # tables of positions are made once and kept
        with Living() as living:
            network.velocity(x_t, torch.ones(work.batch), text, state)
    return living.most + x_t.nbytes


@pytest.mark.parametrize("kind", list(BlockKind))
@pytest.mark.parametrize("mlp_ratio", [1.0, 3.0])
def test_counted_activations_are_what_lives_at_once(kind: BlockKind, mlp_ratio: float) -> None:
    config = replace(MICRO, layout=kind.letter * 3, mlp_ratio=mlp_ratio)
    table = counted(kind.letter, config=config)
    parts = [table.block(kind), table.ends, *([table.down, table.up] if kind.low else [])]
    assert max(part.activation_bytes for part in parts) == pytest.approx(most_alive(config, WORK), rel=0.15)


@pytest.mark.parametrize("change", [{"batch": 2}, {"frames": 1}, {"height": 8}])
def test_counted_activations_follow_the_workload(change: dict[str, int]) -> None:
    work = replace(WORK, **change)
    for letter in "LSF":
        config = replace(MICRO, layout=letter * 2)
        table = counted(letter, config=config, work=work)
        parts = [table.blocks[0].cost, table.ends, table.down, table.up]
        assert max(part.activation_bytes for part in parts) == pytest.approx(most_alive(config, work), rel=0.2)


@pytest.mark.parametrize("layout", ["LSSL", "SLFK", "ACRU", "HSHS"])
def test_weights_and_states_are_those_of_the_network(layout: str) -> None:
    config = replace(MICRO, layout=layout)
    table, network = counted(), SandwichDiT(config)
    switches = layout.count("LS") + layout.count("HS") + layout.startswith("S")
    parts = [table.ends, *(table.block(kind) for kind in config.kinds), *([table.down, table.up] * switches)]
    assert sum(part.weight_bytes for part in parts) == sum(weight.nbytes for weight in network.parameters())
    assert sum(part.state_bytes for part in parts) == state_bytes(network.initial_state(1, 16, 16, torch.zeros(())))


def test_a_table_says_that_it_was_counted_and_times_have_no_spread() -> None:
    table = counted("LS")
    assert (table.source, table.letters, table.dtype) == ("counted", "LS", "32 bit")
    assert "lower bound" in table.note
    assert all(block.cost.ms_low == block.cost.ms == block.cost.ms_high > 0 for block in table.blocks)


def test_times_are_operations_by_rate_until_memory_is_slower() -> None:
    flops = block_cost(BlockKind.LCHA, MICRO, WORK).flops
    slow = counted("L", flops=1e8).block(BlockKind.LCHA).ms
    assert slow == pytest.approx(1000 * flops / 1e8)
    fastest = counted("L", flops=1e30).block(BlockKind.LCHA)
    assert fastest.ms >= 1000 * (fastest.weight_bytes + fastest.state_bytes) / 1e10
    assert fastest.ms < slow
    whole = counted("L", flops=1e8).predicted("LLLL").ms
    assert whole == pytest.approx(1000 * network_cost(replace(MICRO, layout="LLLL"), WORK).flops / 1e8, rel=1e-3)


def test_half_the_bytes_a_number_is_half_the_weights() -> None:
    whole, half = counted("L"), counted("L", work=replace(WORK, value_bytes=2))
    assert half.ends.weight_bytes * 2 == whole.ends.weight_bytes
    assert half.dtype == "16 bit"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: counted("LX"), "unknown letters"),
        (lambda: counted(""), "empty"),
        (lambda: counted(flops=0.0), "positive"),
        (lambda: counted(flops=float("nan")), "positive"),
        (lambda: counted("S", work=replace(WORK, height=15)), "divisible by 2"),
        (lambda: counted("H", config=preset("nano")), "no multiple"),
    ],
)
def test_what_cannot_be_counted_is_one_sentence(make: Callable[[], CostTable], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def test_kinds_may_be_named_twice() -> None:
    assert counted("LSLLS").letters == "LS"


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_rates_of_this_machine_are_plausible() -> None:
    with one_thread():
        rates = rates_of("cpu", size=256)
    assert isinstance(rates, Rates)
    assert 1e7 < rates.flops_per_second < 1e16
    assert 1e6 < rates.bytes_per_second < 1e14
