"""Clips of a teacher as latents, encoded once, with the embeddings of their prompts beside them."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from streamstill.codec.build import codec_fingerprint
from streamstill.codec.video import VideoCodec
from streamstill.teachers.rows import RowKind, Rows
from streamstill.teachers.store import request_key
from streamstill.types import ClipRequest

_KIND = RowKind(store="encoded store", version_key=b"streamstill.encoded_version", version=1)
_DTYPES = {"float16": torch.float16, "float32": torch.float32}
_LISTED = ("codec", "teacher", *(field.name for field in fields(ClipRequest)))
LATENTS, TEXT = "latents", "text"  # subfolders

KeptDtype: TypeAlias = Literal["float16", "float32"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """The latents of one clip, float32 of shape (F, C, H, W), and whose answer to which question it is."""

    teacher: str
    request: ClipRequest
    latents_FCHW: Tensor


@dataclass(frozen=True, kw_only=True)
class EncodedEntry:
    """One row of the store without its latents. ``codec`` is the fingerprint of the codec."""

    key: str
    codec: str
    teacher: str
    request: ClipRequest


class EncodedStore:
    """Latents by key in a folder; any number of processes may read and append. Clips of several codecs may share it.

    ``text_folder`` is the place for a ``TextCache`` of the prompts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = Rows(path / LATENTS, _KIND, listed=_LISTED)

    @classmethod
    def open(cls, path: Path) -> "EncodedStore":
        """The store in this folder; it is made at the first ``add``.

        Raises:
            ValueError: there is something else at this path, another format version, or a damaged store.
        """
        store = cls(path)
        store._rows.listing()
        return store

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether this folder holds encoded clips."""
        return (path / LATENTS / "_versions").is_dir()

    def __len__(self) -> int:
        return len(self._rows.listing())

    def __contains__(self, key: str) -> bool:
        return key in self._rows.listing()

    @property
    def text_folder(self) -> Path:
        """Where embeddings of the prompts are kept."""
        return self.path / TEXT

    def find(self, *, codec: VideoCodec | None = None, teacher: str | None = None) -> tuple[EncodedEntry, ...]:
        """The entries of this codec and this teacher, oldest first; None stands for any. Reads no latents."""
        wanted = None if codec is None else codec_fingerprint(codec)
        return tuple(
            _entry(row)
            for row in self._rows.listing().values()
            if wanted in (None, row["codec"]) and teacher in (None, row["teacher"])
        )

    def get(self, keys: Sequence[str]) -> list[Encoded]:
        """These clips, in the order of the keys.

        Raises:
            KeyError: there is no such key.
            OSError: the store is damaged.
        """
        for key in keys:
            if key not in self:
                raise KeyError(f"the encoded store {self.path} has no clip {key!r}")
        return [_read(row) for row in self._rows.take(keys)]

    def add(self, clips: Iterable[Encoded], *, codec: VideoCodec, dtype: KeptDtype = "float16") -> int:
        """Commit the clips, all or none, and return how many were new; a key that is there is not written again.

        Raises:
            ValueError: latents that are not finite in the dtype.
            OSError: they could not be written, for example to a full disk. The store is as it was.
        """
        there = self._rows.listing()
        by_key = {encoded_key(codec, clip.teacher, clip.request): clip for clip in clips}
        fresh = {key: clip for key, clip in by_key.items() if key not in there}
        if fresh:
            self._rows.append(_table(fresh, codec, dtype))
        return len(fresh)


def encoded_key(codec: VideoCodec, teacher: str, request: ClipRequest) -> str:
    """The name of a clip's latents: equal exactly when the clip is, and the codec."""
    return f"{request_key(teacher, request)}-{codec_fingerprint(codec)}"


def _table(clips: Mapping[str, Encoded], codec: VideoCodec, dtype: KeptDtype) -> Any:
    import pyarrow as pa

    columns = [(name, pa.string()) for name in ("key", "codec", "teacher", "prompt", "dtype")]
    columns += [(name, pa.int32()) for name in ("frames", "height", "width")]
    columns += [("seed", pa.int64()), ("fps", pa.float64()), ("created", pa.float64())]
    columns += [("shape", pa.list_(pa.int32())), ("latents", pa.large_binary())]
    same = {
        "codec": codec_fingerprint(codec),
        "dtype": dtype,
        "created": time.time(),
    }
    rows = [{**_row(clip, dtype), **same, "key": key} for key, clip in clips.items()]
    return pa.Table.from_pylist(rows, schema=pa.schema(columns, metadata=_KIND.metadata))


def _row(clip: Encoded, dtype: KeptDtype) -> dict[str, Any]:
    kept = clip.latents_FCHW.detach().cpu().to(_DTYPES[dtype]).contiguous()
    if not torch.isfinite(kept).all():
        raise ValueError(
            f"the latents of {clip.request.prompt!r} are not finite in {dtype}; encode with --dtype float32, and if "
            "that fails too, mend the codec"
        )
    return {
        **asdict(clip.request),
        "teacher": clip.teacher,
        "shape": list(kept.shape),
        "latents": kept.numpy().tobytes(),
    }


def _entry(row: Mapping[str, Any]) -> EncodedEntry:
    return EncodedEntry(key=row["key"], codec=row["codec"], teacher=row["teacher"], request=_request(row))


def _read(row: Mapping[str, Any]) -> Encoded:
    latents = torch.frombuffer(bytearray(row["latents"]), dtype=_DTYPES[row["dtype"]]).reshape(row["shape"])
    return Encoded(teacher=row["teacher"], request=_request(row), latents_FCHW=latents.float())


def _request(row: Mapping[str, Any]) -> ClipRequest:
    return ClipRequest(**{field.name: row[field.name] for field in fields(ClipRequest)})
