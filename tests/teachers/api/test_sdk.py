"""What is alike for every vendor: its real SDK against a real server that fails in all the ways, and pays once."""

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from streamstill.teachers.api.jobs import ApiError, Hopeless, JobStatus, JobTeacher, Refused, TryAgain
from streamstill.teachers.api.sdk import GuardedTransport, Service, done_at
from tests.teachers.api.vendors import JOB, OPERATION, SECRET, VENDORS, Loopback, Reply, Vendor, pointed_at
from tests.teachers.fakes import question


@pytest.fixture(params=VENDORS, ids=lambda vendor: vendor.name)
def vendor(request: pytest.FixtureRequest) -> Vendor:
    chosen: Vendor = request.param
    return chosen


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest.fixture
def teacher(server: Loopback, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> JobTeacher:
    return pointed_at(server, vendor, monkeypatch)


def job_of(vendor: Vendor) -> str:
    return OPERATION if vendor.name == "Veo" else JOB


def submitted(teacher: JobTeacher) -> str:
    async def conversation() -> str:
        try:
            return await teacher.submit(question())
        finally:
            await teacher.close()

    return asyncio.run(conversation())


def polled(teacher: JobTeacher, vendor: Vendor) -> JobStatus:
    async def conversation() -> JobStatus:
        try:
            return await teacher.poll(job_of(vendor))
        finally:
            await teacher.close()

    return asyncio.run(conversation())


def test_a_submission_carries_the_key_and_gives_the_job(server: Loopback, teacher: JobTeacher, vendor: Vendor) -> None:
    server.on(vendor.submit, Reply(body=vendor.accepted))
    assert submitted(teacher) == job_of(vendor)
    assert submitted(teacher) == job_of(vendor), "a teacher that was closed opens again"
    first = server.asked[0]
    given = first.headers.get("authorization", "") + first.headers.get("x-goog-api-key", "")
    assert given.endswith(SECRET)
    assert SECRET not in teacher.name + repr(teacher) + repr(vars(teacher))


FAILURES = [
    (Reply(status=401, body={"detail": f"no such key: {SECRET}"}), Hopeless, "environment variable VARIABLE"),
    (Reply(status=402, body={"detail": "pay"}), Hopeless, "no quota or credit left"),
    (Reply(status=404, body={"detail": "no such model"}), Hopeless, "does not know the model .*no such model"),
    (Reply(status=422, body={"detail": [{"msg": "too wide"}]}), Refused, "refused the request .*too wide"),
    (Reply(status=400, body={"error": {"message": "bad prompt"}}), Refused, "bad prompt"),
    (Reply(status=302, headers={"location": "http://elsewhere.invalid/"}), Hopeless, "a redirect .* must not follow"),
]


@pytest.mark.parametrize(("reply", "kind", "words"), FAILURES, ids=lambda value: getattr(value, "status", ""))
def test_what_is_final_is_said_in_one_sentence_without_the_key(
    server: Loopback, teacher: JobTeacher, vendor: Vendor, reply: Reply, kind: type[ApiError], words: str
) -> None:
    server.on(vendor.submit, reply)
    with pytest.raises(kind, match=words.replace("VARIABLE", vendor.variable)) as caught:
        submitted(teacher)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.seen(vendor.submit)) == 1


TROUBLES = [
    (Reply(status=429, body={"detail": "quota of a minute"}, headers={"retry-after": "7"}), 7.0, False),
    (Reply(status=503, body={"detail": "overloaded"}, headers={"retry-after": "2"}), 2.0, False),
    (Reply(status=502, body=b"<html>nginx</html>"), None, True),
    (Reply(status=200, body=b"<html>welcome</html>", headers={"content-type": "text/html"}), None, True),
    (Reply(status=200, body={"something": "else"}), None, True),
    (Reply(cut=True), None, True),
]


@pytest.mark.parametrize(("reply", "after", "unsure"), TROUBLES, ids=["429", "503", "502", "html", "odd", "cut"])
def test_a_submission_in_trouble_is_sent_once_and_left_to_the_caller(
    server: Loopback, teacher: JobTeacher, vendor: Vendor, reply: Reply, after: float | None, unsure: bool
) -> None:
    server.on(vendor.submit, reply)
    with pytest.raises(TryAgain) as caught:
        submitted(teacher)
    assert (caught.value.after, caught.value.maybe_accepted) == (after, unsure)
    assert len(server.seen(vendor.submit)) == 1, "the SDK repeated a submission that may have been paid for"


