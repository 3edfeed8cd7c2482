"""fal's real SDK against a real queue on loopback: what is sent, every state, and the video that comes back."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamstill.config import from_dict
from streamstill.media import read_clip
from streamstill.teachers.api.asking import Asking
from streamstill.teachers.api.fal import FalConfig, FalTeacher
from streamstill.teachers.api.jobs import JobStatus, Refused, TryAgain
from tests.teachers.api.films import film
from tests.teachers.api.vendors import JOB, SECRET, VENDORS, Loopback, Reply, pointed_at
from tests.teachers.fakes import question

FAL = VENDORS[0]
REQUEST = f"/owner/film/requests/{JOB}"
MP4 = {"content-type": "video/mp4"}


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest.fixture
def teacher(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> FalTeacher:
    pointed_at(server, FAL, monkeypatch)
    asking = Asking(
        fields={"prompt": "{prompt}", "seed": "{seed}", "duration": "{seconds}s", "aspect_ratio": "{aspect}"},
        inputs={"generate_audio": False},
        lengths=(4, 8),
    )
    return FalTeacher(FalConfig(model="owner/film/fast", asking=asking, hosts=(server.host,), price=0.25))


def poll(teacher: FalTeacher) -> JobStatus:
    async def conversation() -> JobStatus:
        try:
            return await teacher.poll(JOB)
        finally:
            await teacher.close()

    return asyncio.run(conversation())


def completed(**more: Any) -> Reply:
    return Reply(body={"status": "COMPLETED", "logs": None, "metrics": {}, **more})


def test_a_clip_is_submitted_polled_and_downloaded(server: Loopback, teacher: FalTeacher, tmp_path: Path) -> None:
    movie = film({"prompt": "a red ball", "seconds": 1})
    server.on(FAL.submit, Reply(body=FAL.accepted))
    states = (
        Reply(body={"status": "IN_QUEUE", "queue_position": 3}),
        Reply(body={"status": "IN_PROGRESS", "logs": None}),
    )
    server.on(FAL.poll, *states, completed())
    server.on(f"GET {REQUEST}", Reply(body={"video": {"url": f"{server.url}/films/1.mp4"}, "seed": 5}))
    server.on("GET /films/1.mp4", Reply(body=movie, headers=MP4))

    async def conversation() -> list[JobStatus]:
        job = await teacher.submit(question(5))
        seen = [await teacher.poll(job) for _ in range(3)]
        await teacher.download(job, seen[-1], tmp_path / "clip.mp4")
        await teacher.close()
        return seen

    assert [status.state for status in asyncio.run(conversation())] == ["queued", "running", "done"]
    assert (tmp_path / "clip.mp4").read_bytes() == movie
    assert read_clip(tmp_path / "clip.mp4").geometry.frames == 8
    sent = server.seen(FAL.submit)[0]
    assert sent.headers["authorization"] == f"Key {SECRET}"
    assert sent.body == {
        "prompt": "a red ball",
        "seed": 5,
        "duration": "4s",
        "aspect_ratio": "1:1",
        "generate_audio": False,
    }
    assert SECRET not in str(server.seen("GET /films/1.mp4"))


def test_a_job_that_ends_badly_is_refused_or_failed(server: Loopback, teacher: FalTeacher) -> None:
    server.on(FAL.poll, completed(error="flagged by a content checker", error_type="content_policy_violation"))
    assert poll(teacher).state == "refused"
    server.on(FAL.poll, completed(error="the runner stopped", error_type="runner_error"))
    assert poll(teacher) == JobStatus(state="failed", reason="the runner stopped runner_error")


def test_a_refusal_may_come_with_the_result(server: Loopback, teacher: FalTeacher) -> None:
    server.on(FAL.poll, completed())
    violation = {"loc": ["body", "prompt"], "msg": "not possible", "type": "content_policy_violation"}
    server.on(f"GET {REQUEST}", Reply(status=422, body={"detail": [violation]}))
    status = poll(teacher)
    assert status.state == "refused"
    assert "content_policy_violation" in status.reason
    server.on(f"GET {REQUEST}", Reply(body={"clip": "elsewhere"}))
    assert "no address of a video at 'video.url' of the answer, which has clip" in poll(teacher).reason


def test_videos_come_from_allowed_hosts_only_and_whole_or_not_at_all(
    server: Loopback, teacher: FalTeacher, tmp_path: Path
) -> None:
    def download(url: str) -> None:
        status = JobStatus(state="done", content={"url": url})
        asyncio.run(teacher.download(JOB, status, tmp_path / "clip.mp4"))

    with pytest.raises(Refused, match="another host"):
        download("http://169.254.169.254/secrets")
    server.on("GET /page", Reply(body=b"<html>sorry</html>", headers={"content-type": "text/html"}))
    with pytest.raises(TryAgain, match=r"no video .*sorry"):
        download(f"{server.url}/page")
    movie = film({})
    server.on("GET /cut.mp4", Reply(body=movie[:500], headers={**MP4, "content-length": str(len(movie))}))
    with pytest.raises(TryAgain):
        download(f"{server.url}/cut.mp4")
    assert list(tmp_path.iterdir()) == []


def test_its_name_says_model_and_settings_and_its_price_is_the_configured_one(teacher: FalTeacher) -> None:
    other = FalTeacher(FalConfig(model="owner/film/fast"))
    assert teacher.name.startswith("fal/owner/film/fast@")
    assert len({teacher.name, other.name, FalTeacher(FalConfig(model="owner/film")).name}) == 3
    assert (teacher.price, other.price) == (0.25, None)


def test_a_config_is_read_strictly() -> None:
    values = {"model": "a/b", "asking": {"fields": {"text": "{prompt}"}, "lengths": [5]}, "video": "videos.0.url"}
    config = from_dict(FalConfig, values)
    assert (config.asking.fields, config.asking.lengths) == ({"text": "{prompt}"}, (5,))
    with pytest.raises(ValueError, match="written owner/name, got 'film'"):
        FalConfig(model="film")
    with pytest.raises(ValueError, match="max_bytes must be at least 1"):
        FalConfig(model="a/b", max_bytes=0)
    for price in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="price must be 0 or more"):
            FalConfig(model="a/b", price=price)
