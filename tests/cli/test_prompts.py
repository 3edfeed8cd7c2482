"""`streamstill prompts`: counts, files and the next command; a bad word is one sentence and writes nothing."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from streamstill.teachers import ClipStore
from tests.cli.conftest import Ended, Run
from tests.cli.test_cli import TINY_SIZE
from tests.teachers.api.wire import Reply
from tests.teachers.chat_server import ChatServer, said

VARIABLE = "STREAMSTILL_TEST_KEY"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv(VARIABLE, ChatServer.key)
    serving = ChatServer()
    with serving:
        yield serving


def counted(ended: Ended) -> dict[str, int]:
    """The table of counts."""
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    head, row = next(pair for pair in pairwise(lines) if "kept" in pair[0] and "held out" in pair[0])
    names = [name.strip() for name in head.split("  ") if name.strip()]
    return dict(zip(names, map(int, row.split()), strict=True))


def lines_of(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


def colors(count: int) -> None:
    """mine.csv: as many red prompts, half as many blue ones, and a duplicate of the first."""
    names = [(color, n) for color, of in (("red", count), ("blue", count // 2)) for n in range(of)]
    rows = [f"{color},a {color} ball {n}\n" for color, n in [*names, ("red", 0)]]
    Path("mine.csv").write_text("color,prompt\n" + "".join(rows))


def rewriting(server: ChatServer) -> list[str]:
    return ["--rewrite", f"{server.url}/chat/completions", "--model", server.model, "--key-variable", VARIABLE]


def test_a_list_is_made_and_can_be_asked(run: Run) -> None:
    Path("a.txt").write_text("A red ball is dropped.\nA  blue ball is dropped.\n")
    Path("b.jsonl").write_text('{"prompt": "A red ball is dropped. "}\n')
    ended = run("prompts", "a.txt", "b.jsonl", "--out", "made/list.jsonl")
    assert counted(ended) == {"read": 3, "duplicates": 1, "kept": 2, "held out": 0}
    assert lines_of("made/list.jsonl") == [
        '{"prompt": "A red ball is dropped."}',
        '{"prompt": "A blue ball is dropped."}',
    ]
    assert "next: streamstill collect TEACHER --prompts made/list.jsonl --count 2" in ended.out
    words = ended.out.rpartition("next: streamstill ")[2].replace("TEACHER", "world").split()
    assert run(*words, "--size", TINY_SIZE, "--cache", "cache").status == 0
    asked = {entry.request.prompt for entry in ClipStore.open(Path("cache")).find()}
    assert asked == {"A red ball is dropped.", "A blue ball is dropped."}


def test_held_out_prompts_are_in_a_file_of_their_own_and_stay_there(run: Run) -> None:
    Path("a.txt").write_text("".join(f"prompt {n}\n" for n in range(60)))
    counts = counted(run("prompts", "a.txt", "--out", "list.txt", "--held-out", 0.3))
    held_out = lines_of("list.held_out.txt")
    assert (counts["kept"], counts["held out"]) == (len(lines_of("list.txt")), len(held_out))
    assert sorted(lines_of("list.txt") + held_out) == sorted(lines_of("a.txt"))
    assert 5 < len(held_out) < 35
    Path("b.txt").write_text("".join(f"newer {n}\n" for n in range(60)))
    run("prompts", "b.txt", "a.txt", "--out", "list.txt", "--held-out", 0.3)
    assert [line for line in lines_of("list.held_out.txt") if line.startswith("prompt")] == held_out
    run("prompts", "a.txt", "--out", "list.txt").says("list.held_out.txt holds out prompts of an earlier run")
    assert counted(run("prompts", "a.txt", "--out", "list.txt", "--held-out", 7))["held out"] == 7


def test_a_column_is_balanced_and_kept(run: Run) -> None:
    colors(8)
    counts = counted(run("prompts", "mine.csv", "--out", "list.jsonl", "--balance", "color"))
    assert counts == {"read": 13, "duplicates": 1, "left out": 4, "kept": 8, "held out": 0}
    kept = [json.loads(line)["color"] for line in lines_of("list.jsonl")]
    assert Counter(kept) == {"red": 4, "blue": 4}
    assert counted(run("prompts", "mine.csv", "--balance", "color", "--per-value", 2))["kept"] == 4
    assert len(lines_of("runs/prompts.txt")) == 4


def test_a_template_is_filled_from_columns_and_lists(run: Run) -> None:
    Path("a.csv").write_text("caption,mood\na cat,calm\na dog,wild\n")
    words = ("prompts", "--template", "{mood}: {prompt}, {style}", "--field", "style=ink, oil,ink", "--out", "l.txt")
    counts = counted(run(*words, "a.csv", "--column", "caption"))
    assert counts == {"read": 2, "duplicates": 0, "expanded": 4, "kept": 4, "held out": 0}
    assert lines_of("l.txt") == [
        f"{row}, {style}" for row in ("calm: a cat", "wild: a dog") for style in ("ink", "oil")
    ]
    lists = ("--field", "a=x,y,z", "--field", "b=1,2,3")
    counts = counted(run("prompts", "--template", "{a}{b}", *lists, "--sample", 5, "--out", "m.txt"))
    assert (counts["read"], counts["expanded"], len(set(lines_of("m.txt")))) == (0, 5, 5)


def test_prompts_are_rewritten_once_and_split_by_what_they_were(run: Run, service: ChatServer) -> None:
    Path("a.txt").write_text("".join(f"prompt {n}\n" for n in range(12)))
    run("prompts", "a.txt", "--out", "plain.txt", "--held-out", 0.4)
    words = ("prompts", "a.txt", "--out", "list.jsonl", "--held-out", 0.4, *rewriting(service))
    ended = run(*words)
    assert counted(ended)["rewritten"] == 12
    assert "12 prompts rewritten now, 0 known, 0 refused" in ended.out
    assert "check that its terms allow" in ended.out
    rows = [json.loads(line) for line in lines_of("list.held_out.jsonl")]
    assert [row["rewritten_from"] for row in rows] == lines_of("plain.held_out.txt")
    assert all(row["prompt"] == f"finer {row['rewritten_from']}" for row in rows)
    before = lines_of("list.jsonl")
    assert "0 prompts rewritten now, 12 known" in run(*words).out
    assert lines_of("list.jsonl") == before
    assert len(service.seen) == 12


def test_refused_prompts_are_kept_and_shown(run: Run, service: ChatServer) -> None:
    service.answer = lambda prompt: said(None, refusal="No [b]cats[/b].") if "cat" in prompt else said("the same")
    Path("a.txt").write_text("a cat\na dog\na cow\n")
    ended = run("prompts", "a.txt", "--out", "list.txt", *rewriting(service))
    assert counted(ended) == {"read": 3, "duplicates": 1, "rewritten": 2, "kept": 2, "held out": 0}
    assert "kept as it was, for instance: a cat" in ended.out
    assert "(No [b]cats[/b].)" in ended.out
    assert lines_of("list.txt") == ["a cat", "the same"]


def test_a_service_that_is_away_writes_no_list(run: Run, service: ChatServer) -> None:
    Path("a.txt").write_text("a cat\n")
    service.replies["other"] = Reply(status=404, body=b"nothing here")
    ended = run("prompts", "a.txt", "--out", "list.txt", *rewriting(service))
    ended.says("check model and base_url; what was answered is kept, and the same command goes on")
    assert service.key not in ended.out + ended.err
    assert not Path("list.txt").exists()


def test_an_impossible_part_is_refused_before_anything_is_asked(run: Run, service: ChatServer) -> None:
    Path("a.txt").write_text("a cat\na dog\n")
    run("prompts", "a.txt", "--held-out", 2, *rewriting(service)).says("of 2 prompts at least 1 and not all")
    assert service.seen == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "there is nothing to read; give files of prompts, or --template with --field"),
        (("nowhere.txt",), "there is no prompt file nowhere.txt"),
        (("a.txt", "--out", "list.csv"), "prompts are written as .txt or .jsonl, got list.csv"),
        (("a.txt", "--out", "a.txt"), "a.txt would be read and overwritten; give another --out"),
        (("a.txt", "--per-value", 3), "--per-value means nothing without --balance; give both or none"),
        (("a.txt", "--field", "a=b"), "--field means nothing without --template"),
        (("a.txt", "--sample", 3), "--sample means nothing without --template"),
        (("a.txt", "--model", "m"), "--model means nothing without --rewrite"),
        (("a.txt", "--rewrite", "http://127.0.0.1:1/v1"), "--rewrite needs --model NAME"),
        (("a.txt", "--rewrite", "nothing", "--model", "m"), "base_url must be like https://api.example.com/v1"),
        (("a.txt", "--balance", "color"), "line 1 of a.txt has no 'color' to balance by"),
        (("a.txt", "--held-out", "some"), "--held-out is a share as 0.1 or a number as 200, got 'some'"),
        (("a.txt", "--held-out", "1.5"), "the share to hold out must be between 0 and 1, got 1.5"),
        (("a.txt", "--held-out", "2"), "of 2 prompts at least 1 and not all can be held out, got 2"),
        (("a.txt", "--held-out", "0.0000001"), "leaves one side empty; give a number, for example --held-out 1"),
        (
            ("a.txt", "--template", "{prompt} {a}", "--field", "a"),
            "given once and as NAME=VALUE,VALUE, got --field 'a'",
        ),
        (("a.txt", "--template", "{prompt} {a}", "--field", "a=,"), "the field 'a' has no values; give at least one"),
        (("a.txt", "--template", "{prompt} {a}"), "line 1 of a.txt has no text or number 'a' for the template"),
    ],
)
def test_a_bad_word_is_one_sentence_and_writes_nothing(run: Run, words: tuple[object, ...], said: str) -> None:
    Path("a.txt").write_text("a cat\na dog\n")
    run("prompts", *words).says(said)
    assert [path.name for path in Path.cwd().iterdir()] == ["a.txt"]
    assert lines_of("a.txt") == ["a cat", "a dog"]
