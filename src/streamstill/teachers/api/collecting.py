"""Ask a service for many clips at once, pay for none twice, and keep every answer, whatever goes wrong on the way."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Literal, TypeVar

from streamstill.teachers.api.arrival import Quarantined, arrive
from streamstill.teachers.api.jobs import Hopeless, JobStatus, JobTeacher, NoFile, Refused, TryAgain
from streamstill.teachers.api.journal import Journal, State
from streamstill.teachers.api.pace import Pace, again, together
from streamstill.teachers.api.submitting import Submitter, Task, is_idempotent
from streamstill.teachers.api.tally import ApiCollection, ApiFolder, ApiReport, Plan, Stopped, Tally, plan
from streamstill.teachers.collection import due
from streamstill.teachers.store import Answer, ClipStore, request_key
from streamstill.types import ClipRequest

T = TypeVar("T")

_DOWNLOADS = 2  # of one job: a cut file may look whole until it is decoded


async def collect_from_api(
    teacher: JobTeacher,
    requests: Iterable[ClipRequest],
    store: ClipStore,
    folder: ApiFolder,
    config: ApiCollection,
    *,
    on_change: Callable[[Tally], None] | None = None,
    stop: asyncio.Event | None = None,
) -> ApiReport:
    """Ask what neither the store nor the journal knows; the same call after any end, also a kill, does the rest.

    A teacher that has ``idempotent`` and says True there may be sent a submission twice, under its own idempotency key.
    When ``stop`` is set nothing more is submitted, and what is paid for is waited for.

    Raises:
        Hopeless: nothing can be asked before the user changes something. What was finished is in the store.
        ValueError: there is a budget and the teacher knows no price.
        OSError: something could not be written, or another process collects here.
    """
    by_key = {request_key(teacher.name, request): request for request in requests}
    require_price(teacher, config)
    folder.downloads.mkdir(parents=True, exist_ok=True)
    with Journal.open(folder.journal) as journal:
        known = frozenset(store.keys())
        todo = plan(by_key, known, journal.rows, idempotent=is_idempotent(teacher), retry=config.retry)
        _reconcile(journal, todo, folder)
        run = _Run(teacher, store, journal, folder, config, todo, on_change or _ignored, stop)
        try:
            return await run.to_the_end()
        finally:
            await teacher.close()


def require_price(teacher: JobTeacher, config: ApiCollection) -> None:
    """Refuse a budget that cannot be kept."""
    if config.budget is not None and teacher.price is None:
        raise ValueError(
            f"a budget of {config.budget:g} was given and the price of {teacher.name} is not known; set price (money "
            "for a second of video) in its config, or limit the number of clips"
        )


def _reconcile(journal: Journal, todo: Plan, folder: ApiFolder) -> None:
    """Write down what a killed run had no time for."""
    for key in todo.known:
        if key in journal.rows and journal.rows[key].state != "done":
            journal.ended(key, "done", sync=False)
            (folder.downloads / f"{key}.mp4").unlink(missing_ok=True)
    for key, state in todo.ended.items():
        if journal.rows[key].state != state:
            journal.ended(key, state, "the run ended before the service answered, and it may have been accepted")


class _Run:
    """The workers of one collection and what they share; all on one event loop."""

    def __init__(
        self,
        teacher: JobTeacher,
        store: ClipStore,
        journal: Journal,
        folder: ApiFolder,
        config: ApiCollection,
        todo: Plan,
        on_change: Callable[[Tally], None],
        stop: asyncio.Event | None,
    ) -> None:
        self._teacher, self._store, self._journal, self._folder, self._config = teacher, store, journal, folder, config
        self._on_change, self._stop = on_change, stop or asyncio.Event()
        self._pace = Pace(config.rate)
        self._submitter = Submitter(teacher, journal, config, self._pace)
        self._paid, self._new = _tasks(todo.paid, folder, paid=True), _tasks(todo.new, folder, paid=False)
        self._tally = todo.tally(self._submitter.spent)
        self._pending: list[tuple[Task, Answer]] = []
        self._committing, self._all_asked = asyncio.Lock(), asyncio.Event()
        self._stopped: Stopped = ""
        self._hopeless: Hopeless | None = None
        self._silent = 0  # jobs in a row without any answer

    async def to_the_end(self) -> ApiReport:
        count = min(self._config.concurrency, len(self._paid) + len(self._new))
        committing = asyncio.create_task(self._commit_now_and_then())
        try:
            await together([self._worker(committing) for _ in range(count)])
        finally:
            self._all_asked.set()
            await committing
        if self._hopeless is not None:
            raise self._hopeless
        return ApiReport(tally=self._tally, stopped=self._stopped)

    async def _worker(self, committing: "asyncio.Task[None]") -> None:
        while not committing.done() and (task := self._next()) is not None:
            self._move("waiting", "running")
            end = "unanswered"
            try:
                end = await self._one(task)
                self._silent = 0
            except Hopeless as error:
                self._hopeless = self._hopeless or error
            except TryAgain as error:
                self._no_answer(error)
            finally:
                self._submitter.release(task)
                self._move("running", end)

    def _next(self) -> Task | None:
        """What is paid for comes first; nothing new beyond the budget, nothing at all after a stop."""
        if self._hopeless is not None or not (self._paid or self._new):
            return None
        if self._stop.is_set():
            self._stopped = "interrupted"
            return None
        if self._paid:
            return self._paid.popleft()
        over = self._submitter.reserve(self._new[0])
        if over:
            self._stopped = over
            return None
        return self._new.popleft()

    async def _one(self, task: Task) -> State | Literal["unanswered"]:
        """Bring one request to its end and name that."""
        row = self._journal.rows.get(task.key)
        fresh = row is None or not task.paid or row.state == "asked"
        job = await self._submitter.job_of(task) if row is None or fresh else row.job
        if job is None:
            return self._journal.rows[task.key].state
        self._on_change(self._now())
        for attempt in range(1, _DOWNLOADS + 1):
            if not task.file.exists() and not await self._downloaded(task, job, fresh=fresh):
                state = self._journal.rows[task.key].state
                return "unanswered" if state == "running" else state
            try:
                await self._keep(task, await asyncio.to_thread(self._arrived, task))
                break
            except Quarantined as error:
                if attempt == _DOWNLOADS:
                    self._journal.ended(task.key, "quarantined", str(error))
                    return "quarantined"
        return "done"

    async def _downloaded(self, task: Task, job: str, *, fresh: bool) -> bool:
        """Wait for the job and fetch its file; False where it has none, or not yet."""
        status = await self._finished(job, fresh=fresh)
        if status is None:
            return False
        end: State = "refused" if status.state == "refused" else "failed"
        reason = status.reason
        if status.state == "done":
            try:
                await self._again(lambda: self._teacher.download(job, status, task.file))
                return True
            except Refused as refusal:
                reason = str(refusal)
            except NoFile as error:
                if fresh:  # it may be on its way
                    raise
                reason = f"the job is done and its file is gone: {error}"
        self._journal.ended(task.key, end, reason)
        return False

    async def _finished(self, job: str, *, fresh: bool) -> JobStatus | None:
        """The job's last status; None if it takes longer than the patience."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.retries.patience
        if fresh:
            await asyncio.sleep(self._config.poll_seconds)
        while loop.time() < deadline:
            try:
                status = await self._again(lambda: self._teacher.poll(job))
            except Refused as refusal:
                return JobStatus(state="refused", reason=str(refusal))
            if status.state not in ("queued", "running"):
                return status
            await asyncio.sleep(self._config.poll_seconds)
        return None

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        return await again(call, self._config.retries, self._pace)

    def _arrived(self, task: Task) -> Answer:
        name, quarantine = self._teacher.name, self._folder.quarantine
        clip = arrive(task.file, task.request, teacher=name, quarantine=quarantine, limits=self._config.arrival)
        return Answer(teacher=name, request=task.request, clip=clip)

    async def _keep(self, task: Task, answer: Answer) -> None:
        self._pending.append((task, answer))
        if due([answer for _, answer in self._pending], self._config.commit_every):
            await self._commit()

    async def _commit(self) -> None:
        """The store first, then the journal: a kill in between costs a look into the store."""
        async with self._committing:
            batch, self._pending = self._pending, []
            if not batch:
                return
            await asyncio.to_thread(self._store.add, [answer for _, answer in batch])
            for task, _ in batch:
                self._journal.ended(task.key, "done", sync=False)
                task.file.unlink(missing_ok=True)

    async def _commit_now_and_then(self) -> None:
        while not self._all_asked.is_set():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._all_asked.wait(), self._config.commit_seconds)
            await self._commit()
        await self._commit()  # what came while the last commit was under way

    def _no_answer(self, error: TryAgain) -> None:
        self._silent += 1
        if self._silent >= self._config.give_up_after and self._hopeless is None:
            self._hopeless = Hopeless(
                f"{self._silent} jobs in a row got no answer, the last because {error}; run the same command later"
            )

    def _now(self) -> Tally:
        self._tally = replace(self._tally, money=self._submitter.spent.money)
        return self._tally

    def _move(self, old: str, new: str) -> None:
        self._tally = self._tally.moved(old, new)
        self._on_change(self._now())


def _tasks(requests: Mapping[str, ClipRequest], folder: ApiFolder, *, paid: bool) -> deque[Task]:
    return deque(
        Task(key=key, request=request, paid=paid, file=folder.downloads / f"{key}.mp4")
        for key, request in requests.items()
    )


def _ignored(tally: Tally) -> None:
    """Nobody watches."""
