import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamstill.codec.patch import PatchCodec
from streamstill.codec.video import latent_shape, to_frames, to_pixels
from streamstill.types import Geometry


@settings(deadline=None, max_examples=30)
@given(frames=st.integers(1, 3), size=st.integers(1, 5), grid=st.tuples(*[st.integers(1, 3)] * 4))
def test_it_is_lossless_at_any_size(frames: int, size: int, grid: tuple[int, int, int, int]) -> None:
    codec = PatchCodec(frames=frames, size=size)
    batch, f, h, w = grid
    pixels = torch.randn(batch, f * frames, 3, h * size, w * size)
    latents = codec.encode(pixels)
    assert latents.shape == (batch, f, codec.latent_channels, h, w)
    assert torch.equal(codec.decode(latents)[0], pixels)


def test_every_8_bit_value_survives_the_round_trip() -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    frames = np.concatenate([frames, 255 - frames])
    codec = PatchCodec()
    pixels, _ = codec.decode(codec.encode(to_pixels(frames)[None]))
    assert np.array_equal(to_frames(pixels[0]), frames)


def test_values_outside_the_range_are_clipped() -> None:
    assert to_frames(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_chunk_by_chunk_equals_whole() -> None:
    codec, state, pieces = PatchCodec(), None, []
    latents = torch.randn(2, 6, codec.latent_channels, 3, 4)
    for chunk in latents.split(2, dim=1):
        piece, state = codec.decode(chunk, state)
        pieces.append(piece)
    assert torch.equal(torch.cat(pieces, dim=1), codec.decode(latents)[0])


def test_a_latent_holds_one_patch_of_pixels() -> None:
    codec = PatchCodec(frames=2, size=4)
    pixels = torch.zeros(1, 4, 3, 8, 8)
    pixels[0, 2:4, :, 4:8, 0:4] = 1
    latents = codec.encode(pixels)
    assert (latents[0, 1, :, 1, 0] == 1).all()
    assert latents.sum() == codec.latent_channels


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (Geometry(frames=15, height=32, width=32, fps=8), "frames 15 is not divisible by the codec's 2; use 14 or 16"),
        (Geometry(frames=16, height=30, width=32, fps=8), "height 30 is not divisible by the codec's 4; use 28 or 32"),
        (Geometry(frames=16, height=32, width=2, fps=8), "width 2 is not divisible by the codec's 4; use 4 or 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_sizes_that_do(geometry: Geometry, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_shape(PatchCodec(), geometry)
