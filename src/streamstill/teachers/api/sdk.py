"""What the vendors' SDKs share: they speak through one guarded transport, which says what failed and never repeats.

An SDK that repeats a lost submission by itself pays twice, and one that follows a redirect may carry its key along.
"""

import asyncio
import importlib
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from streamstill.teachers.api.failures import Doing, cleaned, failure, is_refusal, message, retry_after
from streamstill.teachers.api.jobs import ApiError, Hopeless, JobStatus, Refused, TryAgain

_CONNECT_SECONDS, _IDLE_SECONDS = 10.0, 60.0
_FLAGGED = ("sensitive", "(e005)")  # besides ``is_refusal``: how models at Replicate say it


class JobGone(Refused):
    """The service does not know the job, or no longer."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A vendor, as sentences name it. ``key`` is what must never be shown."""

    name: str
    variable: str
    key: str = field(repr=False)

    def quoted(self, words: str) -> str:
        """The service's own words on one line, shortened, without the key."""
        return cleaned(words, self.key or None)

    def ended(self, words: str) -> JobStatus:
        """A job that ended without a video: refused where the words are those of moderation, else failed."""
        reason = self.quoted(words)
        refused = is_refusal(reason) or any(word in reason.lower() for word in _FLAGGED)
        return JobStatus(state="refused" if refused else "failed", reason=reason)

    @contextmanager
    def understood(self, *, submitting: bool = False) -> Iterator[None]:
        """Around a call of the SDK: what it cannot read in an answer is a TryAgain."""
        try:
            yield
        except (ValueError, KeyError, TypeError) as error:  # what the SDKs' own readers raise
            raise TryAgain(
                f"{self.name} answered in a form that its SDK cannot read ({type(error).__name__}); "
                "try again later, or bring the SDK up to date",
                maybe_accepted=submitting,
            ) from None  # the SDK's words may hold what was sent


def sdk(module: str, *, extra: str) -> Any:
    """A vendor's SDK.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{module} is not installed; run: pip install "streamstill[{extra}]"') from error


async def standing(status: Awaitable[JobStatus]) -> JobStatus:
    """The status; a refusal by the service is one too."""
    try:
        return await status
    except JobGone as gone:
        return JobStatus(state="failed", reason=str(gone))
    except Refused as refusal:
        return JobStatus(state="refused", reason=str(refusal))


def done_at(path: str, answer: Any) -> JobStatus:
    """A job that is done, with the address of its video, which is text at a dotted path of the answer.

    Of a list its first item is meant, and a number picks another.
    """
    value = answer
    for name in path.split(".") if path else ():
        if isinstance(value, list) and name.isdecimal():
            value = value[int(name)] if int(name) < len(value) else None
        else:
            value = _first(value)
            value = value.get(name) if isinstance(value, dict) else None
    value = _first(value)
    if isinstance(value, str) and value:
        return JobStatus(state="done", progress=1.0, content={"url": value})
    has = f", which has {', '.join(sorted(answer))}" if isinstance(answer, dict) else ""
    where = f"at {path!r} of the answer" if path else "as the answer"
    return JobStatus(state="failed", reason=f"there is no address of a video {where}{has}; set video to where it is")


@dataclass
class GuardedTransport:
    """A transport for ``httpx.AsyncClient`` that turns every answer but 2xx JSON into an ``ApiError``, at once.

    Args:
        pays: how the path of a POST that pays for a job ends; decides ``maybe_accepted``.
        max_bytes: the longest answer that is read.
        seconds: the longest time for one call.
    """

    service: Service
    pays: str = ""
    max_bytes: int = 1 << 20
    seconds: float = 120.0
    _inner: Any = None
    _reached: bool = False

    async def __aenter__(self) -> "GuardedTransport":
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        inner, self._inner = self._inner, None
        if inner is not None:
            await inner.aclose()

    async def handle_async_request(self, request: Any) -> Any:
        """The answer to a request.

        Raises:
            TryAgain, Refused, Hopeless: there is none, or it is not 2xx and JSON.
        """
        httpx, name = importlib.import_module("httpx"), self.service.name
        submitting = request.method == "POST" and request.url.path.endswith(self.pays)
        try:
            return await asyncio.wait_for(self._answer(request, "submit" if submitting else "poll"), self.seconds)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            sentence = f"{name} at {request.url.host} cannot be reached ({type(error).__name__})"
            raise TryAgain(sentence) if self._reached else Hopeless(f"{sentence}; check your network") from None
        except (httpx.TimeoutException, asyncio.TimeoutError):
            raise TryAgain(f"{name} did not answer in time", maybe_accepted=submitting) from None
        except httpx.TransportError as error:
            sentence = f"the connection to {name} was cut ({type(error).__name__})"
            raise TryAgain(sentence, maybe_accepted=submitting) from None

    async def _answer(self, request: Any, doing: Doing) -> Any:
        httpx = importlib.import_module("httpx")
        if self._inner is None:  # a client, so that proxies of the environment are used
            self._inner = httpx.AsyncClient(follow_redirects=False)
        limits = httpx.Timeout(_IDLE_SECONDS, connect=_CONNECT_SECONDS, pool=None)
        request.extensions = {**request.extensions, "timeout": limits.as_dict()}  # the SDKs differ, or wait for ever
        request.headers["accept-encoding"] = "identity"  # so that max_bytes is the size in memory too
        response = await self._inner.send(request, stream=True)
        self._reached = True
        try:
            content = await self._read(response, doing)
        finally:
            await response.aclose()
        whole = httpx.Response(response.status_code, headers=response.headers, content=content, request=request)
        fault = self._fault(whole, doing)
        if fault is not None:
            raise fault
        return whole

    async def _read(self, response: Any, doing: Doing) -> bytes:
        content = bytearray()
        async for piece in response.aiter_raw():
            content += piece
            if len(content) > self.max_bytes:
                sentence = f"{self.service.name} sent an answer of more than {self.max_bytes} bytes"
                raise TryAgain(sentence, maybe_accepted=doing == "submit")
        return bytes(content)

    def _fault(self, response: Any, doing: Doing) -> ApiError | None:
        name, status = self.service.name, response.status_code
        if response.is_success and "json" in response.headers.get("content-type", ""):
            return None
        words = self.service.quoted(message(response.text))
        if response.is_success:
            return TryAgain(f"{name} sent no JSON but {words!r}", maybe_accepted=doing == "submit")
        if status == 429:  # at Google these words are about a quota too, one of a minute
            after = retry_after(response.headers.get("retry-after"))
            return TryAgain(f"{name} wants fewer requests at a time ({words})", after=after)
        if status in (404, 410) and doing == "poll":
            return JobGone(f"{name} does not know the job, or no longer ({status}: {words})")
        if status in (404, 410):
            return Hopeless(f"{name} does not know the model ({status}: {words}); check its name")
        if 300 <= status < 400:
            return Hopeless(f"{name} answered with a redirect ({status}), which a key must not follow")
        wrong_key = status == 400 and "api key" in words.lower()  # Google's way to say 401
        given = 401 if wrong_key else status
        return failure(given, response.headers, words, doing=doing, service=name, variable=self.service.variable)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value
