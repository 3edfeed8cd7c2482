"""A real chat service on loopback: /v1/chat/completions, with the troubles of the video service."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from tests.teachers.api.server import VideoServer
from tests.teachers.api.wire import Json, Reply, Seen

PATH = "/v1/chat/completions"


def said(content: str | None, finish_reason: str = "stop", **more: Any) -> Json:
    """An answer in the shape of OpenAI's."""
    message = {"role": "assistant", "content": content, **more}
    return {"id": "c", "object": "chat.completion", "choices": [{"message": message, "finish_reason": finish_reason}]}


class ChatServer(VideoServer):
    """Answers every chat after ``seconds`` with what ``answer`` makes of the user's message."""

    def __init__(
        self,
        answer: Callable[[str], Json] = lambda prompt: said(f"finer {prompt}"),
        *,
        seconds: float = 0.0,
    ) -> None:
        super().__init__()
        self.answer, self.seconds = answer, seconds

    @property
    def prompts(self) -> list[str]:
        """What was asked, in order of arrival."""
        return [seen.body["messages"][-1]["content"] for seen in self.asked("other")]

    async def _answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.seconds)
        await super()._answer(seen, reader, writer)

    def _reply(self, seen: Seen) -> Reply:
        known = seen.headers.get("authorization") == f"Bearer {self.key}" and seen.path == PATH
        if not known or seen.body.get("model") != self.model:
            return super()._reply(seen)
        answer = self.answer(seen.body["messages"][-1]["content"])
        return Reply(headers={"content-type": "application/json"}, body=json.dumps(answer).encode())
