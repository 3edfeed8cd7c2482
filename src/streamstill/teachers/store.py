"""What teachers said, kept for good: an append-only store of clips on disk, found again by the question.

Kept in Lance, whose commits are atomic: a clip is there whole once ``add`` has returned, and not at all before.
Lance is loaded at the first use (half a second). It does not survive ``fork``: use spawn for worker processes.
"""

import errno
import hashlib
import json
import operator
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np

from streamstill.types import Clip, ClipRequest, Frames

FORMAT = 1
_VERSION_KEY = b"streamstill.cache_version"
_FILE_FORMAT: Literal["2.1"] = (
    "2.1"  # of Lance; named, so that a newer Lance writes files that this one's readers can read
)
_ROWS_PER_FILE = 256  # after compaction; files of this many clips are not rewritten again
_PLAIN = ["key", "teacher", "prompt", "seed", "frames", "height", "width", "fps", "created"]  # all but the pixels


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
    entries: Mapping[str, Entry]
    offsets: Mapping[str, int]


_EMPTY = _View(dataset=None, files=(), rows=0, entries={}, offsets={})


def request_key(teacher: str, request: ClipRequest) -> str:
    """The name of an answer: equal exactly when the teacher and every field of the request are equal."""
    question = {**asdict(request), "seed": operator.index(request.seed), "fps": float(request.fps)}
    sizes = {name: operator.index(question[name]) for name in ("frames", "height", "width")}
    text = json.dumps({"teacher": teacher, **question, **sizes}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class ClipStore:
    """Clips by key in a folder. Any number of processes may read and append at the same time.

    Every question is answered from the newest commit of any process. When two writers race, both answers may be
    on disk; everyone reads the one that was committed first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._view = _EMPTY

    @classmethod
    def open(cls, path: Path) -> "ClipStore":
        """The store in this folder; it is made at the first ``add``.

        Raises:
            ValueError: there is something else at this path, another format version, or a damaged store.
        """
        store = cls(path)
        store._latest()
        return store

    def __reduce__(self) -> tuple[type["ClipStore"], tuple[Path]]:
        return ClipStore, (self.path,)

    def __len__(self) -> int:
        return len(self._latest().entries)

    def __contains__(self, key: str) -> bool:
        return key in self._view.entries or key in self._latest().entries

    def keys(self) -> tuple[str, ...]:
        """Every key, oldest first."""
        return tuple(self._latest().entries)

    def find(self, *, teacher: str | None = None, prompt: str | None = None) -> tuple[Entry, ...]:
        """The entries of this teacher and this prompt, oldest first; None stands for any. Reads no pixels."""
        return tuple(
            entry
            for entry in self._latest().entries.values()
            if teacher in (None, entry.teacher) and prompt in (None, entry.request.prompt)
        )

    def get(self, key: str) -> Clip:
        """The clip, bit for bit as it was added.

        Raises:
            KeyError: there is no such key.
            OSError: the store is damaged.
        """
        if key not in self:
            raise KeyError(f"the clip store {self.path} has no clip {key!r}; keys() lists what it has")
        try:
            return _read(self._view, key)
        except (OSError, ValueError):  # another process may have compacted the files away: look again once
            self._view = self._reopened(_EMPTY)
        try:
            return _read(self._view, key)
        except (OSError, ValueError, KeyError) as error:
            raise OSError(
                f"the clip {key} of the store {self.path} cannot be read ({_first_line(error)}); "
                f"put back a good copy of the store, or delete it and collect again"
            ) from error

    def add(self, answers: Iterable[Answer]) -> int:
        """Commit the answers, all or none, and return how many were new; a key that is there is not written again.

        Raises:
            OSError: they could not be written, for example to a full disk. The store is as it was.
        """
        there = self._latest().entries
        by_key = {request_key(answer.teacher, answer.request): answer for answer in answers}
        fresh = {key: answer for key, answer in by_key.items() if key not in there}
        if fresh:
            table = _table(fresh)
            try:
                self._append(table)
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
        import lance

        dataset = lance.dataset(str(self.path))  # its own: it moves on to the new version, and a view may not
        try:
            dataset.optimize.compact_files(target_rows_per_fragment=_ROWS_PER_FILE, batch_size=8)
            dataset.cleanup_old_versions(older_than=older_than)
        except OSError as error:
            raise OSError(
                error.errno or errno.EIO,
                f"the clip store {self.path} could not be compacted ({_first_line(error)}); its clips are all there: "
                f"try again when there is room on the disk and no one else compacts",
            ) from error

    def _append(self, table: Any) -> None:
        import lance

        mode = "create" if self._view.dataset is None else "append"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lance.write_dataset(
                table, str(self.path), mode=mode, data_storage_version=_FILE_FORMAT, enable_stable_row_ids=True
            )
        except OSError:
            if mode == "append" or self._latest().dataset is None:
                raise
            lance.write_dataset(table, str(self.path), mode="append")  # another process has just made the store

    def _latest(self) -> _View:
        view = self._view
        if view.dataset is None or view.dataset.latest_version != view.dataset.version:
            self._view = view = self._reopened(view)
        return view

    def _reopened(self, old: _View) -> _View:
        import lance

        if not any(self.path.glob("_versions/*.manifest")):
            _require_unused(self.path)
            return _EMPTY
        try:
            dataset = lance.dataset(str(self.path))
            version = _format(dataset.schema.metadata or {})
            if version == str(FORMAT):
                return _extended(old, dataset)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the clip store {self.path} cannot be read ({_first_line(error)}); put back a good copy, or give "
                f"another path"
            ) from error
        raise _of_another_format(self.path, version)

    def _not_written(self, clips: int, error: OSError) -> OSError:
        full = error.errno == errno.ENOSPC or "os error 28" in str(error)
        why, remedy = ("the disk is full", "free some space") if full else (_first_line(error), "mend that")
        return OSError(
            errno.ENOSPC if full else error.errno or errno.EIO,
            f"{clips} clips could not be written to the store {self.path}: {why}; what was there before is safe: "
            f"{remedy} and run the same command again",
        )


def _table(answers: Mapping[str, Answer]) -> Any:
    import pyarrow as pa

    columns = [("key", pa.string()), ("teacher", pa.string()), ("prompt", pa.string()), ("seed", pa.int64())]
    columns += [(name, pa.int32()) for name in ("frames", "height", "width")]
    columns += [("fps", pa.float64()), ("created", pa.float64())]
    columns += [("provenance", pa.string()), ("pixels", pa.large_binary())]
    schema = pa.schema(columns, metadata={_VERSION_KEY: str(FORMAT).encode()})
    rows = [_row(key, answer) for key, answer in answers.items()]
    return pa.Table.from_pylist(rows, schema=schema)


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


def _read(view: _View, key: str) -> Clip:
    table = view.dataset.take([view.offsets[key]], columns=["key", "provenance", "pixels"])
    if table["key"][0].as_py() != key:
        raise ValueError("another clip is in its place")
    request = view.entries[key].request
    pixels: Frames = np.frombuffer(table["pixels"][0].as_buffer(), np.uint8).copy()
    frames_FCHW = pixels.reshape(request.frames, 3, request.height, request.width)
    return Clip(frames_FCHW=frames_FCHW, fps=request.fps, provenance=json.loads(table["provenance"][0].as_py()))


def _extended(old: _View, dataset: Any) -> _View:
    """The view of a newer version; after plain appends only the new rows are listed, otherwise all."""
    files = tuple(fragment.fragment_id for fragment in dataset.get_fragments())
    start = old if files[: len(old.files)] == old.files else _EMPTY
    entries, offsets = dict(start.entries), dict(start.offsets)
    listed = dataset.to_table(columns=_PLAIN, offset=start.rows, with_row_id=True).to_pylist()
    for offset, row in sorted(enumerate(listed, start=start.rows), key=_commit_order):
        if row["key"] not in entries:  # of two writers that raced, the first to commit counts
            entries[row["key"]] = _entry(row)
            offsets[row["key"]] = offset
    return _View(dataset=dataset, files=files, rows=start.rows + len(listed), entries=entries, offsets=offsets)


def _commit_order(row: tuple[int, Mapping[str, Any]]) -> int:
    """Lance numbers rows as they are committed; compaction may change their places but not their numbers."""
    number: int = row[1]["_rowid"]
    return number


def _entry(row: Mapping[str, Any]) -> Entry:
    request = ClipRequest(**{field.name: row[field.name] for field in fields(ClipRequest)})
    return Entry(key=row["key"], teacher=row["teacher"], request=request, created=row["created"])


def _format(metadata: Mapping[bytes, bytes]) -> str:
    return metadata.get(_VERSION_KEY, b"").decode()


def _of_another_format(path: Path, version: str) -> ValueError:
    if not version:
        return ValueError(f"{path} is a Lance dataset but no clip store; give another path")
    return ValueError(
        f"the clip store {path} has format version {version} and this streamstill reads version {FORMAT}; "
        f"use the streamstill that wrote it, or give another path and collect again"
    )


def _require_unused(path: Path) -> None:
    """Refuse a path where something else is. A first commit that is under way or was killed left only folders."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file and no clip store, which is a folder; give another path")
    strangers = sorted({file.name for file in path.glob("*")} - {"data", "_versions", "_transactions"})
    if strangers:
        raise ValueError(f"the folder {path} is no clip store, it holds {strangers[0]!r}; give another path")


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].split(", /")[0] if str(error) else type(error).__name__
