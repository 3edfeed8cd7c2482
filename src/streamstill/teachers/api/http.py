"""A small, careful HTTP layer: time and size limits, redirects only to allowed hosts, keys that are never shown."""

import asyncio
import json as jsons
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from streamstill.teachers.api.failures import Doing, cleaned, failure, message, read_key
from streamstill.teachers.api.hosts import AllowedHosts, require_httpx
from streamstill.teachers.api.jobs import Hopeless, Refused, TryAgain

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_PIECE = 64 * 2**10  # bytes
_IDLE_SECONDS = 2.0  # a server that closes an idle connection just then makes a submission look lost; most wait 5 s
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # an mp4 or mov begins with one, after 4 bytes of size
_STARTS = (b"\x1aE\xdf\xa3", b"OggS", b"GIF8", b"FLV\x01", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"0&\xb2u")


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """How long and how much: seconds to connect, of silence, and in all for one call; bytes of an answer and a file."""

    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    total_seconds: float = 600.0
    answer_bytes: int = 2**20
    video_bytes: int = 512 * 2**20
    redirects: int = 5

    def __post_init__(self) -> None:
        wrong = [field.name for field in fields(self) if not getattr(self, field.name) > 0]
        if wrong:
            raise ValueError(f"limits must be positive, got {wrong[0]}={getattr(self, wrong[0])}")


class HttpService:
    """One service: JSON answers below its base URL, and files from it or from allowed hosts.

    The key is read from the environment when it is first needed. It goes to the service's own scheme, host and port and
    nowhere else. Connections are made when first used; after ``close`` they are made anew.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key_variable: str | None = None,
        allowed_hosts: tuple[str, ...] = (),
        limits: HttpLimits = HttpLimits(),
    ) -> None:
        self.hosts, self.limits = AllowedHosts(base_url, allowed_hosts), limits
        self.key_variable = key_variable
        self._key: str | None = None
        self._client: httpx.AsyncClient | None = None
        self._reached = self._understood = False  # at least once

    def __repr__(self) -> str:
        return f"HttpService({self.hosts.service!r}, key_variable={self.key_variable!r})"

    async def ask(
        self,
        method: str,
        path: str,
        *,
        doing: Doing,
        json: Mapping[str, Any] | None = None,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Mapping[str, Any]:
        """The JSON object that the service answers.

        Raises:
            TryAgain, Refused, Hopeless: it answers something else or nothing; see ``jobs``.
        """
        files = None if form is None else {name: (None, value) for name, value in form.items()}
        body = {"json": json, "files": files}

        async def asked() -> bytes:
            sent = {**self._key_headers(), **(headers or {})}
            async with self._stream(method, self.hosts.at_service(path), doing, sent, body) as response:
                return await self._read(response, doing)

        return self._object(await self._limited(asked(), doing), doing)

    async def fetch(self, told: str, into: Path) -> None:
        """Download the video at a URL, relative to the base URL or absolute; whole or not at all.

        Redirects are followed to allowed hosts only.

        Raises:
            Refused: the address is not allowed, or the file is larger than allowed.
            TryAgain: it came cut off, or something came that is no video.
        """
        await self._limited(self._fetch(told, into), "download")

    def cleaned(self, text: str) -> str:
        """The first words of what the service said, without the key, on one line."""
        return cleaned(text, self._key)

    async def close(self) -> None:
        """Close connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _fetch(self, told: str, into: Path) -> None:
        url = await self.hosts.checked(told)
        for _ in range(self.limits.redirects + 1):
            headers = self._key_headers() if self.hosts.is_service(url) else {}
            async with self._stream("GET", url, "download", headers) as response:
                if not response.has_redirect_location:
                    await self._save(response, into)
                    return
                target = response.headers["location"]
            url = await self.hosts.checked(target, relative_to=url)
        raise Refused(f"{self.hosts.service} redirected a download more than {self.limits.redirects} times")

    def _key_headers(self) -> dict[str, str]:
        if self.key_variable is None:
            return {}
        self._key = self._key or read_key(self.key_variable)
        return {"authorization": f"Bearer {self._key}"}

    def _connected(self) -> "httpx.AsyncClient":
        if self._client is None:
            self._client = _client(self.limits)
        return self._client

    @asynccontextmanager
    async def _stream(
        self,
        method: str,
        url: "httpx.URL",
        doing: Doing,
        headers: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
    ) -> "AsyncIterator[httpx.Response]":
        """The answer, if it is a good one or a redirect of a download."""
        with self._translated(doing):
            async with self._connected().stream(method, url, headers=dict(headers), **(body or {})) as response:
                self._reached = True
                if response.is_success or (doing == "download" and response.has_redirect_location):
                    yield response
                    return
                text = _text(await self._read(response, doing, whole=False))
                raise failure(
                    response.status_code,
                    response.headers,
                    self.cleaned(message(text)),
                    doing=doing,
                    service=self.hosts.service,
                    variable=self.key_variable,
                )

    @contextmanager
    def _translated(self, doing: Doing) -> Iterator[None]:
        """What went wrong on the way, as one of our errors."""
        import httpx

        service, submitting = self.hosts.service, doing == "submit"
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            sentence = f"{service} cannot be reached ({self._reason(error)})"
            if self._reached or doing == "download":  # the address is the service's word, and its job is done
                raise TryAgain(sentence) from error
            raise Hopeless(f"{sentence}; check base_url, and that the service is up") from error
        except httpx.TimeoutException as error:
            raise TryAgain(f"{service} fell silent ({self._reason(error)})", maybe_accepted=submitting) from error
        except httpx.RequestError as error:
            raise TryAgain(f"{service} cut the call off ({self._reason(error)})", maybe_accepted=submitting) from error

    async def _limited(self, call: Coroutine[Any, Any, T], doing: Doing) -> T:
        seconds = self.limits.total_seconds
        try:
            return await asyncio.wait_for(call, seconds)
        except asyncio.TimeoutError as error:
            sentence = f"{self.hosts.service} took longer than {seconds:g} seconds in all"
            raise TryAgain(sentence, maybe_accepted=doing == "submit") from error

    async def _read(self, response: "httpx.Response", doing: Doing, *, whole: bool = True) -> bytes:
        """A small body. Of an error's body the beginning does."""
        content = bytearray()
        async for piece in response.aiter_bytes(_PIECE):
            content += piece
            if len(content) > self.limits.answer_bytes:
                if not whole:
                    break
                sentence = f"{self.hosts.service} answered with more than {self.limits.answer_bytes} bytes of JSON"
                raise Hopeless(f"{sentence}; check base_url", maybe_accepted=doing == "submit")
        return bytes(content[: self.limits.answer_bytes])

    def _object(self, content: bytes, doing: Doing) -> Mapping[str, Any]:
        submitting = doing == "submit"
        try:
            answer = jsons.loads(content)
        except (ValueError, RecursionError) as error:
            sentence = f"{self.hosts.service} answered with something that is no JSON: {self.cleaned(_text(content))!r}"
            if self._understood:
                raise TryAgain(sentence, maybe_accepted=submitting) from error
            taken = submitting and not _is_page(content)
            raise Hopeless(f"{sentence}; check base_url, which often ends in /v1", maybe_accepted=taken) from error
        if not isinstance(answer, Mapping):
            sentence = f"{self.hosts.service} answered with JSON that is no object; check base_url"
            raise Hopeless(sentence, maybe_accepted=submitting)
        self._understood = True
        return answer

    async def _save(self, response: "httpx.Response", into: Path) -> None:
        promised = int(response.headers.get("content-length", "0"))
        self._require_room(promised)
        into.parent.mkdir(parents=True, exist_ok=True)
        partial = into.with_name(into.name + ".partial")
        try:
            await self._write(response, partial)
            if response.num_bytes_downloaded < promised:
                raise TryAgain(f"{self.hosts.service} sent {response.num_bytes_downloaded} of {promised} bytes")
            partial.replace(into)
        finally:
            partial.unlink(missing_ok=True)

    async def _write(self, response: "httpx.Response", partial: Path) -> None:
        size = 0
        with partial.open("wb") as file:
            async for piece in response.aiter_bytes(_PIECE):
                if not size:
                    self._require_video(piece, response.headers.get("content-type", "no content type"))
                size += len(piece)
                self._require_room(size)
                file.write(piece)
        if not size:
            raise TryAgain(f"{self.hosts.service} sent an empty file")

    def _require_room(self, size: int) -> None:
        allowed = self.limits.video_bytes
        if size > allowed:
            raise Refused(f"a video from {self.hosts.service} is larger than {allowed} bytes; raise limits.video_bytes")

    def _require_video(self, start: bytes, kind: str) -> None:
        if _looks_like_video(start):
            return
        words = self.cleaned(_text(start))
        kind = self.cleaned(kind)
        raise TryAgain(f"{self.hosts.service} sent no video ({kind}) but what begins with {words!r}")

    def _reason(self, error: Exception) -> str:
        return self.cleaned(str(error)) or type(error).__name__


