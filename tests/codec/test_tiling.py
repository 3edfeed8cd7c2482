from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamstill.codec.patch import PatchCodec
from streamstill.codec.tiling import Tiled
from streamstill.codec.video import VideoCodec


class Counting(PatchCodec):
    """Adds to every frame how many came before it in the tile's own state, and remembers the sizes it was given."""

    seen: list[tuple[int, int]]

    def __init__(self) -> None:
        super().__init__(frames=1, size=2)
        object.__setattr__(self, "seen", [])

    def decode(self, latents_BFCHW: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        self.seen.append((latents_BFCHW.shape[3], latents_BFCHW.shape[4]))
        before = 0 if state is None else state
        pixels, _ = super().decode(latents_BFCHW)
        number = torch.arange(before, before + pixels.shape[1])[:, None, None, None]
        return pixels + number, before + pixels.shape[1]


def clip(frames: int, height: int, width: int) -> Tensor:
    return torch.randn(2, frames, 3, height, width, generator=torch.Generator().manual_seed(0))


@settings(max_examples=25)
@given(size=st.integers(1, 5), overlap=st.integers(0, 4), height=st.integers(1, 9), width=st.integers(1, 9))
def test_a_codec_that_sees_no_neighbours_does_not_change_on_tiles(
    size: int, overlap: int, height: int, width: int
) -> None:
    codec = PatchCodec(frames=1, size=2)
    tiled = Tiled(codec, size=size, overlap=min(overlap, size - 1))
    pixels = clip(2, 2 * height, 2 * width)
    latents = tiled.encode(pixels)
    torch.testing.assert_close(latents, codec.encode(pixels))
    torch.testing.assert_close(tiled.decode(latents)[0], pixels)


def test_every_tile_has_a_state_of_its_own_and_pieces_equal_the_whole() -> None:
    tiled = Tiled(Counting(), size=3, overlap=1)
    latents = PatchCodec(frames=1, size=2).encode(clip(4, 10, 14))
    whole, after = tiled.decode(latents)
    assert after == (4,) * 6  # 2 rows of 3 tiles
    first, state = tiled.decode(latents[:, :1])
    second, again = tiled.decode(latents[:, 1:], state)
    assert again == after
    assert torch.equal(torch.cat([first, second], dim=1), whole)


def test_no_tile_is_larger_than_it_may_be_and_all_are_equal() -> None:
    codec = Counting()
    Tiled(codec, size=4, overlap=1).decode(torch.zeros(1, 1, 12, 9, 6))
    assert set(codec.seen) == {(4, 4)}
    assert len(codec.seen) == 3 * 2


def test_overlaps_fade_from_one_tile_to_the_next() -> None:
    """Two tiles that disagree by 1: in what they share, pixels climb from one to the other and never jump by it."""

    class Disagreeing(PatchCodec):
        calls = 0

        def decode(self, latents_BFCHW: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            Disagreeing.calls += 1
            pixels, _ = super().decode(latents_BFCHW)
            return pixels + Disagreeing.calls - 1, None

    pixels, _ = Tiled(Disagreeing(frames=1, size=1), size=6, overlap=4).decode(torch.zeros(1, 1, 3, 1, 8))
    row = pixels[0, 0, 0, 0]
    assert row[0] == 0
    assert row[-1] == 1
    steps = row.diff()
    assert (steps >= 0).all()
    assert steps.max() < 0.5


def test_gradients_pass_through() -> None:
    latents = torch.zeros(1, 1, 12, 5, 5, requires_grad=True)
    pixels, _ = Tiled(PatchCodec(frames=1, size=2), size=3, overlap=1).decode(latents)
    pixels.sum().backward()
    torch.testing.assert_close(latents.grad, torch.ones_like(latents))


def test_it_has_the_sizes_of_its_codec() -> None:
    codec: VideoCodec = PatchCodec()
    tiled = Tiled(codec, size=4, overlap=2)
    assert (tiled.latent_channels, tiled.compression, tiled.first_frames) == (96, (2, 4, 4), 2)


@pytest.mark.parametrize("overlap", [-1, 4])
def test_an_overlap_that_leaves_nothing_is_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match=f"tiles of 4 latents cannot share {overlap}; the overlap must be 0 to 3"):
        Tiled(PatchCodec(), size=4, overlap=overlap)


@pytest.mark.parametrize("size", [4, 8])
def test_clips_that_cannot_be_cut_are_refused_as_the_codec_does(size: int) -> None:
    for codec in (PatchCodec(), Tiled(PatchCodec(), size=size, overlap=1)):
        with pytest.raises(ValueError, match=r"height 22 is not divisible by .*4; use 20 or 24"):
            codec.encode(clip(4, 22, 16))
