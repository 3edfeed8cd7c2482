from collections.abc import Iterator

import pytest

from tests.teachers.api.asking_over_http import VARIABLE
from tests.teachers.api.server import VideoServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[VideoServer]:
    """A service that behaves, and its key in the environment."""
    monkeypatch.setenv(VARIABLE, VideoServer.key)
    with VideoServer() as serving:
        yield serving
