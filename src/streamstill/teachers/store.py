"""What teachers said, kept for good: an append-only store of clips, found again by the question.

A clip is there whole once ``add`` has returned, and not at all before.
"""

import hashlib
import json
import operator
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamstill.teachers.rows import RowKind, Rows
from streamstill.types import Clip, ClipRequest, Frames

if TYPE_CHECKING:
    import torch

FORMAT = 1
_VERSION_KEY = b"streamstill.cache_version"
_LISTED = ["key", "teacher", "prompt", "seed", "frames", "height", "width", "fps", "created"]  # in an Entry
_READ_CLIPS = 64  # read at once: a bucket then gets a tenth of the requests
_READ_BYTES = 256 * 2**20  # of pixels that are read at once
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


@dataclass(frozen=True, kw_only=True, slots=True)  # slots: a million are made a third faster
class Entry:
    """One row of the store without its pixels. ``created`` is in seconds since 1970."""

    key: str
    teacher: str
    request: ClipRequest
    created: float


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
        self._rows = Rows(path, _kind())

    @classmethod
    def open(cls, path: Path | str) -> "ClipStore":
        """The store in this folder, or at ``s3://bucket/prefix``; it is made at the first ``add``.

        Raises:
            ValueError: there is something else at this path, another format version, or a damaged store.
        """
        store = cls(path)
        len(store)
        return store

    @property
    def path(self) -> Path | str:
        """The folder, or the ``s3://`` address as text."""
        place = self._rows.place
        return place.uri if place.remote else Path(place.uri)

    def __reduce__(self) -> tuple[type["ClipStore"], tuple[Path | str]]:
        return ClipStore, (self.path,)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def keys(self) -> tuple[str, ...]:
        """Every key, oldest first."""
        return tuple(self._rows)

    def find(self, *, teacher: str | None = None, prompt: str | None = None) -> tuple[Entry, ...]:
        """The entries of this teacher and this prompt, oldest first; None stands for any. Reads no pixels."""
        wanted = {"teacher": teacher, "prompt": prompt}
        table = self._rows.find(_LISTED, {name: value for name, value in wanted.items() if value is not None})
        return () if table is None else tuple(_entries(table))

    def get(self, key: str) -> Clip:
        """The clip, bit for bit as it was added.

        Raises:
            KeyError: there is no such key.
            OSError: the store is damaged.
        """
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[str]) -> list[Clip]:
        """The clips of these keys, in their order, read at once: what far places are read fastest by.

        Raises:
            KeyError, OSError: as for ``get``.
        """
        return [_clip(row) for row in self._rows.cells(keys, _CLIP)]

    def read(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Clip]]:
        """The entries in their order, each with its clip; many are read at once, 64 or 256 MiB of pixels.

        Raises:
            KeyError, OSError: as for ``get``.
        """
        for part in _readable_at_once(entries):
            yield from zip(part, self.get_many([entry.key for entry in part]), strict=True)

    def epoch(
        self, keys: Sequence[str] | None = None, *, generator: "torch.Generator", run: int = 16, mixed: int = 256
    ) -> Iterator[tuple[str, Clip]]:
        """Every clip once with its key, in a random order that a far store can give quickly.

        Clips that lie side by side are read in runs, each one request or few; ``mixed`` clips of runs from all over
        the store are held in memory at once and shuffled among each other.

        Args:
            keys: which clips, in the order of ``keys()`` or ``find()``; None: all that are there now.
            run: clips in a run; 1 gives all orders the same chance, at a request for each clip.

        Raises:
            KeyError, OSError: as for ``get``.
            ValueError: ``run`` is not between 1 and ``mixed``.
        """
        if not 1 <= run <= mixed:
            raise ValueError(f"a run must have at least 1 clip and at most mixed={mixed}, got {run}")
        for part in _mixtures(self.keys() if keys is None else keys, generator, run, mixed):
            yield from zip(part, self.get_many(part), strict=True)

    def copy_to(self, other: "ClipStore", *, at_once: int = 64) -> int:
        """Append the clips that the other store lacks to it, and return how many; the same call goes on after a stop.

        Raises:
            OSError: a clip cannot be read or written. The other store has what was copied before.
        """
        there = set(other.keys())
        missing = [entry for entry in self.find() if entry.key not in there]
        for first in range(0, len(missing), at_once):
            part = missing[first : first + at_once]
            clips = self.get_many([entry.key for entry in part])
            other.add(
                Answer(teacher=entry.teacher, request=entry.request, clip=clip)
                for entry, clip in zip(part, clips, strict=True)
            )
        return len(missing)

    def add(self, answers: Iterable[Answer]) -> int:
        """Commit the answers, all or none, and return how many were new; a key that is there is not written again.

        Raises:
            OSError: they could not be written, for example to a full disk. The store is as it was.
        """
        by_key = {request_key(answer.teacher, answer.request): answer for answer in answers}
        fresh = {key: by_key[key] for key in self._rows.absent(by_key)}
        if fresh:
            self._rows.append(_table(fresh))
        return len(fresh)

    def compact(self, *, older_than: timedelta = timedelta(hours=1)) -> None:
        """Join the files of small commits, and drop versions of the store that are older than this.

        Others may read and append meanwhile: a reader whose files are gone opens the newest version.

        Raises:
            OSError: it could not be done, for example on a full disk. Nothing is lost.
        """
        self._rows.compact(older_than=older_than)


