"""The HTTP layer against a real server that does what servers do: limits hold, keys stay, half files do not."""

import asyncio
import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamstill.teachers.api.http import HttpLimits, HttpService, download, terms_line
from streamstill.teachers.api.jobs import ApiError, Hopeless, NoFile, Refused, TryAgain
from tests.teachers.api.asking_over_http import QUICK, VARIABLE
from tests.teachers.api.films import film
from tests.teachers.api.server import Trouble, VideoServer
from tests.teachers.api.wire import Reply

MP4 = {"content-type": "video/mp4"}
FILM = film({"size": "16x16", "seconds": "1"})


@pytest.fixture
def other() -> Iterator[VideoServer]:
    """Another host, as far as names and ports tell; it gives a film to anyone who asks for content."""
    with VideoServer() as serving:
        serving.replies["content"] = Reply(headers=MP4, body=FILM)
        yield serving


def fetch(
    server: VideoServer, into: Path, *allowed: str, limits: HttpLimits = QUICK, path: str = "/v1/videos/a/content"
) -> None:
    service = HttpService(server.url, key_variable=VARIABLE, allowed_hosts=allowed, limits=limits)

    async def fetched() -> None:
        try:
            await service.fetch(path, into)
        finally:
            await service.close()

    asyncio.run(fetched())


def ask(server: VideoServer, limits: HttpLimits = QUICK, **changes: str) -> object:
    service = HttpService(changes.get("base_url", server.url), key_variable=VARIABLE, limits=limits)

    async def asked() -> object:
        try:
            return await service.ask("POST", "videos", doing="submit", json={"model": server.model, "prompt": "a"})
        finally:
            await service.close()

    return asyncio.run(asked())


def authority(server: VideoServer) -> str:
    return f"127.0.0.1:{server.port}"


def test_a_file_arrives_whole(server: VideoServer, tmp_path: Path) -> None:
    server.replies["content"] = Reply(headers=MP4, body=FILM)
    fetch(server, tmp_path / "new" / "clip.mp4")
    assert (tmp_path / "new" / "clip.mp4").read_bytes() == FILM
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply(headers={**MP4, "content-length": "100000"}, body=FILM[:500]), TryAgain, "cut the call off"),
        (Reply(headers={**MP4, "content-length": str(4 * 2**30)}, body=FILM), Refused, "larger than 100000 bytes"),
        (Reply(headers=MP4, body=FILM + bytes(2**15), times=100), Refused, "larger than 100000 bytes"),
        (Reply(headers=MP4), TryAgain, "sent an empty file"),
        (Reply(headers={"content-type": "text/html"}, body=b"<h1>Log in</h1> first"), TryAgain, "'Log in first'"),
        (Reply(headers=MP4, body=b'{"error": "expired"}'), TryAgain, 'begins with \'{"error": "expired"}\''),
        (Reply(status=410), NoFile, "410"),
        (Reply(status=500), TryAgain, "500"),
        (Reply(status=302, headers={"location": "/v1/videos/a/content"}), Refused, "more than 5 times"),
    ],
)
def test_what_is_no_whole_video_leaves_no_file(
    server: VideoServer, tmp_path: Path, reply: Reply, kind: type[ApiError], words: str
) -> None:
    server.replies["content"] = reply
    (tmp_path / "clip.mp4").write_bytes(b"an older file")
    limits = HttpLimits(read_seconds=2, total_seconds=5, video_bytes=100_000)
    with pytest.raises(kind) as caught:
        fetch(server, tmp_path / "clip.mp4", limits=limits)
    assert words in str(caught.value)
    assert (tmp_path / "clip.mp4").read_bytes() == b"an older file"
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_redirect_to_the_same_host_keeps_the_key(server: VideoServer, tmp_path: Path) -> None:
    server.replies["content"] = Reply(status=307, headers={"location": "/files/a.mp4"})
    server.replies["other"] = Reply(headers=MP4, body=FILM)
    fetch(server, tmp_path / "clip.mp4")
    assert server.asked("other")[0].headers["authorization"] == f"Bearer {server.key}"


