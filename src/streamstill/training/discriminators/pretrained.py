"""Loading what discriminators borrow from `transformers`, and fitting clips to what such a model takes."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from streamstill.codec.pretrained import library

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of pixels in [0, 1]
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def model_type(path_or_repo: str | Path, known: Sequence[str], *, extra: str) -> str:
    """The kind of model that a folder or repository holds.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        OSError: there is no such model.
        ValueError: it is none of the known kinds.
    """
    config = library("transformers", extra).AutoConfig.from_pretrained(str(path_or_repo))
    if config.model_type not in known:
        raise ValueError(
            f"{path_or_repo} holds a model of the type {config.model_type!r}; this discriminator takes one of {known}"
        )
    return str(config.model_type)


def evenly(clips_BFCHW: Tensor, frames: int) -> Tensor:
    """``frames`` frames evenly over the clip, the first and the last among them; repeated where it has fewer."""
    order = torch.linspace(0, clips_BFCHW.shape[1] - 1, frames).round().long()
    return clips_BFCHW[:, order.to(clips_BFCHW.device)]


def resized(clips_BFCHW: Tensor, height: int, width: int) -> Tensor:
    """Stretched to this size, smoothly and without aliasing; differentiable."""
    flat = F.interpolate(clips_BFCHW.flatten(0, 1), size=(height, width), mode="bilinear", antialias=True)
    return flat.unflatten(0, clips_BFCHW.shape[:2])


def normalised(pixels_BFCHW: Tensor, statistics: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """Pixels in [-1, 1] in units of the mean and standard deviation that a model was trained with."""
    mean, deviation = (pixels_BFCHW.new_tensor(values).view(3, 1, 1) for values in statistics)
    return ((pixels_BFCHW + 1) / 2 - mean) / deviation
