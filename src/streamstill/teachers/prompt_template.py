"""Prompts from a template: its fields are filled from lists of values and from the columns of rows."""

import math
import random
import string
from collections.abc import Iterator, Mapping, Sequence

from streamstill.teachers.prompts import PROMPT, PromptRow, normalised

MOST = 1_000_000  # prompts of one template


def expand(
    template: str,
    tables: Mapping[str, Sequence[str]],
    rows: Sequence[PromptRow] = (),
    *,
    count: int | None = None,
    seed: int = 0,
) -> list[PromptRow]:
    """Fill every ``{name}`` in all combinations, or in ``count`` different ones that are drawn from the seed.

    A name in ``tables`` runs over its values; any other is a column of the rows, or ``{prompt}``, and runs over the
    rows, whose columns stay together. ``{{`` and ``}}`` are braces. The values become columns; the rows come first in
    the order, then the fields as the template names them.

    Raises:
        ValueError: the template cannot be read, a name is unknown or unused, a list is empty, or the prompts are more
            than there are combinations or more than ``MOST``.
    """
    parts = _parts(template)
    names = list(dict.fromkeys(name for _, name in parts if name is not None))
    lists = {name: tables[name] for name in names if name in tables}
    _require_used(template, names, tables, rows)
    of_rows = rows if len(lists) < len(names) else (None,)
    total = len(of_rows) * math.prod(len(values) for values in lists.values())
    return [
        _filled(parts, of_rows[i], dict(zip(lists, chosen, strict=True)))
        for i, chosen in _combinations(list(lists.values()), _chosen(total, count, seed))
    ]


def _parts(template: str) -> list[tuple[str, str | None]]:
    """Literal text and the name of the field after it."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"cannot read the template {template!r} ({error}); write {{name}} for a field and {{{{ for a brace"
        ) from error
    for _, name, form, conversion in parsed:
        if name == "" or form or conversion:
            raise ValueError(f"a field of a template is {{name}} and nothing else, got {template!r}")
    return [(text, name) for text, name, _, _ in parsed]


def _require_used(
    template: str, names: Sequence[str], tables: Mapping[str, Sequence[str]], rows: Sequence[PromptRow]
) -> None:
    unused = sorted(tables.keys() - set(names))
    if unused:
        raise ValueError(f"the template {template!r} has no field {{{unused[0]}}}; add it, or leave its values out")
    empty = [name for name in tables if not tables[name]]
    if empty:
        raise ValueError(f"the field {empty[0]!r} has no values; give at least one")
    strangers = [name for name in names if name not in tables]
    if strangers and not rows:
        raise ValueError(f"the template's field {strangers[0]!r} has no values; give a list, or rows with this column")
    if rows and not strangers:
        raise ValueError(
            f"the template {template!r} names no column of the prompts that were read; write {{{PROMPT}}} in it, or "
            "read none"
        )


def _chosen(total: int, count: int | None, seed: int) -> Sequence[int]:
    """Which combinations, in order."""
    if count is not None and not 1 <= count <= total:
        raise ValueError(f"the template has {total} combinations, so 1 to {total} can be drawn, got {count}")
    wanted = total if count is None else count
    if wanted > MOST:
        raise ValueError(f"{wanted} prompts are more than the {MOST} that one template may make; draw fewer")
    if wanted == total:
        return range(total)
    draw = random.Random(seed)
    if 2 * wanted > total:
        return sorted(draw.sample(range(total), wanted))
    chosen: set[int] = set()  # the combinations may be too many for a range
    while len(chosen) < wanted:
        chosen.add(draw.randrange(total))
    return sorted(chosen)


def _combinations(lists: Sequence[Sequence[str]], chosen: Sequence[int]) -> Iterator[tuple[int, list[str]]]:
    """The row's number and a value of every list, for combinations by their number; the last list turns fastest."""
    for number in chosen:
        values = []
        for options in reversed(lists):
            number, i = divmod(number, len(options))
            values.append(options[i])
        yield number, values[::-1]


def _filled(parts: Sequence[tuple[str, str | None]], row: PromptRow | None, chosen: Mapping[str, str]) -> PromptRow:
    def value(name: str) -> str:
        if name in chosen or row is None:
            return chosen[name]
        return row.prompt if name == PROMPT else _column(row, name)

    text = "".join(literal + ("" if name is None else value(name)) for literal, name in parts)
    columns = {**({} if row is None else row.columns), **chosen}
    where = "the template" if row is None else row.where
    return PromptRow(prompt=normalised(text), columns=columns, where=where)


def _column(row: PromptRow, name: str) -> str:
    value = row.columns.get(name)
    if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != "":
        return str(value)
    known = ", ".join(map(repr, (PROMPT, *row.columns)))
    raise ValueError(f"{row.where} has no text or number {name!r} for the template; it has {known}")
