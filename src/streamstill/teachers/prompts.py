"""Prompts from files: read, freed of duplicates, balanced, held out, made from a template, and written."""

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamstill.config import write_text

PROMPT = "prompt"
REWRITTEN_FROM = "rewritten_from"  # the column with the prompt as it was before somebody rewrote it
_RANKS = 2**64
_BOM = b"\xef\xbb\xbf"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A prompt and what else its line says; ``where`` names the line in sentences and counts for nothing else.

    Args:
        prompt: normalised, see ``normalised``.
        columns: plain JSON values by name.

    Raises:
        ValueError: the prompt is empty or not normalised, or something in the row cannot be written as JSON in UTF-8.
    """

    prompt: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="this row", compare=False)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError(f"{self.where} has no prompt; write one, or leave the line out")
        if self.prompt != normalised(self.prompt):
            raise ValueError(f"the prompt of {self.where} is not normalised; call normalised on it")
        try:
            text = json.dumps([self.prompt, dict(self.columns)], ensure_ascii=False, allow_nan=False)
            text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{self.where} holds what is no text ({error}); write it anew") from error
        if "\0" in self.prompt:
            raise ValueError(f"{self.where} holds a NUL and is no text; save the file as UTF-8")

    @property
    def source(self) -> str:
        """The prompt that decides on which side of a split the row is: the one before it was rewritten."""
        before = self.columns.get(REWRITTEN_FROM)
        return normalised(before) if isinstance(before, str) else self.prompt


@dataclass(frozen=True)
class Split:
    """Rows to learn from, and rows that nobody may learn from; no prompt is on both sides."""

    kept: list[PromptRow]
    held_out: list[PromptRow]


def normalised(text: str) -> str:
    """The text in Unicode's composed form (NFC) on one line, with single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def read_prompts(path: Path, column: str = PROMPT) -> list[PromptRow]:
    """The prompts of a file, normalised, in order, duplicates included.

    A .txt file has a prompt a line and no columns; .csv and .tsv have a header; .jsonl has an object a line. The named
    column is the prompt; another one that is called prompt is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another ending, no prompt, or a line that cannot be read, which is named by its number.
    """
    if path.suffix.lower() not in ("", ".txt", ".jsonl", *_DELIMITERS):
        raise ValueError(f"cannot tell how prompts are written in {path}; give a .txt, .csv, .tsv or .jsonl file")
    if not path.exists() or path.is_dir():
        raise FileNotFoundError(f"there is no prompt file {path}; write one prompt a line")
    rows = list(_rows(path, column))
    if not rows:
        raise ValueError(f"{path} has no prompt in it; write one prompt a line")
    return rows


def write_prompts(path: Path, rows: Sequence[PromptRow]) -> None:
    """Write a prompt a line (.txt) or an object a line with all columns (.jsonl), whole or not at all.

    Raises:
        ValueError: the ending is another one.
    """
    require_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [_line(path, row) for row in rows]
    write_text(path, "".join(f"{line}\n" for line in lines))


def require_writable(path: Path) -> None:
    """Raise a ValueError if prompts cannot be written to a file of that name."""
    if path.suffix.lower() not in (".txt", ".jsonl"):
        raise ValueError(f"prompts are written as .txt or .jsonl, got {path}; give one of these endings")


def deduplicated(rows: Iterable[PromptRow]) -> list[PromptRow]:
    """The rows without those whose prompt was there before."""
    first: dict[str, PromptRow] = {}
    for row in rows:
        first.setdefault(row.prompt, row)
    return list(first.values())


def balance(rows: Sequence[PromptRow], column: str, per_value: int | None = None, *, seed: int = 0) -> list[PromptRow]:
    """As many rows for every value of the column: ``per_value``, or as many as the rarest value has.

    Which ones is drawn from seed and prompt, not from the order; the order stays.

    Raises:
        ValueError: a row has no such value, ``per_value`` is below 1, or a value has fewer rows.
    """
    if per_value is not None and per_value < 1:
        raise ValueError(f"per_value must be at least 1, got {per_value}")
    values = [_balanced_value(row, column) for row in rows]
    counts = Counter(values)
    if not counts:
        return []
    rarest, fewest = min(counts.items(), key=lambda item: (item[1], item[0]))
    wanted = fewest if per_value is None else per_value
    if wanted > fewest:
        raise ValueError(
            f"of {column} = {rarest!r} there are {fewest} prompts and {wanted} are wanted of every value; ask for "
            f"{fewest} or fewer, or leave those prompts out"
        )
    room, chosen = Counter(dict.fromkeys(counts, wanted)), set[int]()
    for i in sorted(range(len(rows)), key=lambda i: (_rank("balance", seed, rows[i].prompt), i)):
        if room[values[i]]:
            room[values[i]] -= 1
            chosen.add(i)
    return [row for i, row in enumerate(rows) if i in chosen]


