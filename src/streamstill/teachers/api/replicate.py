"""Models at Replicate as teachers, through its SDK."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamstill.config import require_positive
from streamstill.teachers.api.asking import Asking, require_price_of_second
from streamstill.teachers.api.failures import read_key
from streamstill.teachers.api.http import download
from streamstill.teachers.api.jobs import JobStatus
from streamstill.teachers.api.sdk import GuardedTransport, Service, done_at, sdk, standing
from streamstill.teachers.api.vendor import Connection, VendorTeacher
from streamstill.types import ClipRequest

KEY = "REPLICATE_API_TOKEN"
_MODEL = re.compile(r"[^/:\s]+/[^/:\s]+(:[0-9a-z]+)?")


@dataclass(frozen=True, kw_only=True)
class ReplicateConfig:
    """A model of Replicate: ``owner/name`` for an official one, ``owner/name:version`` for any other."""

    model: str
    asking: Asking = field(default_factory=Asking)
    video: str = ""  # where the model's output has the address of the video, dotted; empty where it is the output
    hosts: tuple[str, ...] = ("replicate.delivery", "*.replicate.delivery")  # videos come from these
    price: float | None = None  # money for a second of video
    max_bytes: int = 1 << 28  # of a video

    def __post_init__(self) -> None:
        require_positive(self, "max_bytes")
        require_price_of_second(self.price)
        if not _MODEL.fullmatch(self.model):
            raise ValueError(f"a model of Replicate is written owner/name or owner/name:version, got {self.model!r}")


class ReplicateTeacher(VendorTeacher[ReplicateConfig]):
    """A model of Replicate. The key is read from REPLICATE_API_TOKEN when the first job is submitted."""

    vendor = "replicate"

    async def submit(self, request: ClipRequest, *, attempt: int = 0) -> str:
        """Create a prediction; returns its id.

        Raises:
            TryAgain, Refused, Hopeless: see :class:`streamstill.teachers.api.sdk.GuardedTransport`.
        """
        arguments = self.config.asking.arguments(request)
        model, _, version = self.config.model.partition(":")
        which = {"version": version} if version else {"model": model}
        client, service = self._opened()
        with service.understood(submitting=True):
            prediction = await client.predictions.async_create(**which, input=arguments)
            return str(prediction.id)

    async def poll(self, job: str) -> JobStatus:
        """How the prediction stands; once done, with the address of its video."""
        return await standing(self._poll(job))

    async def download(self, job: str, status: JobStatus, into: Path) -> None:
        """Fetch the video, without the key, from the hosts that are allowed only."""
        await download(status.content["url"], into, allowed_hosts=self.config.hosts, max_bytes=self.config.max_bytes)

    async def _poll(self, job: str) -> JobStatus:
        client, service = self._opened()
        with service.understood():
            prediction = await client.predictions.async_get(job)
            progress = prediction.progress
        if prediction.status == "starting":
            return JobStatus(state="queued")
        if prediction.status == "processing":
            return JobStatus(state="running", progress=progress.percentage if progress else None)
        if prediction.status == "succeeded":
            return done_at(self.config.video, prediction.output)
        return service.ended(prediction.error or f"the prediction was {prediction.status}")

    def _connected(self) -> tuple[Any, Service, Connection]:
        service = Service(name="Replicate", variable=KEY, key=read_key(KEY))
        replicate = sdk("replicate", extra="replicate")
        transport = GuardedTransport(service)
        return replicate.Client(api_token=service.key, transport=transport), service, transport
