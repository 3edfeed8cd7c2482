"""Reading and writing: what is written is what is read, and a bad file is named in one sentence."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from streamstill.media import fit, read_clip, read_fitted, write_clip, write_strip
from streamstill.types import Clip, Geometry
from tests.media.waves import waves


def long_waves() -> Clip:
    return waves(frames=48, height=48, width=64, fps=8)


def decibels(one: Clip, other: Clip) -> float:
    error = (one.frames_FCHW.astype(float) - other.frames_FCHW) ** 2
    return float(10 * np.log10(255**2 / max(float(error.mean()), 1e-9)))


@pytest.fixture(scope="session", params=["h264", "vp9", "gif", "mpeg4"])
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that another program wrote, in one codec of many."""
    codec, name, pixels = {
        "h264": ("libx264", "a.mkv", "yuv420p"),
        "vp9": ("libvpx-vp9", "a.webm", "yuv420p"),
        "gif": ("gif", "a.gif", "rgb8"),
        "mpeg4": ("mpeg4", "a.avi", "yuv420p"),
    }[request.param]
    path = tmp_path_factory.mktemp("foreign") / name
    encode(path, waves(frames=12, height=48, width=64, fps=10), codec, pixels)
    return path


def encode(path: Path, clip: Clip, codec: str, pixels: str, times: list[int] | None = None) -> None:
    """Write with explicit presentation times in frames, so that they may be uneven."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(clip.fps).limit_denominator(1001))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = clip.geometry.height, clip.geometry.width, pixels
        for number, frame_CHW in enumerate(clip.frames_FCHW):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_CHW.transpose(1, 2, 0)), format="rgb24")
            frame.pts, frame.time_base = (times or range(100))[number], 1 / Fraction(clip.fps).limit_denominator(1001)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_any_codec_is_read(foreign: Path) -> None:
    clip = read_clip(foreign)
    assert clip.geometry == Geometry(frames=12, height=48, width=64, fps=10)
    assert decibels(clip, waves(frames=12, height=48, width=64, fps=10)) > 18  # gif has 256 colours
    assert clip.provenance == {"file": foreign.name}


@pytest.mark.parametrize("fps", [8, 24, 24000 / 1001, 12.5, 59.94])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (33, 51)])
def test_what_is_written_is_what_is_read(tmp_path: Path, fps: float, height: int, width: int) -> None:
    clip = waves(frames=9, height=height, width=width, fps=fps)
    write_clip(tmp_path / "clip.mp4", clip)
    back = read_clip(tmp_path / "clip.mp4")
    assert back.frames_FCHW.shape == clip.frames_FCHW.shape
    assert back.fps == pytest.approx(fps, rel=1e-6)
    assert decibels(back, clip) > 36


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (7, 31, 45), (24, 64, 64)])
def test_lossless_keeps_every_bit(tmp_path: Path, frames: int, height: int, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (frames, 3, height, width), dtype=np.uint8)
    write_clip(tmp_path / "clip.mp4", Clip(frames_FCHW=noise, fps=8), lossless=True)
    assert np.array_equal(read_clip(tmp_path / "clip.mp4").frames_FCHW, noise)


def test_writing_makes_the_folder_and_leaves_no_partial_file(tmp_path: Path, smooth: Clip) -> None:
    write_clip(tmp_path / "new" / "clip.mp4", smooth)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["clip.mp4"]


def test_writing_that_fails_keeps_the_old_file(tmp_path: Path, smooth: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "clip.mp4", smooth)
    before = (tmp_path / "clip.mp4").read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("streamstill.media._channels_last", fail)
    with pytest.raises(OSError, match="No space left"):
        write_clip(tmp_path / "clip.mp4", smooth)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert (tmp_path / "clip.mp4").read_bytes() == before


def test_another_suffix_than_mp4_is_refused(tmp_path: Path, smooth: Clip) -> None:
    with pytest.raises(ValueError, match=r"'clip\.gif'; let it end in \.mp4"):
        write_clip(tmp_path / "clip.gif", smooth)


def test_only_the_first_frames_are_read_when_no_more_are_wanted(tmp_path: Path, smooth: Clip) -> None:
    write_clip(tmp_path / "clip.mp4", smooth, lossless=True)
    assert np.array_equal(read_clip(tmp_path / "clip.mp4", max_frames=5).frames_FCHW, smooth.frames_FCHW[:5])
    assert read_clip(tmp_path / "clip.mp4", max_frames=99).geometry.frames == 12
    with pytest.raises(ValueError, match="max_frames must be at least 1"):
        read_clip(tmp_path / "clip.mp4", max_frames=0)


def test_uneven_frames_become_even(tmp_path: Path) -> None:
    clip = waves(frames=6, height=32, width=32, fps=10)
    encode(tmp_path / "uneven.mkv", clip, "libx264rgb", "rgb24", times=[0, 1, 2, 6, 7, 8])
    fitted = read_fitted(tmp_path / "uneven.mkv", Geometry(frames=9, height=32, width=32, fps=10))
    shown = [int(np.abs(clip.frames_FCHW.astype(int) - frame).sum((1, 2, 3)).argmin()) for frame in fitted.frames_FCHW]
    assert shown == [0, 1, 2, 2, 2, 3, 3, 4, 5]


def test_a_video_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    clip = waves(frames=3, height=32, width=48, fps=8)
    write_clip(tmp_path / "clip.mp4", clip, lossless=True)
    data = bytearray((tmp_path / "clip.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 44  # after kind, version, times, track, length, layer and volume
    quarter_turn = (0, 1, 0, -1, 0, 0, 32, 0, 0x4000)  # clockwise, as telephones write it
    data[matrix : matrix + 36] = struct.pack(">9i", *(n << 16 for n in quarter_turn))
    (tmp_path / "turned.mp4").write_bytes(data)
    turned = read_clip(tmp_path / "turned.mp4").frames_FCHW
    assert np.array_equal(turned, np.rot90(clip.frames_FCHW, -1, axes=(2, 3)))


def cut_tail(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def cut_head(data: bytes) -> bytes:
    return data[len(data) // 3 :]


def noise(data: bytes) -> bytes:
    return np.random.default_rng(0).bytes(len(data))


@pytest.mark.parametrize("reader", [read_clip, lambda path: read_fitted(path, long_waves().geometry)])
@pytest.mark.parametrize("damage", [cut_tail, cut_head, noise])
def test_a_damaged_video_is_named(tmp_path: Path, reader: Callable[[Path], Clip], damage: Callable[..., bytes]) -> None:
    write_clip(tmp_path / "good.mp4", long_waves())
    (tmp_path / "bad.mp4").write_bytes(damage((tmp_path / "good.mp4").read_bytes()))
    with pytest.raises(ValueError, match=r"the video .*bad\.mp4 .*make or download the file again"):
        reader(tmp_path / "bad.mp4")


def test_a_video_whose_index_is_at_its_end_and_cut_off_is_named(tmp_path: Path) -> None:
    encode(tmp_path / "good.mp4", waves(frames=12, height=48, width=64, fps=8), "libx264", "yuv420p")
    good = (tmp_path / "good.mp4").read_bytes()
    for kept in (0.3, 0.66, 0.9):
        (tmp_path / "bad.mp4").write_bytes(good[: int(kept * len(good))])
        with pytest.raises(ValueError, match=r"bad\.mp4 .*; make or download the file again"):
            read_clip(tmp_path / "bad.mp4")


def test_missing_empty_and_soundless_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no video file .*none\.mp4; check the name"):
        read_clip(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.mp4 is an empty file"):
        read_clip(tmp_path / "empty.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        assert isinstance(stream, av.AudioStream)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"sound\.mp4 has no picture in it"):
        read_clip(tmp_path / "sound.mp4")


@pytest.mark.slow
def test_the_real_clips_are_read_and_fitted(real_clips: Path, tmp_path: Path) -> None:
    geometry = Geometry(frames=16, height=48, width=80, fps=8)
    videos = sorted(real_clips.glob("*.mp4"))
    fitted = [read_fitted(path, geometry) for path in videos]
    assert len(videos) >= 7
    assert all(clip.geometry == geometry for clip in fitted)
    smallest = min(videos, key=lambda path: path.stat().st_size)
    whole = read_clip(smallest)
    assert np.array_equal(fit(whole, geometry).frames_FCHW, fitted[videos.index(smallest)].frames_FCHW)
    write_strip(tmp_path / "strip.png", fitted, labels=[path.stem[-16:] for path in videos])
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.height > 7 * 96


def test_a_clip_is_always_the_same_file(tmp_path: Path) -> None:
    """x264 says in the file how it was asked: with threads, or when it looks ahead, some files of one clip differed."""
    files = [tmp_path / f"{number}.mp4" for number in range(12)]
    for file in files:
        write_clip(file, long_waves())
    assert len({file.read_bytes() for file in files}) == 1
    said = files[0].read_bytes()
    assert b" threads=1 " in said
    assert b" rc=crf mbtree=0 " in said
