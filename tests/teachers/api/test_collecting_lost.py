"""What a broken-off run, a lost answer or a file that is gone leaves behind: nothing is paid twice, nothing lost."""

import asyncio
import json
from dataclasses import replace

import pytest

from streamstill.teachers import request_key
from streamstill.teachers.api.jobs import Hopeless, JobStatus
from streamstill.teachers.api.journal import Spent, read_rows
from streamstill.teachers.api.pace import Retries
from streamstill.teachers.api.videos import VideosApi
from streamstill.teachers.api.videos_config import AnswerFields
from streamstill.types import ClipRequest
from tests.teachers.api.asking_over_http import submitted
from tests.teachers.api.collecting_parts import EIGHT, SETTINGS, Place, after_a_kill, teacher_of
from tests.teachers.api.server import Trouble, VideoServer
from tests.teachers.api.wire import Reply


def test_a_job_with_an_id_is_polled_and_never_submitted_again(place: Place, server: VideoServer) -> None:
    teacher = teacher_of(server)
    job = submitted(teacher, EIGHT[0])
    requests = after_a_kill(place, teacher, lambda journal, key: journal.accepted(key, job))
    place.collect(teacher, requests)
    assert (len(server.paid), len(server.asked("create")), place.clips) == (8, 8, 8)


def test_a_lost_submission_is_sent_again_under_its_key_where_that_is_safe(place: Place, server: VideoServer) -> None:
    teacher = teacher_of(server)
    submitted(teacher, EIGHT[0])  # accepted, and the answer never reached the disk
    report = place.collect(teacher, after_a_kill(place, teacher, lambda journal, key: None))
    assert (report.tally.done, len(server.asked("create")), len(server.paid)) == (8, 9, 8)
    assert report.tally.money == 4.0


def test_elsewhere_it_is_unsure_until_the_user_says_to_try(place: Place) -> None:
    with VideoServer(honours_keys=False) as server:
        teacher = teacher_of(server, idempotency_header="")
        report = place.collect(teacher, after_a_kill(place, teacher, lambda journal, key: None))
        assert (report.tally.done, report.tally.unsure, len(server.paid)) == (7, 1, 7)
        assert place.collect(teacher, EIGHT).tally.unsure == 1
        assert "may have been accepted" in place.rows[0].reason
        again = place.collect(teacher, EIGHT, replace(SETTINGS, retry=("unsure",)))
        assert (again.tally.done, again.tally.unsure, place.clips, again.tally.money) == (1, 0, 8, 4.5)


def test_an_answer_that_is_lost_on_the_way_is_unsure_too_and_not_paid_twice(place: Place) -> None:
    with VideoServer(Trouble(seed=5, lost=0.4), honours_keys=False) as server:
        report = place.collect(teacher_of(server, idempotency_header=""), EIGHT)
        assert 0 < report.tally.unsure == place.states.count("unsure")
        assert report.tally.done + report.tally.unsure == 8
        assert len(server.paid) == 8
        assert server.paid_twice() == []


def test_an_answer_that_cannot_be_read_is_unsure_and_not_paid_twice(place: Place) -> None:
    alone = replace(SETTINGS, concurrency=1, budget=4.0)
    with VideoServer() as server:
        teacher = teacher_of(server, idempotency_header="", answer=AnswerFields(id="job.uuid"))
        for _ in range(2):
            with pytest.raises(Hopeless, match=r"set answer\.id"):
                place.collect(teacher, EIGHT[:2], alone)
        assert (place.states, len(server.paid)) == (["unsure", "unsure"], 2)
        assert place.collect(teacher, EIGHT[:2], alone).tally.money == 1.0
        assert len(server.paid) == 2


def test_what_the_service_never_took_costs_nothing(place: Place) -> None:
    with VideoServer() as server:
        server.replies["create"] = Reply(headers={"content-type": "text/html"}, body=b"<h1>Welcome</h1>")
        with pytest.raises(Hopeless, match="often ends in /v1"):
            place.collect(teacher_of(server, idempotency_header=""), EIGHT[:1])
    assert place.states == ["withdrawn"]


