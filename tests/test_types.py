"""The vocabulary refuses what cannot be a clip, and says what it got."""

import numpy as np
import pytest

from streamstill.types import Clip, ClipRequest, Geometry

SIZE = Geometry(frames=2, height=4, width=6, fps=8)


def frames(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.zeros(shape, dtype=np.uint8)


@pytest.mark.parametrize("change", [{"frames": 0}, {"height": -1}, {"width": 0}, {"fps": 0}, {"fps": float("nan")}])
def test_a_geometry_is_positive_in_every_field(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="every field of a Geometry must be positive, got"):
        Geometry(**{"frames": 1, "height": 1, "width": 1, "fps": 1.0, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 1, 4, 6), (2, 4, 6, 3), (0, 3, 4, 6), (2, 3, 0, 6), (1, 2, 3, 4, 6)])
def test_a_clip_has_rgb_frames_and_at_least_one_pixel(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a Clip needs uint8 frames of shape \(frames, 3, height, width\), got uint8"):
        Clip(frames_FCHW=frames(*shape), fps=8)


def test_a_clip_has_bytes_and_not_floats() -> None:
    with pytest.raises(ValueError, match="got float32"):
        Clip(frames_FCHW=frames(2, 3, 4, 6).astype(np.float32), fps=8)


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_a_clip_runs_forward(fps: float) -> None:
    with pytest.raises(ValueError, match="a Clip needs a positive fps, got"):
        Clip(frames_FCHW=frames(2, 3, 4, 6), fps=fps)


def test_a_clip_knows_its_geometry() -> None:
    assert Clip(frames_FCHW=frames(2, 3, 4, 6), fps=8).geometry == SIZE


def test_a_request_of_a_geometry_asks_for_that_geometry() -> None:
    request = ClipRequest.of(SIZE, prompt="a ball", seed=3)
    assert request.geometry == SIZE
    assert request == ClipRequest(prompt="a ball", seed=3, frames=2, height=4, width=6, fps=8)


@pytest.mark.parametrize(("fps", "words"), [(8, "16x32x48@8"), (8.0, "16x32x48@8"), (12.5, "16x32x48@12.5")])
def test_a_geometry_in_words_is_what_commands_take(fps: float, words: str) -> None:
    assert Geometry(frames=16, height=32, width=48, fps=fps).words == words
