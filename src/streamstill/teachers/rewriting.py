"""Prompts rewritten by a language model behind any OpenAI-compatible chat endpoint; nothing is asked twice."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamstill.config import require_positive, write_json
from streamstill.teachers.api.hosts import AllowedHosts
from streamstill.teachers.api.http import HttpLimits, HttpService
from streamstill.teachers.api.jobs import Refused, TryAgain
from streamstill.teachers.api.pace import Pace, Retries, again, together
from streamstill.teachers.prompts import REWRITTEN_FROM, PromptRow, normalised

INSTRUCTION = (
    "You rewrite prompts for a video generator. Say in one paragraph of plain, visual words what is seen: who or what, "
    "how it moves, where, in which light, and how the camera moves. Keep the meaning, all that is named, and the "
    "language of the prompt. Answer with the rewritten prompt alone."
)
_PATH = "chat/completions"
_THOUGHT = re.compile(r"(?s)^\s*<think>.*?</think>")  # open servers may send a model's reasoning along


@dataclass(frozen=True, kw_only=True)
class RewritingConfig:
    """Which language model is asked, and how.

    Args:
        base_url: with the version, as https://api.example.com/v1.
        key_variable: environment variable that holds the key; None for a server without keys.
        instruction: the system message.
        temperature: sent if given.
        rate: calls a minute; None is no limit.
        longest: characters of a rewritten prompt.
    """

    base_url: str
    model: str
    key_variable: str | None = None
    instruction: str = INSTRUCTION
    temperature: float | None = None
    concurrency: int = 4
    rate: float | None = None
    longest: int = 10_000
    retries: Retries = field(default_factory=Retries)
    limits: HttpLimits = field(default_factory=HttpLimits)

    def __post_init__(self) -> None:
        AllowedHosts(self.base_url)  # refuses what is no URL
        require_positive(self, "concurrency", "longest")
        if not self.model.strip() or not self.instruction.strip():
            raise ValueError("rewriting needs the name of a model and an instruction; give both")
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"rate must be positive, or left out for no limit, got {self.rate}")


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """What came of it.

    Args:
        rows: in the order given; a rewritten one has the prompt it was in the column ``rewritten_from``.
        asked: prompts that the service answered now.
        known: prompts whose answer was in the cache.
        refused: prompt -> why the service did not rewrite it; its row is as it was.
    """

    rows: list[PromptRow]
    asked: int
    known: int
    refused: Mapping[str, str]


class ChatRewriter:
    """One language model and the folder that remembers its answers.

    An answer is known by service, model, instruction, temperature and prompt. Refusals are not remembered.
    """

    def __init__(self, config: RewritingConfig, cache: Path) -> None:
        self.config = config
        self._cache = cache
        self._service = HttpService(config.base_url, key_variable=config.key_variable, limits=config.limits)
        self._pace = Pace(config.rate)

    @property
    def service(self) -> str:
        """The host, for sentences."""
        return self._service.hosts.service

    def known(self, prompt: str) -> str | None:
        """The answer in the cache, or None.

        Raises:
            ValueError: the cache holds something else in its place.
        """
        path = self._file(prompt)
        if not path.exists():
            return None
        try:
            answer = json.loads(path.read_bytes())["rewritten"]
            if isinstance(answer, str) and answer and answer == normalised(answer):
                return answer
        except (ValueError, TypeError, KeyError):
            pass
        raise ValueError(f"{path} holds no rewritten prompt; delete it to ask again")

    async def ask(self, prompt: str) -> str:
        """Ask the service, and remember the answer before it is given.

        Raises:
            Refused, Hopeless: see ``jobs``; a cut-off or overlong answer is refused, too.
            TryAgain: every attempt failed.
        """
        answer = await again(lambda: self._asked_once(prompt), self.config.retries, self._pace)
        path = self._file(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**self._question(prompt), "rewritten": answer})
        return answer

    async def close(self) -> None:
        """Close connections."""
        await self._service.close()

    async def _asked_once(self, prompt: str) -> str:
        messages = [{"role": "system", "content": self.config.instruction}, {"role": "user", "content": prompt}]
        body: dict[str, Any] = {"model": self.config.model, "messages": messages}
        if self.config.temperature is not None:
            body["temperature"] = self.config.temperature
        return self._read(await self._service.ask("POST", _PATH, doing="submit", json=body))

    def _read(self, answer: Mapping[str, Any]) -> str:
        content, reason, refusal = _first_choice(answer)
        if refusal or reason == "content_filter":
            raise Refused(f"{self.service} refused to rewrite the prompt ({self._service.cleaned(refusal or reason)})")
        if reason == "length":
            raise Refused(f"{self.service} cut the rewritten prompt off; raise its limit of tokens")
        prompt = _without_wrapping(content)
        if not prompt:
            raise TryAgain(f"{self.service} answered without a rewritten prompt")
        if len(prompt) > self.config.longest:
            raise Refused(f"the rewritten prompt has {len(prompt)} characters, more than {self.config.longest}")
        return prompt

    def _question(self, prompt: str) -> dict[str, Any]:
        config = self.config
        asked = {"base_url": config.base_url, "model": config.model, "instruction": config.instruction}
        return {**asked, "temperature": config.temperature, "prompt": prompt}

    def _file(self, prompt: str) -> Path:
        key = hashlib.sha256(json.dumps(self._question(prompt), sort_keys=True).encode()).hexdigest()
        return self._cache / key[:2] / f"{key}.json"


async def rewrite(
    rows: Sequence[PromptRow],
    config: RewritingConfig,
    cache: Path,
    *,
    on_answer: Callable[[int, int], None] | None = None,
) -> Rewriting:
    """Rewrite every row's prompt, ``concurrency`` at once; the same call after any end asks only what is missing.

    ``on_answer`` gets how many prompts are done, and of how many. A prompt that the service refuses stays as it is.

    Raises:
        Hopeless, TryAgain: the service cannot be used, or gave no answer for all attempts at one prompt.
        ValueError: see ``ChatRewriter.known``.
    """
    rewriter = ChatRewriter(config, cache)
    prompts = dict.fromkeys(row.prompt for row in rows)
    answers = {prompt: answer for prompt in prompts if (answer := rewriter.known(prompt)) is not None}
    known, refused = len(answers), dict[str, str]()
    waiting = iter([prompt for prompt in prompts if prompt not in answers])

    async def work(prompts_left: Iterator[str]) -> None:
        for prompt in prompts_left:
            try:
                answers[prompt] = await rewriter.ask(prompt)
            except Refused as error:
                refused[prompt] = str(error)
            if on_answer is not None:
                on_answer(len(answers) + len(refused), len(prompts))

    try:
        await together([work(waiting) for _ in range(config.concurrency)])
    finally:
        await rewriter.close()
    return Rewriting(
        rows=[_rewritten(row, answers.get(row.prompt)) for row in rows],
        asked=len(answers) - known,
        known=known,
        refused=refused,
    )


def _rewritten(row: PromptRow, answer: str | None) -> PromptRow:
    if answer is None:
        return row
    return replace(row, prompt=answer, columns={**row.columns, REWRITTEN_FROM: row.source})


def _first_choice(answer: Mapping[str, Any]) -> tuple[str, str, str]:
    """Content, reason of the end and refusal of the first choice, each empty where the answer has none."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(choice, Mapping) or not isinstance(message, Mapping):
        return "", "", ""
    told = (message.get("content"), choice.get("finish_reason"), message.get("refusal"))
    content, reason, refusal = (value if isinstance(value, str) else "" for value in told)
    return content, reason, refusal


def _without_wrapping(content: str) -> str:
    """The prompt without reasoning before it and without quotes around it, normalised."""
    text = content.encode("utf-8", "replace").decode()  # JSON may hold half a character
    text = normalised(_THOUGHT.sub("", text).replace("\0", " "))
    quoted = len(text) > 2 and text[0] == text[-1] == '"' and '"' not in text[1:-1]
    return normalised(text[1:-1]) if quoted else text
