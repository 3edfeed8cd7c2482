"""Models at fal as teachers, through its queue and its SDK."""

import importlib
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

KEY = "FAL_KEY"


@dataclass(frozen=True, kw_only=True)
class FalConfig:
    """A model of fal: ``model`` as in its address there, for instance ``owner/name`` or ``owner/name/variant``."""

    model: str
    asking: Asking = field(default_factory=Asking)
    video: str = "video.url"  # where the model's answer has the address of the video, dotted
    hosts: tuple[str, ...] = ("fal.media", "*.fal.media")  # videos come from these; see ``hosts.AllowedHosts``
    price: float | None = None  # money for a second of video
    max_bytes: int = 1 << 28  # of a video

    def __post_init__(self) -> None:
        require_positive(self, "max_bytes")
        require_price_of_second(self.price)
        if "/" not in self.model.strip("/"):
            raise ValueError(f"a model of fal is written owner/name, got {self.model!r}")


class FalTeacher(VendorTeacher[FalConfig]):
    """A model of fal. The key is read from FAL_KEY when the first job is submitted, and kept nowhere else."""

    vendor = "fal"

    async def submit(self, request: ClipRequest, *, attempt: int = 0) -> str:
        """Queue the request; returns fal's request id.

        Raises:
            TryAgain, Refused, Hopeless: see :class:`streamstill.teachers.api.sdk.GuardedTransport`.
        """
        arguments = self.config.asking.arguments(request)
        client, service = self._opened()
        with service.understood(submitting=True):
            handle = await client.submit(self.config.model, arguments)
            return str(handle.request_id)

    async def poll(self, job: str) -> JobStatus:
        """How the job stands; once done, with the address of its video."""
        return await standing(self._poll(job))

    async def download(self, job: str, status: JobStatus, into: Path) -> None:
        """Fetch the video, without the key, from the hosts that are allowed only."""
        await download(status.content["url"], into, allowed_hosts=self.config.hosts, max_bytes=self.config.max_bytes)

    async def _poll(self, job: str) -> JobStatus:
        client, service = self._opened()
        fal = importlib.import_module("fal_client")
        with service.understood():
            status = await client.status(self.config.model, job)
            if isinstance(status, fal.Queued):
                return JobStatus(state="queued")
            if not isinstance(status, fal.Completed):
                return JobStatus(state="running")
            if status.error:
                return service.ended(f"{status.error} {status.error_type or ''}")
            return done_at(self.config.video, await client.result(self.config.model, job))

    def _connected(self) -> tuple[Any, Service, Connection]:
        return _client(Service(name="fal", variable=KEY, key=read_key(KEY)))


def _client(service: Service) -> tuple[Any, Service, Any]:
    """The SDK's client on our transport: by itself it submits again when an answer is lost, and a job is paid twice."""
    fal, httpx = sdk("fal_client", extra="fal"), importlib.import_module("httpx")
    key = {"Authorization": f"Key {service.key}"}
    connection = httpx.AsyncClient(transport=GuardedTransport(service), headers=key)

    async def ours(_client: Any) -> Any:
        return connection

    on_ours = type("OnOurTransport", (fal.AsyncClient,), {"_client": property(ours)})  # it takes no client of ours
    return on_ours(key=service.key), service, connection
