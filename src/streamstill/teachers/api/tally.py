"""What a collection from an API was told to do, and how it stands."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from streamstill.config import require_one_of, require_positive
from streamstill.teachers.api.arrival import ArrivalLimits
from streamstill.teachers.api.jobs import JobTeacher
from streamstill.teachers.api.journal import Row, Spent, State
from streamstill.teachers.api.pace import Retries
from streamstill.types import ClipRequest

Stopped: TypeAlias = Literal["", "budget", "clips", "interrupted"]
ENDED: tuple[State, ...] = ("refused", "failed", "quarantined", "unsure")  # not asked again unless told so


@dataclass(frozen=True, kw_only=True)
class ApiCollection:
    """How to ask a service.

    Args:
        concurrency: jobs at work at the same time, from submission to the clip.
        rate: most calls a minute, of every kind together; None is no limit.
        budget: most money, by the estimate, in all runs on one journal and of all its teachers.
        clips: most submissions, counted likewise.
        poll_seconds: between two looks at a job.
        commit_every: clips; ``commit_seconds`` after the first of them they are committed all the same.
        give_up_after: the run ends when so many jobs in a row got no answer at all.
        retry: ends of earlier runs that are asked, and paid for, once more.
    """

    concurrency: int = 4
    rate: float | None = None
    budget: float | None = None
    clips: int | None = None
    poll_seconds: float = 5.0
    commit_every: int = 16
    commit_seconds: float = 10.0
    give_up_after: int = 5
    retries: Retries = field(default_factory=Retries)
    arrival: ArrivalLimits = field(default_factory=ArrivalLimits)
    retry: tuple[State, ...] = ()

    def __post_init__(self) -> None:
        require_positive(self, "concurrency", "commit_every", "give_up_after")
        for name in ("rate", "budget", "clips", "commit_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, or left out for no limit, got {value}")
        if not self.poll_seconds >= 0:
            raise ValueError(f"poll_seconds must be 0 or more, got {self.poll_seconds}")
        for state in self.retry:
            require_one_of(state, ENDED, "end to retry")

    def allows(self, spent: Spent, cost: float) -> Stopped:
        """Why one more submission would be too many after what was spent, or nothing."""
        if self.clips is not None and spent.clips + 1 > self.clips:
            return "clips"
        if self.budget is not None and spent.money + cost > self.budget * (1 + 1e-9):  # sums of prices are rounded
            return "budget"
        return ""


@dataclass(frozen=True, kw_only=True)
class ApiFolder:
    """Where a collection keeps what is no clip: the journal, files on their way, and files that were no clips."""

    root: Path
    quarantine: Path

    @classmethod
    def in_cache(cls, cache: Path) -> "ApiFolder":
        """In the folder of a cache on disk."""
        return cls(root=cache / "api", quarantine=cache / "quarantine")

    @classmethod
    def at(cls, root: Path) -> "ApiFolder":
        """In a folder of its own, for a cache that is not on disk."""
        return cls(root=root, quarantine=root / "quarantine")

    @property
    def journal(self) -> Path:
        """What was asked and what became of it."""
        return self.root / "jobs.jsonl"

    @property
    def downloads(self) -> Path:
        """Files that are no clips in the cache yet."""
        return self.root / "downloads"


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many requests stand how; every request is in exactly one of them but ``requests``."""

    requests: int
    known: int = 0  # in the cache before
    waiting: int = 0
    running: int = 0
    done: int = 0  # new in the cache, or about to be
    refused: int = 0
    failed: int = 0
    quarantined: int = 0
    unsure: int = 0
    unanswered: int = 0  # without an answer for now; the next run goes on with them
    money: float = 0.0  # at most, by the estimate, in all runs

    def moved(self, old: str, new: str) -> "Tally":
        """One request now stands otherwise."""
        return replace(self, **{old: getattr(self, old) - 1, new: getattr(self, new) + 1})


@dataclass(frozen=True, kw_only=True)
class ApiReport:
    """How a collection ended: ``stopped`` is empty when everything was asked, else why it ended before."""

    tally: Tally
    stopped: Stopped = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is left to do for each request, by its key in the cache."""

    known: tuple[str, ...]
    paid: Mapping[str, ClipRequest]  # accepted in an earlier run, or asked under a key that is not paid twice
    new: Mapping[str, ClipRequest]
    ended: Mapping[str, State]  # refused, failed, quarantined or unsure; asked again only on demand

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.known) + len(self.paid) + len(self.new) + len(self.ended)

    def cost(self, teacher: JobTeacher) -> float | None:
        """Estimated money for the new requests; None without a price."""
        return None if teacher.price is None else sum(cost_of(teacher, request) for request in self.new.values())

    def tally(self, spent: Spent) -> Tally:
        """How the collection stands at its beginning."""
        ends = {state: sum(end == state for end in self.ended.values()) for state in ENDED}
        waiting = len(self.paid) + len(self.new)
        return Tally(requests=self.requests, known=len(self.known), waiting=waiting, money=spent.money, **ends)


def plan(
    requests: Mapping[str, ClipRequest],
    known: Collection[str],
    rows: Mapping[str, Row],
    *,
    idempotent: bool,
    retry: Collection[State] = (),
) -> Plan:
    """Sort the requests by what the cache knows and what the journal says.

    Where the service is not ``idempotent``, a submission whose answer was lost is ``unsure``.
    """
    paid: dict[str, ClipRequest] = {}
    new: dict[str, ClipRequest] = {}
    ended: dict[str, State] = {}
    for key, request in requests.items():
        if key in known:
            continue
        state: State = rows[key].state if key in rows else "withdrawn"
        if state == "asked" and not idempotent:
            state = "unsure"
        if state in ENDED and state not in retry:
            ended[key] = state
        elif state in ("asked", "running", "done"):  # a clip that is done and gone is downloaded again
            paid[key] = request
        else:
            new[key] = request
    return Plan(known=tuple(key for key in requests if key in known), paid=paid, new=new, ended=ended)


def cost_of(teacher: JobTeacher, request: ClipRequest) -> float:
    """Estimated money for a clip: the price of one second, 0 where it is not known, times the seconds ordered."""
    ordered = getattr(teacher, "seconds", None)
    seconds = request.frames / request.fps if ordered is None else ordered(request)
    return (teacher.price or 0.0) * float(seconds)
