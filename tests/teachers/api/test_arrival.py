"""Only whole, moving, visible clips of the right geometry get in; everything else is kept aside with its reason."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from streamstill.media import read_fitted, write_clip
from streamstill.teachers.api.arrival import ArrivalLimits, Quarantined, arrive
from streamstill.types import Clip, ClipRequest
from streamstill.worlds import World, prompts
from tests.media.waves import waves
from tests.teachers.fakes import question

ASKED = ClipRequest(prompt="A red ball is dropped.", seed=3, frames=8, height=32, width=32, fps=8)
USUAL = ArrivalLimits()


def take(file: Path, request: ClipRequest = ASKED, limits: ArrivalLimits = USUAL) -> Clip:
    return arrive(file, request, teacher="toy", quarantine=file.parent / "quarantine", limits=limits)


def rejected(file: Path, request: ClipRequest = ASKED, limits: ArrivalLimits = USUAL) -> Quarantined:
    with pytest.raises(Quarantined) as caught:
        take(file, request, limits)
    return caught.value


@pytest.fixture
def moving(tmp_path: Path) -> Path:
    """A video that is larger, longer and faster than what is asked."""
    write_clip(tmp_path / "job.mp4", waves(frames=48, height=48, width=64, fps=24))
    return tmp_path / "job.mp4"


def still(path: Path, level: int, frames: int = 8) -> Path:
    write_clip(path, Clip(frames_FCHW=np.full((frames, 3, 32, 32), level, np.uint8), fps=8))
    return path


def test_a_good_file_becomes_a_clip_of_the_geometry_that_was_asked(moving: Path) -> None:
    clip = take(moving)
    assert clip.geometry == ASKED.geometry
    assert np.array_equal(clip.frames_FCHW, read_fitted(moving, ASKED.geometry).frames_FCHW)
    assert clip.provenance == {"teacher": "toy", "prompt": ASKED.prompt, "seed": "3"}
    assert moving.is_file()
    assert not (moving.parent / "quarantine").exists()


@pytest.mark.parametrize("prompt", prompts(6, seed=1))
def test_clips_of_the_world_get_in(tmp_path: Path, prompt: str) -> None:
    request = replace(ASKED, prompt=prompt, frames=16)
    write_clip(tmp_path / "clip.mp4", World().render(request))
    assert take(tmp_path / "clip.mp4", request).geometry == request.geometry


def empty(data: bytes) -> bytes:
    return b""


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def page(data: bytes) -> bytes:
    return b"<html>" + data[:100]


def zeroed(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


@pytest.mark.parametrize("damage", [empty, half, page, zeroed])
def test_a_damaged_file_is_kept_with_its_reason(moving: Path, damage: Callable[[bytes], bytes]) -> None:
    data = damage(moving.read_bytes())
    moving.write_bytes(data)
    error = rejected(moving)
    assert not moving.exists()
    assert error.path.read_bytes() == data
    told = json.loads(error.path.with_suffix(".json").read_text())
    assert told["reason"] == error.reason
    assert (told["teacher"], told["bytes"], told["request"]["prompt"]) == ("toy", len(data), ASKED.prompt)
    assert str(moving.parent) not in error.reason


def test_a_tail_that_is_missing_is_found_although_it_is_not_needed(moving: Path) -> None:
    assert take(moving).geometry == ASKED.geometry
    moving.write_bytes(moving.read_bytes()[:-400])
    assert read_fitted(moving, ASKED.geometry).geometry == ASKED.geometry
    assert re.search(r"cut off: it holds 4\d of 48 frames|cannot be decoded after frame 4\d", rejected(moving).reason)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (ArrivalLimits(max_bytes=500), "and 1 to 500 are allowed"),
        (ArrivalLimits(max_side=63), "64x48, and at most 63 pixels a side"),
        (ArrivalLimits(max_seconds=1.9), r"lasts 2 s, and 1.9 s are allowed"),
        (ArrivalLimits(max_frames=47), "has 48 frames, and 47 are allowed"),
    ],
)
def test_a_video_bomb_is_not_decoded(
    moving: Path, monkeypatch: pytest.MonkeyPatch, limits: ArrivalLimits, words: str
) -> None:
    monkeypatch.setattr("streamstill.teachers.api.arrival._require_decodable", explode)
    monkeypatch.setattr("streamstill.teachers.api.arrival.read_fitted", explode)
    assert words in rejected(moving, limits=limits).reason


def explode(*arguments: object) -> None:
    raise AssertionError("a frame was decoded")


def raw_stream(frames: int, side: int) -> bytes:
    """A stream without a header that could be believed."""
    file = io.BytesIO()
    with av.open(file, "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=Fraction(24))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = side, side, "yuv420p"
        for frame_CHW in waves(frames=frames, height=side, width=side, fps=24).frames_FCHW:
            pixels = np.ascontiguousarray(frame_CHW.transpose(1, 2, 0))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def test_frames_that_no_header_admits_are_counted(tmp_path: Path) -> None:
    (tmp_path / "job.h264").write_bytes(raw_stream(48, 32))
    error = rejected(tmp_path / "job.h264", limits=ArrivalLimits(max_frames=20))
    assert error.reason == "the video has more than 20 frames"


def test_pictures_that_grow_on_the_way_are_not_decoded(tmp_path: Path) -> None:
    small, large = raw_stream(24, 32), raw_stream(8, 256)
    (tmp_path / "job.h264").write_bytes(small + large)
    assert "cannot be decoded after frame" in rejected(tmp_path / "job.h264", limits=ArrivalLimits(max_side=64)).reason


def test_too_few_frames_black_and_frozen_clips_stay_out(tmp_path: Path, moving: Path) -> None:
    assert "too short: at 8 frames a second it has 16" in rejected(moving, replace(ASKED, frames=40)).reason
    assert rejected(still(tmp_path / "black.mp4", 4)).reason == "the clip is black"
    assert "of 7 changes from frame to frame 7 show nothing" in rejected(still(tmp_path / "grey.mp4", 128)).reason


def test_a_single_frame_cannot_be_frozen(tmp_path: Path) -> None:
    assert take(still(tmp_path / "grey.mp4", 128), replace(ASKED, frames=1)).geometry.frames == 1


def test_a_small_thing_that_moves_on_black_is_a_clip(tmp_path: Path) -> None:
    frames_FCHW = np.zeros((8, 3, 64, 64), np.uint8)
    for frame in range(8):
        frames_FCHW[frame, :, 30:34, 8 + 4 * frame : 12 + 4 * frame] = 200
    write_clip(tmp_path / "spark.mp4", Clip(frames_FCHW=frames_FCHW, fps=8))
    assert take(tmp_path / "spark.mp4", replace(ASKED, height=64, width=64)).geometry.height == 64


def test_thresholds_are_fields(tmp_path: Path) -> None:
    patient = ArrivalLimits(black_level=0, still_share=1.0, still_change=0)
    write_clip(tmp_path / "dim.mp4", Clip(frames_FCHW=dim(), fps=8), lossless=True)
    assert take(tmp_path / "dim.mp4", limits=patient).geometry == ASKED.geometry
    assert rejected(tmp_path / "dim.mp4").reason == "the clip is black"


def dim() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 8, (8, 3, 32, 32), dtype=np.uint8)


def test_two_bad_files_for_one_request_are_both_kept(tmp_path: Path) -> None:
    first = rejected(still(tmp_path / "job.mp4", 0)).path
    second = rejected(still(tmp_path / "job.mp4", 128)).path
    other = rejected(still(tmp_path / "job.mp4", 0), question()).path
    assert len({first, second, other}) == 3
    assert all(path.is_file() and path.with_suffix(".json").is_file() for path in (first, second, other))


def test_limits_must_make_sense() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        ArrivalLimits(max_side=0)
    with pytest.raises(ValueError, match="still_share"):
        ArrivalLimits(still_share=0)
