"""A place to collect into: a cache, its journal, and a teacher on loopback."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamstill.teachers import ClipStore, request_key
from streamstill.teachers.api.asking import Asking
from streamstill.teachers.api.collecting import collect_from_api
from streamstill.teachers.api.journal import Journal, Row, read_rows
from streamstill.teachers.api.pace import Retries
from streamstill.teachers.api.tally import ApiCollection, ApiFolder, ApiReport
from streamstill.teachers.api.videos import VideosApi
from streamstill.types import ClipRequest
from tests.teachers.api.asking_over_http import QUICK, configured, question
from tests.teachers.api.server import VideoServer

FIELDS = {"prompt": "{prompt}", "size": "{size}", "fps": "{fps}", "seed": "{seed}", "num_frames": "{frames}"}
SETTINGS = ApiCollection(
    concurrency=4, poll_seconds=0.02, commit_seconds=0.1, retries=Retries(attempts=8, first_wait=0.02)
)
EIGHT = [question(seed=seed) for seed in range(8)]


def teacher_of(server: VideoServer, **changes: Any) -> VideosApi:
    limits = replace(QUICK, read_seconds=0.3)
    given = {"asking": Asking(fields=FIELDS), "price": 0.5, "limits": limits, **changes}
    return VideosApi(configured(server, **given))


class Place:
    """A cache in a folder, and what is beside it."""

    def __init__(self, path: Path) -> None:
        self.cache = path / "cache"
        self.folder = ApiFolder.in_cache(self.cache)

    def collect(
        self,
        teacher: VideosApi,
        requests: list[ClipRequest],
        settings: ApiCollection = SETTINGS,
        **watching: Any,
    ) -> ApiReport:
        store = ClipStore.open(self.cache)
        return asyncio.run(collect_from_api(teacher, requests, store, self.folder, settings, **watching))

    @property
    def states(self) -> list[str]:
        return [row.state for row in self.rows]

    @property
    def rows(self) -> list[Row]:
        return sorted(read_rows(self.folder.journal)[0].values(), key=lambda row: row.request.seed)

    @property
    def clips(self) -> int:
        return len(ClipStore.open(self.cache))


def after_a_kill(place: Place, teacher: VideosApi, row: Callable[[Journal, str], None]) -> list[ClipRequest]:
    """The first of the eight requests as a killed run left it."""
    with Journal.open(place.folder.journal) as journal:
        key = request_key(teacher.name, EIGHT[0])
        journal.ask(key, teacher.name, EIGHT[0], 0.5)
        row(journal, key)
    return EIGHT
