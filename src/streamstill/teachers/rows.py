"""Rows that are only ever added, found again by their key; kept in Lance, whose commits are atomic.

Lance is loaded at the first use (half a second). It does not survive ``fork``: use spawn for worker processes.
"""

import errno
import operator
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamstill.teachers.place import Place, first_line

# What may be in the folder before the first commit: what Lance makes, and what a collection from an API keeps there.
_OWN_FOLDERS = frozenset({"data", "_versions", "_transactions", "api", "quarantine"})
_ROWS_PER_FILE = 256  # after compaction; files of this many rows are not rewritten again
_AT_ONCE = 16  # files whose keys are asked for at the same time


@dataclass(frozen=True, kw_only=True)
class RowKind:
    """What a store and its rows are called, and how their format version is named in the schema's metadata."""

    store: str  # for sentences, for example "homework store"
    version_key: bytes
    version: int
    row: str = "row"

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """What the schema of the rows must carry."""
        return {self.version_key: str(self.version).encode()}


class _Listed(Mapping[str, int]):
    """Where each key of a whole store is. Counting and listing keys do not need the table by key, which takes as long
    as reading them; it is made when a key is first looked up."""

    def __init__(self, keys: Any, places: NDArray[np.int64]) -> None:
        """``keys``: an Arrow column, oldest first; ``places``: the row of each."""
        self._keys, self._places = keys, places

    def __len__(self) -> int:
        return len(self._distinct)

    def __iter__(self) -> Iterator[str]:
        return iter(self._distinct.to_pylist())

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def __getitem__(self, key: str) -> int:
        return self._by_key[key]

    def items(self) -> ItemsView[str, int]:
        return self._by_key.items()

    @cached_property
    def _distinct(self) -> Any:
        return self._keys.unique()  # in the order of the first of each

    @cached_property
    def _by_key(self) -> dict[str, int]:
        return _numbered(self._keys.to_pylist(), self._places.tolist(), {})


@dataclass(frozen=True, kw_only=True, eq=False)
class _View:
    """One version of the rows and where each key is in it. Never changed, so threads may share it."""

    dataset: Any  # None while nothing was written
    files: tuple[int, ...]
    rows: int
    offsets: Mapping[str, int]  # by key, oldest first


_EMPTY = _View(dataset=None, files=(), rows=0, offsets={})


