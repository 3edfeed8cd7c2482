"""Cost tables that nobody had to measure: bytes are exact, times are what a roofline says.

The roofline is a lower bound: a part takes as long as its operations at the device's best rate, or as long as its
bytes at the device's best bandwidth, whichever is more. Real parts take longer, small ones many times as long.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from streamstill.search.cost_table import BlockCost, CostTable, PartCost
from streamstill.student.costs import SOFTMAX, Cost, Workload, block_cost, ends_cost, switch_cost
from streamstill.student.layout import BlockKind, parse_layout
from streamstill.student.local import KERNEL
from streamstill.student.resize import STRIDE
from streamstill.student.sandwich import SandwichConfig

LOW_AREA = STRIDE**2  # tokens of full resolution for one of low resolution


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device does at best: operations and bytes a second."""

    flops_per_second: float
    bytes_per_second: float

    def __post_init__(self) -> None:
        if not (self.flops_per_second > 0 and self.bytes_per_second > 0):
            raise ValueError(f"the rates of a device must be positive, got {self}; measure them with rates_of(device)")


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Memory of one part, as in ``PartCost``, and the least that must move through the device while it runs."""

    weights: int
    state: int
    activations: int
    moved: int


def counted_table(
    config: SandwichConfig, workload: Workload, *, kinds: str, flops_per_second: float, bytes_per_second: float
) -> CostTable:
    """The table of a network on a device with these rates; ``rates_of`` measures them on this machine.

    Args:
        kinds: a letter for each kind of block.

    Raises:
        ValueError: an unknown letter, a rate that is not positive, or a chunk that the network would refuse.
    """
    rates = Rates(flops_per_second=flops_per_second, bytes_per_second=bytes_per_second)
    letters = distinct(kinds)

    def part(cost: Cost, held: Bytes) -> PartCost:
        seconds = max(cost.flops / rates.flops_per_second, held.moved / rates.bytes_per_second)
        return part_cost(held, ms=1000 * seconds, low=1000 * seconds, high=1000 * seconds)

    return CostTable(
        source="counted",
        target="roofline",
        device=f"{rates.flops_per_second:.3g} operations and {rates.bytes_per_second:.3g} bytes a second",
        dtype=f"{8 * workload.value_bytes} bit",
        versions="",
        note="times are a roofline's, a lower bound: max(operations / rate, bytes / bandwidth); bytes are counted",
        network=config,
        workload=workload,
        blocks=tuple(
            BlockCost(
                letter=kind.letter, cost=part(block_cost(kind, config, workload), block_bytes(kind, config, workload))
            )
            for kind in letters
        ),
        down=part(switch_cost(config, workload), down_bytes(config, workload)),
        up=part(Cost(), up_bytes(config, workload)),
        ends=part(ends_cost(config, workload), ends_bytes(config, workload)),
    )


def distinct(kinds: str) -> tuple[BlockKind, ...]:
    """The kinds that the letters name, each once.

    Raises:
        ValueError: no letter, or an unknown one.
    """
    return tuple(dict.fromkeys(parse_layout(kinds)))


def part_cost(held: Bytes, *, ms: float, low: float, high: float) -> PartCost:
    """A part with these bytes that takes so many milliseconds."""
    return PartCost(
        ms=ms,
        ms_low=low,
        ms_high=high,
        weight_bytes=held.weights,
        state_bytes=held.state,
        activation_bytes=held.activations,
    )


def block_bytes(kind: BlockKind, config: SandwichConfig, work: Workload) -> Bytes:
    """Memory of one block.

    Activations are the most that lives at once in ``Block.forward``, in tensors; what libraries use inside an
    operation is not known. Alive all the time: the noised latents, and the stream of the long skip at full
    resolution. Then the larger of two moments, in tensors of the stream's size:

    - the mixer (``_mixer_values``);
    - the MLP: 4 (the block's input, the mixer's output, the stream after text, the MLP's input) and its hidden
      values twice, before and after SiLU.
    """
    cost, stream = block_cost(kind, config, work), _stream(config, work)
    own = stream // LOW_AREA if kind.low else stream
    hidden = own // config.width * config.mlp_width
    alive = _latents(config, work) + stream + max(_mixer_values(kind, config, work, own), 4 * own + 2 * hidden)
    return _bytes(cost, work, alive=alive, moved=2 * own)


def down_bytes(config: SandwichConfig, work: Workload) -> Bytes:
    """Memory of a way down: the stream, the skip before it, and the low stream before and after its axes move."""
    stream = _stream(config, work)
    low = stream // LOW_AREA
    alive = _latents(config, work) + 2 * stream + 2 * low
    return _bytes(switch_cost(config, work), work, alive=alive, moved=stream + low)


def up_bytes(config: SandwichConfig, work: Workload) -> Bytes:
    """Memory of a way up: the low stream, its copy at full resolution, the skip, and their sum."""
    stream = _stream(config, work)
    low = stream // LOW_AREA
    return _bytes(Cost(), work, alive=_latents(config, work) + 3 * stream + low, moved=low + 2 * stream)


def ends_bytes(config: SandwichConfig, work: Workload) -> Bytes:
    """Memory of the ends: the noised latents and three of the larger of stream and latents.

    Three of the stream: head's input before and after its norm and modulation. Three of the latents: the clean
    ones, their distance to the noised ones, the velocity.
    """
    stream, latents = _stream(config, work), _latents(config, work)
    alive = latents + 3 * max(stream, latents)
    return _bytes(ends_cost(config, work), work, alive=alive, moved=2 * (stream + latents))


def rates_of(device: str, *, dtype: torch.dtype = torch.float32, size: int = 1024, rounds: int = 5) -> Rates:
    """The best of some rounds of a matrix product and of a copy on this machine, with torch's threads as they are.

    Args:
        size: rows and columns of the matrices; the copy is of 16 of them.
    """
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    source = torch.ones(16, size, size, dtype=dtype, device=device)
    target = torch.empty_like(source)
    product = min(_seconds(lambda: torch.mm(a, b), device) for _ in range(rounds))
    copy = min(_seconds(lambda: target.copy_(source), device) for _ in range(rounds))
    return Rates(flops_per_second=2 * size**3 / product, bytes_per_second=2 * source.nbytes / copy)


def _mixer_values(kind: BlockKind, config: SandwichConfig, work: Workload, own: int) -> int:
    """Numbers alive at a mixer's fullest moment, the block's input and the mixer's among them.

    Softmax: 3 of the stream's size (these two, queries), 4 of the size of the chunk's own keys (keys, and the joint
    projection that the values are a view of), 3 of the size of all keys, window included (joined, and two halves
    made of four halves while they are rotated). Linear path: the two, the joint projection (3), features of queries
    and keys, 2 in rotation. Local path: what it is given, the frames with those before them, and two convolved.
    """
    if kind in SOFTMAX:
        keys = own // LOW_AREA if kind is BlockKind.COMPRESSED else own
        window = keys // work.frames * config.window(kind).slots
        return 3 * own + 4 * keys + 3 * (keys + window)
    linear = 0 if kind is BlockKind.LOCAL else 9 * own
    before = 2 * own if kind is BlockKind.LOCAL else 5 * own
    joined = own + own // work.frames * (KERNEL - 1)
    local = 0 if kind is BlockKind.LINEAR else before + joined + 2 * own
    return max(linear, local)


def _stream(config: SandwichConfig, work: Workload) -> int:
    """Numbers in the stream at full resolution."""
    return _latents(config, work) // (config.latent_channels * config.patch**2) * config.width


def _latents(config: SandwichConfig, work: Workload) -> int:
    return work.batch * work.frames * config.latent_channels * work.height * work.width


def _bytes(cost: Cost, work: Workload, *, alive: int, moved: int) -> Bytes:
    """Bytes of counted numbers; weights and state move once, too."""
    weights = work.value_bytes * cost.parameters
    return Bytes(
        weights=weights,
        state=cost.state_bytes,
        activations=work.value_bytes * alive,
        moved=weights + cost.state_bytes + work.value_bytes * moved,
    )


def _seconds(work: Callable[[], object], device: str) -> float:
    def wait() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = wait()
    work()
    return wait() - start
