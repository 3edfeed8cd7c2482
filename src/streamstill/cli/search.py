"""``streamstill search``: what the parts of a network cost on a device, and which layout fits a budget."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from streamstill.cli.shell import quoted, say_next
from streamstill.codec.patch import PatchCodec
from streamstill.config import require_one_of, with_overrides
from streamstill.recipes.placement import RESULT as PLACEMENT
from streamstill.recipes.placement import PlacementRun, run_placement
from streamstill.recipes.search import REPORT, Search, run_search, training_line
from streamstill.report.card import machine
from streamstill.search.cost_table import MB, CostTable, PartCost
from streamstill.search.given import COREML_TABLE, coreml_table
from streamstill.search.measure import DTYPES, Repeats, measure_table
from streamstill.search.targets import target_of
from streamstill.streaming.timing import torch_threads
from streamstill.student.costs import Workload
from streamstill.student.presets import PRESETS, preset


@dataclass(frozen=True, kw_only=True)
class AskedTable:
    """What the user asked for; ``height`` and ``width`` are latents, None is the preset's own.

    Args:
        table: what was measured elsewhere, for the target ``coreml-table``.
    """

    name: str
    target: str
    kinds: str
    height: int | None
    width: int | None
    dtype: str
    threads: int | None
    rounds: int
    out: Path
    table: Path | None = None

    def __post_init__(self) -> None:
        require_one_of(self.name, tuple(PRESETS), "preset")
        require_one_of(self.dtype, tuple(DTYPES), "dtype")
        if self.table is None:
            target_of(self.target, dtype=DTYPES[self.dtype])  # refuses what this machine does not have
        elif self.target != COREML_TABLE:
            raise ValueError(
                f"--table goes with --target {COREML_TABLE}, got {self.target}; leave one of them out, or search with "
                f"the table: streamstill search run --table {self.table}"
            )
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {self.threads}")
        if self.out.suffix != ".json":
            raise ValueError(f"--out must be the name of a json file, got {self.out}")

    @property
    def workload(self) -> Workload:
        """One chunk of one clip."""
        size = PRESETS[self.name]
        return Workload(
            height=size.latent_height if self.height is None else self.height,
            width=size.latent_width if self.width is None else self.width,
            frames=size.chunk_frames,
            text_tokens=size.text_tokens,
            value_bytes=DTYPES[self.dtype].itemsize,
        )


def measure(asked: AskedTable, console: Console) -> None:
    """Measure, or check what was measured elsewhere; print the table and write it."""
    table = _measured(asked, console) if asked.table is None else _given(asked, console)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    table.save(asked.out)
    console.print(as_table(table))
    console.print(f"  {table.note}", markup=False, soft_wrap=True)
    console.print(f"  cost table -> {asked.out}", soft_wrap=True)
    say_next(console, _next(asked, table))


def _measured(asked: AskedTable, console: Console) -> CostTable:
    config, codec = preset(asked.name), PatchCodec()
    console.print(f"  {asked.name} on {asked.target}: {asked.rounds} rounds of velocity passes")
    with torch_threads(asked.threads):
        return measure_table(
            config,
            asked.workload,
            kinds=asked.kinds,
            target=asked.target,
            device_name=machine(asked.target)["device_name"],
            dtype=DTYPES[asked.dtype],
            repeats=Repeats(rounds=asked.rounds),
            codec=codec if config.latent_channels == codec.latent_channels else None,
        )


def _given(asked: AskedTable, console: Console) -> CostTable:
    console.print(f"  {asked.name} on {asked.target}: {asked.table}, nothing is measured here", soft_wrap=True)
    return coreml_table(asked.table, network=preset(asked.name), kinds=asked.kinds, chunk=asked.workload)


def learn_placement(name: str, layout: str, out: Path, overrides: list[str], console: Console) -> None:
    """``streamstill search place``."""
    found = run_placement(with_overrides(PlacementRun(preset=name, layout=layout), overrides), out, console)
    for number, share in enumerate(found.decision.probabilities):
        console.print(f"  group {number} is at full resolution in {share:.0%} of the draws")
    say_next(console, f"streamstill search run --preset {name} --worths {quoted(out / PLACEMENT)} --budget-ms ...")


def find_layout(
    *,
    name: str,
    budget_ms: float | None,
    budget_mb: float | None,
    target: str,
    kinds: str,
    table: Path | None,
    worths: Path | None,
    out: Path,
    console: Console,
) -> None:
    """``streamstill search run``."""
    config = Search(
        preset=name,
        target=target,
        budget_ms=budget_ms,
        budget_mb=budget_mb,
        kinds=kinds,
        table=None if table is None else str(table),
        worths=None if worths is None else str(worths),
    )
    found = run_search(config, out, console)
    console.print(f"  layout [bold]{found.layout}[/bold]: {found.ms:.4g} ms a pass and {found.mb:.4g} MB predicted")
    if found.checked is not None:
        console.print(f"  measured {found.checked.measured_ms:.4g} ms, prediction {found.checked.error:+.1%}")
    console.print(f"  {found.why}", markup=False, soft_wrap=True)
    console.print(f"  report and pictures -> {out / REPORT}", soft_wrap=True)
    say_next(console, training_line(config, found.layout))


def as_table(costs: CostTable) -> Table:
    """A row for each part."""
    shown = Table(title=f"{costs.device}, {costs.target}, {costs.dtype}, {costs.source}", title_justify="left")
    shown.add_column("part")
    for name in ("ms", "10 % .. 90 %", "weights MB", "state MB", "activations MB"):
        shown.add_column(name, justify="right")
    parts = {block.letter: block.cost for block in costs.blocks}
    parts |= {"down": costs.down, "up": costs.up, "ends": costs.ends}
    parts |= {} if costs.decode is None else {"decode": costs.decode}
    for name, part in parts.items():
        shown.add_row(name, *_cells(part))
    return shown


def _cells(part: PartCost) -> list[str]:
    sizes = (part.weight_bytes, part.state_bytes, part.activation_bytes)
    return [f"{part.ms:.3g}", f"{part.ms_low:.3g} .. {part.ms_high:.3g}", *(f"{size / MB:.3g}" for size in sizes)]


def _next(asked: AskedTable, table: CostTable) -> str:
    """A search whose budget is that of the preset's own layout, if the table knows its blocks."""
    layout = preset(asked.name).layout
    known = set(layout) <= set(table.letters)
    budget = table.predicted(layout if known else table.letters[0] * len(layout)).ms
    return f"streamstill search run --table {quoted(asked.out)} --preset {asked.name} --budget-ms {budget:.3g}"
