"""A service is also a plain teacher: generate submits, waits and downloads."""

from pathlib import Path
from typing import Any

import pytest

from streamstill.teachers import CachedTeacher, ClipStore
from streamstill.teachers.api.arrival import Quarantined
from streamstill.teachers.api.jobs import ApiError, Hopeless, Refused, TryAgain
from streamstill.teachers.api.pace import Retries
from streamstill.teachers.api.waiting import WaitingTeacher
from tests.teachers.api.asking_over_http import VARIABLE, question
from tests.teachers.api.collecting_parts import teacher_of
from tests.teachers.api.server import Trouble, VideoServer
from tests.teachers.api.wire import Reply


def waiting(server: VideoServer, **changes: Any) -> WaitingTeacher:
    retries = Retries(attempts=3, first_wait=0.0, patience=1.0)
    return WaitingTeacher(teacher_of(server, **changes), poll_seconds=0.02, retries=retries)


def test_a_service_is_a_teacher_that_a_cache_can_ask_once(tmp_path: Path, server: VideoServer) -> None:
    teacher = CachedTeacher(waiting(server), ClipStore.open(tmp_path / "cache"))
    clip = teacher.generate(question(seed=3))
    assert clip.geometry == question().geometry
    assert clip.provenance == {"teacher": teacher.name, "prompt": question().prompt, "seed": "3"}
    assert (teacher.generate(question(seed=3)).frames_FCHW == clip.frames_FCHW).all()
    assert len(server.paid) == 1


def test_its_troubles_are_the_services(server: VideoServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for trouble, error, said in (
        (Trouble(refusal=1.0), Refused, "safety system"),
        (Trouble(failure=1.0), ApiError, "could not do the job .*: the model broke"),
        (Trouble(server_error=1.0), TryAgain, "500"),
    ):
        server.trouble = trouble
        with pytest.raises(error, match=said):
            waiting(server).generate(question())
    server.trouble = Trouble()
    server.seconds_per_job = 5.0
    with pytest.raises(TryAgain, match="was not done after 1 s"):
        waiting(server).generate(question(seed=1))
    monkeypatch.setenv(VARIABLE, "wrong")
    with pytest.raises(Hopeless, match=VARIABLE):
        waiting(server).generate(question())


def test_a_lost_submission_is_repeated_only_under_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, VideoServer.key)
    with VideoServer(Trouble(lost=1.0)) as server:
        for header, sent in (("", 1), ("Idempotency-Key", 3)):
            before = len(server.asked("create"))
            with pytest.raises(TryAgain):
                waiting(server, idempotency_header=header).generate(question())
            assert len(server.asked("create")) - before == sent


def test_a_file_that_is_no_clip_is_kept_aside(tmp_path: Path, server: VideoServer) -> None:
    server.replies["content"] = Reply(headers={"content-type": "video/mp4"}, body=b"\0\0\0\x18ftypmp42" + bytes(500))
    teacher = WaitingTeacher(teacher_of(server), poll_seconds=0.02, quarantine=tmp_path / "quarantine")
    with pytest.raises(Quarantined):
        teacher.generate(question())
    assert len(list((tmp_path / "quarantine").glob("*.mp4"))) == 1
