"""3-D rotary positions that are always counted from the chunk at hand, so a stream never runs out of them."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from streamstill.state import tensors_of

PLACE_FEATURES = 18


class Turns(NamedTuple):
    """Cosines and sines of each token's angles; trailing shape (1, head_dim / 2), to broadcast over heads."""

    cos: Tensor
    sin: Tensor

    def last(self, tokens: int) -> "Turns":
        """Those of the last ``tokens`` tokens."""
        start = self.cos.shape[0] - tokens
        return Turns(self.cos[start:], self.sin[start:])


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """How many rotated pairs of a head go to time, height and width: about 1:2:2... of ``head_dim / 2``."""
    pairs = head_dim // 2
    time = pairs // 4
    height = (pairs - time) // 2
    return time, height, pairs - time - height


def axis_frequencies(pairs: int, theta: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Radians per step of one axis, from 1 down to about 1/theta."""
    return theta ** -(torch.arange(pairs, device=device, dtype=dtype) / max(pairs, 1))


def token_turns(
    frames: range, height: int, width: int, *, head_dim: int, theta: float, like: Tensor, stride: int = 1
) -> Turns:
    """Turns of all tokens of some latent frames, in the order frame, row, column.

    Args:
        frames: positions in time, counted from the chunk at hand (negative: the past).
        stride: a token stands for a cell of ``stride x stride`` places and is put at its middle.
    """
    return _kept(_token_turns, frames, height, width, stride, head_dim, theta, like.device, like.dtype)


def time_turns(frames: int, *, head_dim: int, theta: float, like: Tensor) -> Turns:
    """Turns that move a key ``frames`` latent frames into the past; shape (1, head_dim / 2)."""
    return _kept(_time_turns, frames, head_dim, theta, like.device, like.dtype)


def place_features(height: int, width: int, like: Tensor) -> Tensor:
    """Where in the frame each token lies, shape (H, W, PLACE_FEATURES): rotary positions only tell distances.

    Coordinates run from -1 to 1 over the frame, whatever its size in tokens.
    """
    return _kept(_place_features, height, width, like.device, like.dtype)


def rotate(x: Tensor, turns: Turns) -> Tensor:
    """Rotate the last axis of ``x``: its first half are the real parts, its second half the imaginary ones."""
    real, imaginary = x.chunk(2, dim=-1)
    cos, sin = turns.cos.to(x.dtype), turns.sin.to(x.dtype)
    return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)


def _token_turns(
    frames: range,
    height: int,
    width: int,
    stride: int,
    head_dim: int,
    theta: float,
    device: torch.device,
    dtype: torch.dtype,
) -> Turns:
    middle, exact = (stride - 1) / 2, torch.promote_types(dtype, torch.float32)
    grids = torch.meshgrid(
        torch.arange(frames.start, frames.stop, device=device, dtype=exact),
        torch.arange(height, device=device, dtype=exact) * stride + middle,
        torch.arange(width, device=device, dtype=exact) * stride + middle,
        indexing="ij",
    )
    sizes = axis_pairs(head_dim)
    angles = [
        grid.reshape(-1, 1) * axis_frequencies(pairs, theta, device, exact)
        for grid, pairs in zip(grids, sizes, strict=True)
    ]
    angles_S1E = torch.cat(angles, dim=1).unsqueeze(1)
    return Turns(angles_S1E.cos().to(dtype), angles_S1E.sin().to(dtype))


def _time_turns(frames: int, head_dim: int, theta: float, device: torch.device, dtype: torch.dtype) -> Turns:
    time, height, width = axis_pairs(head_dim)
    exact = torch.promote_types(dtype, torch.float32)
    angles = -frames * axis_frequencies(time, theta, device, exact)
    angles_1E = torch.cat([angles, angles.new_zeros(height + width)]).unsqueeze(0)
    return Turns(angles_1E.cos().to(dtype), angles_1E.sin().to(dtype))


def _place_features(height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    y = (torch.arange(height, device=device) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=device) + 0.5) * (2 / width) - 1
    places_HW2 = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)
    angles = (places_HW2.unsqueeze(-1) * torch.pi * 2.0 ** torch.arange(4, device=device)).flatten(-2)
    return torch.cat([places_HW2, angles.cos(), angles.sin()], dim=-1).to(dtype)


TableT = TypeVar("TableT", Turns, Tensor)

_remembered = lru_cache(maxsize=64)(lambda make, *arguments: make(*arguments))


def _kept(make: Callable[..., TableT], *arguments: object) -> TableT:
    """Made once and kept: every block of every pass asks for the same few tables.

    A compiler or exporter must see them made: what it traces is no value to keep. Kept tables outlive the
    inference mode or autograd they were first asked for in.
    """
    if torch.compiler.is_compiling():
        return make(*arguments)
    with torch.inference_mode(False), torch.no_grad():
        table: TableT = _remembered(make, *arguments)
    if any(type(tensor) is not Tensor for tensor in tensors_of(table)):
        _remembered.cache_clear()  # made under a mode with tensors of its own kind (fake, functional)
    return table
