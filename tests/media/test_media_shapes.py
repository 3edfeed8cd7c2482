"""Fitting and showing clips: what is kept, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamstill.media import fit, read_fitted, side_by_side, write_clip, write_strip
from streamstill.types import Clip, Frames, Geometry
from tests.media.waves import waves


def counting(frames: int, fps: float, height: int = 4, width: int = 4) -> Clip:
    """Frame k is all of brightness k."""
    numbers = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    return Clip(frames_FCHW=np.broadcast_to(numbers, (frames, 3, height, width)).copy(), fps=fps)


def picture(path: Path) -> Frames:
    with Image.open(path) as image:
        return np.array(image)


def shown(clip: Clip) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in clip.frames_FCHW]


def test_its_own_geometry_changes_nothing(smooth: Clip) -> None:
    assert np.array_equal(fit(smooth, smooth.geometry).frames_FCHW, smooth.frames_FCHW)


@pytest.mark.parametrize(
    ("fps", "wanted", "expected"),
    [(16, 8, [0, 2, 4, 6]), (8, 16, [0, 0, 1, 1]), (24, 10, [0, 2, 5, 7]), (30000 / 1001, 15, [0, 2, 4, 6])],
)
def test_the_nearest_frame_in_time_is_taken(fps: float, wanted: float, expected: list[int]) -> None:
    assert shown(fit(counting(9, fps), Geometry(frames=4, height=4, width=4, fps=wanted))) == expected


@given(st.integers(1, 60), st.sampled_from([5, 8, 12.5, 24, 24000 / 1001, 30]), st.sampled_from([4, 8, 15, 30, 60]))
def test_no_frame_is_further_away_than_half_a_frame(frames: int, fps: float, wanted: float) -> None:
    clip = counting(frames, fps)
    count = max(1, int((frames - 0.5) / fps * wanted))
    fitted = fit(clip, Geometry(frames=count, height=4, width=4, fps=wanted))
    assert fitted.fps == wanted
    for k, source in enumerate(shown(fitted)):
        assert abs(k / wanted - source / fps) <= 0.5 / fps + 2e-6


def test_a_short_clip_says_what_it_has_and_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"at 8 frames a second it has 3 frames and 4 were asked for; ask for fewer"):
        fit(counting(5, 16), Geometry(frames=4, height=4, width=4, fps=8))


def test_a_short_file_says_the_same(tmp_path: Path) -> None:
    write_clip(tmp_path / "short.mp4", counting(5, 16))
    with pytest.raises(ValueError, match=r"short\.mp4 is too short: at 8 frames .* 3 frames and 4 were asked for"):
        read_fitted(tmp_path / "short.mp4", Geometry(frames=4, height=4, width=4, fps=8))


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 40), st.integers(1, 40))
def test_the_size_is_what_was_asked_and_one_colour_stays(
    height: int, width: int, to_height: int, to_width: int
) -> None:
    grey = Clip(frames_FCHW=np.full((1, 3, height, width), 99, np.uint8), fps=8)
    fitted = fit(grey, Geometry(frames=1, height=to_height, width=to_width, fps=8)).frames_FCHW
    assert fitted.shape == (1, 3, to_height, to_width)
    assert (fitted == 99).all()


def test_the_centre_is_kept_and_nothing_is_stretched() -> None:
    frames_FCHW = np.zeros((1, 3, 20, 60), np.uint8)
    frames_FCHW[..., :20], frames_FCHW[..., 40:] = 255, 255  # white, black, white
    assert (
        fit(Clip(frames_FCHW=frames_FCHW, fps=8), Geometry(frames=1, height=20, width=20, fps=8)).frames_FCHW == 0
    ).all()


def test_shrinking_averages_what_it_drops() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    clip = Clip(frames_FCHW=np.broadcast_to(board, (1, 3, 64, 64)).astype(np.uint8), fps=8)
    fitted = fit(clip, Geometry(frames=1, height=16, width=16, fps=8)).frames_FCHW
    assert np.abs(fitted[..., 2:-2, 2:-2].astype(int) - 127).max() < 12


def test_a_strip_has_a_row_for_each_clip(tmp_path: Path, smooth: Clip) -> None:
    write_strip(tmp_path / "strip.png", [smooth, smooth], columns=4, scale=2)
    strip = picture(tmp_path / "strip.png")
    assert strip.shape == (3 * 4 + 2 * 96, 5 * 4 + 4 * 128, 3)
    first = strip[4 : 4 + 96 : 2, 4 : 4 + 128 : 2]
    assert np.array_equal(first, smooth.frames_FCHW[0].transpose(1, 2, 0))


def test_a_strip_shows_the_first_and_the_last_frame_of_small_clips_large(tmp_path: Path) -> None:
    write_strip(tmp_path / "strip.png", [counting(200, 8)], columns=3, labels=["counting"])
    strip = picture(tmp_path / "strip.png")
    middle = strip[strip.shape[0] // 2]
    assert strip.shape[0] >= 96
    assert {0, 100, 199} <= set(middle[:, 0].tolist())


def test_labels_make_room_for_themselves(tmp_path: Path, smooth: Clip) -> None:
    widths = []
    for labels in (None, ["a"], ["a far longer label"]):
        write_strip(tmp_path / "strip.png", [smooth], labels=labels)
        widths.append(picture(tmp_path / "strip.png").shape[1])
    assert widths == sorted(set(widths))


def test_a_strip_of_nothing_or_of_too_few_labels_is_refused(tmp_path: Path, smooth: Clip) -> None:
    with pytest.raises(ValueError, match="at least 1 clip, 1 column and scale 1, got 0, 8 and None"):
        write_strip(tmp_path / "strip.png", [])
    with pytest.raises(ValueError, match="got 1 labels for 2 clips"):
        write_strip(tmp_path / "strip.png", [smooth, smooth], labels=["one"])
    assert list(tmp_path.iterdir()) == []


def test_clips_stand_side_by_side_under_their_captions(smooth: Clip) -> None:
    small = smooth.frames_FCHW
    inverse = Clip(frames_FCHW=255 - small, fps=8)
    both = side_by_side([smooth, inverse], labels=["before", "after"], scale=2)
    band = both.geometry.height - 2 * 48
    tops = [t for t in (band, band - 1) if np.array_equal(both.frames_FCHW[..., t::2, :128:2][..., :48, :], small)]
    assert 0 < band < 40
    assert len(tops) == 1
    assert np.array_equal(both.frames_FCHW[..., tops[0] :: 2, 128::2][..., :48, :], 255 - small)
    assert both.frames_FCHW[0, :, : tops[0]].max() > 200  # the caption


@pytest.mark.parametrize(("height", "width"), [(15, 9), (16, 8), (31, 64)])
def test_side_by_side_is_of_even_size_for_every_player(height: int, width: int) -> None:
    clip = waves(frames=2, height=height, width=width, fps=8)
    both = side_by_side([clip] * 3, labels=["a label much too long for its clip"] * 3)
    assert both.geometry.height % 2 == both.geometry.width % 2 == 0


def test_clips_of_different_geometry_are_refused(smooth: Clip) -> None:
    with pytest.raises(ValueError, match=r"must have one geometry, got Geometry\(frames=12.*frames=11.*media\.fit"):
        side_by_side([smooth, waves(frames=11, height=48, width=64, fps=8)], labels=["a", "b"])
    with pytest.raises(ValueError, match="got 1 clips, 2 labels"):
        side_by_side([smooth], labels=["a", "b"])
