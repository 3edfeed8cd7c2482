"""A real video service on loopback: the /v1/videos job shape, small real MP4 files, and troubles to order.

It speaks HTTP/1.1 over sockets of its own, so nothing of a client is replaced. It writes down what it was paid for.

    with VideoServer(Trouble(server_error=0.05, busy=0.05), seconds_per_job=0.2) as server:
        ...  # a client with base URL server.url, key server.key and model server.model
        assert server.paid_twice() == []
"""

import asyncio
import hashlib
import json
import random
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tests.teachers.api.films import film
from tests.teachers.api.wire import Json, Reply, Seen, read, write


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """How often the service misbehaves, each in [0, 1].

    What happens is drawn from the seed, the job and the number of the attempt, never from the order of arrival.
    """

    seed: int = 0
    server_error: float = 0.0  # any request: 500
    busy: float = 0.0  # any request: 429 with ``retry_after``
    retry_after: str = "0"
    hang: float = 0.0  # any request: no answer until the client goes away
    lost: float = 0.0  # create: paid for, then the connection is cut before the answer
    cut: float = 0.0  # content: half of the promised bytes, then the connection is cut
    refusal: float = 0.0  # create: 400, the same for every attempt
    failure: float = 0.0  # a job that was paid for ends as failed


@dataclass(frozen=True, kw_only=True)
class Job:
    """What was paid for. ``key`` is the Idempotency-Key it came with, or empty."""

    id: str
    key: str
    body: Mapping[str, Any]
    done_at: float


