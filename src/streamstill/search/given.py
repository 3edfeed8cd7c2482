"""Cost tables of other machines: made of times that were taken there, and checked for Core ML."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np

from streamstill.search.cost_table import CostTable, PartCost
from streamstill.search.counted import counted_table, distinct
from streamstill.search.probes import Fit, fit, probe_layouts
from streamstill.student.costs import Workload
from streamstill.student.layout import parse_layout
from streamstill.student.sandwich import SandwichConfig

COREML_TABLE = "coreml-table"  # the target: give me a table
COREML = "coreml"  # the target that such a table names


def table_wanted() -> str:
    """The sentence for the target ``coreml-table`` without a table."""
    example = files("streamstill.assets") / "cost_tables" / "phone_paper_ratios.json"
    return (
        "Core ML cannot be timed here; measure the network's parts on a Mac or an iPhone and give their cost table "
        f"with --table FILE (docs/search.md, Given), or try the preset phone with the paper's ratios: --table {example}"
    )


def coreml_table(path: Path | None, *, network: SandwichConfig, kinds: str, chunk: Workload | None) -> CostTable:
    """The cost table for Core ML in a file, if it belongs to this network and knows all these kinds of block.

    Args:
        chunk: what it must have been measured with, whatever the size of a number; None is whatever it was.

    Raises:
        ValueError: no file, none of this format's version, a table of another target, network or chunk, one that was
            counted, or one that lacks a kind.
    """
    if path is None:
        raise ValueError(table_wanted())
    table = CostTable.load(path)
    if table.target != COREML or table.source == "counted":
        raise ValueError(
            f"{path} was {table.source} for the target {table.target}; the target {COREML_TABLE} takes a table whose "
            f"target is {COREML} and that was measured or given: leave --target out to search with this one"
        )
    same_numbers = {"value_bytes": table.workload.value_bytes}
    table.require_shape(network, table.workload if chunk is None else Workload(**{**vars(chunk), **same_numbers}))
    for kind in parse_layout(kinds):
        table.block(kind)
    return table


def table_from_times(
    times_ms: Mapping[str, float],
    *,
    network: SandwichConfig,
    chunk: Workload,
    kinds: str,
    device_name: str,
    dtype: str,
    note: str,
    target: str = COREML,
) -> CostTable:
    """A given table from times of whole velocity passes on another machine, fitted like ours; bytes are counted.

    Args:
        times_ms: milliseconds for each of ``probe_layouts`` of these kinds, of networks of one width.
        network, chunk: what the networks were, whatever their layout.
        dtype, note: how it was measured, for the reader of the table.

    Raises:
        ValueError: a layout has no time or one that is not positive, or a kind or chunk that is none.
    """
    wanted = distinct(kinds)
    layouts = probe_layouts(wanted, len(network.kinds))
    wrong = [layout for layout in layouts if not 0 < times_ms.get(layout, 0) < float("inf")]
    if wrong:
        raise ValueError(
            f"a table of {kinds} needs positive milliseconds of the layouts {', '.join(layouts)}; "
            f"{', '.join(wrong)} has none: measure it"
        )
    found = fit(layouts, wanted, np.array([[times_ms[layout]] for layout in layouts]))
    counted = counted_table(network, chunk, kinds=kinds, flops_per_second=1, bytes_per_second=1)
    return replace(
        counted,
        source="given",
        target=target,
        device=device_name,
        dtype=dtype,
        note=f"{note}; fit off by at most {100 * found.worst:.1f} % on its {len(layouts)} layouts, bytes counted",
        blocks=tuple(
            replace(block, cost=_timed(block.cost, found, 2 + place)) for place, block in enumerate(counted.blocks)
        ),
        down=_timed(counted.down, found, 1, share=0.5),
        up=_timed(counted.up, found, 1, share=0.5),
        ends=_timed(counted.ends, found, 0),
    )


def _timed(cost: PartCost, found: Fit, place: int, *, share: float = 1) -> PartCost:
    """The same bytes with the fitted time of a part."""
    part = found.part(place, share=share)
    return replace(cost, ms=part["ms"], ms_low=part["low"], ms_high=part["high"])
