"""Collecting from a real service on loopback: every clip once, nothing paid twice, all limits kept."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from streamstill.teachers import Answer, ClipStore, request_key
from streamstill.teachers.api.asking import Asking
from streamstill.teachers.api.collecting import collect_from_api
from streamstill.teachers.api.jobs import Hopeless
from streamstill.teachers.api.pace import Retries
from streamstill.teachers.api.tally import ApiFolder, ApiReport, Tally
from tests.teachers.api.asking_over_http import VARIABLE, question
from tests.teachers.api.collecting_parts import EIGHT, FIELDS, SETTINGS, Place, teacher_of
from tests.teachers.api.server import Trouble, VideoServer
from tests.teachers.api.wire import Reply


def test_every_request_becomes_a_clip_and_is_not_asked_again(place: Place, server: VideoServer) -> None:
    teacher = teacher_of(server)
    first = place.collect(teacher, [*EIGHT, EIGHT[0]])
    assert first == ApiReport(tally=Tally(requests=8, done=8, money=4.0))
    store = ClipStore.open(place.cache)
    assert set(store.keys()) == {request_key(teacher.name, request) for request in EIGHT}
    assert all(store.get(request_key(teacher.name, request)).geometry == request.geometry for request in EIGHT)
    assert place.states == ["done"] * 8
    assert list(place.folder.downloads.iterdir()) == []
    calls = len(server.seen)
    assert place.collect(teacher, EIGHT) == ApiReport(tally=Tally(requests=8, known=8, money=4.0))
    assert (len(server.seen), len(server.paid)) == (calls, 8)


def test_a_bad_service_gives_every_clip_once(place: Place) -> None:
    trouble = Trouble(seed=3, server_error=0.1, busy=0.1, hang=0.04, cut=0.1, refusal=0.15, lost=0.1)
    requests = [question(seed=seed) for seed in range(30)]
    with VideoServer(trouble, seconds_per_job=0.05) as server:
        report = place.collect(teacher_of(server), requests, replace(SETTINGS, concurrency=6))
        assert report.tally.done + report.tally.refused == 30
        assert report.tally.refused > 0
        assert server.paid_twice() == []
        assert len(server.paid) == report.tally.done == place.clips
        assert len(server.asked("create")) > 30
        assert max(server.most_requests_at_once, server.most_jobs_at_once) <= 6


def test_refusals_are_kept_with_their_reason_and_asked_again_on_demand(place: Place) -> None:
    with VideoServer(Trouble(seed=1, refusal=0.4)) as server:
        teacher = teacher_of(server)
        report = place.collect(teacher, EIGHT)
        refused = [row for row in place.rows if row.state == "refused"]
        assert 0 < len(refused) == report.tally.refused < 8
        assert all("the prompt was refused by the safety system" in row.reason for row in refused)
        assert report.tally.money == pytest.approx(0.5 * (8 - len(refused)))
        asked = len(server.asked("create"))
        assert place.collect(teacher, EIGHT).tally.refused == len(refused)
        assert len(server.asked("create")) == asked
        server.trouble = Trouble()
        again = place.collect(teacher, EIGHT, replace(SETTINGS, retry=("refused",)))
        assert (again.tally.done, again.tally.refused, place.clips) == (len(refused), 0, 8)


def test_a_job_that_fails_is_kept_with_its_reason_and_not_paid_again(place: Place) -> None:
    with VideoServer(Trouble(seed=2, failure=0.5)) as server:
        report = place.collect(teacher_of(server), EIGHT)
        assert 0 < report.tally.failed == place.states.count("failed") < 8
        assert {row.reason for row in place.rows if row.state == "failed"} == {"the model broke (internal)"}
        place.collect(teacher_of(server), EIGHT)
        assert len(server.paid) == 8


@pytest.mark.parametrize(("limit", "bought"), [({"budget": 1.5}, 3), ({"budget": 1.99}, 3), ({"clips": 5}, 5)])
def test_a_budget_is_never_exceeded_by_any_number_of_runs(
    place: Place, server: VideoServer, limit: dict[str, Any], bought: int
) -> None:
    settings = replace(SETTINGS, **limit)
    for _ in range(2):
        report = place.collect(teacher_of(server), EIGHT, settings)
        assert report.stopped == next(iter(limit))
        assert report.tally.waiting == 8 - bought
        assert len(server.paid) == place.clips == bought
        assert report.tally.money == 0.5 * bought
    assert place.collect(teacher_of(server), EIGHT).stopped == ""
    assert place.clips == 8


def test_a_budget_without_a_price_is_refused(place: Place, server: VideoServer) -> None:
    with pytest.raises(ValueError, match=r"a budget of 3 was given and the price of .* is not known; set price"):
        place.collect(teacher_of(server, price=None), EIGHT, replace(SETTINGS, budget=3.0))
    assert server.seen == []


def test_the_rate_counts_every_call(place: Place, server: VideoServer) -> None:
    place.collect(teacher_of(server), EIGHT, replace(SETTINGS, rate=60 * 20.0))
    times = [seen.at for seen in server.seen][1:]  # the first call opens the connection and may come late
    assert server.most_per_second() <= 21
    assert 20 < len(times) <= 1 + 20.5 * (times[-1] - times[0])


def test_a_hopeless_service_is_told_at_once_and_nothing_is_spent(
    place: Place, server: VideoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "wrong")
    with pytest.raises(Hopeless, match=VARIABLE):
        place.collect(teacher_of(server), EIGHT)
    assert len(server.seen) <= SETTINGS.concurrency
    assert set(place.states) == {"withdrawn"}
    monkeypatch.setenv(VARIABLE, VideoServer.key)
    assert place.collect(teacher_of(server), EIGHT).tally == Tally(requests=8, done=8, money=4.0)


def test_a_silent_service_ends_the_run_and_the_next_run_goes_on(place: Place) -> None:
    few = replace(SETTINGS, retries=Retries(attempts=2, first_wait=0.0), give_up_after=3, concurrency=1)
    with VideoServer(Trouble(server_error=1.0)) as server:
        with pytest.raises(
            Hopeless, match=r"3 jobs in a row got no answer, the last because .*run the same command later"
        ):
            place.collect(teacher_of(server), EIGHT, few)
        assert len(server.seen) == 6
        server.trouble = Trouble()
        assert place.collect(teacher_of(server), EIGHT, few).tally.done == 8


def test_a_budget_is_that_of_all_teachers_of_a_cache(place: Place, server: VideoServer) -> None:
    place.collect(teacher_of(server), EIGHT[:3], replace(SETTINGS, budget=2.0))
    another = teacher_of(server, asking=Asking(fields=FIELDS, inputs={"resolution": "720p"}))
    report = place.collect(another, EIGHT, replace(SETTINGS, budget=2.0))
    assert (report.stopped, report.tally.done, report.tally.money) == ("budget", 1, 2.0)


def test_a_clip_that_left_the_cache_is_downloaded_again_and_not_paid(place: Place, server: VideoServer) -> None:
    teacher = teacher_of(server)
    place.collect(teacher, EIGHT)
    place.folder = ApiFolder.at(place.cache.parent / "jobs")
    (place.cache / "api").rename(place.folder.root)
    place.cache = place.cache.parent / "another cache"
    assert place.collect(teacher, EIGHT).tally.done == place.clips == len(server.paid) == 8


def test_a_video_that_shows_nothing_is_quarantined_and_no_clip(place: Place, server: VideoServer) -> None:
    server.replies["content"] = Reply(headers={"content-type": "video/mp4"}, body=b"\0\0\0\x18ftypmp42" + bytes(500))
    report = place.collect(teacher_of(server), EIGHT[:2])
    assert (report.tally.quarantined, report.tally.done, place.clips) == (2, 0, 0)
    assert place.states == ["quarantined"] * 2
    assert len(list(place.folder.quarantine.glob("*.json"))) == 4  # each was fetched twice, in case it was cut
    del server.replies["content"]
    assert place.collect(teacher_of(server), EIGHT[:2]).tally.quarantined == 2
    again = place.collect(teacher_of(server), EIGHT[:2], replace(SETTINGS, retry=("quarantined",)))
    assert (again.tally.done, len(server.paid)) == (2, 4)  # the first jobs stay bad: a new attempt has a new key


def test_when_told_to_stop_it_waits_for_what_is_paid_and_asks_nothing_new(place: Place) -> None:
    async def stopped_soon(server: VideoServer) -> ApiReport:
        stop = asyncio.Event()

        def watch(tally: Tally) -> None:
            if len(server.asked("create")) >= 2:
                stop.set()

        store = ClipStore.open(place.cache)
        teacher = teacher_of(server)
        return await collect_from_api(teacher, EIGHT, store, place.folder, SETTINGS, on_change=watch, stop=stop)

    with VideoServer(seconds_per_job=0.2) as server:
        report = asyncio.run(stopped_soon(server))
        assert report.stopped == "interrupted"
        assert 2 <= len(server.paid) <= 4
        assert place.clips == len(server.paid) == report.tally.done
        assert report.tally.waiting == 8 - report.tally.done


def test_a_second_stop_leaves_what_is_paid_for_the_next_run(place: Place) -> None:
    async def cancelled(server: VideoServer) -> None:
        store = ClipStore.open(place.cache)
        run = asyncio.create_task(collect_from_api(teacher_of(server), EIGHT, store, place.folder, SETTINGS))
        while len(server.paid) < 4:
            await asyncio.sleep(0.01)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)

    with VideoServer(seconds_per_job=0.4) as server:
        asyncio.run(cancelled(server))
        assert (place.clips, len(server.paid)) == (0, 4)
        assert place.collect(teacher_of(server), EIGHT).tally.done == 8
        assert len(server.paid) == 8


def test_a_job_that_takes_too_long_is_left_for_the_next_run(place: Place) -> None:
    hasty = replace(SETTINGS, retries=Retries(patience=0.1))
    with VideoServer(seconds_per_job=0.6) as server:
        assert place.collect(teacher_of(server), EIGHT[:3], hasty).tally.unanswered == 3
        assert place.states == ["running"] * 3
        assert place.collect(teacher_of(server), EIGHT[:3]).tally.done == len(server.paid) == 3


def test_what_arrives_while_a_commit_is_under_way_is_committed_too(
    place: Place, server: VideoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = ClipStore.add

    def slowly(store: ClipStore, answers: Iterable[Answer]) -> int:
        time.sleep(0.2)  # in a thread; the other clips arrive meanwhile
        return add(store, answers)

    monkeypatch.setattr(ClipStore, "add", slowly)
    for commit_seconds in (0.001, 0.02, 0.1):
        place.cache = place.cache.with_name(f"{commit_seconds}")
        place.folder = ApiFolder.in_cache(place.cache)
        settings = replace(SETTINGS, concurrency=8, commit_seconds=commit_seconds)
        assert place.collect(teacher_of(server), EIGHT, settings).tally.done == place.clips == 8
