"""Replicate's real SDK against a real server on loopback: what is sent, every state, and the video that comes back."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamstill.teachers.api.asking import Asking
from streamstill.teachers.api.jobs import JobStatus, Refused
from streamstill.teachers.api.replicate import ReplicateConfig, ReplicateTeacher
from tests.teachers.api.films import film
from tests.teachers.api.vendors import JOB, SECRET, VENDORS, Loopback, Reply, pointed_at
from tests.teachers.fakes import question

REPLICATE = VENDORS[1]
ASKING = Asking(fields={"prompt": "{prompt}", "num_frames": "{frames}", "size": "{width}*{height}", "fps": "{fps}"})


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest.fixture
def teacher(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> ReplicateTeacher:
    pointed_at(server, REPLICATE, monkeypatch)
    return ReplicateTeacher(ReplicateConfig(model="owner/film", asking=ASKING, hosts=(server.host,)))


def prediction(status: str, **more: Any) -> Reply:
    return Reply(body={**REPLICATE.accepted, "status": status, **more})


def poll(teacher: ReplicateTeacher) -> JobStatus:
    async def conversation() -> JobStatus:
        try:
            return await teacher.poll(JOB)
        finally:
            await teacher.close()

    return asyncio.run(conversation())


def test_a_clip_is_submitted_polled_and_downloaded(server: Loopback, teacher: ReplicateTeacher, tmp_path: Path) -> None:
    movie = film({"prompt": "a red ball", "seconds": 1})
    server.on(REPLICATE.submit, prediction("starting"))
    halfway = prediction("processing", logs="loading\n 50%|#####     | 10/20 [00:01<00:01]\n")
    server.on(REPLICATE.poll, prediction("starting"), halfway, prediction("succeeded", output=[f"{server.url}/1.mp4"]))
    server.on("GET /1.mp4", Reply(body=movie, headers={"content-type": "video/mp4"}))

    async def conversation() -> list[JobStatus]:
        job = await teacher.submit(question())
        seen = [await teacher.poll(job) for _ in range(3)]
        await teacher.download(job, seen[-1], tmp_path / "clip.mp4")
        await teacher.close()
        return seen

    seen = asyncio.run(conversation())
    assert [(status.state, status.progress) for status in seen] == [("queued", None), ("running", 0.5), ("done", 1.0)]
    assert (tmp_path / "clip.mp4").read_bytes() == movie
    sent = server.seen(REPLICATE.submit)[0]
    assert sent.headers["authorization"] == f"Bearer {SECRET}"
    assert sent.body == {"input": {"prompt": "a red ball", "num_frames": 3, "size": "8*8", "fps": 8.0}}
    assert SECRET not in str(server.seen("GET /1.mp4"))


def test_a_version_is_asked_for_by_its_id(server: Loopback, teacher: ReplicateTeacher) -> None:
    server.on("POST /v1/predictions", prediction("starting"))
    other = ReplicateTeacher(ReplicateConfig(model="owner/film:abc123"))

    async def conversation() -> str:
        job = await other.submit(question())
        await other.close()
        return job

    assert asyncio.run(conversation()) == JOB
    sent = server.seen("POST /v1/predictions")[0].body
    assert sent == {"version": "abc123", "input": {"prompt": "a red ball"}}


@pytest.mark.parametrize(
    ("reply", "state", "reason"),
    [
        (prediction("failed", error="NSFW content detected"), "refused", "NSFW content detected"),
        (prediction("failed", error="flagged as sensitive. (E005)"), "refused", "flagged as sensitive. (E005)"),
        (prediction("failed", error=f"CUDA out of memory {SECRET}"), "failed", "CUDA out of memory ***"),
        (prediction("canceled"), "failed", "the prediction was canceled"),
        (prediction("succeeded", output={"clip": "u"}), "failed", "there is no address of a video as the answer"),
    ],
    ids=["nsfw", "sensitive", "broken", "canceled", "odd"],
)
def test_a_job_that_ends_badly_says_why(
    server: Loopback, teacher: ReplicateTeacher, reply: Reply, state: str, reason: str
) -> None:
    server.on(REPLICATE.poll, reply)
    status = poll(teacher)
    assert status.state == state
    assert status.reason.startswith(reason)


def test_an_address_elsewhere_is_not_asked(teacher: ReplicateTeacher, tmp_path: Path) -> None:
    status = JobStatus(state="done", content={"url": "http://localhost:1/secrets"})
    with pytest.raises(Refused, match="another host"):
        asyncio.run(teacher.download(JOB, status, tmp_path / "clip.mp4"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["film", "a/b/c", "a/b:", "a /b", "a/b:V", ""])
def test_a_model_is_an_owner_and_a_name(model: str) -> None:
    with pytest.raises(ValueError, match="written owner/name or owner/name:version"):
        ReplicateConfig(model=model)


def test_another_way_of_asking_is_another_teacher(teacher: ReplicateTeacher) -> None:
    plain = ReplicateTeacher(ReplicateConfig(model="owner/film", price=0.1))
    assert teacher.name.startswith("replicate/owner/film@")
    assert teacher.name != plain.name
    assert (teacher.price, plain.price) == (None, 0.1)
