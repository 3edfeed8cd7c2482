"""HTTP/1.1 on the wire, the server's side: a request is read, an answer written, also one that breaks its promises."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.parser import BytesParser
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer to order, see ``server.VideoServer.replies``. A Content-Length among the headers is sent as it is."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    times: int = 1  # so often the body is sent; without a Content-Length the connection's end is the body's end
    seconds_between: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A request as it arrived: ``route`` is create, poll, content or other; names of headers in lower case."""

    at: float  # seconds, monotonic
    route: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


async def read(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    parts = path.split("?")[0].strip("/").split("/")
    routes = {("POST", 2, True): "create", ("GET", 3, True): "poll", ("GET", 4, True): "content"}
    route = routes.get((method, len(parts), parts[:2] == ["v1", "videos"]), "other")
    body = _fields(headers.get("content-type", ""), content)
    return Seen(at=time.monotonic(), route=route, path=path, headers=headers, body=body)


def _fields(kind: str, content: bytes) -> Json:
    """The fields of a JSON or multipart form body."""
    if content and kind.startswith("application/json"):
        fields: Json = json.loads(content)
        return fields
    if not kind.startswith("multipart/form-data"):
        return {}
    found: Json = {}
    for part in BytesParser().parsebytes(b"content-type: " + kind.encode() + b"\r\n\r\n" + content).walk():
        name = part.get_param("name", header="content-disposition")
        if isinstance(name, str):
            found[name] = bytes(part.get_payload(decode=True) or b"").decode()
    return found


async def write(writer: asyncio.StreamWriter, reply: Reply) -> None:
    """Send it; raises ConnectionError where the connection must end with it."""
    headers = {"content-length": str(len(reply.body))} if reply.times == 1 else {"connection": "close"}
    headers.update(reply.headers)
    lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    writer.write("\r\n".join(lines).encode("latin-1"))
    for _ in range(reply.times):
        writer.write(reply.body)
        await writer.drain()
        await asyncio.sleep(reply.seconds_between)
    if headers.get("content-length") != str(len(reply.body)):
        raise ConnectionResetError
