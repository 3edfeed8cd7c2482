"""Whether `collect` keeps every clip and pays for none twice at a bad service, killed again and again.

    python benchmarks/collect_stress.py [--requests 1000] [--kills 20] [--folder runs/collect_stress]

The service is the loopback server of the tests, in a process of its own: 5 % of its answers are 500, 5 % are 429 with
Retry-After, 2 % never come, 2 % of the downloads are cut, 1 % of the requests are refused. `streamstill collect api`
runs against it and is killed with SIGKILL at random moments, then runs to its end. Prints a Markdown table.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.teachers.api.server import Trouble, VideoServer  # noqa: E402

from streamstill.config import write_json, write_text  # noqa: E402
from streamstill.teachers import ClipStore  # noqa: E402
from streamstill.teachers.api.journal import read_rows  # noqa: E402

KEY_VARIABLE = "STREAMSTILL_STRESS_KEY"
COMMAND = "import sys; from streamstill.cli.main import main; sys.argv[0] = 'streamstill'; main()"
TROUBLE = Trouble(server_error=0.05, busy=0.05, retry_after="1", hang=0.02, cut=0.02, refusal=0.01)
LONGEST_SECONDS = 1800.0  # of one run


def serve(seconds_per_job: float, *, honours_keys: bool) -> None:
    """In its own process: tell the URL, serve until the input ends, then tell what was seen."""
    with VideoServer(TROUBLE, seconds_per_job=seconds_per_job, honours_keys=honours_keys) as server:
        print(server.url, flush=True)
        sys.stdin.read()
        seen = {
            "paid": len(server.paid),
            "paid twice": len(server.paid_twice()),
            "requests at once": server.most_requests_at_once,
            "jobs at once": server.most_jobs_at_once,
            "calls in a second": server.most_per_second(),
            "calls": len(server.seen),
            **{route: len(server.asked(route)) for route in ("create", "poll", "content")},
        }
        print(json.dumps(seen), flush=True)


@contextmanager
def service(arguments: argparse.Namespace) -> Iterator["subprocess.Popen[str]"]:
    """The server's process; it ends with the block."""
    words = ["--serve", "--seconds-per-job", str(arguments.seconds_per_job)]
    words += ["--without-keys"] if arguments.without_keys else []
    command = [sys.executable, __file__, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def collect(arguments: argparse.Namespace, folder: Path) -> "subprocess.Popen[str]":
    """The command, in a process of its own."""
    words = ["collect", "api", "--config", folder / "service.json", "--cache", folder / "cache"]
    words += ["--prompts", folder / "prompts.txt", "--count", arguments.requests, "--size", "8x32x32@8"]
    words += ["--concurrency", arguments.concurrency, "--rate", arguments.rate, "--poll-seconds", 0.1]
    environment = {**os.environ, KEY_VARIABLE: VideoServer.key, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", COMMAND, *map(str, words)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def kill_after_some_progress(process: "subprocess.Popen[str]", journal: Path, chance: random.Random) -> bool:
    """Kill it with SIGKILL a moment after it wrote something; False if it came to its end before."""
    before = journal.stat().st_size if journal.exists() else 0
    while process.poll() is None and (not journal.exists() or journal.stat().st_size == before):
        time.sleep(0.02)
    time.sleep(chance.uniform(0.0, 1.5))
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def write_inputs(folder: Path, url: str, arguments: argparse.Namespace) -> None:
    """The service's config, and prompts that show something moving."""
    fields = {"prompt": "{prompt}", "size": "{size}", "fps": "{fps}", "seed": "{seed}", "num_frames": "{frames}"}
    config: dict[str, Any] = {"base_url": url, "model": VideoServer.model, "key_variable": KEY_VARIABLE, "price": 0.1}
    config |= {"asking": {"fields": fields}, "limits": {"read_seconds": 1.0, "total_seconds": 10.0}}
    if not arguments.without_keys:
        config["idempotency_header"] = "Idempotency-Key"
    write_json(folder / "service.json", config)
    write_text(folder / "prompts.txt", "A red ball is dropped.\nA blue ball is dropped.\n")


def stress(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run, kill, run again, and count."""
    chance, kills, started = random.Random(arguments.seed), 0, time.monotonic()
    journal = folder / "cache" / "api" / "jobs.jsonl"
    with service(arguments) as server:
        assert server.stdout is not None
        write_inputs(folder, server.stdout.readline().strip(), arguments)
        while kills < arguments.kills:
            if not kill_after_some_progress(collect(arguments, folder), journal, chance):
                break
            kills += 1
        last = collect(arguments, folder)
        said, _ = last.communicate(timeout=LONGEST_SECONDS)
        seen: dict[str, float] = json.loads(server.communicate()[0])
    if last.returncode != 0:
        raise SystemExit(f"the last run failed: {said}")
    rows, spent = read_rows(journal)
    ends = Counter(row.state for row in rows.values())
    import lance

    return {
        "requests": arguments.requests,
        "kills": kills,
        "clips in the cache": len(ClipStore.open(folder / "cache")),
        "rows on disk": lance.dataset(str(folder / "cache")).count_rows(),
        "refused, kept with a reason": sum(row.state == "refused" and bool(row.reason) for row in rows.values()),
        "unsure": ends["unsure"],
        "failed or quarantined": ends["failed"] + ends["quarantined"],
        **{f"server: {name}": value for name, value in seen.items()},
        "submissions in the journal": spent.clips,
        "seconds": round(time.monotonic() - started, 1),
    }


def verdicts(found: dict[str, float], arguments: argparse.Namespace) -> dict[str, bool]:
    """What must hold, by the server's own count."""
    answered = found["clips in the cache"] + found["refused, kept with a reason"] + found["unsure"]
    return {
        "every clip is there once": answered == found["requests"]
        and found["clips in the cache"] == found["rows on disk"]
        and found["failed or quarantined"] == 0,
        "no request was paid twice": found["server: paid twice"] == 0,
        "never more jobs or calls at once than asked": max(
            found["server: requests at once"], found["server: jobs at once"]
        )
        <= arguments.concurrency,
        "never more calls than the rate": found["server: calls in a second"] <= arguments.rate / 60 + 1,
    }


def main(words: list[str] | None = None) -> None:
    """Print what happened and whether it is as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rate", type=float, default=6000.0, help="calls a minute")
    parser.add_argument("--seconds-per-job", type=float, default=0.2)
    parser.add_argument("--without-keys", action="store_true", help="a service that honours no idempotency key")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept; without it a folder that is deleted")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.serve:
        serve(arguments.seconds_per_job, honours_keys=not arguments.without_keys)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = stress(arguments, folder)
    print("| what | count |\n|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:g} |")
    print("\n| must be | is |\n|---|---|")
    for name, holds in verdicts(found, arguments).items():
        print(f"| {name} | {'met' if holds else 'missed'} |")


if __name__ == "__main__":
    main()
