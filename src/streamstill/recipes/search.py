"""``search``: the layout that fits a device's budgets, with pictures, and the line that trains it."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from streamstill.codec.patch import PatchCodec
from streamstill.config import require_one_of, to_dict, write_json, write_text
from streamstill.recipes.base import SMALL
from streamstill.report.card import machine
from streamstill.report.search_pictures import Point, draw_front, draw_layout
from streamstill.search.allocate import Allocation, Allocations, Budget, allocate
from streamstill.search.cost_table import CostTable
from streamstill.search.given import COREML_TABLE, coreml_table, table_wanted
from streamstill.search.measure import DTYPES, Checked, Repeats, measure_table, same_measurement, validate
from streamstill.search.place import place
from streamstill.search.probes import switches
from streamstill.search.targets import MEASURED_HERE, TARGETS, target_of
from streamstill.student.costs import Workload
from streamstill.student.layout import sandwich
from streamstill.student.presets import PRESETS, preset
from streamstill.student.sandwich import SandwichConfig

FORMAT = 1
TABLE, RESULT, REPORT = "cost_table.json", "search.json", "search.md"
LAYOUT_PICTURE, FRONT_PICTURE = "layout.png", "front.png"
MOST_ROWS = 40  # of the front in the report
CHECKS = 5  # measured passes of the found layout, of which the median counts


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is asked of a search.

    Args:
        budget_ms: most milliseconds of one velocity pass; None for no limit.
        budget_mb: most MB (10^6 bytes) of weights, state and activations at their peak; None for no limit.
        kinds: letters of the blocks to choose from.
        table: a cost table; None measures one first, on ``target``. The target ``coreml-table`` needs one.
        worths: ``placement.json`` of a placement run. If it ranked orders, the best that fits is taken; else its
            position worths decide order and counts. None takes the paper's rule for the counts and spreads evenly.
        rounds: of measuring, if no table is given.
    """

    preset: str = "nano"
    target: str = "cpu"
    budget_ms: float | None = None
    budget_mb: float | None = None
    kinds: str = "LS"
    table: str | None = None
    worths: str | None = None
    dtype: str = "float32"
    rounds: int = 30

    def __post_init__(self) -> None:
        require_one_of(self.preset, tuple(PRESETS), "preset")
        require_one_of(self.target, TARGETS, "target")
        require_one_of(self.dtype, tuple(DTYPES), "dtype")
        if self.budget_ms is None and self.budget_mb is None:
            raise ValueError("a search needs a budget; give milliseconds a pass, MB of memory, or both")
        if self.target == COREML_TABLE and self.table is None:
            raise ValueError(table_wanted())
        if self.table is None:
            target_of(self.target, dtype=DTYPES[self.dtype])  # refuses what this machine does not have
        Budget(ms=self.budget_ms, mb=self.budget_mb)

    @property
    def budget(self) -> Budget:
        """Both limits."""
        return Budget(ms=self.budget_ms, mb=self.budget_mb)

    @property
    def depth(self) -> int:
        """Blocks of the preset."""
        return PRESETS[self.preset].depth


@dataclass(frozen=True, kw_only=True)
class Found:
    """The answer: a layout, what it should cost, what it did cost if it could be measured, and why it was chosen."""

    layout: str
    ms: float
    mb: float
    why: str
    checked: Checked | None


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """What a placement run found: worths for each position, and the loss of each ranked order."""

    worths: dict[str, list[float]]
    ranking: dict[str, float]


