from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamstill.codec.counting import (
    clip_latents,
    covering_latents,
    first_frames,
    latent_frames,
    pixel_frames,
    sizes_of,
)
from streamstill.codec.patch import PatchCodec
from streamstill.codec.video import latent_shape
from streamstill.types import Geometry


@dataclass(frozen=True)
class Sizes:
    """Of a codec whose first latent frame makes ``first_frames`` pixel frames."""

    compression: tuple[int, int, int]
    first_frames: int
    latent_channels: int = 16


WAN = Sizes((4, 8, 8), 1)


@given(each=st.integers(1, 8), first=st.integers(1, 8), latents=st.integers(1, 50))
def test_latent_frames_and_pixel_frames_are_inverses(each: int, first: int, latents: int) -> None:
    codec = Sizes((each, 1, 1), first)
    assert latent_frames(codec, pixel_frames(codec, latents)) == latents
    assert pixel_frames(codec, latents + 1) - pixel_frames(codec, latents) == each


@given(each=st.integers(1, 8), first=st.integers(1, 8), frames=st.integers(1, 100))
def test_as_few_latents_cover_a_video_as_can(each: int, first: int, frames: int) -> None:
    codec = Sizes((each, 1, 1), first)
    latents = covering_latents(codec, frames)
    assert pixel_frames(codec, latents) >= frames
    assert latents == 1 or pixel_frames(codec, latents - 1) < frames


def test_wan_has_81_frames_in_21_latents() -> None:
    assert (latent_frames(WAN, 81), pixel_frames(WAN, 21), pixel_frames(WAN, 1)) == (21, 81, 1)
    assert clip_latents(WAN, Geometry(frames=81, height=480, width=832, fps=16)) == (21, 16, 60, 104)


@pytest.mark.parametrize("geometry", [Geometry(frames=16, height=32, width=24, fps=8)])
def test_a_codec_that_says_nothing_of_its_first_frame_makes_them_all_alike(geometry: Geometry) -> None:
    codec = PatchCodec()
    assert first_frames(codec) == 2
    assert clip_latents(codec, geometry) == latent_shape(codec, geometry)


def test_codecs_differ_in_size_by_channels_compression_and_first_frames() -> None:
    assert sizes_of(WAN) == (16, (4, 8, 8), 1)
    others = [Sizes((4, 8, 8), 4), Sizes((4, 16, 16), 1), Sizes((4, 8, 8), 1, latent_channels=48)]
    assert all(sizes_of(other) != sizes_of(WAN) for other in others)


@pytest.mark.parametrize(("frames", "said"), [(80, "use 77 or 81"), (82, "use 81 or 85"), (0, "use 1 or 5")])
def test_frames_that_no_latents_make_are_refused_with_those_that_some_do(frames: int, said: str) -> None:
    with pytest.raises(
        ValueError, match=f"makes 1 pixel frames and every other 4, which never adds up to {frames}; {said}"
    ):
        latent_frames(WAN, frames)


def test_height_and_width_are_checked_as_for_any_codec() -> None:
    with pytest.raises(ValueError, match="height 30 is not divisible by the codec's 8; use 24 or 32"):
        clip_latents(WAN, Geometry(frames=5, height=30, width=32, fps=8))
