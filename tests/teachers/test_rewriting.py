"""Rewriting against a real chat service: asked once, paced, refused, away, and never with the key in sight."""

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamstill.teachers.api.jobs import ApiError, Hopeless, TryAgain
from streamstill.teachers.api.pace import Retries
from streamstill.teachers.prompts import REWRITTEN_FROM, PromptRow, normalised
from streamstill.teachers.rewriting import INSTRUCTION, Rewriting, RewritingConfig, rewrite
from tests.teachers.api.asking_over_http import QUICK, VARIABLE
from tests.teachers.api.server import Trouble
from tests.teachers.api.wire import Json, Reply
from tests.teachers.chat_server import ChatServer, said

QUICKLY = Retries(attempts=3, first_wait=0.001, longest_wait=0.01)
PROMPTS = ["a cat", "红球落下", "a \U0001f600 ball", "b" * 9_000]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv(VARIABLE, ChatServer.key)
    serving = ChatServer()
    with serving:
        yield serving


def configured(server: ChatServer, **changes: Any) -> RewritingConfig:
    given = {"base_url": server.url, "model": server.model, "key_variable": VARIABLE, "retries": QUICKLY}
    return RewritingConfig(**{**given, "limits": QUICK, **changes})


def rows(*prompts: str) -> list[PromptRow]:
    return [PromptRow(prompt=prompt, columns={"n": n}) for n, prompt in enumerate(prompts)]


def rewritten(server: ChatServer, folder: Path, *prompts: str, **changes: Any) -> Rewriting:
    return asyncio.run(rewrite(rows(*(prompts or PROMPTS)), configured(server, **changes), folder))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_every_prompt_is_asked_once_and_kept_beside_its_answer(server: ChatServer, tmp_path: Path) -> None:
    done = rewritten(server, tmp_path / "cache", *PROMPTS, PROMPTS[0])
    assert [row.prompt for row in done.rows] == [f"finer {prompt}" for prompt in (*PROMPTS, PROMPTS[0])]
    assert [row.columns for row in done.rows[:2]] == [
        {"n": 0, REWRITTEN_FROM: "a cat"},
        {"n": 1, REWRITTEN_FROM: "红球落下"},
    ]
    assert (done.asked, done.known, dict(done.refused)) == (4, 0, {})
    assert sorted(server.prompts) == sorted(PROMPTS)
    message = server.asked("other")[0].body
    assert message["messages"][0] == {"role": "system", "content": INSTRUCTION}
    assert message.keys() == {"model", "messages"}


def test_the_second_run_asks_nothing(server: ChatServer, tmp_path: Path) -> None:
    first = rewritten(server, tmp_path)
    again = rewritten(server, tmp_path)
    assert again.rows == first.rows
    assert (again.asked, again.known) == (0, 4)
    assert len(server.seen) == 4


def test_another_question_is_asked_anew(server: ChatServer, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = [{}, {"instruction": "Shorten it."}, {"temperature": 0.5}]
    for number, changes in enumerate(asked):
        assert rewritten(server, tmp_path, "a cat", **changes).asked == 1
        assert len(server.seen) == number + 1
    assert server.seen[1].body["messages"][0]["content"] == "Shorten it."
    assert server.seen[2].body["temperature"] == 0.5
    assert rewritten(server, tmp_path, "a cat", temperature=0.5, concurrency=1).known == 1


def test_a_prompt_rewritten_twice_remembers_the_first(server: ChatServer, tmp_path: Path) -> None:
    once = rewritten(server, tmp_path, "a cat")
    twice = asyncio.run(rewrite(once.rows, configured(server), tmp_path))
    assert (twice.rows[0].prompt, twice.rows[0].source) == ("finer finer a cat", "a cat")


@pytest.mark.parametrize("concurrency", [1, 3])
def test_as_many_are_asked_at_once_as_wanted(server: ChatServer, tmp_path: Path, concurrency: int) -> None:
    server.seconds = 0.05
    heard: list[tuple[int, int]] = []
    config = configured(server, concurrency=concurrency)
    note = lambda done, total: heard.append((done, total))  # noqa: E731
    asyncio.run(rewrite(rows(*(f"prompt {n}" for n in range(6))), config, tmp_path, on_answer=note))
    assert server.most_requests_at_once == concurrency
    assert heard == [(n, 6) for n in range(1, 7)]


def test_troubles_that_pass_are_waited_for(server: ChatServer, tmp_path: Path) -> None:
    server.trouble = Trouble(server_error=0.3, busy=0.3)
    patient = Retries(attempts=40, first_wait=0.001, longest_wait=0.002)
    done = rewritten(server, tmp_path, *(f"prompt {n}" for n in range(8)), retries=patient)
    assert done.asked == 8
    assert len(server.seen) > 8


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (said("half a sent", "length"), "cut the rewritten prompt off"),
        (said(None, refusal="I will not show that."), r"refused to rewrite the prompt (I will not show that.)"),
        (said("", "content_filter"), "refused to rewrite the prompt (content_filter)"),
        (said("long " * 3000), "has 14999 characters, more than 10000"),
    ],
)
def test_what_is_refused_stays_as_it_was_and_is_asked_again(
    server: ChatServer, tmp_path: Path, answer: Json, why: str
) -> None:
    server.answer = lambda prompt: answer if prompt == "a cat" else said("fine")
    done = rewritten(server, tmp_path, "a cat", "a dog")
    assert [row.prompt for row in done.rows] == ["a cat", "fine"]
    assert REWRITTEN_FROM not in done.rows[0].columns
    assert done.refused.keys() == {"a cat"}
    assert why in done.refused["a cat"]
    server.answer = lambda prompt: said("finer")
    again = rewritten(server, tmp_path, "a cat", "a dog")
    assert (again.asked, again.known, again.rows[0].prompt) == (1, 1, "finer")