def run_search(config: Search, out: Path, console: Console) -> Found:
    """Search, check, draw and write ``search.json``, ``search.md`` and two pictures into ``out``.

    Raises:
        ValueError: no layout fits the budgets (the sentence names the cheapest), or the table belongs to another
            network.
    """
    learnt = _learnt(config)
    out.mkdir(parents=True, exist_ok=True)
    table = _table(config, out, console)
    choices = _choices(config, table, learnt)
    found = _found(config, table, choices, learnt)
    draw_layout(found.layout, out / LAYOUT_PICTURE)
    points = [Point(ms=one.ms, mb=one.mb, name=str(one)) for one in choices.front]
    limits = (one if one is not None else float("inf") for one in (config.budget_ms, config.budget_mb))
    chosen = Point(ms=found.ms, mb=found.mb, name=found.layout)
    draw_front(points, chosen, out / FRONT_PICTURE, budget_ms=next(limits), budget_mb=next(limits))
    write_text(out / REPORT, as_markdown(config, table, choices, found))
    write_json(out / RESULT, {"format": FORMAT, "found": to_dict(found), "asked": to_dict(config)})
    return found


def training_line(config: Search, layout: str) -> str:
    """The command that trains the layout from scratch, on clips that hold whole chunks of the preset's."""
    chunk = PatchCodec().compression[0] * PRESETS[config.preset].chunk_frames
    frames = math.ceil(SMALL.frames / chunk) * chunk
    longer = "" if frames == SMALL.frames else f" --set geometry.frames={frames}"
    return f"streamstill distill base --set preset={config.preset} --set layout={layout}{longer}"


def as_markdown(config: Search, table: CostTable, choices: Allocations, found: Found) -> str:
    """The report of a search, beside its pictures."""
    shown = _thinned(choices)
    rows = [f"| {one} | {one.low_runs} | {one.ms:.4g} | {one.mb:.4g} |" for one in shown]
    left_out = len(choices.front) - len(shown)
    measured = "not measured: the table is not of this machine"
    if found.checked is not None:
        measured = f"{found.checked.measured_ms:.4g} ms measured, prediction {found.checked.error:+.1%}"
    lines = [
        f"# {config.preset}: the layout for {config.budget}",
        "",
        f"**{found.layout}**: {found.ms:.4g} ms a velocity pass and {found.mb:.4g} MB predicted; {measured}.",
        "",
        found.why,
        "",
        f"![the layout]({LAYOUT_PICTURE})",
        "",
        f"Costs: {table.source}, {table.target}, {table.device}, {table.dtype}. {table.note}",
        "",
        "| blocks | low runs | ms | MB |",
        "|---|---|---|---|",
        *rows,
        *(["", f"{left_out} more lie between them."] if left_out else []),
        "",
        f"![the Pareto front]({FRONT_PICTURE})",
        "",
        f"Train it: `{training_line(config, found.layout)}`",
        "",
    ]
    return "\n".join(lines)


def _thinned(choices: Allocations) -> list[Allocation]:
    """The front for a reader: evenly thinned if it is long, the chosen one kept."""
    front = choices.front
    if len(front) <= MOST_ROWS:
        return list(front)
    kept = {front[round(i * (len(front) - 1) / (MOST_ROWS - 2))] for i in range(MOST_ROWS - 1)} | {choices.chosen}
    return sorted(kept, key=lambda one: one.ms)


def _table(config: Search, out: Path, console: Console) -> CostTable:
    """The given table, the one that an earlier search of the same measured here, or one that is measured now."""
    network, size = preset(config.preset), PRESETS[config.preset]
    if config.target == COREML_TABLE and config.table is not None:
        return coreml_table(Path(config.table), network=network, kinds=config.kinds, chunk=None)
    if config.table is not None:
        table = CostTable.load(Path(config.table))
        table.require_shape(network, table.workload)
        return table
    workload = Workload(
        height=size.latent_height,
        width=size.latent_width,
        frames=size.chunk_frames,
        text_tokens=size.text_tokens,
        value_bytes=DTYPES[config.dtype].itemsize,
    )
    if (kept := _kept_table(config, out / TABLE, network, workload)) is not None:
        console.print(
            f"  costs as they were measured before: {out / TABLE}; delete it to measure again", soft_wrap=True
        )
        return kept
    console.print(f"  measuring {config.kinds} of {config.preset} on {config.target}, {config.rounds} rounds")
    table = measure_table(
        network,
        workload,
        kinds=config.kinds,
        target=config.target,
        device_name=machine(config.target)["device_name"],
        dtype=DTYPES[config.dtype],
        repeats=Repeats(rounds=config.rounds),
    )
    table.save(out / TABLE)
    return table


