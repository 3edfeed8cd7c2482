"""The /v1/videos job shape, against a real server: a question becomes a file, and nothing is paid twice."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from streamstill.config import to_dict
from streamstill.media import read_clip
from streamstill.teachers.api.asking import Asking
from streamstill.teachers.api.http import HttpLimits
from streamstill.teachers.api.jobs import Hopeless, JobStatus, JobTeacher, Refused, TryAgain
from streamstill.teachers.api.videos import VideosApi
from streamstill.teachers.api.videos_config import SERVICES, AnswerFields, VideosApiConfig, read_videos_config
from tests.teachers.api.asking_over_http import VARIABLE, configured, fetched, question, run, submitted
from tests.teachers.api.films import film
from tests.teachers.api.server import Trouble, VideoServer
from tests.teachers.api.wire import Reply

T = TypeVar("T")

SCRIPTS = [
    "Красный мяч падает.",
    "红球落下",
    "كرة حمراء تسقط",
    "एक लाल गेंद",
    "🟥⚽ \u0301\u200d",
    'a "ball"\n\\ </script>',
    "ball " * 2000,
]


def status_of(server: VideoServer, **told: Any) -> JobStatus:
    """What the teacher makes of a job of which the server says this."""
    teacher = VideosApi(configured(server))
    job = submitted(teacher)
    server.replies["poll"] = Reply(body=json.dumps(told).encode())
    return run(teacher, teacher.poll(job))


def test_a_question_becomes_a_file(server: VideoServer, tmp_path: Path) -> None:
    teacher: JobTeacher = VideosApi(configured(server, price=0.5))
    status = fetched(VideosApi(configured(server)), tmp_path / "clip.mp4")
    assert status == JobStatus(state="done", progress=1.0)
    assert read_clip(tmp_path / "clip.mp4").geometry == replace(question().geometry, frames=8)
    assert teacher.price == 0.5
    assert server.paid[0].body == {
        "model": "toy-1",
        "prompt": question().prompt,
        "seconds": 1,
        "size": "32x32",
        "seed": 0,
    }


@pytest.mark.parametrize("body", ["json", "form"])
@pytest.mark.parametrize("prompt", SCRIPTS)
def test_prompts_in_any_script_and_length_arrive_as_they_are(server: VideoServer, prompt: str, body: str) -> None:
    submitted(VideosApi(configured(server, body=body)), question(prompt))
    arrived = server.paid[0].body["prompt"]
    assert arrived == prompt


@pytest.mark.parametrize("prompt", ["", " \n", "a\ud800", "x" * 100_001])
def test_a_prompt_that_cannot_be_sent_is_refused_unpaid(server: VideoServer, prompt: str) -> None:
    with pytest.raises(Refused, match="prompt"):
        submitted(VideosApi(configured(server)), question(prompt))
    assert server.seen == []


def test_a_repeated_submission_is_paid_once(server: VideoServer) -> None:
    teacher = VideosApi(configured(server))
    first, other = submitted(teacher), submitted(teacher, question(seed=1))
    assert submitted(teacher) == first != other
    assert len(server.paid) == 2
    keys = {job.key for job in server.paid}
    assert len(keys) == 2
    assert teacher.idempotent


def test_a_lost_answer_is_asked_again_under_the_same_key(server: VideoServer) -> None:
    teacher = VideosApi(configured(server))
    server.trouble = Trouble(lost=1)
    with pytest.raises(TryAgain):
        submitted(teacher)
    server.trouble = Trouble()
    assert submitted(teacher) == server.paid[0].id
    assert server.paid_twice() == []


def test_another_attempt_is_another_job_and_the_same_attempt_is_not(server: VideoServer) -> None:
    teacher = VideosApi(configured(server))

    async def thrice() -> list[str]:
        try:
            return [await teacher.submit(question(), attempt=attempt) for attempt in (0, 1, 1)]
        finally:
            await teacher.close()

    first, second, third = asyncio.run(thrice())
    assert first != second == third
    assert len(server.paid) == 2


def test_without_an_idempotency_header_none_is_sent(server: VideoServer) -> None:
    teacher = VideosApi(configured(server, idempotency_header=""))
    assert submitted(teacher) != submitted(teacher)
    assert not teacher.idempotent
    assert len(server.paid_twice()) == 1


@pytest.mark.parametrize(
    ("told", "state", "progress"),
    [
        ({"status": "queued"}, "queued", None),
        ({"status": "PENDING", "progress": 0}, "queued", 0.0),
        ({"status": "in_progress", "progress": 25}, "running", 0.25),
        ({"status": "processing", "progress": "25%"}, "running", None),
        ({"status": "running", "progress": 250}, "running", 1.0),
        ({"status": "completed"}, "done", None),
        ({"status": "failed"}, "failed", None),
        ({"status": "cancelled"}, "failed", None),
        ({"status": "rejected"}, "refused", None),
    ],
)
def test_words_mean_states(server: VideoServer, told: dict[str, Any], state: str, progress: float | None) -> None:
    status = status_of(server, **told)
    assert (status.state, status.progress) == (state, progress)


def test_a_failure_keeps_the_services_words_and_moderation_is_a_refusal(server: VideoServer) -> None:
    broken = status_of(server, status="failed", error={"message": f"out of memory, {server.key}", "code": "oom"})
    assert broken == JobStatus(state="failed", reason="out of memory, *** (oom)")
    moderated = status_of(server, status="failed", error={"code": "moderation_blocked"})
    assert moderated == JobStatus(state="refused", reason="moderation_blocked")


def test_a_status_may_be_written_in_capitals(server: VideoServer) -> None:
    teacher = VideosApi(configured(server, answer=AnswerFields(running=("IN_PROGRESS_2",))))
    assert teacher.config.answer.state("In_Progress_2") == "running"
    with pytest.raises(ValueError, match="'done' stands for more"):
        AnswerFields(running=("DONE",))


def test_a_status_that_is_not_known_says_where_to_add_it(server: VideoServer) -> None:
    with pytest.raises(Hopeless, match=r"'brewing', which is no known status; add the word to one of answer\.queued"):
        status_of(server, status="brewing")
    teacher = VideosApi(configured(server, answer=AnswerFields(running=("brewing",))))
    assert run(teacher, teacher.poll(server.paid[0].id)).state == "running"


def test_a_job_that_the_service_has_forgotten_has_failed(server: VideoServer) -> None:
    teacher = VideosApi(configured(server))
    status = run(teacher, teacher.poll("../../models"))
    assert status.state == "failed"
    assert "404" in status.reason
    assert server.seen[0].path == "/v1/videos/..%2F..%2Fmodels"


def test_an_answer_without_a_usable_id_is_named(server: VideoServer) -> None:
    for job in (None, "", "..", {"a": 1}, "x" * 600):
        server.replies["create"] = Reply(body=json.dumps({"id": job}).encode())
        with pytest.raises(Hopeless, match=r"without a job id at 'id'; set answer\.id"):
            submitted(VideosApi(configured(server)))


def test_fields_may_lie_elsewhere(server: VideoServer) -> None:
    places = AnswerFields(id="data.0.task", status="data.0.state", progress="data.0.share", progress_of=1)
    teacher = VideosApi(configured(server, answer=places))
    server.replies["create"] = Reply(body=b'{"data": [{"task": 17}]}')
    server.replies["poll"] = Reply(body=b'{"data": [{"state": "running", "share": 0.5}]}')
    assert submitted(teacher) == "17"
    assert run(teacher, teacher.poll("17")) == JobStatus(state="running", progress=0.5)


def test_a_told_url_is_downloaded_from_allowed_hosts_only(server: VideoServer, tmp_path: Path) -> None:
    places = AnswerFields(url="urls.0")
    with VideoServer() as cdn:
        server.told = lambda job: {"urls": [f"{cdn.url}/videos/{job}/content"]}
        cdn.replies["content"] = Reply(body=b"\x00\x00\x00\x18ftypmp42 and so on")
        with pytest.raises(Refused, match="add it to allowed_hosts"):
            fetched(VideosApi(configured(server, answer=places)), tmp_path / "clip.mp4")
        allowed = (f"127.0.0.1:{cdn.port}",)
        fetched(VideosApi(configured(server, answer=places, allowed_hosts=allowed)), tmp_path / "clip.mp4")
        assert "authorization" not in cdn.seen[0].headers
    server.told = lambda job: {"urls": ["http://169.254.169.254/latest"]}
    with pytest.raises(Refused, match=r"another host, '169\.254\.169\.254'"):
        fetched(VideosApi(configured(server, answer=places)), tmp_path / "other.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_an_unknown_model_and_a_wrong_key_are_hopeless(server: VideoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Hopeless, match="check model and base_url"):
        submitted(VideosApi(configured(server, model="toy-2")))
    monkeypatch.setenv(VARIABLE, "wrong")
    with pytest.raises(Hopeless, match=f"set {VARIABLE} to a valid key") as caught:
        submitted(VideosApi(configured(server)))
    assert "wrong" not in str(caught.value)


def test_a_refused_prompt_and_a_busy_service(server: VideoServer) -> None:
    server.trouble = Trouble(refusal=1)
    with pytest.raises(Refused, match="safety system"):
        submitted(VideosApi(configured(server)))
    server.trouble = Trouble(busy=1, retry_after="3")
    with pytest.raises(TryAgain) as caught:
        submitted(VideosApi(configured(server)))
    assert caught.value.after == 3
    assert server.paid == []


def test_one_teacher_serves_many_jobs_at_once(server: VideoServer, tmp_path: Path) -> None:
    teacher = VideosApi(configured(server))

    async def fetch(seed: int) -> Path:
        job = await teacher.submit(question(seed=seed))
        await teacher.download(job, await teacher.poll(job), tmp_path / f"{seed}.mp4")
        return tmp_path / f"{seed}.mp4"

    async def fetch_all() -> list[Path]:
        return await asyncio.gather(*(fetch(seed) for seed in range(6)))

    files = run(teacher, fetch_all())
    assert len({file.read_bytes() for file in files}) == 6
    assert len(server.paid) == 6


def test_through_many_troubles_every_clip_arrives_and_none_is_paid_twice(server: VideoServer, tmp_path: Path) -> None:
    limits = HttpLimits(read_seconds=0.3, total_seconds=5)
    teacher = VideosApi(configured(server, limits=limits))
    server.trouble = Trouble(seed=2, server_error=0.2, busy=0.2, hang=0.05, lost=0.2, cut=0.2)
    failures: list[str] = []

    async def insisted(call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except TryAgain as error:
                failures.append(str(error))

    async def fetch(seed: int) -> None:
        job = await insisted(lambda: teacher.submit(question(seed=seed)))
        status = await insisted(lambda: teacher.poll(job))
        await insisted(lambda: teacher.download(job, status, tmp_path / f"{seed}.mp4"))

    async def fetch_all() -> None:
        await asyncio.gather(*(fetch(seed) for seed in range(12)))

    run(teacher, fetch_all())
    films = {file.read_bytes() for file in tmp_path.iterdir()}
    assert films == {film(job.body) for job in server.paid}
    assert len(films) == len(server.paid) == 12
    told = " ".join(failures)
    assert all(word in told for word in ("500", "429", "fell silent", "cut the call off"))


def test_the_name_changes_with_what_changes_an_answer_and_holds_no_key(server: VideoServer) -> None:
    config = configured(server)
    name = VideosApi(config).name
    assert name.startswith(f"videos/127.0.0.1:{server.port}/toy-1@")
    same = [replace(config, price=3.0), replace(config, allowed_hosts=("a.b",)), replace(config, key_variable="OTHER")]
    other = [
        replace(config, model="toy-2"),
        replace(config, base_url=f"{server.url}/x"),
        replace(config, asking=Asking()),
    ]
    assert {VideosApi(changed).name for changed in same} == {name}
    assert len({VideosApi(changed).name for changed in other} | {name}) == 4
    assert server.key not in f"{VideosApi(config)!r} {VideosApi(config).name} {to_dict(config)}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_url": "api.example.com"}, "base_url must be like"),
        ({"price": -1.0}, "price must be 0 or more"),
        ({"poll_path": "videos"}, "poll_path must hold {id}"),
        ({"asking": Asking(inputs={"model": "other"})}, "the model is sent as 'model'"),
        ({"allowed_hosts": ("*",)}, "an allowed host is like"),
    ],
)
def test_a_config_that_cannot_work_is_refused(server: VideoServer, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        configured(server, **changes)


def test_a_word_must_mean_one_state() -> None:
    with pytest.raises(ValueError, match="'done' stands for more"):
        AnswerFields(running=("done",))
    with pytest.raises(ValueError, match="id and status need a place"):
        AnswerFields(id="")


def test_a_config_is_read_from_json_and_toml_with_overrides(tmp_path: Path) -> None:
    pytest.importorskip("tomllib", reason="TOML is read by Python 3.11 or newer")
    (tmp_path / "a.json").write_text('{"like": "openrouter", "model": "m", "limits": {"read_seconds": 5}}')
    (tmp_path / "a.toml").write_text('like = "openrouter"\nmodel = "m"\n[limits]\nread_seconds = 5\n')
    config = read_videos_config(tmp_path / "a.json")
    assert read_videos_config(tmp_path / "a.toml") == config
    assert config.base_url == "https://openrouter.ai/api/v1"
    assert config.limits.read_seconds == 5
    changed = read_videos_config(tmp_path / "a.toml", ["price=0.1", "model=n"])
    assert changed == replace(config, price=0.1, model="n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", r"a\.json cannot be read"),
        ("[]", "must hold a table of fields, got list"),
        ('{"like": "openroute"}', "did you mean 'openrouter'"),
        ('{"base_url": "http://a.b", "model": "m", "key": "sk-1"}', "has no field"),
        ('{"model": "m"}', "is incomplete"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_videos_config(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_videos_config(tmp_path / "b.json")


OPEN = {"num_frames": "8", "fps": "8", "size": "32x32", "seed": "0"}
KNOWN = {
    "fastvideo": ("application/json", OPEN),
    "sglang": ("application/json", OPEN),
    "vllm-omni": ("multipart/form-data", OPEN),
    "openrouter": ("application/json", {"duration": "1", "aspect_ratio": "1:1", "seed": "0"}),
}


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_known_of_a_service_makes_a_teacher_that_works(server: VideoServer, tmp_path: Path, name: str) -> None:
    values = {"like": name, "base_url": server.url, "key_variable": VARIABLE, "model": server.model}
    (tmp_path / "service.json").write_text(json.dumps(values))
    teacher = VideosApi(read_videos_config(tmp_path / "service.json"))
    assert fetched(teacher, tmp_path / "clip.mp4").state == "done"
    kind, fields = KNOWN[name]
    sent = {
        field: f"{value:g}" if isinstance(value, float) else str(value) for field, value in server.paid[0].body.items()
    }
    assert sent == {"model": server.model, "prompt": question().prompt, **fields}
    assert server.seen[0].headers["content-type"].startswith(kind)
    assert not teacher.idempotent


def test_a_config_file_never_holds_a_key() -> None:
    names = set(to_dict(VideosApiConfig(base_url="https://a.b", model="m")))
    assert "key" not in names
    assert "key_variable" in names
