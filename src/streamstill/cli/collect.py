"""``streamstill collect``: which teacher is asked what, and the live table while a service works."""

import asyncio
import json
import re
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.live import Live
from rich.table import Table

from streamstill.cli.shell import quoted, say_next
from streamstill.teachers import ClipStore, Teacher
from streamstill.teachers.api.collecting import collect_from_api, require_price
from streamstill.teachers.api.http import terms_line
from streamstill.teachers.api.jobs import ApiError, JobTeacher
from streamstill.teachers.api.journal import State, read_rows
from streamstill.teachers.api.submitting import is_idempotent
from streamstill.teachers.api.tally import ApiCollection, ApiFolder, ApiReport, Plan, Tally, plan
from streamstill.teachers.api.videos import VideosApi
from streamstill.teachers.api.videos_config import read_table, read_videos_config
from streamstill.teachers.place import Place
from streamstill.teachers.plugins import find_teacher, is_job_teacher, known_teachers
from streamstill.teachers.prompts import read_prompts
from streamstill.teachers.store import request_key
from streamstill.types import ClipRequest, Geometry

API = "api"  # the name of any service that speaks the /v1/videos job shape
CTRL_C = 130  # exit status
_OF_A_WORLD = 200  # clips, where nobody says how many
_SIZE = re.compile(r"(\d+)x(\d+)x(\d+)@(\d+(?:\.\d+)?)")
_REMINDED = "terms.txt"  # services whose terms the user was reminded of, a line each
_ROWS = ("waiting", "running", "done", "refused", "failed", "quarantined", "unsure", "unanswered")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asked for. None and empty stand for what was not said; ``rate`` is calls a minute.

    Args:
        jobs: folder for the journal, for a cache that is not on disk.
    """

    teacher: str
    cache: Path
    prompts: Path | None
    count: int | None
    size: str
    seed: int
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    concurrency: int | None = None
    rate: float | None = None
    budget: float | None = None
    clips: int | None = None
    poll_seconds: float | None = None
    jobs: Path | None = None
    dry_run: bool = False
    retry: tuple[State, ...] = ()

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"--count must be at least 1, got {self.count}")

    @property
    def collection(self) -> ApiCollection:
        """How the service is asked; what was not said keeps its default."""
        said: dict[str, Any] = {"concurrency": self.concurrency, "rate": self.rate, "budget": self.budget}
        said |= {"clips": self.clips, "poll_seconds": self.poll_seconds}
        return ApiCollection(**{name: value for name, value in said.items() if value is not None}, retry=self.retry)

    @property
    def place(self) -> Place:
        """Where the cache is: a ``Path`` swallows one of the slashes of ``s3://``."""
        return Place.of(self.cache)

    @property
    def folder(self) -> ApiFolder:
        """Where the journal and files on their way are."""
        if self.jobs is not None:
            return ApiFolder.at(self.jobs)
        if self.place.remote:
            raise ValueError(
                f"the cache {self.place.uri} is not on disk, and the journal of what was paid must be; give "
                "--jobs DIR, the same one every time"
            )
        return ApiFolder.in_cache(self.cache)

    def requests(self, own_prompts: Sequence[str], *, seed_each: bool = False) -> list[ClipRequest]:
        """Prompt by prompt, then again with the next seed.

        Args:
            seed_each: no seed comes twice, for a teacher to whom two wordings of one scene are one clip.
        """
        prompts = [row.prompt for row in read_prompts(self.prompts)] if self.prompts else list(own_prompts)
        if not prompts:
            raise ValueError(f"the teacher {self.teacher} has no prompts of its own; give --prompts FILE")
        geometry, count = parse_size(self.size), self.count or (_OF_A_WORLD if seed_each else len(prompts))
        return [
            ClipRequest.of(
                geometry, prompt=prompts[i % len(prompts)], seed=self.seed + (i if seed_each else i // len(prompts))
            )
            for i in range(count)
        ]

    def require_no_service_words(self) -> None:
        """Refuse words that mean nothing to a teacher on this machine."""
        given: dict[str, Any] = {"concurrency": self.concurrency, "rate": self.rate, "budget": self.budget}
        given |= {
            "clips": self.clips,
            "poll-seconds": self.poll_seconds,
            "jobs": self.jobs,
            "dry-run": self.dry_run or None,
        }
        given |= {"retry-" + state: state for state in self.retry}
        named = [f"--{name}" for name, value in given.items() if value is not None]
        if named:
            raise ValueError(f"{named[0]} is for services and {self.teacher} is none; leave it out")


def collect(asked: Asked, console: Console) -> None:
    """Ask the teacher of that name, whatever kind it is."""
    found = _found(asked)
    if found is not None and is_job_teacher(found):
        _collect_from_service(cast(JobTeacher, found), asked, console)
        return
    from streamstill.cli.commands import collect_answers  # which loads torch

    asked.require_no_service_words()
    collect_answers(cast("Teacher | None", found), asked, console)


def ends_to_retry(*, refused: bool, failed: bool, unsure: bool) -> tuple[State, ...]:
    """What the ``--retry-...`` options say; failed means quarantined, too."""
    chosen: dict[State, bool] = {"refused": refused, "failed": failed, "quarantined": failed, "unsure": unsure}
    return tuple(state for state, wanted in chosen.items() if wanted)


def parse_size(size: str) -> Geometry:
    """FRAMESxHEIGHTxWIDTH@FPS."""
    match = _SIZE.fullmatch(size)
    if match is None:
        raise ValueError(f"cannot read the size {size!r}; write FRAMESxHEIGHTxWIDTH@FPS, for example 16x32x32@8")
    frames, height, width = (int(match[i]) for i in (1, 2, 3))
    return Geometry(frames=frames, height=height, width=width, fps=float(match[4]))


def live_table(tally: Tally) -> Table:
    """How a collection stands, in one row."""
    table = Table(*("known", *_ROWS, "money"), box=None)
    table.add_row(*(str(getattr(tally, name)) for name in ("known", *_ROWS)), f"{tally.money:.2f}")
    return table


def _found(asked: Asked) -> Any:
    """The service or the installed teacher of that name; None for worlds and folders."""
    if asked.teacher == API:
        if asked.config is None:
            raise ValueError("collect api needs --config FILE, which says base_url and model; see docs/apis.md")
        return VideosApi(read_videos_config(asked.config, asked.overrides))
    if asked.teacher in known_teachers():
        return find_teacher(asked.teacher, _options(asked.config, asked.overrides))
    if asked.config is not None or asked.overrides:
        raise ValueError(f"{asked.teacher} takes no --config and no --set; leave them out")
    return None


def _options(path: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The fields of a JSON or TOML file, with ``key=value`` in place of some of them."""
    options = {} if path is None else dict(read_table(path))
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"cannot read the override {override!r}: write it as key=value, for example price=0.1")
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options


def _collect_from_service(teacher: JobTeacher, asked: Asked, console: Console) -> None:
    requests, config, folder = asked.requests(()), asked.collection, asked.folder
    store = ClipStore.open(asked.cache)
    require_price(teacher, config)
    if asked.dry_run:
        _estimate(teacher, requests, store, folder, config, console)
        return
    _remind(teacher, folder, console)
    try:
        report = asyncio.run(_watched(teacher, requests, store, folder, config, console))
    except ApiError as error:
        raise ValueError(str(error)) from error
    _tell(report, asked, console)


async def _watched(
    teacher: JobTeacher,
    requests: Sequence[ClipRequest],
    store: ClipStore,
    folder: ApiFolder,
    config: ApiCollection,
    console: Console,
) -> ApiReport:
    """The collection with a live table; the first Ctrl-C submits nothing more, the second ends at once."""
    stop, run = asyncio.Event(), asyncio.current_task()

    def interrupted() -> None:
        if stop.is_set() and run is not None:
            run.cancel()
        stop.set()
        console.print("  stopping when what is paid for is here; Ctrl-C again leaves it for the next run")

    with suppress(
        NotImplementedError, RuntimeError, ValueError
    ):  # Windows, or not the main thread: Ctrl-C ends at once
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted)
    with Live(console=console, transient=True) as live:
        try:
            return await collect_from_api(
                teacher,
                requests,
                store,
                folder,
                config,
                on_change=lambda tally: live.update(live_table(tally)),
                stop=stop,
            )
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


def _estimate(
    teacher: JobTeacher,
    requests: Sequence[ClipRequest],
    store: ClipStore,
    folder: ApiFolder,
    config: ApiCollection,
    console: Console,
) -> None:
    rows, spent = read_rows(folder.journal)
    by_key = {request_key(teacher.name, request): request for request in requests}
    known, idempotent = frozenset(store.keys()), is_idempotent(teacher)
    todo = plan(by_key, known, rows, idempotent=idempotent, retry=config.retry)
    console.print(f"  {_counted(todo)}")
    money = todo.cost(teacher)
    cost = "unknown, as the config has no price" if money is None else f"{money:.2f}"
    console.print(f"  estimated cost of the new ones: {cost}; estimated so far: {spent.money:.2f}; nothing was asked")


def _counted(todo: Plan) -> str:
    ends = sorted(set(todo.ended.values()))
    ended = "".join(f", {sum(end == state for end in todo.ended.values())} {state}" for state in ends)
    return f"{todo.requests} requests: {len(todo.known)} known, {len(todo.paid)} paid for{ended}, {len(todo.new)} new"


def _remind(teacher: JobTeacher, folder: ApiFolder, console: Console) -> None:
    """One line about the service's terms, at its first use with this cache."""
    service = str(getattr(teacher, "service", teacher.name.partition("/")[0]))
    reminded = folder.root / _REMINDED
    known = reminded.read_text(encoding="utf-8").splitlines() if reminded.exists() else []
    if service not in known:
        console.print(f"  {terms_line(service)}", markup=False, soft_wrap=True)
        folder.root.mkdir(parents=True, exist_ok=True)
        with reminded.open("a", encoding="utf-8") as file:
            file.write(service + "\n")


def _tell(report: ApiReport, asked: Asked, console: Console) -> None:
    """How it ended, and what to run next."""
    tally = report.tally
    ends = ", ".join(f"{getattr(tally, name)} {name}" for name in _ROWS[3:] if getattr(tally, name))
    console.print(
        f"  {tally.known + tally.done} of {tally.requests} clips, {tally.done} of them new"
        f"{', ' + ends if ends else ''}; estimated cost so far {tally.money:.2f} -> {asked.place.uri}",
        soft_wrap=True,
    )
    if report.stopped == "interrupted":
        raise SystemExit(CTRL_C)
    if report.stopped:
        console.print(f"  stopped before --{report.stopped} would be exceeded; {tally.waiting} requests were not sent")
    if tally.unanswered:
        raise ValueError(f"{tally.unanswered} requests got no answer yet; the same command goes on with them")
    say_next(console, f"streamstill train STUDENT --cache {quoted(asked.place.uri)}")