@pytest.mark.parametrize("reply", [reply for reply, _, _ in TROUBLES], ids=["429", "503", "502", "html", "odd", "cut"])
def test_a_poll_in_trouble_is_tried_again(server: Loopback, teacher: JobTeacher, vendor: Vendor, reply: Reply) -> None:
    server.on(vendor.poll, reply)
    with pytest.raises(TryAgain) as caught:
        polled(teacher, vendor)
    assert not caught.value.maybe_accepted
    assert len(server.seen(vendor.poll)) == 1


def test_a_job_that_is_gone_has_failed_and_one_that_is_refused_says_so(
    server: Loopback, teacher: JobTeacher, vendor: Vendor
) -> None:
    gone = polled(teacher, vendor)
    assert gone.state == "failed"
    assert "does not know the job, or no longer" in gone.reason
    server.on(vendor.poll, Reply(status=422, body={"detail": f"not safe: {SECRET}"}))
    refused = polled(teacher, vendor)
    assert (refused.state, SECRET in refused.reason) == ("refused", False)
    server.on(vendor.poll, Reply(status=403, body={"detail": "the key was withdrawn"}))
    with pytest.raises(Hopeless, match="the key was withdrawn"):
        polled(teacher, vendor)


def test_without_a_key_nothing_is_sent(
    server: Loopback, teacher: JobTeacher, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(vendor.variable)
    with pytest.raises(Hopeless, match=f"set the environment variable {vendor.variable}"):
        submitted(teacher)
    assert server.asked == []


def test_without_its_sdk_a_teacher_says_what_to_install(
    teacher: JobTeacher, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, vendor.module, None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=rf'pip install "streamstill\[{vendor.name.lower()}\]"'):
        submitted(teacher)


def test_a_service_that_cannot_be_reached_is_hopeless_first_and_trouble_later(
    teacher: JobTeacher, vendor: Vendor, server: Loopback
) -> None:
    async def conversation() -> None:
        server.on(vendor.submit, Reply(body=vendor.accepted))
        await teacher.submit(question())
        server.stop()
        with pytest.raises(TryAgain) as caught:
            await teacher.submit(question())
        assert "secret" not in str(caught.value)
        await teacher.close()
        with pytest.raises(Hopeless, match=r"cannot be reached .*; check your network"):
            await teacher.submit(question())
        await teacher.close()

    asyncio.run(conversation())


def ask(transport: GuardedTransport, url: str) -> Any:
    httpx = pytest.importorskip("httpx", reason='install the api extra: pip install "streamstill[api]"')

    async def asked() -> Any:
        async with httpx.AsyncClient(transport=transport, timeout=None) as client:
            return await client.get(url)

    return asyncio.run(asked())


def test_an_answer_without_end_is_cut_off(server: Loopback) -> None:
    server.on("GET /", Reply(body="x" * 5000))
    service = Service(name="toy", variable="TOY_KEY", key="")
    assert len(ask(GuardedTransport(service, max_bytes=5002), server.url).json()) == 5000
    with pytest.raises(TryAgain, match="toy sent an answer of more than 5001 bytes"):
        ask(GuardedTransport(service, max_bytes=5001), server.url)
    with pytest.raises(TryAgain, match="toy did not answer in time"):
        ask(GuardedTransport(service, seconds=0.0), server.url)


@pytest.mark.parametrize(
    ("path", "answer", "found"),
    [
        ("", "u", "u"),
        ("", ["u", "v"], "u"),
        ("1", ["u", "v"], "v"),
        ("video.url", {"video": {"url": "u"}}, "u"),
        ("videos.url", {"videos": [{"url": "u"}]}, "u"),
        ("videos.1.url", {"videos": [{"url": "u"}, {"url": "v"}]}, "v"),
    ],
)
def test_the_address_is_found_where_the_config_says(path: str, answer: Any, found: str) -> None:
    assert done_at(path, answer).content == {"url": found}


@pytest.mark.parametrize(("path", "answer"), [("", {}), ("video.url", {"clip": 1}), ("2", ["u"]), ("a", "u"), ("", "")])
def test_an_answer_without_an_address_is_a_failure_that_says_where_to_look(path: str, answer: Any) -> None:
    status = done_at(path, answer)
    assert status.state == "failed"
    assert "set video to where it is" in status.reason


def test_words_of_moderation_make_a_refusal_of_a_failure() -> None:
    service = Service(name="toy", variable="TOY_KEY", key=SECRET)
    assert service.ended("NSFW content detected").state == "refused"
    assert service.ended("The output was flagged as sensitive (E005)").state == "refused"
    failed = service.ended(f"out of memory\nof {SECRET}" + "x" * 1000)
    assert failed.state == "failed"
    assert SECRET not in failed.reason + repr(service)
    assert len(failed.reason) < 300
