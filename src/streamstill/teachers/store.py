"""What teachers said, kept for good: an append-only store of clips on disk, found again by the question.

Kept in Lance, whose commits are atomic: a clip is there whole once ``add`` has returned, and not at all before.
Lance is loaded at the first use (half a second). It does not survive ``fork``: use spawn for worker processes.
"""

import errno
import hashlib
import json
import operator
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamstill.teachers.place import Place, first_line
from streamstill.types import Clip, ClipRequest, Frames

FORMAT = 1
_VERSION_KEY = b"streamstill.cache_version"
_ROWS_PER_FILE = 256  # after compaction; files of this many clips are not rewritten again
_LISTED = ["key", "teacher", "prompt", "seed", "frames", "height", "width", "fps", "created"]  # in an Entry
_CLIP = ["key", "frames", "height", "width", "fps", "provenance", "pixels"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a teacher said to a request.

    Raises:
        ValueError: the clip has not the geometry that was asked for, or its provenance is not plain strings.
    """

    teacher: str
    request: ClipRequest
    clip: Clip

    def __post_init__(self) -> None:
        if self.clip.geometry != self.request.geometry:
            raise ValueError(
                f"the teacher {self.teacher!r} answered with {self.clip.geometry} and was asked for "
                f"{self.request.geometry}; let it return media.fit(clip, request.geometry)"
            )
        if not all(isinstance(text, str) for pair in self.clip.provenance.items() for text in pair):
            raise ValueError(f"the provenance of a clip must be plain strings, got {dict(self.clip.provenance)}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the store without its pixels. ``created`` is in seconds since 1970."""

    key: str
    teacher: str
    request: ClipRequest
    created: float


@dataclass(frozen=True, kw_only=True)
class _View:
    """One version of the store and where each key is in it. Never changed, so threads may share it."""

    dataset: Any  # None while nothing was written
    files: tuple[int, ...]
    rows: int
    offsets: Mapping[str, int]  # by key, oldest first


_EMPTY = _View(dataset=None, files=(), rows=0, offsets={})


def request_key(teacher: str, request: ClipRequest) -> str:
    """The name of an answer: equal exactly when the teacher and every field of the request are equal."""
    question = {**asdict(request), "seed": operator.index(request.seed), "fps": float(request.fps)}
    sizes = {name: operator.index(question[name]) for name in ("frames", "height", "width")}
    text = json.dumps({"teacher": teacher, **question, **sizes}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class ClipStore:
    """Clips by key in a folder or an S3 bucket. Any number of processes may read and append at the same time.

    Every question is answered from the newest commit of any process. When two writers race, both answers may be
    on disk; everyone reads the one that was committed first.
    """

    def __init__(self, path: Path | str) -> None:
        self._place = Place.of(path)
        self._view = _EMPTY

    @classmethod
    def open(cls, path: Path | str) -> "ClipStore":
        """The store in this folder, or at ``s3://bucket/prefix``; it is made at the first ``add``.

        Raises:
            ValueError: there is something else at this path, another format version, or a damaged store.
        """
        store = cls(path)
        store._latest()
        return store

    @property
    def path(self) -> Path | str:
        """The folder, or the ``s3://`` address as text."""
        return self._place.uri if self._place.remote else Path(self._place.uri)

    def __reduce__(self) -> tuple[type["ClipStore"], tuple[Path | str]]:
        return ClipStore, (self.path,)

    def __len__(self) -> int:
        return len(self._latest().offsets)

    def __contains__(self, key: str) -> bool:
        return key in self._view.offsets or key in self._latest().offsets

    def keys(self) -> tuple[str, ...]:
        """Every key, oldest first."""
        return tuple(self._latest().offsets)

    def find(self, *, teacher: str | None = None, prompt: str | None = None) -> tuple[Entry, ...]:
        """The entries of this teacher and this prompt, oldest first; None stands for any. Reads no pixels."""
        view = self._latest()
        return () if view.dataset is None else _found(view, {"teacher": teacher, "prompt": prompt})

    def get(self, key: str) -> Clip:
        """The clip, bit for bit as it was added.

        Raises:
            KeyError: there is no such key.
            OSError: the store is damaged.
        """
        if key not in self:
            raise KeyError(f"the clip store {self.path} has no clip {key!r}; keys() lists what it has")
        try:
            return _read(self._view, [key])[0]
        except (OSError, ValueError):  # another process may have compacted the files away: look again once
            self._view = self._reopened(_EMPTY)
        try:
            return _read(self._view, [key])[0]
        except (OSError, ValueError, KeyError) as error:
            raise OSError(
                f"the clip {key} of the store {self.path} cannot be read ({first_line(error)}); "
                f"put back a good copy of the store, or delete it and collect again"
            ) from error

    def get_many(self, keys: Sequence[str]) -> list[Clip]:
        """The clips of these keys, in their order, read at once: what far places are read fastest by.

        Raises:
            KeyError, OSError: as for ``get``.
        """
        absent = next((key for key in keys if key not in self), None)
        try:
            if absent is None:
                return _read(self._view, keys)
        except (OSError, ValueError):
            pass  # ``get`` looks again, and says which clip cannot be read
        return [self.get(key) for key in keys]

    def add(self, answers: Iterable[Answer]) -> int:
        """Commit the answers, all or none, and return how many were new; a key that is there is not written again.

        Raises:
            OSError: they could not be written, for example to a full disk. The store is as it was.
        """
        view = self._latest()
        by_key = {request_key(answer.teacher, answer.request): answer for answer in answers}
        fresh = {key: answer for key, answer in by_key.items() if key not in view.offsets}
        if fresh:
            table = _table(fresh)
            try:
                self._view = _grown(view, self._append(table), fresh)
            except OSError as error:
                raise self._not_written(len(fresh), error) from error
        return len(fresh)

    def compact(self, *, older_than: timedelta = timedelta(hours=1)) -> None:
        """Join the files of small commits, and drop versions of the store that are older than this.

        Others may read and append meanwhile: a reader whose files are gone opens the newest version.

        Raises:
            OSError: it could not be done, for example on a full disk. Nothing is lost.
        """
        if self._latest().dataset is None:
            return
        dataset = self._place.dataset()  # its own: it moves on to the new version, and a view may not
        try:
            dataset.optimize.compact_files(target_rows_per_fragment=_ROWS_PER_FILE, batch_size=8)
            dataset.cleanup_old_versions(older_than=older_than)
        except OSError as error:
            raise OSError(
                error.errno or errno.EIO,
                f"the clip store {self.path} could not be compacted ({first_line(error)}); its clips are all there: "
                f"try again when there is room on the disk and no one else compacts",
            ) from error

    def _append(self, table: Any) -> Any:
        """The dataset with the table in it."""
        if self._view.dataset is not None:
            return self._place.append(table, self._view.dataset)
        try:
            return self._place.create(table)
        except OSError:
            if self._latest().dataset is None:
                raise
            return self._place.append(table, self._view.dataset)  # another process has just made the store

    def _latest(self) -> _View:
        view = self._view
        if view.dataset is None or view.dataset.latest_version != view.dataset.version:
            self._view = view = self._reopened(view)
        return view

    def _reopened(self, old: _View) -> _View:
        dataset = self._place.dataset()
        if dataset is None:
            return _EMPTY
        version = _format(dataset.schema.metadata or {})
        if version != str(FORMAT):
            raise _of_another_format(self.path, version)
        try:
            return _extended(old, dataset)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the clip store {self.path} cannot be read ({first_line(error)}); put back a good copy, or give "
                f"another path"
            ) from error

    def _not_written(self, clips: int, error: OSError) -> OSError:
        full = error.errno == errno.ENOSPC or "os error 28" in str(error)
        why, remedy = ("the disk is full", "free some space") if full else (first_line(error), "mend that")
        return OSError(
            errno.ENOSPC if full else error.errno or errno.EIO,
            f"{clips} clips could not be written to the store {self.path}: {why}; what was there before is safe: "
            f"{remedy} and run the same command again",
        )


def schema() -> Any:
    """The columns of the store as an Arrow schema, with its format version."""
    import pyarrow as pa

    columns = [("key", pa.string()), ("teacher", pa.string()), ("prompt", pa.string()), ("seed", pa.int64())]
    columns += [(name, pa.int32()) for name in ("frames", "height", "width")]
    columns += [("fps", pa.float64()), ("created", pa.float64())]
    columns += [("provenance", pa.string()), ("pixels", pa.large_binary())]
    return pa.schema(columns, metadata={_VERSION_KEY: str(FORMAT).encode()})


def _table(answers: Mapping[str, Answer]) -> Any:
    import pyarrow as pa

    rows = [_row(key, answer) for key, answer in answers.items()]
    return pa.Table.from_pylist(rows, schema=schema())


def _row(key: str, answer: Answer) -> dict[str, Any]:
    if not -(2**63) <= answer.request.seed < 2**63:
        raise ValueError(f"a seed must fit in 64 bits to be stored, got {answer.request.seed}; give a smaller one")
    return {
        **asdict(answer.request),
        "key": key,
        "teacher": answer.teacher,
        "created": time.time(),
        "provenance": json.dumps(dict(answer.clip.provenance), sort_keys=True),
        "pixels": answer.clip.frames_FCHW.tobytes(),
    }


def _read(view: _View, keys: Sequence[str]) -> list[Clip]:
    table = view.dataset.take([view.offsets[key] for key in keys], columns=_CLIP)
    if table["key"].to_pylist() != list(keys):
        raise ValueError("another clip is in its place")
    return [_clip({name: table[name][row] for name in _CLIP}) for row in range(len(keys))]


def _clip(row: Mapping[str, Any]) -> Clip:
    frames, height, width = (row[name].as_py() for name in ("frames", "height", "width"))
    pixels: Frames = np.frombuffer(row["pixels"].as_buffer(), np.uint8).copy()
    provenance = json.loads(row["provenance"].as_py())
    return Clip(frames_FCHW=pixels.reshape(frames, 3, height, width), fps=row["fps"].as_py(), provenance=provenance)


def _extended(old: _View, dataset: Any) -> _View:
    """The view of a newer version; after plain appends only the new rows are listed, otherwise all."""
    files = tuple(fragment.fragment_id for fragment in dataset.get_fragments())
    start = old if files[: len(old.files)] == old.files else _EMPTY
    table = dataset.to_table(columns=["key"], offset=start.rows, with_row_id=True)
    places = np.argsort(table["_rowid"].to_numpy(), kind="stable")  # oldest commit first, whatever was compacted
    keys = _in_order(table, places)["key"].to_pylist()
    offsets = _numbered(keys, (places + start.rows).tolist(), start.offsets)
    return _View(dataset=dataset, files=files, rows=start.rows + len(keys), offsets=offsets)


def _grown(view: _View, dataset: Any, keys: Collection[str]) -> _View:
    """The view after these keys were appended to it; the old one if others were faster, to be looked up again."""
    before = 0 if view.dataset is None else view.dataset.version
    if dataset.version != before + 1:
        return view
    files = tuple(fragment.fragment_id for fragment in dataset.get_fragments())
    offsets = {**view.offsets, **dict(zip(keys, range(view.rows, view.rows + len(keys)), strict=True))}
    return _View(dataset=dataset, files=files, rows=view.rows + len(keys), offsets=offsets)


def _numbered(keys: list[str], places: list[int], before: Mapping[str, int]) -> dict[str, int]:
    """Where each key is. Of two writers that raced, the first to commit counts; that is rare, so it may be slow."""
    offsets = dict(before)
    offsets.update(zip(keys, places, strict=True))
    if len(offsets) < len(before) + len(keys):
        offsets = dict(before)
        for key, place in zip(keys, places, strict=True):
            offsets.setdefault(key, place)
    return offsets


def _in_order(table: Any, places: NDArray[np.int64]) -> Any:
    """The rows at these places; taking rows of a large table copies it, so it is not done for nothing."""
    untouched = np.array_equal(places, np.arange(table.num_rows))
    return table if untouched else table.take(places)


def _found(view: _View, wanted: Mapping[str, str | None]) -> tuple[Entry, ...]:
    """The entries with these values in these columns, oldest first."""
    import pyarrow.compute as pc

    table = _in_order(view.dataset.to_table(columns=_LISTED), np.fromiter(view.offsets.values(), np.int64))
    for column, value in wanted.items():
        if value is not None:
            table = table.filter(pc.equal(table[column], value))
    columns = {name: table[name].to_pylist() for name in _LISTED}
    names = [field.name for field in fields(ClipRequest)]
    requests = (ClipRequest(**dict(zip(names, row, strict=True))) for row in zip(*map(columns.get, names), strict=True))
    rows = zip(columns["key"], columns["teacher"], requests, columns["created"], strict=True)
    return tuple(Entry(key=key, teacher=who, request=request, created=when) for key, who, request, when in rows)


def _format(metadata: Mapping[bytes, bytes]) -> str:
    return metadata.get(_VERSION_KEY, b"").decode()


def _of_another_format(path: Path | str, version: str) -> ValueError:
    if not version:
        return ValueError(f"{path} is a Lance dataset but no clip store; give another path")
    return ValueError(
        f"the clip store {path} has format version {version} and this streamstill reads version {FORMAT}; "
        f"use the streamstill that wrote it, or give another path and collect again"
    )
