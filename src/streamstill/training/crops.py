"""Random cuts of clips as batches of pixels. A batch is a pure function of the step, so a run can stop and go on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from streamstill.codec.video import to_pixels
from streamstill.config import require_positive
from streamstill.training.batches import Examples
from streamstill.types import Clip, Frames


@dataclass(frozen=True, eq=False)
class PixelClips:
    """Clips as floats in [-1, 1] of shape (B, F, 3, H, W), and a prompt for each."""

    pixels_BFCHW: Tensor
    prompts: tuple[str, ...]

    def __getitem__(self, rows: slice) -> "PixelClips":
        """Some of the clips."""
        return PixelClips(self.pixels_BFCHW[rows], self.prompts[rows])


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Size of the cuts, in pixels or in latents; ``flip`` mirrors every second one from left to right."""

    frames: int
    height: int
    width: int
    flip: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "frames", "height", "width")

    def within(self, frames: int, height: int, width: int) -> "Crop":
        """The same where there is room for it, and no larger than this elsewhere."""
        return replace(
            self, frames=min(self.frames, frames), height=min(self.height, height), width=min(self.width, width)
        )


def crop_batches(
    clips: Sequence[tuple[str, Clip]], crop: Crop, *, batch: int, seed: int
) -> Callable[[int], PixelClips]:
    """Cuts of (prompt, clip) pairs: clip, place, moment and side are drawn anew at every step.

    Raises:
        ValueError: there is no clip, or one is smaller than the cut.
    """
    if not clips or batch < 1:
        raise ValueError(f"cuts need at least 1 clip and a batch of 1, got {len(clips)} clips and {batch}")
    for prompt, clip in clips:
        frames, _, height, width = clip.frames_FCHW.shape
        _require_room((frames, height, width), crop, f"the clip {prompt!r}")

    def batch_at(step: int) -> PixelClips:
        dice = np.random.default_rng([seed, step])
        chosen = [clips[i] for i in dice.integers(len(clips), size=batch)]
        cuts = [to_pixels(_cut(clip.frames_FCHW, crop, dice)) for _, clip in chosen]
        return PixelClips(torch.stack(cuts), tuple(prompt for prompt, _ in chosen))

    return batch_at


def latent_crop_batches(examples: Examples, crop: Crop, *, batch: int, seed: int) -> Callable[[int], Examples]:
    """Cuts of latents, drawn in the same way.

    Raises:
        ValueError: the latents are smaller than the cut, or should be mirrored: their channels know left from right.
    """
    if batch < 1 or crop.flip:
        raise ValueError(f"cuts of latents need a batch of 1 and flip=False, got {batch} and {crop}")
    count, frames, _, height, width = examples.latents_BFCHW.shape
    _require_room((frames, height, width), crop, "a clip's latents")

    def batch_at(step: int) -> Examples:
        dice = np.random.default_rng([seed, step])
        rows = [int(row) for row in dice.integers(count, size=batch)]
        cuts = [examples.latents_BFCHW[row][_window(examples.latents_BFCHW[row].shape, crop, dice)] for row in rows]
        return Examples(torch.stack(cuts), tuple(examples.prompts[row] for row in rows))

    return batch_at


def _cut(frames_FCHW: Frames, crop: Crop, dice: np.random.Generator) -> Frames:
    cut_FCHW = frames_FCHW[_window(frames_FCHW.shape, crop, dice)]
    return cut_FCHW[..., ::-1] if crop.flip and dice.integers(2) else cut_FCHW


def _window(shape: tuple[int, ...], crop: Crop, dice: np.random.Generator) -> tuple[slice, slice, slice, slice]:
    """A random place of the crop's size in something of shape (F, C, H, W)."""
    sizes = ((shape[0], crop.frames), (shape[2], crop.height), (shape[3], crop.width))
    starts = [int(dice.integers(have - wanted + 1)) for have, wanted in sizes]
    f, h, w = (slice(start, start + wanted) for start, (_, wanted) in zip(starts, sizes, strict=True))
    return f, slice(None), h, w


def _require_room(have: tuple[int, int, int], crop: Crop, what: str) -> None:
    wanted = crop.frames, crop.height, crop.width
    if any(room < size for room, size in zip(have, wanted, strict=True)):
        raise ValueError(
            f"{what} has frames, rows and columns {have}, no room for a cut of {wanted}; make the crop smaller"
        )
