"""3-D rotary positions that are always counted from the chunk at hand, so a stream never runs out of them."""

import torch
from torch import Tensor


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """How many rotated pairs of a head go to time, height and width: about 1:2:2... of ``head_dim / 2``."""
    pairs = head_dim // 2
    time = pairs // 4
    height = (pairs - time) // 2
    return time, height, pairs - time - height


def axis_frequencies(pairs: int, theta: float, device: torch.device) -> Tensor:
    """Radians per step of one axis, from 1 down to about 1/theta."""
    return theta ** -(torch.arange(pairs, device=device, dtype=torch.float32) / max(pairs, 1))


def rotations(frames: Tensor, height: int, width: int, *, head_dim: int, theta: float) -> Tensor:
    """Angles of every token, shape (frames * height * width, head_dim / 2), in radians.

    Args:
        frames: positions in time of the latent frames, counted from the chunk at hand (negative: the past).
    """
    device = frames.device
    sizes = axis_pairs(head_dim)
    grids = torch.meshgrid(
        frames.float(),
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    angles = [grid.reshape(-1, 1) * axis_frequencies(n, theta, device) for grid, n in zip(grids, sizes, strict=True)]
    return torch.cat(angles, dim=1)


def time_rotation(frames: int, *, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Angles that move a key ``frames`` latent frames into the past; shape (head_dim / 2,), radians."""
    time, height, width = axis_pairs(head_dim)
    angles = -frames * axis_frequencies(time, theta, device)
    return torch.cat([angles, torch.zeros(height + width, device=device)])


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the last axis of ``x``: its first half are the real parts, its second half the imaginary ones.

    Args:
        angles: broadcastable to ``x`` with half its last axis.
    """
    real, imaginary = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
