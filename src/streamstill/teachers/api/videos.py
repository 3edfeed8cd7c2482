"""Services that speak the /v1/videos job shape (create, poll, download) as teachers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from streamstill.teachers.api.failures import is_refusal, said
from streamstill.teachers.api.http import HttpService
from streamstill.teachers.api.jobs import Hopeless, JobStatus, Refused
from streamstill.teachers.api.videos_config import VideosApiConfig
from streamstill.teachers.store import request_key
from streamstill.types import ClipRequest

_LONGEST_PROMPT = 100_000  # characters
_LONGEST_ID = 512


class VideosApi:
    """One model of one service, over HTTP. Nothing is connected, and no key is read, before the first call."""

    def __init__(self, config: VideosApiConfig) -> None:
        self.config = config
        self._http = HttpService(
            config.base_url,
            key_variable=config.key_variable,
            allowed_hosts=config.allowed_hosts,
            limits=config.limits,
        )

    def __repr__(self) -> str:
        return f"VideosApi({self.name!r})"

    @property
    def service(self) -> str:
        """The host, as sentences name it."""
        return self._http.hosts.service

    @property
    def name(self) -> str:
        """Service, model and a fingerprint of how it is asked."""
        return f"videos/{self.service}/{self.config.model}@{self.config.fingerprint()}"

    @property
    def price(self) -> float | None:
        """Money for one second of video, as configured."""
        return self.config.price

    def seconds(self, request: ClipRequest) -> float:
        """Seconds of video that are ordered for a request."""
        return self.config.asking.ordered_seconds(request)

    @property
    def idempotent(self) -> bool:
        """Whether a submission can be repeated without paying twice, as configured."""
        return bool(self.config.idempotency_header)

    def body(self, request: ClipRequest) -> dict[str, Any]:
        """What is sent for a request.

        Raises:
            Refused: the prompt cannot be sent, or the clip is longer than the service makes.
        """
        _require_text(request.prompt)
        model = {self.config.model_field: self.config.model} if self.config.model else {}
        return {**model, **self.config.asking.arguments(request)}

    async def submit(self, request: ClipRequest, *, attempt: int = 0) -> str:
        """Pay for a clip; an attempt at a request is always sent under the same idempotency key.

        Raises:
            TryAgain, Refused, Hopeless: see ``jobs``.
        """
        header, body = self.config.idempotency_header, self.body(request)
        key = request_key(self.name, request) + (f"-{attempt}" if attempt else "")
        headers = {header: key} if header else {}
        form = {name: _as_text(value) for name, value in body.items()} if self.config.body == "form" else None
        answer = await self._http.ask(
            "POST",
            self.config.create_path,
            doing="submit",
            json=body if form is None else None,
            form=form,
            headers=headers,
        )
        return self._job(answer)

    async def poll(self, job: str) -> JobStatus:
        """How the job stands. A job that the service does not know has failed."""
        try:
            answer = await self._http.ask("GET", _path(self.config.poll_path, job), doing="poll")
        except Refused as refusal:
            return JobStatus(state="failed", reason=str(refusal))
        fields = self.config.answer
        word = str(_at(answer, fields.status))
        state = fields.state(word)
        if state is None:
            raise Hopeless(
                f"{self.service} says that a job is {self._http.cleaned(word)!r}, which is no known status; "
                f"add the word to one of answer.queued, running, done, failed or refused"
            )
        reason = self._http.cleaned(said(_at(answer, fields.reason)))
        if state == "failed" and is_refusal(reason):
            state = "refused"
        return JobStatus(state=state, reason=reason, progress=self._progress(answer), content=self._content(answer))

    async def download(self, job: str, status: JobStatus, into: Path) -> None:
        """Write the finished video file, whole or not at all.

        Raises:
            TryAgain, Refused, Hopeless: see ``http.HttpService.fetch``.
        """
        path = _path(self.config.content_path, job)
        await self._http.fetch(status.content.get("url") or str(self._http.hosts.at_service(path)), into)

    async def close(self) -> None:
        """Close connections; the next call opens new ones."""
        await self._http.close()

    def _job(self, answer: Mapping[str, Any]) -> str:
        job = _at(answer, self.config.answer.id)
        if not isinstance(job, (str, int)) or not 0 < len(str(job)) <= _LONGEST_ID or str(job) in (".", ".."):
            raise Hopeless(
                f"{self.service} accepted the request without a job id at {self.config.answer.id!r}; set answer.id",
                maybe_accepted=True,
            )
        return str(job)

    def _progress(self, answer: Mapping[str, Any]) -> float | None:
        value = _at(answer, self.config.answer.progress)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return min(1.0, max(0.0, value / self.config.answer.progress_of))

    def _content(self, answer: Mapping[str, Any]) -> dict[str, str]:
        url = _at(answer, self.config.answer.url) if self.config.answer.url else None
        return {"url": url} if isinstance(url, str) and url else {}


def _path(template: str, job: str) -> str:
    return template.replace("{id}", quote(job, safe=""))


def _at(answer: Any, path: str) -> Any:
    """What is at a dotted path of an answer, in tables and lists; None where there is nothing."""
    for name in path.split("."):
        if isinstance(answer, Mapping):
            answer = answer.get(name)
        elif isinstance(answer, list) and name.isdecimal() and int(name) < len(answer):
            answer = answer[int(name)]
        else:
            return None
    return answer


def _as_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _require_text(prompt: str) -> None:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise Refused(
            f"the prompt holds half a character at {error.start}, which cannot be sent; write it anew"
        ) from error
    if not prompt.strip() or len(prompt) > _LONGEST_PROMPT:
        raise Refused(f"a prompt has 1 to {_LONGEST_PROMPT} characters, this one has {len(prompt.strip())}")