class VideoServer:
    """Serves between ``with`` and its end on a free port of 127.0.0.1, in a thread of its own.

    A second create with an Idempotency-Key that is known gives the first job again and costs nothing
    (``honours_keys=False``: it is paid again).
    """

    key, model = "sk-test-0123456789", "toy-1"

    def __init__(
        self,
        trouble: Trouble = Trouble(),
        *,
        seconds_per_job: float = 0.0,
        honours_keys: bool = True,
        words: tuple[str, str, str] = ("queued", "in_progress", "completed"),
        told: Callable[[str], Json] = lambda job: {},
    ) -> None:
        self.trouble, self.seconds_per_job, self.honours_keys, self.words = (
            trouble,
            seconds_per_job,
            honours_keys,
            words,
        )
        self.told = told  # more fields for the status of a job, by its id
        self.replies: dict[str, Reply] = {}  # route -> what every request on it is answered with, troubles aside
        self.seen: list[Seen] = []
        self.jobs: dict[str, Job] = {}
        self.most_requests_at_once = self.most_jobs_at_once = 0
        self._by_key: dict[str, str] = {}
        self._attempts: Counter[str] = Counter()
        self._open = 0
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = 0

    def __enter__(self) -> "VideoServer":
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    @property
    def url(self) -> str:
        """The base URL that a client is given."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def paid(self) -> list[Job]:
        """Every job that was created, in order."""
        return list(self.jobs.values())

    def paid_twice(self) -> list[str]:
        """Bodies (prompt, seed, size, ...) for which more than one job was created."""
        counts = Counter(json.dumps(dict(job.body), sort_keys=True) for job in self.paid)
        return [body for body, count in counts.items() if count > 1]

    def most_per_second(self, *routes: str) -> int:
        """The most requests that arrived within any one second, on these routes or on all."""
        times = [seen.at for seen in list(self.seen) if not routes or seen.route in routes]
        return max((n + 1 - bisect_right(times, at - 1) for n, at in enumerate(times)), default=0)

    def asked(self, route: str) -> list[Seen]:
        """The requests on a route."""
        return [seen for seen in list(self.seen) if seen.route == route]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self) -> None:
        self._end, connections = asyncio.Event(), set[asyncio.Task[None]]()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await self._converse(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the client went away, or the server ends
            finally:
                writer.close()
                connections.discard(task)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._end.wait()
        server.close()
        open_still = list(connections)
        for task in open_still:
            task.cancel()
        await asyncio.gather(*open_still, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen = await read(reader)
            self.seen.append(seen)
            self._open += 1
            self.most_requests_at_once = max(self.most_requests_at_once, self._open)
            try:
                await self._answer(seen, reader, writer)
            finally:
                self._open -= 1

    async def _answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        subject = _subject(seen)
        self._attempts[subject] += 1
        happens = self._dice(f"{subject} attempt {self._attempts[subject]}")
        if happens("hang"):
            await reader.read(1)  # ends when the client closes
            raise ConnectionResetError
        reply = self._trouble(happens) or self.replies.get(seen.route) or self._reply(seen)
        if seen.route == "create" and reply.status == 200 and happens("lost"):
            raise ConnectionResetError
        if seen.route == "content" and reply.status == 200 and happens("cut"):
            length = str(len(reply.body))
            reply = Reply(headers={**reply.headers, "content-length": length}, body=reply.body[: len(reply.body) // 2])
        await write(writer, reply)

    def _dice(self, subject: str) -> Callable[[str], bool]:
        def happens(what: str) -> bool:
            return random.Random(f"{self.trouble.seed} {what} {subject}").random() < getattr(self.trouble, what)

        return happens

    def _trouble(self, happens: Callable[[str], bool]) -> Reply | None:
        if happens("server_error"):
            return _error(500, "server_error", "something broke")
        if happens("busy"):
            return _error(429, "rate_limit", "too many requests", {"retry-after": self.trouble.retry_after})
        return None

    def _reply(self, seen: Seen) -> Reply:
        if seen.headers.get("authorization") != f"Bearer {self.key}":
            given = seen.headers.get("authorization", "none")
            return _error(401, "invalid_api_key", f"Incorrect API key provided: {given}")  # some services echo it
        if seen.route == "create":
            return self._create(seen)
        job = self.jobs.get(seen.path.split("?")[0].split("/")[3]) if seen.route in ("poll", "content") else None
        if job is None:
            return _error(404, "not_found", f"no such thing: {seen.path}")
        if seen.route == "poll":
            return _json(self._status(job))
        return Reply(headers={"content-type": "video/mp4"}, body=film(job.body))

    def _create(self, seen: Seen) -> Reply:
        key, body = seen.headers.get("idempotency-key", ""), dict(seen.body)
        if body.get("model") != self.model:
            return _error(404, "model_not_found", f"the model {body.get('model')!r} does not exist")
        if self._dice(_subject(seen))("refusal"):
            return _error(400, "moderation_blocked", "the prompt was refused by the safety system")
        if self.honours_keys and key in self._by_key:
            return _json(self._status(self.jobs[self._by_key[key]]))
        name = f"video_{_digest(body)[:12]}_{sum(job.body == body for job in self.paid)}"
        now = time.monotonic()
        job = self.jobs[name] = Job(id=name, key=key, body=body, done_at=now + self.seconds_per_job)
        at_work = sum(job.done_at >= now for job in self.paid)
        self.most_jobs_at_once = max(self.most_jobs_at_once, at_work)
        if key:
            self._by_key[key] = name
        return _json(self._status(job))

    def _status(self, job: Job) -> Json:
        left = job.done_at - time.monotonic()
        if left > 0:
            word = self.words[0] if left > self.seconds_per_job / 2 else self.words[1]
            return {"id": job.id, "object": "video", "status": word, "progress": 0}
        if self._dice(job.id)("failure"):
            error = {"code": "internal", "message": "the model broke"}
            return {"id": job.id, "object": "video", "status": "failed", "error": error}
        return {"id": job.id, "object": "video", "status": self.words[2], "progress": 100, **self.told(job.id)}


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(body), sort_keys=True).encode()).hexdigest()


def _subject(seen: Seen) -> str:
    return f"create {_digest(seen.body)}" if seen.route == "create" else f"{seen.route} {seen.path}"


def _json(values: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    content = json.dumps(values).encode()
    return Reply(status=status, headers={"content-type": "application/json", **(headers or {})}, body=content)


def _error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Reply:
    return _json({"error": {"code": code, "message": message}}, status, headers)
