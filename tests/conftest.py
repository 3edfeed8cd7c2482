import logging
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The folder of real clips: STREAMSTILL_CLIPS, or shared/clips beside the repository."""
    beside = Path(__file__).parents[1].parent / "shared" / "clips"
    folder = Path(os.environ.get("STREAMSTILL_CLIPS", beside))
    if not (folder / "captions.jsonl").is_file():
        pytest.skip(f"no real clips at {folder}: set STREAMSTILL_CLIPS to a folder with videos and captions.jsonl")
    return folder


@pytest.fixture(scope="session")
def service() -> Iterator[str]:
    """The URL of an S3-compatible service on loopback, moto's, with a bucket called ``bucket``."""
    moto = pytest.importorskip("moto.server", reason='install moto: pip install "moto[server]"')
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    serving = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    serving.start()
    try:
        url = f"http://127.0.0.1:{serving.get_host_and_port()[1]}"
        with urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")):
            yield url
    finally:
        serving.stop()


@pytest.fixture
def bucket(service: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An empty place in that bucket; what it takes to reach it is in the environment."""
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", service)
    return f"s3://bucket/{request.node.name}"
