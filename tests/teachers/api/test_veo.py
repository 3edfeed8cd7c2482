"""Google's real SDK against a real server on loopback: what is sent, every end of an operation, and the video in it."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamstill.teachers.api.asking import Asking
from streamstill.teachers.api.jobs import Hopeless, JobStatus, Refused, TryAgain
from streamstill.teachers.api.tally import cost_of
from streamstill.teachers.api.veo import VeoConfig, VeoTeacher
from streamstill.types import ClipRequest
from tests.teachers.api.films import film
from tests.teachers.api.vendors import OPERATION, SECRET, VENDORS, Loopback, Reply, pointed_at
from tests.teachers.fakes import question

VEO = VENDORS[2]
WIDE = ClipRequest(prompt="a red ball", seed=7, frames=40, height=90, width=160, fps=8)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest.fixture
def teacher(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> VeoTeacher:
    pointed_at(server, VEO, monkeypatch)
    return VeoTeacher(VeoConfig(model="veo-test", price=0.4))


def finished(**response: Any) -> Reply:
    return Reply(body={"name": OPERATION, "done": True, "response": response})


def with_video(content: bytes) -> Reply:
    video = {"bytesBase64Encoded": base64.b64encode(content).decode(), "mimeType": "video/mp4"}
    return finished(videos=[video])


def poll(teacher: VeoTeacher) -> JobStatus:
    async def conversation() -> JobStatus:
        try:
            return await teacher.poll(OPERATION)
        finally:
            await teacher.close()

    return asyncio.run(conversation())


def download(teacher: VeoTeacher, into: Path) -> None:
    async def conversation() -> None:
        try:
            await teacher.download(OPERATION, JobStatus(state="done"), into)
        finally:
            await teacher.close()

    asyncio.run(conversation())


def test_a_clip_is_submitted_polled_and_downloaded(server: Loopback, teacher: VeoTeacher, tmp_path: Path) -> None:
    movie = film({"prompt": "a red ball", "seconds": 1})
    server.on(VEO.submit, Reply(body=VEO.accepted))
    server.on(VEO.poll, Reply(body={"name": OPERATION}), with_video(movie))

    async def conversation() -> list[JobStatus]:
        job = await teacher.submit(WIDE)
        seen = [await teacher.poll(job) for _ in range(2)]
        await teacher.download(job, seen[-1], tmp_path / "clip.mp4")
        await teacher.close()
        return seen

    seen = asyncio.run(conversation())
    assert [status.state for status in seen] == ["running", "done"]
    assert "".join(seen[-1].content.values()) == "", "a status goes into a journal, a video does not"
    assert (tmp_path / "clip.mp4").read_bytes() == movie
    sent = server.seen(VEO.submit)[0]
    assert sent.headers["x-goog-api-key"] == SECRET
    assert sent.body["instances"] == [{"prompt": "a red ball"}]
    wanted = {"sampleCount": 1, "seed": 7, "durationSeconds": 6, "aspectRatio": "16:9"}
    assert sent.body["parameters"] == wanted
    assert server.seen(VEO.poll)[0].body == {"operationName": OPERATION}


@pytest.mark.parametrize(
    ("reply", "state", "reason"),
    [
        (finished(raiMediaFilteredCount=1, raiMediaFilteredReasons=["a real person"]), "refused", "a real person"),
        (finished(), "failed", "no video in the answer"),
        (
            Reply(body={"name": OPERATION, "done": True, "error": {"code": 3, "message": "not this"}}),
            "refused",
            "not th",
        ),
        (Reply(body={"name": OPERATION, "done": True, "error": {"code": 13, "message": "broke"}}), "failed", "broke"),
        (
            Reply(body={"name": OPERATION, "done": True, "error": {"code": 9, "message": "for safety"}}),
            "refused",
            "for",
        ),
    ],
    ids=["filtered", "empty", "invalid", "internal", "safety"],
)
def test_an_operation_that_ends_badly_says_why(
    server: Loopback, teacher: VeoTeacher, reply: Reply, state: str, reason: str
) -> None:
    server.on(VEO.poll, reply)
    status = poll(teacher)
    assert status.state == state
    assert status.reason.startswith(reason)


def test_a_video_that_is_not_in_the_answer_is_not_written(
    server: Loopback, teacher: VeoTeacher, tmp_path: Path
) -> None:
    server.on(VEO.poll, finished(videos=[{"gcsUri": "gs://bucket/1.mp4", "mimeType": "video/mp4"}]))
    with pytest.raises(Hopeless, match=r"at gs://bucket/1\.mp4, a bucket"):
        download(teacher, tmp_path / "clip.mp4")
    server.on(VEO.poll, finished())
    with pytest.raises(TryAgain, match="came without its video"):
        download(teacher, tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_google_calls_invalid_is_hopeless(server: Loopback, teacher: VeoTeacher) -> None:
    words = {"code": 400, "message": "API key not valid. Please pass a valid API key.", "status": "INVALID_ARGUMENT"}
    server.on(VEO.submit, Reply(status=400, body={"error": words}))
    with pytest.raises(Hopeless, match="GOOGLE_API_KEY"):
        asyncio.run(teacher.submit(question()))
    asyncio.run(teacher.close())


def test_a_clip_that_is_too_long_costs_nothing(server: Loopback, teacher: VeoTeacher) -> None:
    with pytest.raises(Refused, match=r"a clip of 12.5 s was asked for and the model makes at most 8 s; ask for fewer"):
        asyncio.run(teacher.submit(question(frames=100)))
    assert server.asked == []


def test_inputs_are_those_of_the_sdk(server: Loopback, teacher: VeoTeacher) -> None:
    fast = {"negative_prompt": "people", "enhance_prompt": False}
    odd = {"negative_promt": "people"}
    server.on(VEO.submit, Reply(body=VEO.accepted))
    asyncio.run(VeoTeacher(VeoConfig(model="veo-test", asking=Asking(inputs=fast))).submit(question()))
    assert server.asked[0].body["parameters"] == {"sampleCount": 1, "negativePrompt": "people", "enhancePrompt": False}
    with pytest.raises(Hopeless, match=r"does not take these inputs .*negative_promt"):
        asyncio.run(VeoTeacher(VeoConfig(model="veo-test", asking=Asking(inputs=odd))).submit(question()))


def test_a_config_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="output_gcs_uri cannot be set"):
        VeoConfig(model="veo-test", asking=Asking(inputs={"output_gcs_uri": "gs://bucket"}))
    with pytest.raises(ValueError, match="prompt is called prompt"):
        VeoConfig(model="veo-test", asking=Asking(fields={"text": "{prompt}"}))
    with pytest.raises(ValueError, match="give the model a name"):
        VeoConfig(model=" ")
    assert VeoTeacher(VeoConfig(model="veo-test", price=0.4)).price == 0.4


def test_what_it_costs_is_what_is_ordered_of_its_lengths() -> None:
    teacher = VeoTeacher(VeoConfig(model="some-veo", price=0.4))
    request = ClipRequest(prompt="a red ball", seed=0, frames=16, height=32, width=32, fps=8)
    assert cost_of(teacher, request) == 1.6  # two seconds are wanted, and four are the fewest
