"""Addresses that a server tells are asked only where the user allows it."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from streamstill.teachers.api.hosts import AllowedHosts
from streamstill.teachers.api.jobs import Refused, TryAgain

SERVICE = "https://api.example.com/v1"


def checked(told: str, *others: str, base: str = SERVICE) -> str:
    return str(asyncio.run(AllowedHosts(base, others).checked(told)))


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Names and what they stand for; no other name is found."""
    known: dict[str, str] = {}

    async def look_up(self: object, host: str, port: int, **kwargs: Any) -> Sequence[Any]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known[host], port))]

    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.getaddrinfo", look_up)
    return known


def test_the_service_itself_may_be_asked_on_any_network() -> None:
    assert checked("https://api.example.com/a?b=c") == "https://api.example.com/a?b=c"
    assert checked("/files/1") == "https://api.example.com/files/1"
    assert checked("http://127.0.0.1:8000/a", base="http://127.0.0.1:8000/v1") == "http://127.0.0.1:8000/a"


@pytest.mark.parametrize(
    "told",
    [
        "http://api.example.com/a",  # the same host without encryption
        "https://api.example.com:8443/a",
        "https://example.com/a",
        "https://api.example.com.evil.net/a",
        "//evil.net/a",
        "http://169.254.169.254/latest/meta-data",
        "http://127.0.0.1:22/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://2130706433/",
        "http://localhost/",
    ],
)
def test_other_hosts_are_not_asked(told: str) -> None:
    with pytest.raises(Refused, match=r"another host, .*; if it is to be trusted, add it to allowed_hosts"):
        checked(told)


@pytest.mark.parametrize(
    "told",
    [
        "file:///etc/passwd",
        "ftp://api.example.com/a",
        "javascript:alert(1)",
        "https://api.example.com@evil.net/",
        "https://user:secret@api.example.com/a",
        "http:\\\\evil.net\\a",
        "https://api.example.com/a\r\nhost: evil.net",
        "https://api.example.com/" + "a" * 5000,
        "https://[::1/",
    ],
)
def test_what_is_no_plain_url_is_not_asked(told: str) -> None:
    with pytest.raises(Refused, match="no http or https URL") as caught:
        checked(told)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("cdn.example.net", "https://cdn.example.net/a"),
        ("cdn.example.net", "http://CDN.example.net/a"),
        ("*.example.net", "https://a.b.example.net/a"),
        ("cdn.example.net:8000", "https://cdn.example.net:8000/a"),
    ],
)
def test_allowed_hosts_are_asked(names: dict[str, str], entry: str, told: str) -> None:
    names.update({"cdn.example.net": "93.184.215.14", "a.b.example.net": "2606:2800::1"})
    assert checked(told, entry) == told.replace("CDN", "cdn")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("cdn.example.net", "https://cdn.example.net:8000/a"),
        ("cdn.example.net:8000", "https://cdn.example.net/a"),
        ("*.example.net", "https://example.net/a"),
        ("*.example.net", "https://evilexample.net/a"),
    ],
)
def test_an_entry_means_no_more_than_it_says(entry: str, told: str) -> None:
    with pytest.raises(Refused, match="another host"):
        checked(told, entry)


@pytest.mark.parametrize(
    "address", ["10.0.0.5", "127.0.0.1", "169.254.169.254", "192.168.1.1", "::1", "fe80::1", "0.0.0.0"]
)
def test_a_name_that_stands_for_a_private_address_is_not_asked(names: dict[str, str], address: str) -> None:
    names["cdn.example.net"] = address
    with pytest.raises(Refused, match=r"private address .*add the address itself to allowed_hosts"):
        checked("https://cdn.example.net/a", "*.example.net")


def test_an_address_that_the_user_wrote_is_asked() -> None:
    assert checked("http://10.0.0.5:9000/a", "10.0.0.5:9000") == "http://10.0.0.5:9000/a"
    assert checked("http://[::1]:9000/a", "[::1]:9000") == "http://[::1]:9000/a"


def test_a_name_that_is_not_found_may_be_found_later(names: dict[str, str]) -> None:
    with pytest.raises(TryAgain, match=r"'cdn\.example\.net' is not found"):
        checked("https://cdn.example.net/a", "cdn.example.net")


@pytest.mark.parametrize(
    "url", ["", "api.example.com", "ftp://a.b", "https://key@a.b/v1", "https://a.b/v1?key=1", "https://"]
)
def test_a_base_url_must_be_one(url: str) -> None:
    with pytest.raises(ValueError, match=r"base_url must be like https://api\.example\.com/v1"):
        AllowedHosts(url)


@pytest.mark.parametrize("entry", ["", "*", "https://a.b", "a.b/c", "user@a.b", "*.*.a", "a b"])
def test_an_allowed_host_must_be_one(entry: str) -> None:
    with pytest.raises(ValueError, match=r"an allowed host is like cdn\.example\.com"):
        AllowedHosts(SERVICE, (entry,))


def test_paths_are_below_the_base_url() -> None:
    hosts = AllowedHosts("https://api.example.com/v1/")
    assert str(hosts.at_service("videos")) == "https://api.example.com/v1/videos"
    assert hosts.service == "api.example.com"
