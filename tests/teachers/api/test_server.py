"""The loopback service that other tests trust: it counts what it was paid for, and misbehaves as it was told."""

import json
import threading
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError

import pytest

from tests.teachers.api.films import film
from tests.teachers.api.server import Trouble, VideoServer
from tests.teachers.api.wire import Reply


def call(server: VideoServer, path: str, body: Mapping[str, Any] | None = None, key: str = "") -> tuple[int, bytes]:
    headers = {"authorization": f"Bearer {server.key}", "content-type": "application/json"}
    headers |= {"idempotency-key": key} if key else {}
    data = None if body is None else json.dumps({"model": server.model, **body}).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{server.url}/{path}", data, headers)) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def test_it_counts_what_it_was_paid_for() -> None:
    with VideoServer() as server:
        for key in ("a", "a", "b", ""):
            assert call(server, "videos", {"prompt": "a ball"}, key)[0] == 200
        assert [job.key for job in server.paid] == ["a", "b", ""]
        assert len(server.paid_twice()) == 1
        assert server.most_per_second("create") == 4
        assert server.most_per_second("poll") == 0
        assert len(server.asked("create")) == 4


def test_it_serves_the_same_film_for_the_same_question() -> None:
    body = {"prompt": "a ball", "size": "32x16", "seconds": "1", "seed": 4}
    with VideoServer(seconds_per_job=0.05) as server:
        job = json.loads(call(server, "videos", body)[1])
        assert job["status"] == "queued"
        while json.loads(call(server, f"videos/{job['id']}")[1])["status"] != "completed":
            threading.Event().wait(0.02)
        assert call(server, f"videos/{job['id']}/content") == (200, film(body))


def test_troubles_depend_on_the_question_and_the_attempt_only() -> None:
    def statuses(order: list[int]) -> dict[int, list[int]]:
        with VideoServer(Trouble(seed=1, server_error=0.3, busy=0.3)) as server:
            return {seed: [call(server, "videos", {"seed": seed})[0] for _ in range(3)] for seed in order}

    there, back = statuses(list(range(8))), statuses(list(range(7, -1, -1)))
    assert there == back
    assert {200, 429, 500} == {status for row in there.values() for status in row}


def test_it_counts_requests_at_once_and_jobs_at_once() -> None:
    with VideoServer(seconds_per_job=0.2) as server, ThreadPoolExecutor(4) as pool:
        server.replies["poll"] = Reply(body=b"{}", times=2, seconds_between=0.1)
        list(pool.map(lambda seed: call(server, "videos", {"seed": seed}), range(3)))
        list(pool.map(lambda seed: call(server, f"videos/{seed}"), range(4)))
        assert server.most_jobs_at_once == 3
        assert server.most_requests_at_once == 4


@pytest.mark.parametrize(("path", "status"), [("videos/none", 404), ("videos/none/content", 404), ("models", 404)])
def test_what_it_does_not_have_is_not_found(path: str, status: int) -> None:
    with VideoServer() as server:
        assert call(server, path)[0] == status