def test_the_key_never_follows_to_another_host(server: VideoServer, other: VideoServer, tmp_path: Path) -> None:
    server.replies["content"] = Reply(status=302, headers={"location": f"{other.url}/videos/a/content?signature=1"})
    with pytest.raises(Refused, match=f"another host, '{authority(other)}'"):
        fetch(server, tmp_path / "clip.mp4")
    assert other.seen == []
    fetch(server, tmp_path / "clip.mp4", authority(other))
    assert (tmp_path / "clip.mp4").read_bytes() == FILM
    assert server.key not in json.dumps([dict(seen.headers) for seen in other.seen])
    assert "authorization" not in other.seen[0].headers


def test_a_url_on_another_host_gets_no_key_either(server: VideoServer, other: VideoServer, tmp_path: Path) -> None:
    url = f"{other.url}/videos/a/content"
    with pytest.raises(Refused, match="add it to allowed_hosts"):
        fetch(server, tmp_path / "clip.mp4", path=url)
    fetch(server, tmp_path / "clip.mp4", authority(other), path=url)
    assert "authorization" not in other.seen[0].headers


def test_a_post_is_not_redirected(server: VideoServer, other: VideoServer) -> None:
    server.replies["create"] = Reply(status=307, headers={"location": f"{other.url}/videos"})
    with pytest.raises(Hopeless, match="answers with a redirect"):
        ask(server)
    assert other.seen == []


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (Reply(headers={"content-type": "text/html"}, body=b"<title>Welcome</title>"), Hopeless, "no JSON: 'Welcome'"),
        (Reply(body=b"[1, 2]"), Hopeless, "JSON that is no object"),
        (Reply(body=b"[" * 100_000), Hopeless, "is no JSON"),
        (Reply(body=b'"' + b"a" * 2**20, times=3), Hopeless, "more than 1048576 bytes"),
        (Reply(headers={"content-length": "50"}, body=b'{"id": '), TryAgain, "cut the call off"),
        (Reply(status=500, body=b"<b>oops</b>" * 200_000), TryAgain, "500: oops oops"),
    ],
)
def test_an_answer_that_is_no_json_object_is_named(
    server: VideoServer, reply: Reply, kind: type[ApiError], words: str
) -> None:
    server.replies["create"] = reply
    with pytest.raises(kind) as caught:
        ask(server)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_page_among_good_answers_may_go_away(server: VideoServer) -> None:
    service = HttpService(server.url, key_variable=VARIABLE, limits=QUICK)

    async def asked() -> None:
        await service.ask("POST", "videos", doing="submit", json={"model": server.model})
        server.replies["create"] = Reply(body=b"<h1>We are moving</h1>")
        with pytest.raises(TryAgain, match="no JSON: 'We are moving'") as caught:
            await service.ask("POST", "videos", doing="submit", json={"model": server.model})
        assert caught.value.maybe_accepted
        await service.close()

    asyncio.run(asked())


def test_silence_and_dripping_end_after_their_time(server: VideoServer, tmp_path: Path) -> None:
    server.trouble = Trouble(hang=1)
    with pytest.raises(TryAgain, match="fell silent") as caught:
        ask(server, HttpLimits(read_seconds=0.1))
    assert caught.value.maybe_accepted
    server.trouble = Trouble()
    server.replies["content"] = Reply(headers=MP4, body=FILM[:64], times=1000, seconds_between=0.05)
    with pytest.raises(TryAgain, match=r"took longer than 0\.3 seconds in all") as caught:
        fetch(server, tmp_path / "clip.mp4", limits=HttpLimits(total_seconds=0.3))
    assert not caught.value.maybe_accepted
    assert list(tmp_path.iterdir()) == []


