import os
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
