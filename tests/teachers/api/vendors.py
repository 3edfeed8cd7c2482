"""A loopback server that answers as it is told, and the three vendors' real SDKs pointed at it."""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import pytest

from streamstill.teachers.api.asking import Asking
from streamstill.teachers.api.fal import FalConfig, FalTeacher
from streamstill.teachers.api.jobs import JobTeacher
from streamstill.teachers.api.replicate import ReplicateConfig, ReplicateTeacher
from streamstill.teachers.api.veo import VeoConfig, VeoTeacher

SECRET = "secret-key-0123456789"
HERE = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer: JSON of ``body``, or the bytes as they are. ``cut`` closes the connection without any."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request as it arrived; names of headers in lower case."""

    route: str  # "POST /path", without the query
    headers: Mapping[str, str]
    body: Any


class Loopback:
    """Serves ``routes`` between ``with`` and its end; of several replies on a route the last one stays."""

    def __init__(self) -> None:
        self.routes: dict[str, list[Reply]] = {}
        self.asked: list[Asked] = []
        self._server = ThreadingHTTPServer((HERE, 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "Loopback":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on nobody answers; may be called again."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        return f"{HERE}:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def on(self, route: str, *replies: Reply) -> None:
        """What is answered on "METHOD /path"."""
        self.routes[route] = list(replies)

    def seen(self, route: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.route == route]

    def reply(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        replies = self.routes.get(asked.route)
        if replies is None:
            return Reply(status=404, body={"detail": f"nothing at {asked.route}"})
        return replies.pop(0) if len(replies) > 1 else replies[0]


def _handler(server: Loopback) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5  # seconds for a client to speak

        def do_GET(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            route = f"{self.command} {self.path.partition('?')[0]}"
            reply = server.reply(Asked(route=route, headers=headers, body=json.loads(content) if content else None))
            if reply.cut:
                self.close_connection = True
                return
            raw = isinstance(reply.body, bytes)
            body = reply.body if raw else json.dumps(reply.body).encode()
            kind = "application/octet-stream" if raw else "application/json"
            self.send_response(reply.status)
            sent = {"content-type": kind, "content-length": str(len(body)), "connection": "close", **reply.headers}
            for name, value in sent.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *said: Any) -> None:
            """Say nothing."""

    return Handler


@dataclass(frozen=True, kw_only=True)
class Vendor:
    """One vendor: its teacher on loopback, the routes of a submission and of a poll of the job ``JOB``."""

    name: str
    variable: str
    module: str  # the SDK
    teacher: Callable[[Loopback], JobTeacher]
    submit: str
    poll: str
    accepted: Mapping[str, Any]  # the answer to a submission


JOB = "job1"
_OPERATIONS = "publishers/google/models/veo-test"
OPERATION = f"{_OPERATIONS}/operations/{JOB}"

VENDORS = (
    Vendor(
        name="fal",
        variable="FAL_KEY",
        module="fal_client",
        teacher=lambda server: FalTeacher(FalConfig(model="owner/film/fast", hosts=(server.host,))),
        submit="POST /owner/film/fast",
        poll=f"GET /owner/film/requests/{JOB}/status",
        accepted={"request_id": JOB, "response_url": "x", "status_url": "x", "cancel_url": "x"},
    ),
    Vendor(
        name="Replicate",
        variable="REPLICATE_API_TOKEN",
        module="replicate",
        teacher=lambda server: ReplicateTeacher(ReplicateConfig(model="owner/film", hosts=(server.host,))),
        submit="POST /v1/models/owner/film/predictions",
        poll=f"GET /v1/predictions/{JOB}",
        accepted={"id": JOB, "model": "owner/film", "version": "hidden", "status": "starting", "input": {}},
    ),
    Vendor(
        name="Veo",
        variable="GOOGLE_API_KEY",
        module="google.genai",
        teacher=lambda server: VeoTeacher(VeoConfig(model="veo-test", asking=Asking())),
        submit=f"POST /v1beta1/{_OPERATIONS}:predictLongRunning",
        poll=f"POST /v1beta1/{_OPERATIONS}:fetchPredictOperation",
        accepted={"name": OPERATION},
    ),
)


def pointed_at(server: Loopback, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> JobTeacher:
    """The vendor's teacher, its SDK speaking to the server, with a key in the environment."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GEMINI_API_KEY", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(vendor.variable, SECRET)
    if vendor.name == "fal":
        fal = pytest.importorskip("fal_client.client", reason='install the fal extra: pip install "streamstill[fal]"')
        monkeypatch.setattr(fal, "QUEUE_URL_FORMAT", f"{server.url}/")
    elif vendor.name == "Replicate":
        pytest.importorskip("replicate", reason='install the replicate extra: pip install "streamstill[replicate]"')
        monkeypatch.setenv("REPLICATE_BASE_URL", server.url)
    else:
        pytest.importorskip("google.genai", reason='install the veo extra: pip install "streamstill[veo]"')
        monkeypatch.setenv("GOOGLE_VERTEX_BASE_URL", server.url)
    return vendor.teacher(server)