class Rows:
    """Rows by key in a folder or an S3 bucket. Any number of processes may read and append at the same time.

    Every question is answered from the newest commit of any process. When two writers race, both rows may be on disk;
    everyone reads the one that was committed first.
    """

    def __init__(self, path: Path | str, kind: RowKind, *, listed: Sequence[str] = ()) -> None:
        self.place, self.kind = Place.of(path), kind
        self._columns = ["key", *listed]
        self._view = _EMPTY
        self._listing: tuple[_View, Mapping[str, Mapping[str, Any]]] = (_EMPTY, {})

    def __len__(self) -> int:
        return len(self._latest().offsets)

    def __contains__(self, key: str) -> bool:
        return key in self._view.offsets or key in self._latest().offsets

    def __iter__(self) -> Iterator[str]:
        """Every key, oldest first.

        Raises:
            ValueError: there is something else at this path, another format version, or a damaged store.
        """
        return iter(self._latest().offsets)

    def absent(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that are not there, by one look at the newest commit."""
        offsets = self._latest().offsets
        return [key for key in keys if key not in offsets]

    def listing(self) -> Mapping[str, Mapping[str, Any]]:
        """The listed columns of every row by key, oldest first; reads nothing else.

        Raises:
            ValueError: there is something else at this path, another format version, or a damaged store.
        """
        view = self._latest()
        if view is not self._listing[0]:
            rows = _found(view, self._columns, {}).to_pylist()
            self._listing = view, {row["key"]: row for row in rows}
        return self._listing[1]

    def find(self, columns: Sequence[str], wanted: Mapping[str, str]) -> Any:
        """These columns of the rows with the wanted values, oldest first, as an Arrow table; None if nothing is there.

        Raises:
            ValueError: as for ``listing``.
        """
        view = self._latest()
        return None if view.dataset is None else _found(view, columns, wanted)

    def take(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Whole rows, in the order of the keys.

        Raises:
            KeyError: there is no such key.
            OSError: the store is damaged.
        """
        return [{name: cell.as_py() for name, cell in row.items()} for row in self.cells(keys)]

    def cells(self, keys: Sequence[str], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """As ``take``, these columns only (None: all), every value an Arrow scalar whose bytes were not copied."""
        absent = next((key for key in keys if key not in self), None)
        if absent is not None:
            name = f"the {self.kind.store} {self.place.uri}"
            raise KeyError(f"{name} has no {self.kind.row} {absent!r}; keys() lists what it has")
        try:
            return _read(self._view, keys, columns)
        except (OSError, ValueError):  # another process may have compacted the files away: look again once
            self._view = self._opened(_EMPTY)
        try:
            return _read(self._view, keys, columns)
        except (OSError, ValueError, KeyError) as error:
            raise OSError(
                f"the {self.kind.store} {self.place.uri} cannot be read ({first_line(error)}); "
                "put back a good copy of it, or delete it and collect again"
            ) from error

    def append(self, table: Any) -> None:
        """Commit the rows of an Arrow table, all or none.

        Raises:
            OSError: they could not be written, for example to a full disk. The store is as it was.
        """
        view = self._view if self._view.dataset is not None else self._latest()
        try:
            dataset = self._appended(table)
        except OSError as error:
            raise self._not_written(table.num_rows, error) from error
        self._view = _grown(view, dataset, table["key"].to_pylist())

    def compact(self, *, older_than: timedelta) -> None:
        """Join the files of small commits, and drop versions that are older than this.

        Raises:
            OSError: it could not be done, for example on a full disk. Nothing is lost.
        """
        if self._latest().dataset is None:
            return
        dataset = self.place.dataset()  # its own: it moves on to the new version, and a view may not
        try:
            dataset.optimize.compact_files(target_rows_per_fragment=_ROWS_PER_FILE, batch_size=8)
            dataset.cleanup_old_versions(older_than=older_than)
        except OSError as error:
            raise OSError(
                error.errno or errno.EIO,
                f"the {self.kind.store} {self.place.uri} could not be compacted ({first_line(error)}); its "
                f"{self.kind.row}s are all there: try again when there is room on the disk and no one else compacts",
            ) from error

    def _appended(self, table: Any) -> Any:
        """The dataset with the table in it."""
        if self._view.dataset is not None:
            return self.place.append(table, self._view.dataset)
        try:
            return self.place.create(table)
        except OSError:
            if self._latest().dataset is None:
                raise
            return self.place.append(table, self._view.dataset)  # another process has just made the store

    def _latest(self) -> _View:
        view = self._view
        if view.dataset is None or view.dataset.latest_version != view.dataset.version:
            self._view = view = self._opened(view)
        return view

    def _opened(self, old: _View) -> _View:
        try:
            dataset = self.place.dataset()
            if dataset is not None and self._version(dataset) == str(self.kind.version):
                return _extended(old, dataset)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        if dataset is not None:
            raise self._of_another_format(self._version(dataset))
        if not self.place.remote:
            self._require_unused(Path(self.place.uri))
        return _EMPTY

    def _version(self, dataset: Any) -> str:
        version: bytes = (dataset.schema.metadata or {}).get(self.kind.version_key, b"")
        return version.decode()

    def _of_another_format(self, version: str) -> ValueError:
        if not version:
            return ValueError(f"{self.place.uri} is a Lance dataset but no {self.kind.store}; give another path")
        return ValueError(
            f"the {self.kind.store} {self.place.uri} has format version {version} and this streamstill reads version "
            f"{self.kind.version}; use the streamstill that wrote it, or give another path and collect again"
        )

    def _require_unused(self, path: Path) -> None:
        """Refuse a path where something else is. A first commit that is under way or was killed left only folders."""
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file and no {self.kind.store}, which is a folder; give another path")
        strangers = sorted({file.name for file in path.glob("*")} - _OWN_FOLDERS)
        if strangers:
            raise ValueError(f"the folder {path} is no {self.kind.store}, it holds {strangers[0]!r}; give another path")

    def _unreadable(self, error: Exception) -> ValueError:
        remedy = (
            "check the bucket, AWS_ENDPOINT_URL, AWS_REGION and the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            if self.place.remote
            else "put back a good copy, or give another path"
        )
        return ValueError(f"the {self.kind.store} {self.place.uri} cannot be read ({first_line(error)}); {remedy}")

    def _not_written(self, count: int, error: OSError) -> OSError:
        full = error.errno == errno.ENOSPC or "os error 28" in str(error)
        why, remedy = ("the disk is full", "free some space") if full else (first_line(error), "mend that")
        return OSError(
            errno.ENOSPC if full else error.errno or errno.EIO,
            f"{count} {self.kind.row}s could not be written to the {self.kind.store} {self.place.uri}: {why}; what was "
            f"there before is safe: {remedy} and run the same command again",
        )


def _read(view: _View, keys: Sequence[str], columns: Sequence[str] | None) -> list[dict[str, Any]]:
    """Asked for in the order of the disk: neighbours come in one piece, which is one request to a far store."""
    if not keys:
        return []
    places = [view.offsets[key] for key in keys]
    ordered = {place: row for row, place in enumerate(sorted(set(places)))}
    table = view.dataset.take(list(ordered), columns=columns)
    rows = [{name: table[name][ordered[place]] for name in table.column_names} for place in places]
    if [row["key"].as_py() for row in rows] != list(keys):
        raise ValueError("another row is in its place")
    return rows


def _found(view: _View, columns: Sequence[str], wanted: Mapping[str, str]) -> Any:
    """Filtered by Lance, so that only what is wanted is copied."""
    import pyarrow.compute as pc

    having = reduce(operator.and_, [pc.field(name) == value for name, value in wanted.items()] or [None])
    table = view.dataset.to_table(columns=list(columns), filter=having, with_row_id=True)
    table = _in_order(table, np.argsort(table["_rowid"].to_numpy(), kind="stable"))
    if len(view.offsets) < view.rows:  # writers raced, and the first row of a key counts
        first: dict[str, int] = {}
        for row, key in enumerate(table["key"].to_pylist()):
            first.setdefault(key, row)
        table = table.take(list(first.values()))
    return table.drop_columns("_rowid")


def _extended(old: _View, dataset: Any) -> _View:
    """The view of a newer version; after plain appends only the new rows are listed, otherwise all."""
    files = tuple(fragment.fragment_id for fragment in dataset.get_fragments())
    start = old if files[: len(old.files)] == old.files else _EMPTY
    table = dataset.to_table(columns=["key"], offset=start.rows, with_row_id=True, fragment_readahead=_AT_ONCE)
    places = np.argsort(table["_rowid"].to_numpy(), kind="stable")  # oldest commit first, whatever was compacted
    keys, places = _in_order(table, places)["key"], places + start.rows
    offsets: Mapping[str, int] = _Listed(keys, places)
    if start is not _EMPTY:
        offsets = _numbered(keys.to_pylist(), places.tolist(), start.offsets)
    return _View(dataset=dataset, files=files, rows=start.rows + len(keys), offsets=offsets)


def _grown(view: _View, dataset: Any, keys: list[str]) -> _View:
    """The view after these keys were appended to it; the old one if others were faster, to be looked up again."""
    before = 0 if view.dataset is None else view.dataset.version
    if dataset.version != before + 1:
        return view
    files = tuple(fragment.fragment_id for fragment in dataset.get_fragments())
    rows = view.rows + len(keys)
    offsets = _numbered(keys, list(range(view.rows, rows)), view.offsets)
    return _View(dataset=dataset, files=files, rows=rows, offsets=offsets)


def _numbered(keys: list[str], places: list[int], before: Mapping[str, int]) -> dict[str, int]:
    """Where each key is. Of two writers that raced, the first to commit counts; that is rare, so it may be slow."""
    offsets = dict(before.items())
    offsets.update(zip(keys, places, strict=True))
    if len(offsets) < len(before) + len(keys):
        offsets = dict(before.items())
        for key, place in zip(keys, places, strict=True):
            offsets.setdefault(key, place)
    return offsets


def _in_order(table: Any, places: NDArray[np.int64]) -> Any:
    """The rows at these places; taking rows of a large table copies it, so it is not done for nothing."""
    untouched = np.array_equal(places, np.arange(table.num_rows))
    return table if untouched else table.take(places)
