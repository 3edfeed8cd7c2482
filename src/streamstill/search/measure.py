"""Cost tables that are measured: whole velocity passes on a target, and what they say about their parts."""

import platform
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import TypeVar

import numpy as np
import torch
from torch import nn

import streamstill
from streamstill.codec.video import VideoCodec
from streamstill.search.cost_table import BlockCost, CostTable, PartCost
from streamstill.search.counted import Bytes, block_bytes, distinct, down_bytes, ends_bytes, part_cost, up_bytes
from streamstill.search.probes import Fit, ProbePool, fit, probe_layouts
from streamstill.search.targets import Pass, Target, target_of
from streamstill.state import state_bytes
from streamstill.streaming.timing import Stopwatch, in_turns, torch_threads
from streamstill.student.costs import Workload
from streamstill.student.layout import BlockKind
from streamstill.student.sandwich import SandwichConfig

Name = TypeVar("Name", bound=Hashable)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How often each thing is timed, and how often it runs before the first time."""

    rounds: int = 30
    warmup: int = 3

    def __post_init__(self) -> None:
        if min(self.rounds, self.warmup) < 1:
            raise ValueError(f"rounds and warmup must be at least 1, got rounds={self.rounds} warmup={self.warmup}")


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One layout: what a table says about a velocity pass, and the median that was measured; milliseconds."""

    layout: str
    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of what was measured; positive if it is too high."""
        return self.predicted_ms / self.measured_ms - 1


def measure_table(
    config: SandwichConfig,
    workload: Workload,
    *,
    kinds: str,
    target: str,
    device_name: str,
    dtype: torch.dtype = torch.float32,
    repeats: Repeats = Repeats(),
    codec: VideoCodec | None = None,
) -> CostTable:
    """Time velocity passes of ``probe_layouts`` in turns and fit the costs of the parts (``probes``).

    Every pass follows one of the same network that is not timed, as a sampler's passes follow one another. Down and
    up are found as one sum, for no network has one without the other; each is written down as half of it. Bytes
    are counted; on a GPU the activations of blocks are the most that torch allocated during passes.

    Args:
        kinds: a letter for each kind of block; if all are low, ``L`` is added, without which a switch of resolution
            could not be told from the ends.
        device_name: of the machine, for the reader of the table.
        codec: one whose decoding of a chunk is timed, too.

    Raises:
        ValueError: an unknown target or kind, a workload that the network would refuse or of another dtype, or a
            target that this machine does not have.
        ModuleNotFoundError: the target is not installed.
    """
    asked = {"kinds": kinds, "target": target, "device_name": device_name, "dtype": dtype}
    return checked_table(config, workload, **asked, repeats=repeats, codec=codec, layouts=())[0]  # type: ignore[arg-type]


@torch.inference_mode()
def checked_table(
    config: SandwichConfig,
    workload: Workload,
    *,
    kinds: str,
    target: str,
    device_name: str,
    dtype: torch.dtype = torch.float32,
    repeats: Repeats = Repeats(),
    codec: VideoCodec | None = None,
    layouts: Sequence[str],
) -> tuple[CostTable, tuple[Checked, ...]]:
    """The table of ``measure_table``, and networks that it was not fitted to, timed in the same rounds.

    A machine that others use, too, is now fast and now slow; in the same rounds that hits both alike, so what is left
    is the error of the fit. ``validate`` is the same at a later time, with what has changed until then.
    """
    _require_dtype(workload, dtype)
    on, wanted = target_of(target, dtype=dtype), distinct(kinds)
    if all(kind.low for kind in wanted):
        wanted = (BlockKind.LCHA, *wanted)
    for kind in wanted:
        block_bytes(kind, config, workload)  # refuses what cannot be built
    probes = probe_layouts(wanted, len(config.kinds))
    pool = ProbePool(config, workload, probes, device=on.device, dtype=dtype)
    passes = {("probe", layout): on.ready(*pool.network(layout)) for layout in probes}
    alone = {("alone", layout): _alone(config, workload, layout, on=on, dtype=dtype) for layout in layouts}
    taken = _timed(passes | alone, on, repeats)
    found = fit(probes, wanted, np.array([taken["probe", layout] for layout in probes]))
    activations = {kind: _activations(kind, config, workload, passes, on) for kind in wanted}
    down, up, ends = (found.part(place, share=share) for place, share in ((1, 0.5), (1, 0.5), (0, 1.0)))
    table = CostTable(
        source="measured",
        target=target,
        device=device_name,
        dtype=str(dtype).removeprefix("torch."),
        versions=_versions(on),
        note=_note(found, probes, repeats, on),
        network=config,
        workload=workload,
        blocks=tuple(
            BlockCost(letter=kind.letter, cost=part_cost(activations[kind], **found.part(2 + place)))
            for place, kind in enumerate(wanted)
        ),
        down=part_cost(down_bytes(config, workload), **down),
        up=part_cost(up_bytes(config, workload), **up),
        ends=part_cost(ends_bytes(config, workload), **ends),
        decode=None if codec is None else _decode(codec, pool, on, repeats),
        threads=torch.get_num_threads(),
        rounds=repeats.rounds,
    )
    return table, _compared(table, {layout: taken["alone", layout] for layout in layouts})


@torch.inference_mode()
def validate(table: CostTable, layouts: Sequence[str], *, repeats: Repeats = Repeats(rounds=5)) -> tuple[Checked, ...]:
    """Build each layout alone, measure its velocity pass on the table's target in turns, and compare medians.

    It runs on as many threads as the table was measured with.

    Raises:
        ValueError: the table was not measured, or does not know a layout's blocks.
    """
    if table.source != "measured":
        raise ValueError(f"only a measured table can be checked here, this one was {table.source}; measure one")
    dtype = DTYPES[table.dtype]
    on = target_of(table.target, dtype=dtype)
    for layout in layouts:
        table.predicted(layout)  # refuses kinds that it does not know before anything is built
    with torch_threads(table.threads or None):
        passes = {layout: _alone(table.network, table.workload, layout, on=on, dtype=dtype) for layout in layouts}
        return _compared(table, _timed(passes, on, repeats))


def same_measurement(table: CostTable, *, target: str, device_name: str, dtype: str, rounds: int) -> bool:
    """Whether measuring now would be the same again: same machine, target, dtype, versions, threads, no more rounds."""
    now = ("measured", target, device_name, dtype, torch.get_num_threads())
    if now != (table.source, table.target, table.device, table.dtype, table.threads) or rounds > table.rounds:
        return False
    return table.versions == _versions(target_of(target, dtype=DTYPES[dtype]))


def _alone(config: SandwichConfig, workload: Workload, layout: str, *, on: Target, dtype: torch.dtype) -> Pass:
    """A pass of a network that shares nothing."""
    return on.ready(*ProbePool(config, workload, (layout,), device=on.device, dtype=dtype).network(layout))


def _compared(table: CostTable, taken: Mapping[str, Sequence[float]]) -> tuple[Checked, ...]:
    return tuple(
        Checked(layout=layout, predicted_ms=table.predicted(layout).ms, measured_ms=statistics.median(times))
        for layout, times in taken.items()
    )


def _activations(
    kind: BlockKind, config: SandwichConfig, workload: Workload, passes: Mapping[tuple[str, str], Pass], on: Target
) -> Bytes:
    """Bytes of a block: counted, but on a GPU with the activations of the shortest probe of this kind alone."""
    counted = block_bytes(kind, config, workload)
    if on.device.type != "cuda":
        return counted
    work = next(work for (_, layout), work in passes.items() if set(layout) == {kind.letter})
    latents = workload.batch * workload.frames * config.latent_channels * workload.height * workload.width
    return replace(counted, activations=workload.value_bytes * latents + _allocated(work, on))


def _require_dtype(workload: Workload, dtype: torch.dtype) -> None:
    if workload.value_bytes != dtype.itemsize:
        raise ValueError(
            f"the workload stores numbers in {workload.value_bytes} bytes and {str(dtype).removeprefix('torch.')} "
            f"needs {dtype.itemsize}; give Workload(value_bytes={dtype.itemsize})"
        )


def _timed(passes: Mapping[Name, Pass], on: Target, repeats: Repeats) -> dict[Name, list[float]]:
    """Milliseconds of each in every round."""
    watch = Stopwatch(on.device)
    order = dict(enumerate(passes))

    def second(work: Pass) -> float:
        work()
        return watch.of(work)

    for _ in range(repeats.warmup):
        for work in passes.values():
            work()
    turns = {str(place): partial(second, passes[name]) for place, name in order.items()}
    taken = in_turns(turns, rounds=repeats.rounds)
    return {name: taken[str(place)] for place, name in order.items()}


def _decode(codec: VideoCodec, pool: ProbePool, on: Target, repeats: Repeats) -> PartCost:
    """Decoding of a chunk with another one before it."""
    latents_BFCHW = pool.x_t_BFCHW
    _, past = codec.decode(latents_BFCHW)
    pixels, after = codec.decode(latents_BFCHW, past)
    taken = _timed({"decode": lambda: codec.decode(latents_BFCHW, past)}, on, repeats)["decode"]
    low, ms, high = (float(value) for value in np.percentile(taken, (10, 50, 90)))
    parameters = codec.parameters() if isinstance(codec, nn.Module) else ()
    return PartCost(
        ms=ms,
        ms_low=low,
        ms_high=high,
        weight_bytes=sum(parameter.nbytes for parameter in parameters),
        state_bytes=0 if after is None else state_bytes(after),
        activation_bytes=pixels.nbytes,
    )


def _allocated(work: Pass, on: Target) -> int:
    """Bytes that a pass needs at most, besides what is there before it."""
    before = torch.cuda.memory_allocated(on.device)
    torch.cuda.reset_peak_memory_stats(on.device)
    work()
    return torch.cuda.max_memory_allocated(on.device) - before


def _versions(on: Target) -> str:
    others = [f"{package} {version(package)}" for package in on.packages]
    mine = [
        f"streamstill {streamstill.__version__}",
        f"torch {torch.__version__}",
        f"python {platform.python_version()}",
    ]
    return ", ".join(mine + others)


def _note(found: Fit, layouts: Sequence[str], repeats: Repeats, on: Target) -> str:
    memory = "measured for blocks, counted for the rest" if on.device.type == "cuda" else "counted"
    return (
        f"fitted to whole velocity passes of {len(layouts)} layouts, {repeats.rounds} rounds, "
        f"{torch.get_num_threads()} threads of torch; the fit is off by at most {100 * found.worst:.1f} % on them. "
        f"down and up have half each of what both take. Activation bytes are {memory}, weights and state counted"
    )