def _kept_table(config: Search, path: Path, network: SandwichConfig, workload: Workload) -> CostTable | None:
    """The table there, if measuring now would be the same again."""
    if not path.is_file():
        return None
    table = CostTable.load(path)
    same = same_measurement(
        table,
        target=config.target,
        device_name=machine(config.target)["device_name"],
        dtype=config.dtype,
        rounds=config.rounds,
    )
    fits = table.has_shape(network, workload) and set(config.kinds) <= set(table.letters)
    return table if same and fits else None


def _choices(config: Search, table: CostTable, learnt: Learnt | None) -> Allocations:
    """Counts that fit, and the best of them."""
    means = None
    if learnt is not None and not learnt.ranking:
        means = {letter: sum(row) / len(row) for letter, row in learnt.worths.items()}
    low_runs = max(switches(sandwich(config.depth)), 1)
    return allocate(
        table, depth=config.depth, budget=config.budget, kinds=config.kinds, worths=means, low_runs=low_runs
    )


def _found(config: Search, table: CostTable, choices: Allocations, learnt: Learnt | None) -> Found:
    layout, why = choices.chosen.layout, choices.why
    if learnt is not None and learnt.ranking:
        layout, why = _best_ranked(config, table, learnt)
    elif learnt is not None:
        placed = place(table, depth=config.depth, budget=config.budget, worths=learnt.worths, kinds=config.kinds)
        layout = placed.layout
        why = f"Of all orders within {config.budget}, {layout} has the largest sum of worths, {placed.worth:.4g}."
    cost = table.predicted(layout)
    could = table.source == "measured" and table.target in MEASURED_HERE
    here = could and table.device == machine(table.target)["device_name"]
    checked = validate(table, [layout], repeats=Repeats(rounds=CHECKS))[0] if here else None
    return Found(layout=layout, ms=cost.ms, mb=cost.mb, why=why, checked=checked)


def _best_ranked(config: Search, table: CostTable, learnt: Learnt) -> tuple[str, str]:
    """The ranked order with the least loss of those that fit, and why."""
    most_ms, most_mb = config.budget.limits
    costs = {order: table.predicted(order) for order in learnt.ranking}
    fitting = [order for order, cost in costs.items() if cost.ms <= most_ms and cost.mb <= most_mb]
    if not fitting:
        cheapest = min(costs, key=lambda order: costs[order].ms)
        raise ValueError(
            f"none of the {len(costs)} ranked orders fits {config.budget}; the cheapest, {cheapest}, takes "
            f"{costs[cheapest].ms:.4g} ms and {costs[cheapest].mb:.4g} MB: rank orders with other counts, or allow more"
        )
    best = min(fitting, key=lambda order: learnt.ranking[order])
    return best, (
        f"Of {len(fitting)} ranked orders within {config.budget}, {best} has the least held-out loss with shared "
        f"weights, {learnt.ranking[best]:.4g}."
    )


def _learnt(config: Search) -> Learnt | None:
    if config.worths is None:
        return None
    path = Path(config.worths)
    if not path.is_file():
        raise ValueError(f"there is no file of worths {path}; a placement run writes one, placement.json")
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        found = (values.get("worths") or {}).get("worths") or {}
        worths = {letter: [float(one) for one in row] for letter, row in found.items()}
        ranking = {str(one["layout"]): float(one["loss"]) for one in values.get("ranking") or []}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no placement.json ({error!r}); give the one of a placement run") from error
    if not worths and not ranking:
        raise ValueError(f"{path} has neither worths nor ranked orders in it; run the placement with one of them")
    if any(len(order) != config.depth for order in ranking):
        raise ValueError(
            f"{path} ranks orders of {len(next(iter(ranking)))} blocks, the preset {config.preset} has {config.depth}; "
            "place as many"
        )
    return Learnt(worths=worths, ranking=ranking)
