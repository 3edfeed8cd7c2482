"""Tiny networks of every family and kind of block, and adapters beside their weights."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from streamstill.student.layout import BlockKind
from streamstill.student.network import Network
from streamstill.student.sandwich import SandwichConfig, SandwichDiT
from streamstill.testing import tiny_student, tiny_wan_student
from streamstill.training.lora import Lora
from streamstill.training.policies import Adapters
from tests.training.afd_parts import dice, disturb

pytest.importorskip("peft", reason='install the lora extra: pip install "streamstill[lora]"')
LORA = Lora(rank=3, alpha=6)


def wan() -> Network:
    pytest.importorskip("diffusers", reason='install the wan extra: pip install "streamstill[wan]"')
    return tiny_wan_student().network


def sandwich() -> Network:
    return tiny_student().network


def of_kind(kind: BlockKind) -> Callable[[], Network]:
    def make() -> Network:
        config = tiny_student().network.config
        assert isinstance(config, SandwichConfig)
        torch.manual_seed(0)
        return SandwichDiT(replace(config, layout=2 * kind.letter))

    return make


FAMILIES = {"sandwich": sandwich, "wan": wan, **{kind.letter: of_kind(kind) for kind in BlockKind}}
every_network = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())


def lesson_of(network: Network, seed: int = 7) -> Tensor:
    """The velocities of two clips of two chunks, always the same noise."""
    generator = dice(seed)
    x_t, context = (torch.randn(2, 4, 96, 4, 4, generator=generator) for _ in range(2))
    text_BLD, t_BK = torch.randn(2, 5, 16, generator=generator), torch.rand(2, 2, generator=generator)
    return network.velocity_in_context(x_t, t_BK, text_BLD, context_BFCHW=context)


def disturbed(make: Callable[[], Network]) -> Adapters:
    """Two adapters that differ from each other and from nothing."""
    adapters = Adapters(make(), LORA)
    for seed, factors in enumerate((adapters.trained, adapters.memory["old"])):
        disturb(factors, seed, scale=0.1)
    return adapters


def by_hand(adapters: Adapters, plain: Network, adapter: str) -> Network:
    """The fresh network with ``alpha / rank * up @ down`` added to its weights."""
    factors = dict(adapters.layers.factors(adapter).items())
    merged = copy.deepcopy(plain)
    for name in adapters.layers.layers:
        down, up = (factors[f"{name.replace('.', '/')}/{which}"] for which in ("down", "up"))
        with torch.no_grad():
            merged.get_parameter(f"{name}.weight").add_(LORA.alpha / LORA.rank * up @ down)
    return merged