def test_a_lost_answer_may_have_been_accepted(server: VideoServer) -> None:
    server.trouble = Trouble(lost=1)
    with pytest.raises(TryAgain, match="cut the call off") as caught:
        ask(server)
    assert caught.value.maybe_accepted
    assert len(server.paid) == 1


def test_a_host_that_was_never_reached_is_hopeless(server: VideoServer) -> None:
    with pytest.raises(Hopeless, match=r"127\.0\.0\.1:1 cannot be reached .*; check base_url"):
        ask(server, base_url="http://127.0.0.1:1/v1")
    with pytest.raises(Hopeless, match=r"nowhere\.invalid cannot be reached"):
        ask(server, base_url="http://nowhere.invalid/v1")


def test_a_host_that_has_answered_before_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, VideoServer.key)

    async def ask_twice(server: VideoServer) -> None:
        service = HttpService(server.url, key_variable=VARIABLE, limits=QUICK)
        with server:
            service.hosts = HttpService(server.url).hosts  # the port is known now
            with pytest.raises(Hopeless, match="no such"):
                await service.ask("GET", "models", doing="submit")
        await service.close()
        with pytest.raises(TryAgain, match="cannot be reached") as caught:
            await service.ask("GET", "models", doing="submit")
        assert not caught.value.maybe_accepted
        await service.close()

    asyncio.run(ask_twice(VideoServer()))


def test_the_key_is_shown_nowhere(server: VideoServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = f"Incorrect API key: {server.key}".encode()
    server.replies["create"] = Reply(status=401, body=json.dumps({"error": {"message": echo.decode()}}).encode())
    with pytest.raises(Hopeless, match=f"the environment variable {VARIABLE}.*set {VARIABLE}") as caught:
        ask(server)
    assert "***" in str(caught.value)
    server.replies["create"] = Reply(body=echo)
    with pytest.raises(Hopeless, match=r"\*\*\*") as again:
        ask(server)
    shown = "".join(traceback.format_exception(caught.value)) + "".join(traceback.format_exception(again.value))
    service = HttpService(server.url, key_variable=VARIABLE)
    assert server.key not in shown + caplog.text + repr(service) + str(service)
    assert server.seen[0].headers["authorization"] == f"Bearer {server.key}"


def test_without_a_key_nothing_is_sent(server: VideoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(Hopeless, match=f"set the environment variable {VARIABLE}"):
        ask(server)
    assert server.seen == []


def test_a_download_by_itself_goes_to_allowed_hosts_only(
    server: VideoServer, other: VideoServer, tmp_path: Path
) -> None:
    server.replies["content"] = Reply(status=302, headers={"location": f"{other.url}/videos/a/content"})
    url, headers = f"{server.url}/videos/a/content", {"x-api-key": "secret"}
    with pytest.raises(Refused, match="add it to allowed_hosts"):
        asyncio.run(download(url, tmp_path / "clip.mp4", allowed_hosts=[]))
    with pytest.raises(Refused, match="add it to allowed_hosts"):
        asyncio.run(download(url, tmp_path / "clip.mp4", allowed_hosts=[authority(server)], headers=headers))
    both = [authority(server), authority(other)]
    asyncio.run(download(url, tmp_path / "clip.mp4", allowed_hosts=both, headers=headers))
    assert (tmp_path / "clip.mp4").read_bytes() == FILM
    assert server.seen[-1].headers["x-api-key"] == "secret"
    assert "x-api-key" not in other.seen[-1].headers
    with pytest.raises(Refused, match="larger than 1000 bytes"):
        asyncio.run(download(url, tmp_path / "clip.mp4", allowed_hosts=both, max_bytes=1000))


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"limits must be positive, got read_seconds=0"):
        HttpLimits(read_seconds=0)


def test_the_line_about_terms_names_the_service_and_the_page() -> None:
    assert terms_line("api.example.com").startswith("api.example.com: check that its terms allow training")
    assert (Path(__file__).parents[3] / "docs" / "apis.md").is_file()
