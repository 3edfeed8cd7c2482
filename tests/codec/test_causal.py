"""The layers of the learned codecs: folding is exact, nothing looks ahead, a state is a value."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamstill.codec.causal import CausalBlock, CausalDecoder, cells, folded, require_shape, unfolded
from streamstill.codec.patch import PatchCodec
from streamstill.state import ConvCache, tensors_of


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block(width: int = 4) -> CausalBlock:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CausalBlock(width).double()


@settings(deadline=None, max_examples=25)
@given(sizes=st.tuples(*[st.integers(1, 3)] * 3), grid=st.tuples(*[st.integers(1, 3)] * 5))
def test_folding_and_unfolding_are_inverses(sizes: tuple[int, int, int], grid: tuple[int, int, int, int, int]) -> None:
    batch, f, h, w, d = grid
    frames, rows, columns = sizes
    x = values(batch, f * frames, h * rows, w * columns, d)
    folded_x = folded(x, *sizes)
    assert folded_x.shape == (batch, f, h, w, frames * rows * columns * d)
    assert torch.equal(unfolded(folded_x, *sizes), x)


def test_a_row_of_cells_holds_the_pixels_of_one_latent() -> None:
    pixels = values(1, 4, 3, 8, 8)
    rows = cells(pixels, (2, 4, 4))
    patches = PatchCodec(frames=2, size=4).encode(pixels)
    assert rows.shape == (2 * 2 * 2, 96)
    row = 1 * 4 + 1 * 2 + 0  # latent frame 1, row 1, column 0
    torch.testing.assert_close(rows[row].sort().values, patches[0, 1, :, 1, 0].sort().values)


def test_a_block_is_the_convolution_of_the_padded_past() -> None:
    """Against torch's own causal form: two empty frames in front, then an ordinary convolution."""
    one, x = block(), values(2, 5, 3, 4, 4)
    seen = torch.nn.functional.silu(one.norm(x)).permute(0, 4, 1, 2, 3)
    padded = torch.nn.functional.pad(seen, (1, 1, 1, 1, 2, 0))
    mixed = torch.nn.functional.conv3d(padded, one.conv.weight, one.conv.bias).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(one(x, None)[0], x + mixed)


@pytest.mark.parametrize("pieces", [[1, 1, 1, 1, 1], [2, 3], [4, 1], [1, 4]])
def test_a_block_in_pieces_is_the_block_in_one_go(pieces: list[int]) -> None:
    """A piece may be shorter than what the convolution looks back at."""
    one, x = block(), values(2, 5, 3, 4, 4)
    past: ConvCache | None = None
    made = []
    for piece in x.split(pieces, dim=1):
        y, past = one(piece, past)
        made.append(y)
    torch.testing.assert_close(torch.cat(made, dim=1), one(x, None)[0])


def test_the_future_changes_nothing_before_it() -> None:
    one, x = block(), values(1, 5, 3, 4, 4)
    other = x.clone()
    other[:, 3:] = values(1, 2, 3, 4, 4, seed=9)
    before, after = one(x, None)[0], one(other, None)[0]
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3:], after[:, 3:])


def test_using_a_state_does_not_change_it() -> None:
    decoder = CausalDecoder((2, 4, 4), 5, 8, 2).eval()
    _, state = decoder(values(1, 3, 5, 2, 2).float(), None)
    assert len(state) == 4  # two blocks of each resolution
    kept = [tensor.clone() for tensor in tensors_of(state)]
    first, _ = decoder(values(1, 2, 5, 2, 2, seed=1).float(), state)
    second, _ = decoder(values(1, 2, 5, 2, 2, seed=1).float(), state)
    assert torch.equal(first, second)
    assert all(torch.equal(now, then) for now, then in zip(tensors_of(state), kept, strict=True))


def test_a_state_does_not_grow_with_the_video() -> None:
    decoder = CausalDecoder((2, 4, 4), 5, 8, 1).eval()
    sizes = []
    state = None
    for step in range(6):
        _, state = decoder(values(1, 1 + step % 3, 5, 2, 2).float(), state)
        sizes.append([tensor.shape for tensor in tensors_of(state)])
    assert all(size == sizes[0] for size in sizes)


@pytest.mark.parametrize(
    ("compression", "width", "message"),
    [
        ((2, 3, 8), 8, r"the last two even, got \[2, 3, 8\]; use \[2, 4, 8\]"),
        ((0, 8, 8), 8, r"use \[1, 8, 8\]"),
        ((2, 8, 8), 7, "width must be even, got 7; use 8"),
        ((2, 8, 8), 0, "width must be even, got 0; use 2"),
    ],
)
def test_sizes_that_two_resolutions_cannot_share_are_refused(
    compression: tuple[int, int, int], width: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        require_shape(compression, width)
