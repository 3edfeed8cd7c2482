"""What the tests of the HTTP teachers share: a question, a teacher for a server, and a clip all the way."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from streamstill.teachers.api.http import HttpLimits
from streamstill.teachers.api.jobs import JobStatus
from streamstill.teachers.api.videos import VideosApi
from streamstill.teachers.api.videos_config import VideosApiConfig
from streamstill.types import ClipRequest
from tests.teachers.api.server import VideoServer

T = TypeVar("T")

VARIABLE = "STREAMSTILL_TEST_KEY"
QUICK = HttpLimits(connect_seconds=2, read_seconds=2, total_seconds=5)


def question(prompt: str = "A red ball is dropped.", seed: int = 0, frames: int = 8) -> ClipRequest:
    return ClipRequest(prompt=prompt, seed=seed, frames=frames, height=32, width=32, fps=8)


def configured(server: VideoServer, **changes: Any) -> VideosApiConfig:
    """A service that honours keys, as the server does unless it is told otherwise."""
    given = {"base_url": server.url, "model": server.model, "key_variable": VARIABLE, "limits": QUICK}
    return VideosApiConfig(**{**given, "idempotency_header": "Idempotency-Key", **changes})


def run(teacher: VideosApi, call: Coroutine[Any, Any, T]) -> T:
    """The answer of one call; connections are closed after it."""

    async def called() -> T:
        try:
            return await call
        finally:
            await teacher.close()

    return asyncio.run(called())


def submitted(teacher: VideosApi, request: ClipRequest | None = None) -> str:
    return run(teacher, teacher.submit(request or question()))


def fetched(teacher: VideosApi, into: Path, request: ClipRequest | None = None) -> JobStatus:
    """Submit, poll once and download."""

    async def fetch() -> JobStatus:
        job = await teacher.submit(request or question())
        status = await teacher.poll(job)
        await teacher.download(job, status, into)
        return status

    return run(teacher, fetch())
