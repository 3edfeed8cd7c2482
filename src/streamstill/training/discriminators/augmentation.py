"""What the clips of teacher and student go through alike, so that no trace of their making tells them apart."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from streamstill.codec.video import VideoCodec, to_frames, to_pixels
from streamstill.config import require_positive
from streamstill.media import read_clip, write_clip
from streamstill.types import Clip, Frames

File: TypeAlias = Literal["none", "8bit", "mjpeg", "h264"]
JPEG_QUALITY = 75
FPS = 8.0  # of the files: what they hold does not depend on it


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A way that pixels take before the blindfold, the same for both sides; by default none.

    In this order: stored in a file, through the codec and back, resampled in space, resampled in time, blurred, its
    contrast and colours changed. Blur and contrast are drawn anew for every clip, so that neither side is the sharper
    one. Everything but ``file`` is differentiable.
    """

    file: File = "none"  # 8bit: rounded; mjpeg: every frame a JPEG; h264: an mp4 as ``media`` writes it
    codec_round_trip: bool = False
    shrink: int = 1  # times in height and width, by averaging, and enlarged to what it was
    every: int = 1  # frames: of so many the first is seen
    blur: tuple[float, float] | None = None  # least and largest standard deviation, pixels; drawn evenly by its log
    contrast: float = 0.0  # at most so much of it is taken away, and each colour moved by half as much at most

    def __post_init__(self) -> None:
        require_positive(self, "shrink", "every")
        if self.blur is not None and not 0 < self.blur[0] <= self.blur[1]:
            raise ValueError(f"blur must be two widths in pixels, 0 < least <= largest, got {self.blur}; or None")
        if not 0 <= self.contrast < 1:
            raise ValueError(f"contrast must lie in [0, 1), got {self.contrast}; 0 leaves it as it is")

    def __call__(self, pixels_BFCHW: Tensor, codec: VideoCodec, generator: torch.Generator) -> Tensor:
        """The pixels as they arrive, in [-1, 1] but for ``contrast``, which may move them a little beyond.

        Raises:
            ValueError: a gradient should flow through a file.
        """
        x = pixels_BFCHW if self.file == "none" else stored(pixels_BFCHW, self.file)
        if self.codec_round_trip:
            x = codec.decode(codec.encode(x))[0].clamp(-1, 1)
        x = _shrunk(x, self.shrink)[:, :: self.every]
        if self.blur is not None:
            low, high = (math.log(width) for width in self.blur)
            x = blurred(x, torch.exp(low + (high - low) * _drawn((len(x),), generator, x)))
        if self.contrast:
            lost = self.contrast * _drawn((len(x), 1, 1, 1, 1), generator, x)
            x = (1 - lost) * x + self.contrast * (_drawn((len(x), 1, x.shape[2], 1, 1), generator, x) - 0.5)
        return x


NOTHING = Augmentation()


def blurred(pixels_BFCHW: Tensor, std_B: Tensor) -> Tensor:
    """Each clip under a Gaussian of its own width, in pixels; beyond the edge the picture goes on as it ends there."""
    reach = math.ceil(3 * float(std_B.max()))
    offsets = torch.arange(-reach, reach + 1, device=pixels_BFCHW.device, dtype=pixels_BFCHW.dtype)
    weight = torch.exp(-0.5 * (offsets / std_B[:, None]).square())
    weight_BS = weight / weight.sum(dim=1, keepdim=True)
    x_NBHW = pixels_BFCHW.flatten(1, 2).transpose(0, 1)
    for padding, kernel in (((reach, reach, 0, 0), (1, -1)), ((0, 0, reach, reach), (-1, 1))):
        padded = F.pad(x_NBHW, padding, mode="replicate")
        x_NBHW = F.conv2d(padded, weight_BS.view(len(std_B), 1, *kernel), groups=len(std_B))
    return x_NBHW.transpose(0, 1).unflatten(1, pixels_BFCHW.shape[1:3])


def _drawn(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.rand(shape, generator=generator).to(like)


def stored(pixels_BFCHW: Tensor, file: File) -> Tensor:
    """The pixels as they come out of files of this kind, one for each clip.

    Raises:
        ValueError: they require a gradient, which no file has.
    """
    if torch.is_grad_enabled() and pixels_BFCHW.requires_grad:
        raise ValueError(
            f"no gradient flows through a file, and file={file!r} was asked of pixels that require one; "
            "a loss that reaches the student through its pixels needs file='none'"
        )
    clips = [_STORES[file](to_frames(pixels_FCHW)) for pixels_FCHW in pixels_BFCHW]
    return torch.stack([to_pixels(frames_FCHW) for frames_FCHW in clips]).to(pixels_BFCHW)


def _as_they_are(frames_FCHW: Frames) -> Frames:
    return frames_FCHW


def _jpegs(frames_FCHW: Frames) -> Frames:
    return np.stack([_jpeg(frame_CHW.transpose(1, 2, 0)).transpose(2, 0, 1) for frame_CHW in frames_FCHW])


def _jpeg(frame_HWC: Frames) -> Frames:
    held = io.BytesIO()
    Image.fromarray(frame_HWC).save(held, format="JPEG", quality=JPEG_QUALITY)
    shown: Frames = np.asarray(Image.open(held))
    return shown


def _h264(frames_FCHW: Frames) -> Frames:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, Clip(frames_FCHW=frames_FCHW, fps=FPS))
        return read_clip(path).frames_FCHW


_STORES = {"none": _as_they_are, "8bit": _as_they_are, "mjpeg": _jpegs, "h264": _h264}


def _shrunk(pixels_BFCHW: Tensor, times: int) -> Tensor:
    if times == 1:
        return pixels_BFCHW
    height, width = pixels_BFCHW.shape[-2:]
    small = F.interpolate(
        pixels_BFCHW.flatten(0, 1), size=(math.ceil(height / times), math.ceil(width / times)), mode="area"
    )
    large = F.interpolate(small, size=(height, width), mode="bilinear")
    return large.unflatten(0, pixels_BFCHW.shape[:2])
