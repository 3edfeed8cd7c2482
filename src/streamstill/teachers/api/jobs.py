"""What every video API has in common: a job is submitted, polled and downloaded; and the ways in which that fails."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from streamstill.types import ClipRequest

JobState: TypeAlias = Literal["queued", "running", "done", "failed", "refused"]


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What the service says of a job. ``reason`` is its own words for a failure or a refusal."""

    state: JobState
    reason: str = ""
    progress: float | None = None  # share done, in [0, 1], where the service tells
    content: Mapping[str, str] = field(default_factory=dict)  # what ``download`` needs, for instance a URL


class JobTeacher(Protocol):
    """A teacher behind an API. All calls are coroutines; one object serves any number of jobs at once.

    A teacher may have an attribute ``idempotent``: True says that the service takes a submission that is repeated under
    the same idempotency key for the same job. Without it a submission is never repeated when its answer was lost. It
    may have a method ``seconds(request)``: how long a video it orders, where that is not the clip's length.

    The cache knows the teacher by ``name``, so it must say service, model and every setting that changes an answer; it
    never holds a key.
    """

    @property
    def name(self) -> str:
        """Part of the key in the cache."""
        ...

    @property
    def price(self) -> float | None:
        """Estimated money for one second of video; None where it is not known."""
        ...

    async def submit(self, request: ClipRequest, *, attempt: int = 0) -> str:
        """Pay for a clip; returns the job's id. Never repeated for a request whose id is on disk.

        Args:
            attempt: how many jobs for this request ended without a clip; each number has its own idempotency key.
        """
        ...

    async def poll(self, job: str) -> JobStatus:
        """How the job stands."""
        ...

    async def download(self, job: str, status: JobStatus, into: Path) -> None:
        """Write the finished video file, whole or not at all."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


class ApiError(Exception):
    """A service did not do what was asked; the sentence says what to do and never shows a key."""


class TryAgain(ApiError):
    """The same call may succeed later (5xx, 429, a timeout, a cut connection).

    Args:
        after: seconds that the service asks to wait (Retry-After), or None.
        maybe_accepted: whether a submission may have been accepted although its answer was lost; then it is only
            repeated under the same idempotency key, or not at all.
    """

    def __init__(self, sentence: str, *, after: float | None = None, maybe_accepted: bool = False) -> None:
        super().__init__(sentence)
        self.after, self.maybe_accepted = after, maybe_accepted


class NoFile(TryAgain):
    """The service does not give the file of a finished job: not yet, or no more."""


class Refused(ApiError):
    """The service will never answer this request (moderation, an impossible size); others may succeed."""


class Hopeless(ApiError):
    """No request can succeed before the user changes something (wrong key, no quota, unknown model or host).

    Args:
        maybe_accepted: whether a submission was taken, or may have been, although its answer cannot be read.
    """

    def __init__(self, sentence: str, *, maybe_accepted: bool = False) -> None:
        super().__init__(sentence)
        self.maybe_accepted = maybe_accepted