async def download(
    url: str,
    into: Path,
    *,
    allowed_hosts: Collection[str],
    max_bytes: int = HttpLimits.video_bytes,
    headers: Mapping[str, str] | None = None,
    limits: HttpLimits = HttpLimits(),
) -> None:
    """Download a video from a URL that some service told, as ``HttpService.fetch`` does.

    ``headers`` go to the URL's own scheme, host and port only, not along with a redirect to another host.

    Raises:
        Refused, TryAgain: see ``HttpService.fetch``.
        ValueError: an allowed host cannot be read.
    """
    checked = await AllowedHosts("https://service.invalid", tuple(allowed_hosts)).checked(url)
    origin = str(checked.copy_with(path="/", query=None, fragment=None))
    service = _WithHeaders(origin, allowed_hosts=tuple(allowed_hosts), limits=replace(limits, video_bytes=max_bytes))
    service.headers = dict(headers or {})
    try:
        await service.fetch(url, into)
    finally:
        await service.close()


class _WithHeaders(HttpService):
    """A service whose secret is in headers that somebody else made."""

    headers: dict[str, str]

    def _key_headers(self) -> dict[str, str]:
        return self.headers


def terms_line(service: str) -> str:
    """The line that the first use of a service prints."""
    return f"{service}: check that its terms allow training a model on its outputs (docs/apis.md)"


def _client(limits: HttpLimits) -> "httpx.AsyncClient":
    require_httpx()
    import httpx

    return httpx.AsyncClient(
        follow_redirects=False,
        timeout=httpx.Timeout(limits.read_seconds, connect=limits.connect_seconds, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=_IDLE_SECONDS),
        headers={"accept-encoding": "identity", "user-agent": "streamstill"},
    )


def _is_page(content: bytes) -> bool:
    """Whether this is a web page: no API lives there, so nothing was submitted."""
    return content.lstrip()[:1] == b"<"


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _looks_like_video(start: bytes) -> bool:
    riff = start[:4] == b"RIFF" and start[8:12] == b"AVI "
    transport = start[:1] == b"G" and start[188:189] == b"G"  # MPEG-TS: a G every 188 bytes
    return start[4:8] in _BOXES or start.startswith(_STARTS) or riff or transport
