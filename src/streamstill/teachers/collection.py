"""Ask a teacher many questions, keep every answer, and go on where an earlier run stopped."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from streamstill.teachers.cached import CachedTeacher
from streamstill.teachers.store import Answer
from streamstill.types import ClipRequest

_PENDING_BYTES = 256 * 2**20  # pixels held in memory before they are committed


@dataclass(frozen=True, kw_only=True)
class CollectReport:
    """How many distinct requests there were, and how many of them the store had already."""

    requests: int
    known: int

    @property
    def asked(self) -> int:
        """How many clips the teacher made."""
        return self.requests - self.known


def collect(
    teacher: CachedTeacher,
    requests: Iterable[ClipRequest],
    *,
    commit_every: int = 16,
    on_clip: Callable[[int, int], None] | None = None,
) -> CollectReport:
    """Ask what the store does not have; commit after ``commit_every`` clips or 256 MiB of pixels.

    ``on_clip(done, total)`` is called after each clip is made. Whatever ends the run, Ctrl-C or a teacher that
    fails, the finished clips are committed first; a kill loses those since the last commit. The same call goes on.
    """
    if commit_every < 1:
        raise ValueError(f"commit_every must be at least 1, got {commit_every}")
    by_key = {teacher.key(request): request for request in requests}
    there = frozenset(teacher.store.keys())  # one look; each ``in`` may be a look at a service
    missing = [request for key, request in by_key.items() if key not in there]
    known = len(by_key) - len(missing)
    pending: list[Answer] = []
    try:
        for done, request in enumerate(missing, start=known + 1):
            pending.append(teacher.ask(request))
            if due(pending, commit_every):
                teacher.store.add(pending)
                pending.clear()
            if on_clip is not None:
                on_clip(done, len(by_key))
    finally:
        if pending:
            teacher.store.add(pending)
    return CollectReport(requests=len(by_key), known=known)


def due(pending: Collection[Answer], commit_every: int) -> bool:
    """Whether so many answers, or so many pixels, wait that they should be committed."""
    pixels = sum(answer.clip.frames_FCHW.nbytes for answer in pending)
    return len(pending) >= commit_every or pixels >= _PENDING_BYTES
