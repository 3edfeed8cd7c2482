"""Between the two resolutions: down to a cell of tokens and back up (S2DiT eq. 3; the operators are our choice)."""

from torch import Tensor, nn

STRIDE = 2  # the low resolution has every second row and column (s2dit.md 2)


def strided_mean(width: int) -> nn.Conv2d:
    """A depthwise strided convolution that starts as the mean of each ``STRIDE x STRIDE`` cell."""
    conv = nn.Conv2d(width, width, STRIDE, stride=STRIDE, groups=width)
    nn.init.constant_(conv.weight, 1 / STRIDE**2)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def downsample(conv: nn.Module, x_RFHWD: Tensor) -> Tensor:
    """One token for each cell."""
    planes: Tensor = conv(x_RFHWD.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return planes.unflatten(0, x_RFHWD.shape[:2])


def upsample(x_RFHWD: Tensor) -> Tensor:
    """Nearest: every low-resolution token is copied to its cell."""
    rows, frames, height, width, channels = x_RFHWD.shape
    cells = x_RFHWD[:, :, :, None, :, None].expand(rows, frames, height, STRIDE, width, STRIDE, channels)
    return cells.reshape(rows, frames, height * STRIDE, width * STRIDE, channels)
