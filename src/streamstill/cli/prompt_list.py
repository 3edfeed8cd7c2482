"""What ``streamstill prompts`` does: from lists of prompts to one that can be asked, and one that is held out."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from streamstill.cli.shell import quoted, say_next
from streamstill.teachers.api.http import terms_line
from streamstill.teachers.api.jobs import ApiError
from streamstill.teachers.prompt_template import expand
from streamstill.teachers.prompts import (
    PromptRow,
    Split,
    balance,
    deduplicated,
    read_prompts,
    require_writable,
    split,
    write_prompts,
)
from streamstill.teachers.rewriting import INSTRUCTION, ChatRewriter, Rewriting, RewritingConfig, rewrite


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The words of the command. None and empty stand for what was not said."""

    inputs: tuple[Path, ...]
    out: Path
    column: str
    balance: str | None = None
    per_value: int | None = None
    held_out: str | None = None
    template: str | None = None
    fields: tuple[str, ...] = ()
    sample: int | None = None
    rewrite: str | None = None
    model: str | None = None
    key_variable: str | None = None
    instruction: str | None = None
    rewrites: Path
    seed: int

    def __post_init__(self) -> None:
        if not self.inputs and self.template is None:
            raise ValueError("there is nothing to read; give files of prompts, or --template with --field")
        self._require("--balance", self.balance, {"--per-value": self.per_value})
        self._require("--template", self.template, {"--field": self.fields or None, "--sample": self.sample})
        of_rewriting = {"--model": self.model, "--key-variable": self.key_variable, "--instruction": self.instruction}
        self._require("--rewrite", self.rewrite, of_rewriting)
        if self.rewrite is not None and self.model is None:
            raise ValueError("--rewrite needs --model NAME, as the service calls it")
        require_writable(self.out)
        overwritten = {self.out.resolve(), self.held_out_file.resolve()} & {path.resolve() for path in self.inputs}
        if overwritten:
            raise ValueError(f"{overwritten.pop().name} would be read and overwritten; give another --out")
        if self.held_out is None and self.held_out_file.exists():
            raise ValueError(
                f"{self.held_out_file} holds out prompts of an earlier run, which would be learnt from now; give "
                "--held-out again, or move it away"
            )

    @property
    def held_out_file(self) -> Path:
        """Beside ``out``: prompts.txt -> prompts.held_out.txt."""
        return self.out.with_name(f"{self.out.stem}.held_out{self.out.suffix}")

    @property
    def part(self) -> float | int | None:
        """What to hold out: a number with a point is a share."""
        if self.held_out is None:
            return None
        try:
            return int(self.held_out) if self.held_out.isdecimal() else float(self.held_out)
        except ValueError as error:
            raise ValueError(f"--held-out is a share as 0.1 or a number as 200, got {self.held_out!r}") from error

    @property
    def tables(self) -> dict[str, list[str]]:
        """The lists of the template's fields."""
        tables: dict[str, list[str]] = {}
        for text in self.fields:
            name, equals, values = text.partition("=")
            if not equals or name in tables:
                raise ValueError(f"a field is given once and as NAME=VALUE,VALUE, got --field {text!r}")
            tables[name] = list(dict.fromkeys(value.strip() for value in values.split(",") if value.strip()))
        return tables

    @property
    def rewriting(self) -> RewritingConfig | None:
        """Which language model rewrites; a URL that ends in /chat/completions is understood."""
        if self.rewrite is None or self.model is None:
            return None
        return RewritingConfig(
            base_url=self.rewrite.rstrip("/").removesuffix("/chat/completions"),
            model=self.model,
            key_variable=self.key_variable,
            instruction=self.instruction or INSTRUCTION,
        )

    @staticmethod
    def _require(option: str, given: str | None, others: Mapping[str, object]) -> None:
        named = [name for name, value in others.items() if value is not None]
        if given is None and named:
            raise ValueError(f"{named[0]} means nothing without {option}; give both or none")


def prepare(asked: Asked, console: Console) -> None:
    """``streamstill prompts``."""
    config, part, tables = asked.rewriting, asked.part, asked.tables  # whose sentences come before any work
    counts: dict[str, int] = {}
    rows = [row for path in asked.inputs for row in read_prompts(path, asked.column)]
    counts["read"] = len(rows)
    rows, counts["duplicates"] = _without_duplicates(rows)
    if asked.template is not None:
        rows = expand(asked.template, tables, rows, count=asked.sample, seed=asked.seed)
        counts["expanded"] = len(rows)
        rows, again = _without_duplicates(rows)
        counts["duplicates"] += again
    if asked.balance is not None:
        balanced = balance(rows, asked.balance, asked.per_value, seed=asked.seed)
        counts["left out"] = len(rows) - len(balanced)
        rows = balanced
    if part is not None:
        _split(rows, part, asked.seed)  # an impossible part is named before a service is paid
    if config is not None:
        done = _rewritten(rows, config, asked.rewrites, console)
        counts["rewritten"] = len(rows) - len(done.refused)
        rows, again = _without_duplicates(done.rows)
        counts["duplicates"] += again
    sides = Split(rows, []) if part is None else _split(rows, part, asked.seed)
    _write(sides, asked)
    _tell({**counts, "kept": len(sides.kept), "held out": len(sides.held_out)}, asked, console)


def _without_duplicates(rows: Sequence[PromptRow]) -> tuple[list[PromptRow], int]:
    """And how many there were."""
    first = deduplicated(rows)
    return first, len(rows) - len(first)


def _split(rows: Sequence[PromptRow], part: float | int, seed: int) -> Split:
    sides = split(rows, part, seed=seed)
    if not sides.kept or not sides.held_out:
        raise ValueError(
            f"a share of {part} of {len(rows)} prompts leaves one side empty; give a number, for example --held-out 1"
        )
    return sides


def _write(sides: Split, asked: Asked) -> None:
    """The held-out prompts first, so that no list to learn from is there without them."""
    if sides.held_out:
        write_prompts(asked.held_out_file, sides.held_out)
    write_prompts(asked.out, sides.kept)


def _rewritten(rows: Sequence[PromptRow], config: RewritingConfig, cache: Path, console: Console) -> Rewriting:
    console.print(f"  {terms_line(ChatRewriter(config, cache).service)}", markup=False, soft_wrap=True)
    columns = (TextColumn("  rewriting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(rows))
        try:
            done = asyncio.run(
                rewrite(
                    rows, config, cache, on_answer=lambda done, total: bar.update(task, completed=done, total=total)
                )
            )
        except ApiError as error:
            raise ValueError(f"{error}; what was answered is kept, and the same command goes on") from error
    console.print(
        f"  {done.asked} prompts rewritten now, {done.known} known, {len(done.refused)} refused -> {cache}",
        soft_wrap=True,
    )
    for prompt, why in list(done.refused.items())[:1]:
        console.print(f"  kept as it was, for instance: {prompt[:80]} ({why})", markup=False, soft_wrap=True)
    return done


def _tell(counts: dict[str, int], asked: Asked, console: Console) -> None:
    table = Table(*counts, box=None)
    table.add_row(*(str(count) for count in counts.values()))
    console.print(table)
    console.print(f"  prompts -> {asked.out}", markup=False, soft_wrap=True)
    if counts["held out"]:
        console.print(f"  held out -> {asked.held_out_file}", markup=False, soft_wrap=True)
    say_next(console, f"streamstill collect TEACHER --prompts {quoted(asked.out)} --count {counts['kept']}")
