"""Google's Veo as a teacher, through google-genai on Google Cloud."""

import asyncio
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamstill.config import require_positive, write_bytes
from streamstill.teachers.api.asking import Asking, require_price_of_second
from streamstill.teachers.api.jobs import Hopeless, JobStatus, TryAgain
from streamstill.teachers.api.sdk import GuardedTransport, Service, sdk, standing
from streamstill.teachers.api.vendor import Connection, VendorTeacher
from streamstill.types import ClipRequest

KEYS = ("GOOGLE_API_KEY", "GEMINI_API_KEY")  # in the SDK's order
PROJECT = "GOOGLE_CLOUD_PROJECT"
_INVALID_ARGUMENT = 3  # google.rpc.Code; what a prompt that may not be filmed ends as
_OURS = frozenset({"http_options", "number_of_videos", "output_gcs_uri"})


def _asked_as_veo_is() -> Asking:
    """Names and limits as the fields of the SDK's GenerateVideosConfig have them; lengths as Veo 3 documents them."""
    fields = {"prompt": "{prompt}", "seed": "{seed}", "duration_seconds": "{seconds}", "aspect_ratio": "{aspect}"}
    return Asking(fields=fields, lengths=(4, 6, 8), aspects=("16:9", "9:16"))


@dataclass(frozen=True, kw_only=True)
class VeoConfig:
    """A Veo model by Google's name for it. ``asking`` fills the SDK's GenerateVideosConfig, and its prompt."""

    model: str
    asking: Asking = field(default_factory=_asked_as_veo_is)
    price: float | None = None  # money for a second of video
    max_bytes: int = 1 << 28  # of an answer, which holds the video

    def __post_init__(self) -> None:
        require_positive(self, "max_bytes")
        require_price_of_second(self.price)
        if not self.model.strip():
            raise ValueError("give the model a name, for example the one of Veo that your project may use")
        if "prompt" not in self.asking.fields:
            raise ValueError(f"Veo's prompt is called prompt, got the fields {sorted(self.asking.fields)}")
        ours = sorted(_OURS & (self.asking.fields.keys() | self.asking.inputs.keys()))
        if ours:
            raise ValueError(f"{', '.join(ours)} cannot be set: one video is asked for and comes with the answer")


class VeoTeacher(VendorTeacher[VeoConfig]):
    """Veo. The key is read from GOOGLE_API_KEY; without it GOOGLE_CLOUD_PROJECT and Google's own log-in are used."""

    vendor = "veo"

    async def submit(self, request: ClipRequest, *, attempt: int = 0) -> str:
        """Start an operation; returns its name.

        Raises:
            TryAgain, Refused, Hopeless: see :class:`streamstill.teachers.api.sdk.GuardedTransport`.
        """
        arguments = self.config.asking.arguments(request)
        client, service = self._opened()
        types = importlib.import_module("google.genai.types")
        source = types.GenerateVideosSource(prompt=arguments.pop("prompt"))
        try:
            config = types.GenerateVideosConfig(number_of_videos=1, **arguments)
        except ValueError as error:
            raise Hopeless(f"google-genai does not take these inputs ({service.quoted(str(error))})") from error
        with _logged_in(), service.understood(submitting=True):
            operation = await client.aio.models.generate_videos(model=self.config.model, source=source, config=config)
        if not operation.name:
            raise TryAgain("Veo started an operation without a name", maybe_accepted=True)
        return str(operation.name)

    async def poll(self, job: str) -> JobStatus:
        """How the operation stands. The video comes with the answer and is not kept: ``download`` asks again."""
        return await standing(self._poll(job))

    async def download(self, job: str, status: JobStatus, into: Path) -> None:
        """Ask for the finished operation and write the video in it.

        Raises:
            Hopeless: Google put the video into a bucket of its own.
            TryAgain: the answer holds no video.
        """
        operation = await self._operation(job)
        video = operation.response.generated_videos[0].video if _videos(operation) else None
        if video is not None and video.video_bytes:
            await asyncio.to_thread(write_bytes, into, video.video_bytes)
            return
        if video is not None and video.uri:
            raise Hopeless(
                f"Veo put the video at {video.uri}, a bucket, which is not read; let it come with the answer"
            )
        raise TryAgain(f"Veo's finished operation {job} came without its video")

    async def _poll(self, job: str) -> JobStatus:
        operation = await self._operation(job)
        if not operation.done:
            return JobStatus(state="running")
        if operation.error:
            return _ended(operation.error, self._opened()[1])
        if _videos(operation):
            return JobStatus(state="done", progress=1.0)
        reasons = (operation.response and operation.response.rai_media_filtered_reasons) or ()
        filtered = operation.response and operation.response.rai_media_filtered_count
        words = self._opened()[1].quoted(" ".join(reasons) or "no video in the answer")
        return JobStatus(state="refused" if filtered else "failed", reason=words)

    async def _operation(self, job: str) -> Any:
        client, service = self._opened()
        types = importlib.import_module("google.genai.types")
        with _logged_in(), service.understood():
            operation = await client.aio.operations.get(types.GenerateVideosOperation(name=job))
        if not operation.name:  # to the SDK any other answer is an operation that goes on
            raise TryAgain(f"Veo answered about {job} with something that is no operation")
        return operation

    def _connected(self) -> tuple[Any, Service, Connection]:
        return _client(self.config.max_bytes)


def _client(max_bytes: int) -> tuple[Any, Service, GuardedTransport]:
    """The SDK's client on our transport: it would follow redirects with the key, and repeat by settings of its own."""
    genai, httpx = sdk("google.genai", extra="veo"), importlib.import_module("httpx")
    variable = next((name for name in KEYS if os.environ.get(name, "").strip()), None)
    if variable is None and not os.environ.get(PROJECT):
        raise Hopeless(f"Veo needs a key: set the environment variable {KEYS[0]}, or {PROJECT} and log in to gcloud")
    service = Service(name="Veo", variable=variable or PROJECT, key=os.environ.get(variable or "", "").strip())
    transport = GuardedTransport(service, pays=":predictLongRunning", max_bytes=max_bytes * 4 // 3 + (1 << 16))
    options = genai.types.HttpOptions(httpx_async_client=httpx.AsyncClient(transport=transport))
    with _logged_in():
        return genai.Client(vertexai=True, api_key=service.key or None, http_options=options), service, transport


@contextmanager
def _logged_in() -> Iterator[None]:
    """Without a key the SDK asks Google's own log-in, at the start and whenever a token is old."""
    try:
        yield
    except importlib.import_module("google.auth.exceptions").GoogleAuthError as error:
        words = " ".join(str(error).split())[:200]
        raise Hopeless(f"Google's log-in failed ({words}); set {KEYS[0]}, or log in with gcloud") from None


def _videos(operation: Any) -> Any:
    return operation.response and operation.response.generated_videos


def _ended(error: Any, service: Service) -> JobStatus:
    status = service.ended(str(error.get("message") or error))
    return replace(status, state="refused") if error.get("code") == _INVALID_ARGUMENT else status
