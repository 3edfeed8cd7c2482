"""The journal gives back what was written, survives any crash, and says what is wrong with it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streamstill.teachers.api.journal import Journal, Row, Spent, State, read_rows
from tests.teachers.api.asking_over_http import question

KEPT = {
    "asked": ("asked", ""),
    "running": ("running", ""),
    "done": ("done", ""),
    "refused": ("refused", "blood"),
    "failed": ("failed", "broke"),
}


def asked(journal: Journal, key: str, cost: float = 0.5) -> None:
    journal.ask(key, "toy", question(key, seed=7), cost)


def written(path: Path) -> None:
    """Five requests that got as far as their names say."""
    with Journal.open(path) as journal:
        for key in KEPT:
            asked(journal, key)
            if key != "asked":
                journal.accepted(key, f"job of {key}")
        journal.ended("done", "done", sync=False)
        journal.ended("refused", "refused", "blood")
        journal.ended("failed", "failed", "broke")


def test_what_is_written_is_there_in_the_next_run(tmp_path: Path) -> None:
    written(tmp_path / "jobs.jsonl")
    with Journal.open(tmp_path / "jobs.jsonl") as journal:
        assert {key: (row.state, row.reason) for key, row in journal.rows.items()} == KEPT
        assert journal.rows["running"] == Row(
            key="running",
            teacher="toy",
            request=question("running", seed=7),
            state="running",
            job="job of running",
            cost=0.5,
        )
        assert (dict(journal.rows), journal.spent) == read_rows(tmp_path / "jobs.jsonl")


def test_there_are_no_rows_where_there_is_no_file(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "jobs.jsonl") == ({}, Spent())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ends", "clips"),
    [
        ((), 1),
        (("unsure",), 1),
        (("withdrawn",), 0),
        (("refused",), 0),  # turned down at the door
        (("running", "refused"), 1),  # by a moderator who looked at the video: it may be billed
        (("running", "failed"), 1),
        (("running", "quarantined"), 1),
        (("running", "done"), 1),
    ],
)
def test_all_that_was_not_surely_turned_down_counts_as_spent(
    tmp_path: Path, ends: tuple[State, ...], clips: int
) -> None:
    with Journal.open(tmp_path / "jobs.jsonl") as journal:
        asked(journal, "other")
        asked(journal, "key", cost=0.25)
        for end in ends:
            journal.ended("key", end)
        assert journal.spent == Spent(clips=1 + clips, money=0.5 + 0.25 * clips)
        spent = journal.spent
    assert read_rows(tmp_path / "jobs.jsonl")[1] == spent


def test_all_teachers_of_a_journal_spend_the_same_money(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "jobs.jsonl") as journal:
        journal.ask("key", "toy", question(), 0.5)
        journal.ask("other", "another teacher", question(seed=1), 0.25)
        assert journal.spent == Spent(clips=2, money=0.75)


def test_a_clip_that_was_done_and_could_not_be_fetched_again_is_another_attempt_next_time(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "jobs.jsonl") as journal:
        asked(journal, "key")
        journal.accepted("key", "job")
        journal.ended("key", "done")
        journal.ended("key", "failed", "the file is gone")
        assert journal.rows["key"].attempt == 1


def test_a_request_that_is_asked_twice_costs_twice(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "jobs.jsonl") as journal:
        asked(journal, "key")
        journal.ended("key", "unsure", "no answer")
        asked(journal, "key")
        assert journal.spent == Spent(clips=2, money=1.0)
        assert (journal.rows["key"].state, journal.rows["key"].reason) == ("asked", "")


def test_cut_anywhere_it_holds_all_whole_lines_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    written(path)
    content = path.read_bytes()
    for length in range(0, len(content), 11):
        path.write_bytes(content[:length])
        rows, _ = read_rows(path)
        assert len(rows) == content[: content.rfind(b"\n", 0, length) + 1].count(b'"state": "asked"')
        with Journal.open(path) as journal:
            assert journal.rows == rows
            asked(journal, "next")
        assert read_rows(path)[0].keys() == rows.keys() | {"next"}


@pytest.mark.parametrize("line", [b"nonsense", b'{"key": "k"}', b'{"key": "k", "state": "eaten"}', b"[]", b"\xff"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "jobs.jsonl"
    written(path)
    path.write_bytes(path.read_bytes() + line + b"\n")
    count = path.read_bytes().count(b"\n")
    with pytest.raises(ValueError, match=rf"line {count} of the journal .* is damaged .*; remove that line"):
        read_rows(path)


def test_another_file_and_another_format_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    for head, said in (
        ({"name": "x"}, "is no journal of a collection; give another folder"),
        ({"streamstill.journal_version": 9}, "has format version 9 and this streamstill reads version 1"),
    ):
        path.write_text(json.dumps(head) + "\n")
        with pytest.raises(ValueError, match=said):
            Journal.open(path)
        assert json.loads(path.read_text()) == head


def test_only_one_process_collects_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    holder = f"""
import sys
from pathlib import Path
from streamstill.teachers.api.journal import Journal
journal = Journal.open(Path({str(path)!r}))
print("open", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(OSError, match=r"another process collects with the journal .*; let it finish") as refused:
            Journal.open(path)
        assert refused.value.strerror is not None
        if hasattr(signal, "SIGKILL"):
            process.send_signal(signal.SIGKILL)
        else:
            process.terminate()
        process.communicate()
        Journal.open(path).close()  # however a process ends, it holds the journal no longer


def test_a_full_disk_is_one_sentence_and_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "jobs.jsonl"
    written(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with Journal.open(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match=r"could not be written \(No space left on device\); free some space"):
                asked(journal, "next")
        assert path.read_bytes() == before
        assert "next" not in journal.rows
        asked(journal, "next")
    assert "next" in read_rows(path)[0]


def test_only_an_accepted_job_that_ended_without_a_clip_is_an_attempt(tmp_path: Path) -> None:
    """A crash before the id is on disk must repeat the same attempt, or a clip is paid twice."""
    with Journal.open(tmp_path / "jobs.jsonl") as journal:
        seen = []
        for end in ("withdrawn", "failed", "unsure", "refused"):
            asked(journal, "a")
            seen.append(journal.rows["a"].attempt)
            if end in ("failed", "refused"):
                journal.accepted("a", f"job {end}")
            journal.ended("a", end)
        asked(journal, "a")
        asked(journal, "a")  # asked again after a crash
    assert seen == [0, 0, 1, 1]
    assert read_rows(tmp_path / "jobs.jsonl")[0]["a"].attempt == 2