def split(rows: Sequence[PromptRow], held_out: float | int, *, seed: int = 0) -> Split:
    """Hold out a share of the prompts (a float below 1) or a number of them (an int), by a hash of seed and prompt.

    With a share every prompt's side is its own: prompts that are added later move no other, and the number held out is
    only about the share. A number is exact, so a prompt that is added may take another's place.

    Raises:
        ValueError: the share is not between 0 and 1, or the number leaves nothing to learn from.
    """
    sources = {row.source for row in rows}
    if isinstance(held_out, float):
        if not 0 < held_out < 1:
            raise ValueError(f"the share to hold out must be between 0 and 1, got {held_out}")
        outside = {source for source in sources if _rank("split", seed, source) < held_out * _RANKS}
    else:
        if not 1 <= held_out < len(sources):
            raise ValueError(f"of {len(sources)} prompts at least 1 and not all can be held out, got {held_out}")
        outside = set(sorted(sources, key=lambda source: (_rank("split", seed, source), source))[:held_out])
    return Split(
        kept=[row for row in rows if row.source not in outside],
        held_out=[row for row in rows if row.source in outside],
    )


def _rows(path: Path, column: str) -> Iterator[PromptRow]:
    ending, text = path.suffix.lower(), _text(path)
    if ending in _DELIMITERS:
        return _from_table(path, text, column)
    return _from_objects(path, text, column) if ending == ".jsonl" else _from_text(path, text)


def _text(path: Path) -> str:
    content = path.read_bytes().removeprefix(_BOM)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\r|\n", content[: error.start])) + 1
        wrong = content[error.start]
        raise ValueError(f"line {line} of {path} is not UTF-8 (byte 0x{wrong:02x}); save the file as UTF-8") from error


def _lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Where a line is, and the line; blank ones are left out."""
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if line.strip():
            yield f"line {number} of {path}", line


def _from_text(path: Path, text: str) -> Iterator[PromptRow]:
    for where, line in _lines(path, text):
        yield PromptRow(prompt=normalised(line), where=where)


def _from_objects(path: Path, text: str, column: str) -> Iterator[PromptRow]:
    for where, line in _lines(path, text):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({error}); write one object a line") from error
        prompt = values.get(column) if isinstance(values, dict) else None
        if not isinstance(prompt, str):
            raise ValueError(f"{where} must be an object with the text {column!r}, got {line.strip()[:80]!r}")
        yield _row(where, prompt, values, column)


def _from_table(path: Path, text: str, column: str) -> Iterator[PromptRow]:
    records = _records(path, text)
    header = [name.strip() for name in next(records, ("", [column]))[1]]
    if column not in header:
        raise ValueError(f"{path} has no column {column!r}; its columns are {', '.join(map(repr, header))}: name one")
    if len(set(header)) < len(header):
        raise ValueError(f"{path} has two columns of one name: {', '.join(map(repr, header))}; rename one")
    for where, fields in records:
        if len(fields) != len(header):
            raise ValueError(
                f"{where} has {len(fields)} fields and the header has {len(header)}; "
                "put a field that holds the delimiter between double quotes"
            )
        values = dict(zip(header, fields, strict=True))
        yield _row(where, values[column], values, column)


def _records(path: Path, text: str) -> Iterator[tuple[str, list[str]]]:
    """Where a record begins, and its fields; blank lines are left out."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_DELIMITERS[path.suffix.lower()], strict=True)
    while True:
        where = f"line {reader.line_num + 1} of {path}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{where} cannot be read ({error}); check its double quotes") from error
        if fields is None:
            return
        if fields:
            yield where, fields


def _row(where: str, prompt: str, values: Mapping[str, Any], column: str) -> PromptRow:
    columns = {name: value for name, value in values.items() if name not in (column, PROMPT)}
    return PromptRow(prompt=normalised(prompt), columns=columns, where=where)


def _line(path: Path, row: PromptRow) -> str:
    if path.suffix.lower() == ".txt":
        return row.prompt
    columns = {name: value for name, value in row.columns.items() if name != PROMPT}  # a template may have such a field
    return json.dumps({PROMPT: row.prompt, **columns}, ensure_ascii=False)


def _balanced_value(row: PromptRow, column: str) -> str:
    value = row.columns.get(column)
    text = normalised(value) if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if value is None or not text:
        known = ", ".join(map(repr, row.columns)) or "no column"
        raise ValueError(f"{row.where} has no {column!r} to balance by; it has {known}")
    return text


def _rank(purpose: str, seed: int, text: str) -> int:
    """A number below ``_RANKS``, drawn for this text alone; that of one purpose says nothing of another's."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}\n{text}".encode()).digest()[:8], "big")
