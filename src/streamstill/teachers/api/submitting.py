"""One submission: written down before it is sent, its id right after; sent again only where that cannot cost twice."""

from dataclasses import dataclass
from pathlib import Path

from streamstill.teachers.api.jobs import Hopeless, JobTeacher, Refused, TryAgain
from streamstill.teachers.api.journal import Journal, Spent
from streamstill.teachers.api.pace import Pace, again, unbroken
from streamstill.teachers.api.tally import ApiCollection, Stopped, cost_of
from streamstill.types import ClipRequest


@dataclass(frozen=True, kw_only=True)
class Task:
    """One request on its way; ``paid``: an earlier run asked for it, by the journal."""

    key: str
    request: ClipRequest
    paid: bool
    file: Path


def is_idempotent(teacher: JobTeacher) -> bool:
    """Whether a submission may be repeated after its answer was lost; a teacher that does not say so may not."""
    return bool(getattr(teacher, "idempotent", False))


class Submitter:
    """Submits within the limits; what it spends is in the journal, or reserved while a task waits for its turn."""

    def __init__(self, teacher: JobTeacher, journal: Journal, config: ApiCollection, pace: Pace) -> None:
        self._teacher, self._journal, self._config, self._pace = teacher, journal, config, pace
        self._reserved: dict[str, float] = {}

    @property
    def spent(self) -> Spent:
        """What the service may bill, with what is about to be submitted."""
        spent, held = self._journal.spent, self._reserved.values()
        return Spent(clips=spent.clips + len(held), money=spent.money + sum(held))

    def reserve(self, task: Task) -> Stopped:
        """Take the task's cost from the budget; else the limit that it would break."""
        over = self._config.allows(self.spent, self._cost(task))
        if not over:
            self._reserved[task.key] = self._cost(task)
        return over

    def release(self, task: Task) -> None:
        """Give back what was reserved and not spent."""
        self._reserved.pop(task.key, None)

    async def job_of(self, task: Task) -> str | None:
        """The id of the job, on disk when this returns; None where the journal now says why there is none.

        Raises:
            TryAgain, Hopeless: there was no answer that can be used; the next run may ask again, and does not where the
                journal says that the submission may have been taken.
        """
        send = _Sending(self, task)
        try:
            return await again(send, self._config.retries, self._pace, worth=self._repeatable)
        except Refused as refusal:
            self._journal.ended(task.key, "refused", str(refusal))
            return None
        except (TryAgain, Hopeless) as error:
            unsure = send.lost and not is_idempotent(self._teacher)
            if unsure:
                self._journal.ended(task.key, "unsure", str(error))
            if isinstance(error, Hopeless) or not unsure:
                raise
            return None

    async def send(self, task: Task, *, noted: bool) -> str:
        """Submit once and write down the job's id; ``noted``: the journal holds the task as asked already."""
        if not noted:
            self._journal.ask(task.key, self._teacher.name, task.request, self._cost(task))
            self.release(task)
        job = await self._teacher.submit(task.request, attempt=self._journal.rows[task.key].attempt)
        try:
            self._journal.accepted(task.key, job)
        except OSError as error:
            raise OSError(error.errno, f"the service took a request as job {job}, and {error.strerror}") from error
        return job

    def turned_down(self, task: Task) -> None:
        """Surely not accepted, so nothing was paid."""
        self._journal.ended(task.key, "withdrawn")
        self._reserved[task.key] = self._cost(task)

    def _repeatable(self, error: TryAgain) -> bool:
        return not error.maybe_accepted or is_idempotent(self._teacher)

    def _cost(self, task: Task) -> float:
        return cost_of(self._teacher, task.request)


class _Sending:
    """The attempts at one submission. ``lost``: one of them may have been accepted, so it stays in the journal."""

    def __init__(self, submitter: Submitter, task: Task) -> None:
        self._submitter, self._task = submitter, task
        self.lost = task.paid  # a run that was killed may have sent it

    async def __call__(self) -> str:
        return await unbroken(self._sent())

    async def _sent(self) -> str:
        try:
            return await self._submitter.send(self._task, noted=self.lost)
        except (TryAgain, Hopeless) as error:
            self.lost = self.lost or error.maybe_accepted
            self._unless_lost()
            raise
        except ModuleNotFoundError:  # of what the service is asked with: nothing was sent
            self._unless_lost()
            raise

    def _unless_lost(self) -> None:
        if not self.lost:
            self._submitter.turned_down(self._task)
