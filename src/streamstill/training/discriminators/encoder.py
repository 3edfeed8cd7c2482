"""A pretrained video encoder with a light head that knows the prompt: V-JEPA 2 or VideoMAE, from `transformers`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from streamstill.codec.pretrained import library
from streamstill.config import require_positive
from streamstill.training.discriminators.discriminator import Sees, require_clips
from streamstill.training.discriminators.head import WORDS, PromptHead
from streamstill.training.discriminators.pretrained import IMAGENET, evenly, model_type, normalised, resized

EXTRA = "encoders"
CLASSES = {"vjepa2": "VJEPA2Model", "videomae": "VideoMAEModel"}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which encoder, how many of its blocks learn, and the width of the head."""

    encoder: str  # a folder, or the id of a repository
    kind: Literal["encoder"] = "encoder"
    train_blocks: int = 0  # of the encoder, the last ones; 0: it is frozen
    width: int = 64

    def __post_init__(self) -> None:
        require_positive(self, "width")
        if self.train_blocks < 0:
            raise ValueError(f"train_blocks must not be negative, got {self.train_blocks}; 0 freezes the encoder")


class EncoderDiscriminator(nn.Module):
    """Frames are fitted to what the encoder was trained on; its tokens are projected, pooled and scored by a head.

    All of it is differentiable by the pixels. ``model`` is the encoder's own module.

    Args:
        train_blocks: how many of the last blocks learn; the rest is frozen, and always in evaluation mode.

    Raises:
        ValueError: the encoder has fewer blocks.
    """

    in_channels = 3
    sees: Sees = "pixels"

    def __init__(self, model: nn.Module, *, train_blocks: int = 0, width: int = 64, words: int = WORDS) -> None:
        super().__init__()
        config: Any = model.config
        self.frames, self.side = _size(config)
        self.encoder = _without_predictor(model).requires_grad_(False)
        self._learning = tuple(_last_blocks(self.encoder, train_blocks))
        for part in self._learning:
            part.requires_grad_(True)
        self.project = nn.Sequential(nn.LayerNorm(config.hidden_size), nn.Linear(config.hidden_size, width), nn.SiLU())
        self.head = PromptHead(2 * width, width, words=words)

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | Path, *, train_blocks: int = 0, width: int = 64, words: int = WORDS
    ) -> "EncoderDiscriminator":
        """With the weights of a folder or a repository; the head is fresh.

        Raises:
            ModuleNotFoundError: transformers is not installed.
            OSError: there is no such model.
            ValueError: it is neither a V-JEPA 2 nor a VideoMAE, or has fewer blocks than should learn.
        """
        kind = model_type(path_or_repo, sorted(CLASSES), extra=EXTRA)
        made = getattr(library("transformers", EXTRA), CLASSES[kind])
        return cls(made.from_pretrained(str(path_or_repo)), train_blocks=train_blocks, width=width, words=words)

    def train(self, mode: bool = True) -> "EncoderDiscriminator":
        """Training mode for what learns."""
        super().train(mode)
        self.encoder.eval()
        for part in self._learning:
            part.train(mode)
        return self

    def forward(self, clips_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """``score_B`` of pixels in [-1, 1].

        Raises:
            ValueError: the clips have other axes or channels, or there is not one prompt for each.
        """
        require_clips(clips_BFCHW, prompts, channels=self.in_channels)
        tokens_BSD = self.project(self.tokens(clips_BFCHW))
        return self.head(torch.cat([tokens_BSD.mean(dim=1), tokens_BSD.amax(dim=1)], dim=1), prompts)

    def tokens(self, clips_BFCHW: Tensor) -> Tensor:
        """``tokens_BSD``: what the encoder says of each tube of pixels."""
        fitted = normalised(resized(evenly(clips_BFCHW, self.frames), self.side, self.side), IMAGENET)
        return self.encoder(fitted).last_hidden_state


def _size(config: Any) -> tuple[int, int]:
    """Frames and side of the square clips that the encoder was trained on."""
    if config.model_type == "videomae":
        return config.num_frames, config.image_size
    return config.frames_per_clip, config.crop_size


def _without_predictor(model: nn.Module) -> nn.Module:
    """V-JEPA 2 without the half that guesses hidden tokens."""
    return model.get_submodule("encoder") if getattr(model.config, "model_type", "") == "vjepa2" else model


def _last_blocks(encoder: nn.Module, count: int) -> list[nn.Module]:
    """The last blocks of the encoder, and the norm after them."""
    inner: Any = getattr(encoder, "encoder", encoder)
    blocks: list[nn.Module] = list(inner.layer)
    if count > len(blocks):
        raise ValueError(f"the encoder has {len(blocks)} blocks, and {count} of them should learn; lower train_blocks")
    norm = getattr(encoder, "layernorm", None)
    return [] if count == 0 else [*blocks[-count:], *([] if norm is None else [norm])]