def test_an_sdk_that_is_missing_costs_nothing(place: Place, server: VideoServer) -> None:
    class WithoutSdk(VideosApi):
        async def submit(self, request: ClipRequest, *, attempt: int = 0) -> str:
            raise ModuleNotFoundError("the_sdk is not installed")

    with pytest.raises(ModuleNotFoundError, match="the_sdk"):
        place.collect(WithoutSdk(teacher_of(server).config), EIGHT)
    assert set(place.states) == {"withdrawn"}
    assert read_rows(place.folder.journal)[1] == Spent()


def test_a_submission_under_way_is_written_down_before_the_run_ends(place: Place, server: VideoServer) -> None:
    class SlowThatBreaks(VideosApi):
        async def submit(self, request: ClipRequest, *, attempt: int = 0) -> str:
            job = await super().submit(request, attempt=attempt)
            await asyncio.sleep(0.3)  # the answer is on its way
            return job

        async def poll(self, job: str) -> JobStatus:
            await asyncio.sleep(0.2)
            raise OSError("no space left on device")

    teacher = SlowThatBreaks(teacher_of(server, idempotency_header="").config)
    job = submitted(teacher, EIGHT[0])
    requests = after_a_kill(place, teacher, lambda journal, key: journal.accepted(key, job))
    with pytest.raises(OSError, match="no space left"):
        place.collect(teacher, requests)
    assert {row.job for row in place.rows} == {job.id for job in server.paid}
    assert place.states == ["running"] * SETTINGS.concurrency


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_file_that_is_gone_ends_its_job_and_not_the_run(place: Place, server: VideoServer, status: int) -> None:
    teacher = teacher_of(server)
    job = submitted(teacher, EIGHT[0])
    requests = after_a_kill(place, teacher, lambda journal, key: journal.accepted(key, job))
    quick = replace(SETTINGS, retries=Retries(attempts=2, first_wait=0.0), concurrency=1)
    server.replies["content"] = Reply(status=status, body=b"Request has expired")
    report = place.collect(teacher, requests[:1], quick)
    assert (report.tally.failed, place.states) == (1, ["failed"])
    assert "its file is gone" in place.rows[0].reason
    del server.replies["content"]
    assert place.collect(teacher, requests, replace(quick, retry=("failed",))).tally.done == 8
    assert place.clips == 8


def test_a_file_that_is_not_there_yet_is_left_for_the_next_run(place: Place, server: VideoServer) -> None:
    quick = replace(SETTINGS, retries=Retries(attempts=2, first_wait=0.0))
    server.replies["content"] = Reply(status=404)
    report = place.collect(teacher_of(server), EIGHT[:2], quick)
    assert (report.tally.unanswered, place.states) == (2, ["running", "running"])
    del server.replies["content"]
    assert place.collect(teacher_of(server), EIGHT[:2], quick).tally.done == 2
    assert len(server.paid) == 2


def test_a_file_that_was_downloaded_before_the_kill_is_not_fetched_again(place: Place, server: VideoServer) -> None:
    teacher = teacher_of(server)
    file = place.folder.downloads / f"{request_key(teacher.name, EIGHT[0])}.mp4"
    file.parent.mkdir(parents=True)

    async def paid() -> str:
        job = await teacher.submit(EIGHT[0])
        await teacher.download(job, JobStatus(state="done"), file)
        await teacher.close()
        return job

    job = asyncio.run(paid())
    place.collect(teacher, after_a_kill(place, teacher, lambda journal, key: journal.accepted(key, job)))
    assert (len(server.asked("content")), place.clips, file.exists()) == (8, 8, False)


def test_a_kill_between_the_store_and_the_journal_costs_nothing(place: Place, server: VideoServer) -> None:
    teacher = teacher_of(server)
    place.collect(teacher, EIGHT)
    lines = place.folder.journal.read_text().splitlines(keepends=True)
    place.folder.journal.write_text("".join(line for line in lines if json.loads(line).get("state") != "done"))
    assert place.states == ["running"] * 8
    calls = len(server.seen)
    assert place.collect(teacher, EIGHT).tally.known == 8
    assert (place.states, len(server.seen)) == (["done"] * 8, calls)
