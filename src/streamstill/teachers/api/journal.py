"""What was asked of a service and what became of it, on disk before the next step, so that a crash never pays twice.

A file of JSON lines that is only appended to, each line written at once and synced: there is nothing to install, it can
be read with any tool, and a crash leaves at most one torn last line, which is dropped.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, TypeAlias, get_args

from streamstill.types import ClipRequest

FORMAT = 1
_HEAD = {"streamstill.journal_version": FORMAT}
State: TypeAlias = Literal["asked", "running", "done", "refused", "failed", "quarantined", "unsure", "withdrawn"]
_STATES = get_args(State)


@dataclass(frozen=True, kw_only=True)
class Row:
    """How a request stands.

    ``asked``: a submission was on its way. ``running``: accepted, ``job`` is its id. ``unsure``: perhaps accepted.
    ``withdrawn``: surely not accepted, free to be asked again. ``cost`` is the estimated money for one submission.
    """

    key: str
    teacher: str
    request: ClipRequest
    state: State
    job: str = ""
    reason: str = ""
    cost: float = 0.0
    attempt: int = 0  # how many accepted jobs for it have ended without a clip


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What the service may bill at most: every submission that was not surely turned down."""

    clips: int = 0
    money: float = 0.0


class Journal:
    """The rows of one file, by the key of the request in the cache. One process at a time may have it open.

    Use ``with Journal.open(path) as journal``; ``read_rows`` looks at it without opening it.
    """

    def __init__(self, path: Path, file: IO[bytes], rows: dict[str, Row], spent: Spent) -> None:
        self.path = path
        self.rows: Mapping[str, Row] = rows
        self._rows, self._file = rows, file
        self._spent = spent

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """The journal in this file, which is made if need be.

        Raises:
            ValueError: the file is no journal, damaged, or of another format version.
            OSError: another process has it open, or it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
        try:
            _lock(file, path)
            rows, spent, whole = _read(path)
            file.truncate(whole)
            journal = cls(path, file, rows, spent)
            if not whole:
                journal._write(_HEAD)
        except BaseException:
            file.close()
            raise
        return journal

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let others open it."""
        self._file.close()

    @property
    def spent(self) -> Spent:
        """What all submissions cost so far, in all runs and of all teachers."""
        return self._spent

    def ask(self, key: str, teacher: str, request: ClipRequest, cost: float) -> None:
        """A submission is about to be sent. On disk when this returns, as with all others."""
        self._note({"key": key, "state": "asked", "teacher": teacher, "cost": cost, "request": asdict(request)})

    def accepted(self, key: str, job: str) -> None:
        """The service took it and gave this id."""
        self._note({"key": key, "state": "running", "job": job})

    def ended(self, key: str, state: State, reason: str = "", *, sync: bool = True) -> None:
        """What became of it; a line that is not synced may be lost with the power, and is found out again."""
        self._note({"key": key, "state": state, "reason": reason}, sync=sync)

    def _note(self, event: dict[str, Any], *, sync: bool = True) -> None:
        self._write({**event, "at": round(time.time(), 3)}, sync=sync)
        self._spent = _applied(event, self._rows, self._spent)

    def _write(self, values: Mapping[str, Any], *, sync: bool = True) -> None:
        line = json.dumps(values, sort_keys=True).encode() + b"\n"
        before = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(f"only a part of a line could be written to {self.path}")
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(before)
            raise OSError(
                error.errno,
                f"the journal {self.path} could not be written ({error.strerror or error}); free some space and run "
                "the same command again, nothing is paid twice",
            ) from error


def read_rows(path: Path) -> tuple[Mapping[str, Row], Spent]:
    """The rows, and what they cost so far, also while another process writes; nothing without a file.

    Raises:
        ValueError: the file is no journal, damaged, or of another format version.
    """
    rows, spent, _ = _read(path) if path.exists() else ({}, Spent(), 0)
    return rows, spent


def _read(path: Path) -> tuple[dict[str, Row], Spent, int]:
    """Rows, spending, and the length in bytes of the whole lines."""
    rows: dict[str, Row] = {}
    spent = Spent()
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        with _explained(path, number):
            event = json.loads(line)
            if number == 1:
                _require_format(path, event)
            else:
                spent = _applied(event, rows, spent)
    return rows, spent, whole


def _applied(event: Mapping[str, Any], rows: dict[str, Row], spent: Spent) -> Spent:
    """Take in one event; what is spent after it. What was surely not accepted costs nothing."""
    key, state = event["key"], event["state"]
    if state not in _STATES:
        raise KeyError(f"unknown state {state!r}")
    if state == "asked":
        teacher, cost, attempt = event["teacher"], event["cost"], rows[key].attempt if key in rows else 0
        request = ClipRequest(**event["request"])
        rows[key] = Row(key=key, teacher=teacher, request=request, state="asked", cost=cost, attempt=attempt)
        return _counted(spent, rows[key], +1)
    old = rows[key]
    turned_down = old.state == "asked" and state in ("withdrawn", "refused")
    lost = old.state in ("running", "done") and state in ("refused", "failed", "quarantined")
    job, reason = event.get("job", old.job), event.get("reason", "")
    rows[key] = replace(old, state=state, job=job, reason=reason, attempt=old.attempt + lost)
    return _counted(spent, old, -1) if turned_down else spent


def _counted(spent: Spent, row: Row, clips: int) -> Spent:
    return Spent(clips=spent.clips + clips, money=spent.money + clips * row.cost)


@contextmanager
def _explained(path: Path, number: int) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"line {number} of the journal {path} is damaged ({error}); remove that line, or put back a good copy"
        ) from error


def _require_format(path: Path, head: Mapping[str, Any]) -> None:
    version = head.get("streamstill.journal_version")
    if version is None:
        raise ValueError(f"{path} is no journal of a collection; give another folder")
    if version != FORMAT:
        raise ValueError(
            f"the journal {path} has format version {version} and this streamstill reads version {FORMAT}; use the "
            "streamstill that wrote it"
        )


def _lock(file: IO[bytes], path: Path) -> None:
    """Hold the file until it is closed or the process ends, however it ends."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OSError(
            error.errno, f"another process collects with the journal {path}; let it finish, or stop it first"
        ) from error