def _kind() -> RowKind:
    return RowKind(store="clip store", row="clip", version_key=_VERSION_KEY, version=FORMAT)


def schema() -> Any:
    """The columns of the store as an Arrow schema, with its format version."""
    import pyarrow as pa

    columns = [("key", pa.string()), ("teacher", pa.string()), ("prompt", pa.string()), ("seed", pa.int64())]
    columns += [(name, pa.int32()) for name in ("frames", "height", "width")]
    columns += [("fps", pa.float64()), ("created", pa.float64())]
    columns += [("provenance", pa.string()), ("pixels", pa.large_binary())]
    return pa.schema(columns, metadata=_kind().metadata)


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


def _clip(row: Mapping[str, Any]) -> Clip:
    frames, height, width = (row[name].as_py() for name in ("frames", "height", "width"))
    pixels: Frames = np.frombuffer(row["pixels"].as_buffer(), np.uint8).copy()
    provenance = json.loads(row["provenance"].as_py())
    return Clip(frames_FCHW=pixels.reshape(frames, 3, height, width), fps=row["fps"].as_py(), provenance=provenance)


def _entries(table: Any) -> Iterator[Entry]:
    columns = (table[name].to_pylist() for name in _LISTED)
    for key, teacher, prompt, seed, frames, height, width, fps, created in zip(*columns, strict=True):
        request = ClipRequest(prompt=prompt, seed=seed, frames=frames, height=height, width=width, fps=fps)
        yield Entry(key=key, teacher=teacher, request=request, created=created)


def _readable_at_once(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    part: list[Entry] = []
    pixels = 0
    for entry in entries:
        own = 3 * entry.request.frames * entry.request.height * entry.request.width
        if part and (len(part) == _READ_CLIPS or pixels + own > _READ_BYTES):
            yield part
            part, pixels = [], 0
        part.append(entry)
        pixels += own
    if part:
        yield part


def _mixtures(keys: Sequence[str], generator: "torch.Generator", run: int, mixed: int) -> Iterator[list[str]]:
    """The keys once each: runs of neighbours in random order, and so many of them at once in random order."""
    import torch

    order = (run * torch.randperm(-(-len(keys) // run), generator=generator)).tolist()
    for first in range(0, len(order), mixed // run):
        pool = [key for start in order[first : first + mixed // run] for key in keys[start : start + run]]
        yield [pool[place] for place in torch.randperm(len(pool), generator=generator).tolist()]
