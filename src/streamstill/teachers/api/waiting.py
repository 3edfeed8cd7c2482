"""A teacher behind an API as a plain teacher: ask, wait, get the clip. For a few clips; nothing is written down."""

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from streamstill.teachers.api.arrival import ArrivalLimits, arrive
from streamstill.teachers.api.jobs import ApiError, JobStatus, JobTeacher, Refused, TryAgain
from streamstill.teachers.api.pace import Pace, Retries, again
from streamstill.teachers.api.submitting import is_idempotent
from streamstill.types import Clip, ClipRequest


@dataclass(frozen=True)
class WaitingTeacher:
    """A ``JobTeacher`` whose ``generate`` waits for the clip. A run that is killed loses what it paid for.

    ``collect_from_api`` asks for many at once and loses nothing. Not to be called where an event loop runs.
    """

    teacher: JobTeacher
    poll_seconds: float = 5.0
    retries: Retries = field(default_factory=Retries)
    arrival: ArrivalLimits = field(default_factory=ArrivalLimits)
    quarantine: Path = Path("runs/quarantine")

    @property
    def name(self) -> str:
        """The name of the teacher behind it."""
        return self.teacher.name

    def generate(self, request: ClipRequest) -> Clip:
        """Submit, poll and download.

        Raises:
            ApiError: there is no clip; the sentence says why.
            Quarantined: the file is no clip; it is kept in ``quarantine``.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "clip.mp4"
            asyncio.run(self._fetch(request, file))
            return arrive(file, request, teacher=self.name, quarantine=self.quarantine, limits=self.arrival)

    async def _fetch(self, request: ClipRequest, file: Path) -> None:
        teacher, pace = self.teacher, Pace(None)
        try:
            job = await again(lambda: teacher.submit(request), self.retries, pace, worth=self._repeatable)
            status = await self._finished(job, pace)
            if status.state == "refused":
                raise Refused(f"{self.name} refused the request: {status.reason}")
            if status.state != "done":
                raise ApiError(f"{self.name} could not do the job {job}: {status.reason}")
            await again(lambda: teacher.download(job, status, file), self.retries, pace)
        finally:
            await teacher.close()

    async def _finished(self, job: str, pace: Pace) -> JobStatus:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.retries.patience
        while loop.time() < deadline:
            status = await again(lambda: self.teacher.poll(job), self.retries, pace)
            if status.state not in ("queued", "running"):
                return status
            await asyncio.sleep(self.poll_seconds)
        raise TryAgain(f"the job {job} of {self.name} was not done after {self.retries.patience:g} s")

    def _repeatable(self, error: TryAgain) -> bool:
        return is_idempotent(self.teacher) or not error.maybe_accepted
