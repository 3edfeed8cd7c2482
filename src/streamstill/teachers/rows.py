"""Rows in a folder that are only ever added, found again by their key; kept in Lance, whose commits are atomic."""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamstill.teachers.place import Place, first_line

_OWN_FOLDERS = frozenset({"data", "_versions", "_transactions"})


@dataclass(frozen=True, kw_only=True)
class RowKind:
    """What the rows of a store are called, and how their format version is named in the schema's metadata."""

    store: str  # for sentences, for example "homework store"
    version_key: bytes
    version: int

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """What the schema of the rows must carry."""
        return {self.version_key: str(self.version).encode()}


@dataclass(frozen=True)
class _View:
    """One version of the rows: where each key is, and the listed columns of its row."""

    dataset: Any
    listed: Mapping[str, Mapping[str, Any]]
    offsets: Mapping[str, int]


class Rows:
    """Rows by key. Any number of processes may read and append; of two rows with one key the first commit counts."""

    def __init__(self, path: Path, kind: RowKind, *, listed: Sequence[str]) -> None:
        self.path, self.kind = path, kind
        self._columns = ["key", *listed]
        self._view: _View | None = None

    def listing(self) -> Mapping[str, Mapping[str, Any]]:
        """The listed columns of every row by key, oldest first; reads nothing else.

        Raises:
            ValueError: there is something else at this path, another format version, or a damaged store.
        """
        view = self._latest()
        return view.listed if view else {}

    def take(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Whole rows, in the order of the keys, which must be there.

        Raises:
            OSError: the store is damaged.
        """
        view = self._latest()
        assert view is not None
        try:
            rows: list[dict[str, Any]] = view.dataset.take([view.offsets[key] for key in keys]).to_pylist()
        except (OSError, ValueError) as error:
            raise OSError(
                f"the {self.kind.store} {self.path} cannot be read ({first_line(error)}); "
                "put back a good copy of it, or delete it and collect again"
            ) from error
        return rows

    def append(self, table: Any) -> None:
        """Commit the rows of an Arrow table, all or none.

        Raises:
            OSError: they could not be written, for example to a full disk. The store is as it was.
        """
        import lance

        exists = self._latest() is not None
        try:
            if exists:
                lance.write_dataset(table, str(self.path), mode="append")
            else:
                Place.of(self.path).create(table)
        except OSError as error:
            if exists or self._latest() is None:
                raise self._not_written(table.num_rows, error) from error
            lance.write_dataset(table, str(self.path), mode="append")  # another process has just made the store

    def _latest(self) -> _View | None:
        view = self._view
        if view is None or view.dataset.latest_version != view.dataset.version:
            self._view = view = self._opened()
        return view

    def _opened(self) -> _View | None:
        import lance

        if not any(self.path.glob("_versions/*.manifest")):
            self._require_unused()
            return None
        try:
            dataset = lance.dataset(str(self.path))
            version = (dataset.schema.metadata or {}).get(self.kind.version_key, b"").decode()
            if version == str(self.kind.version):
                return _viewed(dataset, self._columns)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the {self.kind.store} {self.path} cannot be read ({first_line(error)}); put back a good copy, or "
                "give another path"
            ) from error
        raise self._of_another_format(version)

    def _of_another_format(self, version: str) -> ValueError:
        if not version:
            return ValueError(f"{self.path} is a Lance dataset but no {self.kind.store}; give another path")
        return ValueError(
            f"the {self.kind.store} {self.path} has format version {version} and this streamstill reads version "
            f"{self.kind.version}; use the streamstill that wrote it, or give another path and collect again"
        )

    def _require_unused(self) -> None:
        """Refuse a path where something else is. A first commit that was killed left only folders."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file and no {self.kind.store}, which is a folder; give another path")
        strangers = sorted({file.name for file in self.path.glob("*")} - _OWN_FOLDERS)
        if strangers:
            raise ValueError(
                f"the folder {self.path} is no {self.kind.store}, it holds {strangers[0]!r}; give another path"
            )

    def _not_written(self, count: int, error: OSError) -> OSError:
        full = error.errno == errno.ENOSPC or "os error 28" in str(error)
        why, remedy = ("the disk is full", "free some space") if full else (first_line(error), "mend that")
        return OSError(
            errno.ENOSPC if full else error.errno or errno.EIO,
            f"{count} rows could not be written to the {self.kind.store} {self.path}: {why}; what was there before "
            f"is safe: {remedy} and run the same command again",
        )


def _viewed(dataset: Any, columns: list[str]) -> _View:
    rows = dataset.to_table(columns=columns, with_row_id=True).to_pylist()
    listed: dict[str, Mapping[str, Any]] = {}
    offsets: dict[str, int] = {}
    for offset, row in sorted(enumerate(rows), key=_commit_order):
        if row["key"] not in listed:
            listed[row["key"]], offsets[row["key"]] = row, offset
    return _View(dataset, listed, offsets)


def _commit_order(row: tuple[int, Mapping[str, Any]]) -> int:
    """Lance numbers rows as they are committed."""
    number: int = row[1]["_rowid"]
    return number
