"""A picture becomes one frame of the size that is asked for, by the rule of clips."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamstill.media import fit, read_image
from streamstill.types import Clip, Frames, Geometry


def drawing(height: int = 40, width: int = 60) -> Frames:
    """Smooth colours that differ from corner to corner; shape (3, height, width)."""
    c, y, x = np.ogrid[:3, :height, :width]
    return (127 + 60 * np.sin(x / 9 + c) + 60 * np.cos(y / 7)).astype(np.uint8)


def saved(path: Path, frame_CHW: Frames) -> Path:
    Image.fromarray(np.ascontiguousarray(frame_CHW.transpose(1, 2, 0))).save(path)
    return path


def test_a_picture_of_that_size_keeps_every_bit(tmp_path: Path) -> None:
    back = read_image(saved(tmp_path / "p.png", drawing()), height=40, width=60)
    assert back.dtype == np.uint8
    assert np.array_equal(back, drawing())


@pytest.mark.parametrize(("height", "width"), [(16, 16), (80, 48), (20, 30)])
def test_it_is_resized_and_cropped_as_a_clip_is(tmp_path: Path, height: int, width: int) -> None:
    clip = Clip(frames_FCHW=drawing()[None], fps=8)
    expected = fit(clip, Geometry(frames=1, height=height, width=width, fps=8)).frames_FCHW[0]
    assert np.array_equal(read_image(saved(tmp_path / "p.png", drawing()), height=height, width=width), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_any_kind_of_picture_comes_out_in_colours(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("p.tif" if mode == "CMYK" else "p.png")
    Image.new("RGB", (24, 16), (255, 255, 255)).convert(mode).save(path)
    assert np.array_equal(read_image(path, height=16, width=24), np.full((3, 16, 24), 255, dtype=np.uint8))


def test_a_picture_of_a_camera_held_sideways_comes_out_upright(tmp_path: Path) -> None:
    image = Image.fromarray(np.ascontiguousarray(drawing().transpose(1, 2, 0)))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera's own orientation tag: turn it a quarter to the right to see it upright
    image.save(tmp_path / "p.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "p.png", height=60, width=40), np.rot90(drawing(), -1, axes=(1, 2)))


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"the picture .*p.png cannot be read \(.*\); give a PNG or JPEG file"):
        read_image(path, height=8, width=8)


@pytest.mark.parametrize("name", ["p.png", "p.jpg"])
def test_a_picture_that_was_cut_off_is_named(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, drawing(400, 600))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"p.(png|jpg) cannot be read"):
        read_image(path, height=8, width=8)


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no picture .*nowhere.png; check the name"):
        read_image(tmp_path / "nowhere.png", height=8, width=8)


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 24 * 16).reshape(16, 24).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "p.png")
    read = read_image(tmp_path / "p.png", height=16, width=24)
    assert np.array_equal(read[0], np.round(ramp / 257).astype(np.uint8))
    assert np.array_equal(read[0], read[2])


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (24, 16), (255, 0, 0, 0)).save(tmp_path / "p.png")
    assert (read_image(tmp_path / "p.png", height=16, width=24) == 255).all()