def test_moderation_is_a_refusal_too(server: ChatServer, tmp_path: Path) -> None:
    server.replies["other"] = Reply(status=400, body=b'{"error": {"message": "flagged by moderation"}}')
    done = rewritten(server, tmp_path, "a cat")
    assert "flagged by moderation" in done.refused["a cat"]
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        ('"A red ball falls."', "A red ball falls."),
        ("<think>\nLet me see: a ball.\n</think>\n\nA red\nball falls.", "A red ball falls."),
        ('"Stop" says the sign, "go" says he and "no"', '"Stop" says the sign, "go" says he and "no"'),
        ("half \ud83d a character\0", "half ? a character"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
    ],
)
def test_what_models_wrap_around_a_prompt_is_taken_off(
    server: ChatServer, tmp_path: Path, content: str, prompt: str
) -> None:
    server.answer = lambda _: said(content)
    assert rewritten(server, tmp_path, "a").rows[0].prompt == prompt == normalised(prompt)
    assert rewritten(server, tmp_path, "a").known == 1


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply(body=b'{"choices": []}'), TryAgain, "answered without a rewritten prompt"),
        (Reply(body=b'{"choices": [{"message": {"content": " "}}]}'), TryAgain, "without a rewritten prompt"),
        (Reply(body=b'{"choices": [{"message": "hello"}]}'), TryAgain, "without a rewritten prompt"),
        (Reply(body=b'{"error": "later"}'), TryAgain, "without a rewritten prompt"),
        (Reply(status=503), TryAgain, "could not answer now (503)"),
        (Reply(body=b"<h1>Welcome</h1>"), Hopeless, "check base_url, which often ends in /v1"),
        (Reply(status=307, headers={"location": "http://127.0.0.1:1/v1"}), Hopeless, "answers with a redirect"),
        (Reply(status=404), Hopeless, "check model and base_url"),
        (Reply(body=b'"' + b"a" * 2**20, times=2), Hopeless, "more than 1048576 bytes"),
    ],
)
def test_a_service_that_gives_no_answer_ends_the_run(
    server: ChatServer, tmp_path: Path, reply: Reply, kind: type[ApiError], words: str
) -> None:
    server.replies["other"] = reply
    with pytest.raises(kind) as caught:
        rewritten(server, tmp_path, "a cat", concurrency=1)
    assert words in str(caught.value)
    assert len(server.seen) == (3 if kind is TryAgain else 1)
    assert files(tmp_path) == []


def test_what_was_answered_before_the_end_is_kept(server: ChatServer, tmp_path: Path) -> None:
    server.answer = lambda prompt: said("fine") if prompt < "c" else {}
    with pytest.raises(TryAgain):
        rewritten(server, tmp_path, "a", "b", "c", "d", concurrency=1)
    server.answer = lambda prompt: said("fine")
    done = rewritten(server, tmp_path, "a", "b", "c", "d")
    assert (done.asked, done.known) == (2, 2)


def test_the_key_is_sent_and_shown_nowhere(
    server: ChatServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    done = rewritten(server, tmp_path)
    assert server.seen[0].headers["authorization"] == f"Bearer {server.key}"
    kept = "".join(path.read_text(encoding="utf-8") for path in files(tmp_path))
    assert server.key not in kept + caplog.text + repr(done) + repr(configured(server))
    monkeypatch.setenv(VARIABLE, "sk-wrong-0123456789")
    with pytest.raises(Hopeless, match=f"set {VARIABLE} to a valid key") as caught:
        rewritten(server, tmp_path, "another")
    assert "sk-wrong" not in str(caught.value)


def test_a_broken_answer_in_the_cache_is_named(server: ChatServer, tmp_path: Path) -> None:
    rewritten(server, tmp_path, "a cat")
    (file,) = files(tmp_path)
    assert json.loads(file.read_text())["rewritten"] == "finer a cat"
    for broken in ("{", "[]", '{"rewritten": ""}', '{"rewritten": " a"}'):
        file.write_text(broken)
        with pytest.raises(ValueError, match=f"{file.name} holds no rewritten prompt; delete it to ask again"):
            rewritten(server, tmp_path, "a cat")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_url": "api.example.com"}, "base_url must be like https://api.example.com/v1"),
        ({"model": " "}, "the name of a model and an instruction"),
        ({"instruction": ""}, "the name of a model and an instruction"),
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"rate": 0.0}, "rate must be positive"),
    ],
)
def test_what_cannot_be_asked_says_why(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RewritingConfig(**{"base_url": "https://api.example.com/v1", "model": "m", **changes})
