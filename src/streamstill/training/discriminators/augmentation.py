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

    In this order: stored in a file, through the codec and back, resampled in space, resampled in time. Everything but
    ``file`` is differentiable.
    """

    file: File = "none"  # 8bit: rounded; mjpeg: every frame a JPEG; h264: an mp4 as ``media`` writes it
    codec_round_trip: bool = False
    shrink: int = 1  # times in height and width, by averaging, and enlarged to what it was
    every: int = 1  # frames: of so many the first is seen

    def __post_init__(self) -> None:
        require_positive(self, "shrink", "every")

    def __call__(self, pixels_BFCHW: Tensor, codec: VideoCodec) -> Tensor:
        """The pixels as they arrive, in [-1, 1].

        Raises:
            ValueError: a gradient should flow through a file.
        """
        x = pixels_BFCHW if self.file == "none" else stored(pixels_BFCHW, self.file)
        if self.codec_round_trip:
            x = codec.decode(codec.encode(x))[0].clamp(-1, 1)
        return _shrunk(x, self.shrink)[:, :: self.every]


NOTHING = Augmentation()


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
