import pytest

from streamstill.types import Clip
from tests.media.waves import waves


@pytest.fixture
def smooth() -> Clip:
    """12 frames of 48x64 at 8 fps."""
    return waves(frames=12, height=48, width=64, fps=8)
