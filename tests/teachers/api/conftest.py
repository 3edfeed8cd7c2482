from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.teachers.api.asking_over_http import VARIABLE
from tests.teachers.api.collecting_parts import Place
from tests.teachers.api.server import VideoServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[VideoServer]:
    """A service that behaves, and its key in the environment."""
    monkeypatch.setenv(VARIABLE, VideoServer.key)
    with VideoServer() as serving:
        yield serving


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A cache that is not there yet, and a key in the environment."""
    monkeypatch.setenv(VARIABLE, VideoServer.key)
    return Place(tmp_path)
