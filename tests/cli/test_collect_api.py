"""`streamstill collect api` against a real service on loopback."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from streamstill.cli.collect import live_table
from streamstill.teachers import ClipStore
from streamstill.teachers.api.tally import Tally
from tests.cli.conftest import Ended, Run
from tests.teachers.api.server import Trouble, VideoServer
from tests.teachers.test_plugins import SOURCE, install

VARIABLE = "STREAMSTILL_TEST_KEY"
FIELDS = {"prompt": "{prompt}", "size": "{size}", "fps": "{fps}", "seed": "{seed}", "num_frames": "{frames}"}
COMMAND = "import sys; from streamstill.cli.main import main; sys.argv[0] = 'streamstill'; main()"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[VideoServer]:
    monkeypatch.setenv(VARIABLE, VideoServer.key)
    with VideoServer(seconds_per_job=0.05) as server:
        yield server


def words(server: VideoServer, *more: object, count: int = 4) -> list[str]:
    """The command for clips of 8x32x32; its files are written into this folder."""
    config: dict[str, Any] = {"base_url": server.url, "model": server.model, "key_variable": VARIABLE, "price": 0.25}
    config |= {"asking": {"fields": FIELDS}}
    Path("service.json").write_text(json.dumps(config))
    Path("prompts.txt").write_text("A red ball is dropped.\nA blue ball is dropped.\n")
    given: list[object] = ["collect", "api", "--config", "service.json", "--prompts", "prompts.txt", "--cache", "cache"]
    given += ["--count", count, "--size", "8x32x32@8", "--poll-seconds", 0.05, *more]
    return [str(word) for word in given]


def collect(run: Run, server: VideoServer, *more: object, count: int = 4) -> Ended:
    return run(*words(server, *more, count=count))


def test_a_service_is_asked_once_and_its_terms_are_named_once(run: Run, service: VideoServer) -> None:
    first = collect(run, service)
    assert (first.status, first.err) == (0, "")
    assert "check that its terms allow training a model on its outputs" in first.out
    assert "4 of 4 clips, 4 of them new; estimated cost so far 1.00 -> cache" in first.out
    assert "next: streamstill train STUDENT --cache cache" in first.out
    second = collect(run, service, count=6)
    assert "6 of 6 clips, 2 of them new; estimated cost so far 1.50 -> cache" in second.out
    assert "terms" not in second.out
    store = ClipStore.open(Path("cache"))
    assert len(service.paid) == len(store) == 6
    asked = [(entry.request.prompt.split()[1], entry.request.seed) for entry in store.find()]
    assert sorted(asked) == [(color, seed) for color in ("blue", "red") for seed in range(3)]
    assert VideoServer.key not in "".join(path.read_text() for path in Path("cache/api").glob("*.*"))


def test_a_dry_run_counts_and_asks_nothing(run: Run, service: VideoServer) -> None:
    said = collect(run, service, "--dry-run").out
    assert "4 requests: 0 known, 0 paid for, 4 new" in said
    assert "estimated cost of the new ones: 1.00; estimated so far: 0.00; nothing was asked" in said
    assert service.seen == []
    assert not Path("cache").exists()
    collect(run, service, count=3)
    said = collect(run, service, "--dry-run").out
    assert "4 requests: 3 known, 0 paid for, 1 new" in said
    assert "estimated cost of the new ones: 0.25; estimated so far: 0.75" in said
    unpriced = collect(run, service, "--dry-run", "--set", "price=null").out
    assert "estimated cost of the new ones: unknown, as the config has no price" in unpriced


@pytest.mark.parametrize(("limit", "name"), [(("--budget", 0.6), "budget"), (("--clips", 2), "clips")])
def test_a_limit_ends_the_run_cleanly(run: Run, service: VideoServer, limit: tuple[object, ...], name: str) -> None:
    for _ in range(2):
        said = collect(run, service, *limit)
        assert said.status == 0
        assert f"stopped before --{name} would be exceeded; 2 requests were not sent" in said.out
        assert len(service.paid) == len(ClipStore.open(Path("cache"))) == 2


def test_refusals_are_counted_and_asked_again_on_demand(run: Run, service: VideoServer) -> None:
    service.trouble = Trouble(refusal=1.0)
    assert "0 of 4 clips, 0 of them new, 4 refused" in collect(run, service).out
    assert "4 requests: 0 known, 0 paid for, 4 refused, 0 new" in collect(run, service, "--dry-run").out
    service.trouble = Trouble()
    assert "0 of 4 clips" in collect(run, service).out
    assert "4 of 4 clips, 4 of them new" in collect(run, service, "--retry-refused").out


def test_a_wrong_key_is_one_sentence_without_the_key(
    run: Run, service: VideoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "sk-wrong-0123456789")
    told = collect(run, service)
    told.says(VARIABLE)
    assert "sk-wrong" not in told.err + told.out
    assert service.paid == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("api",), "collect api needs --config FILE, which says base_url and model"),
        (("api", "--config", "nowhere.json"), "there is no file nowhere.json"),
        (("world", "--budget", "3"), "--budget is for services and world is none; leave it out"),
        (("world", "--retry-failed"), "--retry-failed is for services and world is none"),
        (("world", "--config", "service.json"), "world takes no --config and no --set; leave them out"),
        (("fal", "--config", "nowhere.json"), "there is no file nowhere.json; check the name"),
        (("fal", "--set", "price"), "cannot read the override 'price': write it as key=value"),
        (("fal", "--set", "model=a/b"), "the teacher fal has no prompts of its own; give --prompts FILE"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(run: Run, given: tuple[str, ...], said: str) -> None:
    run("collect", *given).says(said)
    assert not Path("cache").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("--cache", "s3://bucket/clips"),
            "the cache s3://bucket/clips is not on disk, and the journal of what was paid",
        ),
        (("--concurrency", 0), "concurrency must be at least 1, got 0"),
        (("--rate", 0), "rate must be positive, or left out for no limit, got 0"),
        (("--budget", 1, "--set", "price=null"), "a budget of 1 was given and the price of"),
    ],
)
def test_impossible_limits_are_refused_before_anything_is_asked(
    run: Run, service: VideoServer, more: tuple[object, ...], said: str
) -> None:
    collect(run, service, *more).says(said)
    assert service.seen == []


def test_what_the_cache_has_is_not_asked_for_whatever_the_journal_says(run: Run, service: VideoServer) -> None:
    assert collect(run, service, count=2).status == 0
    journal = Path("cache/api/jobs.jsonl")
    lines = journal.read_text().replace('"done"', '"failed"').splitlines(keepends=True)
    journal.write_text("".join(lines))
    assert "2 of 2 clips, 0 of them new" in collect(run, service, count=2).out  # the cache knows better
    assert [json.loads(line)["state"] for line in journal.read_text().splitlines()[-2:]] == ["done", "done"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_ctrl_c_brings_home_what_is_paid_for(run: Run, service: VideoServer) -> None:
    service.seconds_per_job = 1.0
    command = [sys.executable, "-c", COMMAND, *words(service, "--concurrency", 2)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 30
        while len(service.paid) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopping when what is paid for is here" in out
    assert err == "streamstill: stopped; the same command goes on from here\n"
    assert len(ClipStore.open(Path("cache"))) == len(service.paid) == 2
    service.seconds_per_job = 0.0
    assert "4 of 4 clips, 2 of them new" in collect(run, service).out


def test_the_live_table_shows_every_state() -> None:
    console = Console(width=200, record=True, file=StringIO())
    console.print(live_table(Tally(requests=9, known=1, waiting=2, running=3, done=1, refused=1, failed=1, money=12.5)))
    head, row = (line.split() for line in console.export_text().strip().splitlines())
    shown = dict(zip(head, row, strict=True))
    assert (shown["known"], shown["waiting"], shown["running"], shown["refused"]) == ("1", "2", "3", "1")
    assert shown["money"] == "12.50"


def test_a_teacher_that_is_installed_is_collected_by_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "installed", "toy-teachers", SOURCE, {"plain": "Plain"})
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    Path("prompts.txt").write_text("a grey sky\n")
    Path("plain.json").write_text('{"shade": 3}')
    given = ("collect", "plain", "--config", "plain.json", "--cache", "cache", "--size", "2x8x8@4", "--count", 2)
    run(*given).says("the teacher plain has no prompts of its own; give --prompts FILE")
    assert "2 clips, 2 of them new -> cache" in run(*given, "--prompts", "prompts.txt").out
    assert "2 clips, 2 of them new -> cache" in run(*given, "--prompts", "prompts.txt", "--set", "shade=5").out
    store = ClipStore.open(Path("cache"))
    assert [entry.teacher for entry in store.find()] == ["plain/3", "plain/3", "plain/5", "plain/5"]
    assert [int(clip.frames_FCHW.mean()) for clip in store.get_many(store.keys())] == [3, 3, 5, 5]
    run(*given, "--prompts", "prompts.txt", "--budget", 1).says("--budget is for services and plain is none")
