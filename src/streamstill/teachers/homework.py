"""What an open teacher gave once, kept on disk, so that it need not be in memory while the student learns.

Axes of its own: V velocities asked about one clip, J points of its path from noise to clean.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from streamstill.config import from_dict
from streamstill.flow.path import noised
from streamstill.flow.times import sampler_times
from streamstill.teachers.rows import RowKind, Rows
from streamstill.teachers.store import request_key
from streamstill.types import ClipRequest

_KIND = RowKind(store="homework store", version_key=b"streamstill.homework_version", version=1)
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a teacher is asked for besides its clip. Another assignment is another answer in the store."""

    shift: float  # of the student's schedule: times are drawn as its training draws them
    velocities: int = 2  # asked about each clip, each with noise and a time of its own
    path_levels: int = 0  # kept points of an ODE path from noise, before the clean one; 0: no path
    path_steps: int = 16  # Euler steps of that path, a multiple of its levels
    text: bool = False  # whether the teacher's own embedding of the prompt is kept
    dtype: Literal["float16", "float32"] = "float16"  # of everything kept

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"shift must be positive, got {self.shift}; give the shift of the student's sampling")
        if min(self.velocities, self.path_levels) < 0 or self.path_steps < 1:
            raise ValueError(
                f"velocities and path_levels must not be negative and path_steps at least 1, got "
                f"{self.velocities}, {self.path_levels} and {self.path_steps}"
            )
        if self.path_levels and self.path_steps % self.path_levels:
            raise ValueError(
                f"path_steps={self.path_steps} is no multiple of path_levels={self.path_levels}, so the path would "
                "miss its levels; make it one"
            )
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {list(_DTYPES)}, got {self.dtype!r}")

    @property
    def path_times_J(self) -> Tensor:
        """The times of the kept points, from 1 down to 0: those of the student's sampler with as many steps."""
        return sampler_times(self.path_levels, shift=self.shift)

    def rounded(self, given: Tensor, what: str) -> Tensor:
        """Float32 values that survive being kept.

        Raises:
            ValueError: one is not finite, or too large for the dtype.
        """
        kept = given.detach().cpu().to(_DTYPES[self.dtype])
        if not torch.isfinite(kept).all():
            raise ValueError(
                f"the teacher gave {what} that are not finite in {self.dtype}; mend the teacher, or keep float32"
            )
        return kept.float()


@dataclass(frozen=True, kw_only=True, eq=False)
class Homework:
    """One clip of an open teacher with what it said about it; float32 here, the assignment's dtype on disk.

    Noise is kept as a seed. ``noise_marks`` are the first numbers of each noise: by them a torch whose generator
    draws other numbers is noticed.
    """

    teacher: str
    request: ClipRequest
    assignment: Assignment
    latents_FCHW: Tensor
    noise_seeds: tuple[int, ...]
    noise_marks: tuple[float, ...]
    t_V: Tensor
    velocity_VFCHW: Tensor
    path_JFCHW: Tensor | None = None
    text_LD: Tensor | None = None

    @property
    def key(self) -> str:
        """Its name in the store."""
        return homework_key(self.teacher, self.request, self.assignment)

    def noise_FCHW(self, index: int) -> Tensor:
        """The noise of one of the velocities.

        Raises:
            ValueError: this torch draws other numbers from the same seed.
        """
        noise = seeded_noise(self.noise_seeds[index], self.latents_FCHW.shape)
        mark, now = self.noise_marks[index], float(noise.flatten()[0])
        if abs(mark - now) > 1e-4:
            raise ValueError(
                f"this homework was done with another random generator (torch {torch.__version__} draws {now:.4f} "
                f"where it drew {mark:.4f}); use the torch that wrote it, or collect it again in another store"
            )
        return noise

    def x_t_FCHW(self, index: int) -> Tensor:
        """The noised clip that one of the velocities belongs to."""
        return noised(self.latents_FCHW, self.noise_FCHW(index), self.t_V[index])


