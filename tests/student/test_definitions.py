"""Every mixer against its definition, written out as one explicit matrix over all tokens of a video, in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamstill.student.block import build_mixer
from streamstill.student.layout import BlockKind
from streamstill.student.lcha import LinearConvAttention
from streamstill.student.linear import LinearAttention
from streamstill.student.local import CausalConv
from streamstill.student.mixer import stream
from streamstill.student.positions import axis_pairs
from streamstill.student.ssa import WindowedSelfAttention
from streamstill.student.window import Window

WIDTH, HEAD_DIM, THETA, H, W = 32, 8, 50.0, 2, 4
HEADS = WIDTH // HEAD_DIM


def build(kind: BlockKind, *, window: Window, retention: float, chunk_frames: int) -> Any:
    torch.manual_seed(3)
    mixer = build_mixer(
        kind, WIDTH, head_dim=HEAD_DIM, window=window, retention=retention, chunk_frames=chunk_frames, theta=THETA
    ).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def video(frames: int) -> Tensor:
    return torch.randn(2, frames, H, W, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def streamed(mixer: Any, x: Tensor, chunk: int) -> Tensor:
    """Chunk by chunk; the last may be short."""
    state, made = mixer.empty(x.shape[0], H, W, x), []
    for part in x.split(chunk, dim=1):
        y, state = stream(mixer, part, state)
        made.append(y)
    return torch.cat(made, dim=1)


def angles(frames: Tensor, rows: Tensor, columns: Tensor, head_dim: int) -> Tensor:
    """Rotary angles of tokens at these places: S, head_dim / 2."""
    parts = []
    for places, pairs in zip((frames, rows, columns), axis_pairs(head_dim), strict=True):
        speeds = torch.tensor([THETA ** -(i / pairs) for i in range(pairs)], dtype=torch.float64)
        parts.append(places[:, None] * speeds)
    return torch.cat(parts, dim=1)


def turned(x_BSNE: Tensor, angles_SE: Tensor) -> Tensor:
    """Rotation as multiplication of complex numbers."""
    half = x_BSNE.shape[-1] // 2
    z = torch.complex(x_BSNE[..., :half], x_BSNE[..., half:]) * torch.exp(1j * angles_SE)[:, None]
    return torch.cat([z.real, z.imag], dim=-1)


def places(frames: int, *, stride: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Frame, row, column of each token, in order."""
    middle = (stride - 1) / 2
    rows, columns = torch.arange(H // stride) * stride + middle, torch.arange(W // stride) * stride + middle
    f, y, x = torch.meshgrid(torch.arange(frames).double(), rows.double(), columns.double(), indexing="ij")
    return f.flatten(), y.flatten(), x.flatten()


def softmax_definition(mixer: WindowedSelfAttention, x: Tensor, chunk: int) -> Tensor:
    """All queries against all keys with absolute positions; a chunk sees itself and ``window`` frames before it."""
    frames = x.shape[1]
    weight, bias = mixer.qkv.weight.chunk(3), mixer.qkv.bias.chunk(3)
    cells = x if mixer.compress is None else mixer.compress(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    cells = cells.reshape(x.shape[0], -1, WIDTH)
    query = F.linear(x.flatten(1, 3), weight[0], bias[0]).unflatten(-1, (HEADS, HEAD_DIM))
    key, value = (F.linear(cells, weight[i], bias[i]).unflatten(-1, (HEADS, HEAD_DIM)) for i in (1, 2))
    q_places, k_places = places(frames), places(frames, stride=mixer.key_stride)
    query = turned(mixer.query_norm(query), angles(*q_places, HEAD_DIM))
    key = turned(mixer.key_norm(key), angles(*k_places, HEAD_DIM))
    start = (q_places[0] // chunk * chunk)[:, None]
    seen = (k_places[0] < start + chunk) & (k_places[0] >= start - mixer.window.frames)
    scores = torch.einsum("bqne,bkne->bnqk", query, key) / HEAD_DIM**0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return mixer.out(torch.einsum("bnqk,bkne->bqne", weights, value).flatten(2)).reshape(x.shape)


def linear_definition(path: LinearAttention, x: Tensor, chunk: int, retention: float) -> Tensor:
    """All pairs: phi(q) phi(k) with rotation above the line only, past chunks faded by ``retention`` each."""
    q_places = places(x.shape[1])
    query, key, value = path.qkv(x.flatten(1, 3)).unflatten(-1, (3, path.heads, -1)).unbind(2)
    query = path.activation(path.phi_query(path.query_norm(query)))
    key = path.activation(path.phi_key(path.key_norm(key)))
    turn = angles(*q_places, path.head_dim)
    number = q_places[0] // chunk
    age = number[:, None] - number[None, :]
    fade = torch.where(age >= 0, retention ** age.clamp_min(0), 0.0)
    above = torch.einsum("bqne,bkne->bnqk", turned(query, turn), turned(key, turn)) * fade
    below = torch.einsum("bqne,bkne->bnqk", query, key) * fade
    mixed = torch.einsum("bnqk,bkne->bqne", above, value)
    return (mixed / (below.sum(-1) + 1e-6).transpose(1, 2)[..., None]).flatten(2).reshape(x.shape)


def local_definition(path: CausalConv, x: Tensor) -> Tensor:
    """A loop over the 27 neighbours; nothing before the first frame and outside the picture."""
    kernel = path.depthwise.weight[:, 0]
    padded = F.pad(x, (0, 0, 1, 1, 1, 1, 2, 0))
    assert path.depthwise.bias is not None
    total = path.depthwise.bias + sum(
        padded[:, f : f + x.shape[1], i : i + H, j : j + W] * kernel[:, f, i, j]
        for f in range(3)
        for i in range(3)
        for j in range(3)
    )
    return path.channel_mix(total)


def definition(mixer: Any, x: Tensor, chunk: int, retention: float) -> Tensor:
    if isinstance(mixer, WindowedSelfAttention):
        return softmax_definition(mixer, x, chunk)
    assert isinstance(mixer, LinearConvAttention)
    linear = None if mixer.linear is None else linear_definition(mixer.linear, x, chunk, retention)
    local = None if mixer.local is None else local_definition(mixer.local, x)
    if linear is None or local is None:
        only = local if linear is None else linear
        assert only is not None
        return mixer.out(only)
    share = torch.full((WIDTH,), 0.5).double() if mixer.gate is None else torch.sigmoid(mixer.gate)
    return mixer.out(share * linear + (1 - share) * local)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(list(BlockKind)),
    chunk=st.integers(1, 4),
    chunks=st.integers(1, 4),
    short=st.integers(0, 3),
    window=st.integers(0, 7),
    retention=st.sampled_from([0.3, 0.6, 1.0]),
)
def test_streaming_equals_the_definition(
    kind: BlockKind, chunk: int, chunks: int, short: int, window: int, retention: float
) -> None:
    frames = chunk * chunks + min(short, chunk - 1)
    mixer, x = build(kind, window=Window(window), retention=retention, chunk_frames=chunk), video(frames)
    torch.testing.assert_close(streamed(mixer, x, chunk), definition(mixer, x, chunk, retention), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", list(BlockKind))
def test_each_kind_has_the_parts_that_its_letter_promises(kind: BlockKind) -> None:
    mixer = build(kind, window=Window(2), retention=0.6, chunk_frames=2)
    is_softmax = kind in (BlockKind.SSA, BlockKind.FULL, BlockKind.COMPRESSED)
    assert isinstance(mixer, WindowedSelfAttention) == is_softmax
    if isinstance(mixer, WindowedSelfAttention):
        assert (mixer.compress is not None) == (kind is BlockKind.COMPRESSED)
        return
    assert (mixer.linear is None) == (kind is BlockKind.LOCAL)
    assert (mixer.local is None) == (kind is BlockKind.LINEAR)
    assert (mixer.gate is None) == (kind in (BlockKind.LOCAL, BlockKind.LINEAR, BlockKind.UNGATED))
    if mixer.linear is not None:
        assert mixer.linear.head_dim == HEAD_DIM * (2 if kind is BlockKind.WIDE_HEADS else 1)
        assert (mixer.linear.activation is F.relu) == (kind is BlockKind.RELU)


def test_an_lcha_block_without_paths_is_refused() -> None:
    with pytest.raises(ValueError, match="has a linear path, a local path or both"):
        LinearConvAttention(8, linear=None, local=None)


def test_heads_that_cannot_be_twice_as_wide_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks of kind H have heads of 64; 32 is no multiple of it"):
        build_mixer(BlockKind.WIDE_HEADS, 32, head_dim=32, window=Window(1), retention=0.5, chunk_frames=1, theta=10.0)


def test_the_sums_of_features_stay_positive_whatever_the_tokens_are() -> None:
    """The denominator has no rotation in it: softplus features are positive, so it can never reach zero."""
    mixer = build(BlockKind.LCHA, window=Window(1), retention=0.6, chunk_frames=1)
    state = mixer.empty(2, H, W, video(1))
    for frame in (100 * video(5)).split(1, dim=1):
        chunk = mixer.linear.project(frame)
        total = torch.einsum("rsne,rne->rsn", chunk.query_RSNE, state.linear.k_BNE + chunk.k_RNE)
        assert (total > 0).all()
        state = mixer.remember(mixer.project(frame), state)


def test_relu_features_that_are_all_zero_give_zero_and_not_nan() -> None:
    mixer = build(BlockKind.RELU, window=Window(1), retention=0.6, chunk_frames=1)
    nn.init.constant_(mixer.linear.phi_query.bias, -1e4)
    x = video(1)
    mixed = mixer.linear.mix(mixer.linear.project(x), mixer.linear.empty(2, x))
    assert torch.equal(mixed, torch.zeros_like(mixed))