def homework_key(teacher: str, request: ClipRequest, assignment: Assignment) -> str:
    """Equal exactly when teacher, request and assignment are."""
    text = request_key(teacher, request) + json.dumps(asdict(assignment), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def seeded_noise(seed: int, shape: Sequence[int]) -> Tensor:
    """The noise that belongs to a seed; that of a clip begins a longer clip's."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


class HomeworkStore:
    """Homework by key in a folder; append-only, transactional. Any number of processes may read and append."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = Rows(path, _KIND, listed=["teacher", "prompt", "assignment"])

    @classmethod
    def open(cls, path: Path) -> "HomeworkStore":
        """The store in this folder; it is made at the first ``add``.

        Raises:
            ValueError: there is something else at this path, another format version, or a damaged store.
        """
        store = cls(path)
        len(store)
        return store

    def __reduce__(self) -> tuple[type["HomeworkStore"], tuple[Path]]:
        return HomeworkStore, (self.path,)

    def __len__(self) -> int:
        return len(self._rows.listing())

    def __contains__(self, key: str) -> bool:
        return key in self._rows.listing()

    def keys(self, *, teacher: str | None = None, assignment: Assignment | None = None) -> tuple[str, ...]:
        """The keys of this teacher and this assignment, oldest first; None stands for any. Reads no tensors."""
        wanted = None if assignment is None else _as_json(assignment)
        return tuple(
            key
            for key, row in self._rows.listing().items()
            if teacher in (None, row["teacher"]) and wanted in (None, row["assignment"])
        )

    def get(self, keys: Sequence[str]) -> list[Homework]:
        """The homework of these keys, in their order.

        Raises:
            KeyError: there is no such key.
            OSError: the store is damaged.
        """
        there = self._rows.listing()
        missing = [key for key in keys if key not in there]
        if missing:
            raise KeyError(f"the homework store {self.path} has no homework {missing[0]!r}; keys() lists what it has")
        return [_read(row) for row in self._rows.take(keys)] if keys else []

    def add(self, homework: Iterable[Homework]) -> int:
        """Commit all or none, and return how many were new; a key that is there is not written again.

        Raises:
            OSError: it could not be written, for example to a full disk. The store is as it was.
        """
        there = self._rows.listing()
        fresh = {one.key: one for one in homework if one.key not in there}
        if fresh:
            self._rows.append(_table(fresh))
        return len(fresh)


def _table(homework: dict[str, Homework]) -> Any:
    import pyarrow as pa

    columns = [(name, pa.string()) for name in ("key", "teacher", "prompt", "assignment")]
    columns += [(name, pa.int32()) for name in ("frames", "height", "width")]
    columns += [("seed", pa.int64()), ("fps", pa.float64()), ("created", pa.float64())]
    columns += [("latent_shape", pa.list_(pa.int32())), ("text_shape", pa.list_(pa.int32()))]
    columns += [("noise_seeds", pa.list_(pa.int64())), ("noise_marks", pa.list_(pa.float64()))]
    columns += [("times", pa.list_(pa.float32()))]
    columns += [(name, pa.large_binary()) for name in ("latents", "velocities", "path", "text")]
    schema = pa.schema(columns, metadata=_KIND.metadata)
    return pa.Table.from_pylist([_row(key, one) for key, one in homework.items()], schema=schema)


def _row(key: str, one: Homework) -> dict[str, Any]:
    dtype = one.assignment.dtype
    return {
        **asdict(one.request),
        "key": key,
        "teacher": one.teacher,
        "assignment": _as_json(one.assignment),
        "created": time.time(),
        "latent_shape": list(one.latents_FCHW.shape),
        "text_shape": None if one.text_LD is None else list(one.text_LD.shape),
        "noise_seeds": list(one.noise_seeds),
        "noise_marks": list(one.noise_marks),
        "times": one.t_V.tolist(),
        "latents": _bytes(one.latents_FCHW, dtype),
        "velocities": _bytes(one.velocity_VFCHW, dtype),
        "path": _bytes(one.path_JFCHW, dtype),
        "text": _bytes(one.text_LD, dtype),
    }


def _read(row: dict[str, Any]) -> Homework:
    assignment = from_dict(Assignment, json.loads(row["assignment"]), where="assignment")
    dtype, shape = assignment.dtype, row["latent_shape"]
    return Homework(
        teacher=row["teacher"],
        request=ClipRequest(**{field.name: row[field.name] for field in fields(ClipRequest)}),
        assignment=assignment,
        latents_FCHW=_tensor(row["latents"], dtype, shape),
        noise_seeds=tuple(row["noise_seeds"]),
        noise_marks=tuple(row["noise_marks"]),
        t_V=torch.tensor(row["times"], dtype=torch.float32),
        velocity_VFCHW=_tensor(row["velocities"], dtype, [-1, *shape]),
        path_JFCHW=None if row["path"] is None else _tensor(row["path"], dtype, [-1, *shape]),
        text_LD=None if row["text"] is None else _tensor(row["text"], dtype, row["text_shape"]),
    )


def _as_json(assignment: Assignment) -> str:
    return json.dumps(asdict(assignment), sort_keys=True)


def _bytes(tensor: Tensor | None, dtype: str) -> bytes | None:
    return None if tensor is None else tensor.to(_DTYPES[dtype]).numpy().tobytes()


def _tensor(content: bytes, dtype: str, shape: Sequence[int]) -> Tensor:
    if not content:  # torch makes no tensor of nothing
        return torch.zeros([max(size, 0) for size in shape])
    return torch.frombuffer(bytearray(content), dtype=_DTYPES[dtype]).reshape(list(shape)).float()
