"""What the adversary asks of a discriminator, and what it says of a module that does not fit."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor, nn

from streamstill.codec.video import VideoCodec

Sees: TypeAlias = Literal["pixels", "latents"]
PIXEL_RANGE = (-1.0, 1.0)  # of what every ``VideoCodec`` decodes, unless it has a ``pixel_range`` of its own


class Discriminator(Protocol):
    """A score per clip; only differences between clips of one prompt mean anything.

    A module that answers this may say more: ``sees`` ("pixels" unless it says "latents"), ``in_channels``,
    ``pixel_range`` (of the pixels that it takes, [-1, 1] unless it says otherwise) and ``per_chunk``.
    """

    def __call__(self, clips_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """``score_B``: higher looks more like the teacher."""
        ...


class ChunkDiscriminator(Discriminator, Protocol):
    """A discriminator that also judges every chunk by itself and its past; its ``per_chunk`` is true."""

    def chunk_scores(self, clips_BFCHW: Tensor, prompts: Sequence[str], *, chunks: int) -> Tensor:
        """``score_BK`` of the ``chunks`` equal parts of each clip; nothing after a chunk's end counts for it."""
        ...


def sees(discriminator: nn.Module) -> Sees:
    """What the discriminator wants to be shown."""
    return "latents" if getattr(discriminator, "sees", "pixels") == "latents" else "pixels"


def require_fitting(discriminator: nn.Module, codec: VideoCodec) -> None:
    """Check that the discriminator takes what the codec gives.

    Raises:
        ValueError: it wants another number of channels, or pixels of another range.
    """
    name, what = type(discriminator).__name__, sees(discriminator)
    given = codec.latent_channels if what == "latents" else 3
    wanted = getattr(discriminator, "in_channels", given)
    if wanted != given:
        raise ValueError(
            f"{name} sees {what} of {wanted} channels, and {type(codec).__name__} gives {what} of {given}; "
            f"build it with in_channels={given}"
        )
    _require_same_range(discriminator, codec)


def require_clips(clips_BFCHW: Tensor, prompts: Sequence[str], *, channels: int) -> None:
    """Check what a discriminator is given.

    Raises:
        ValueError: the clips have not five axes or other channels, or there is not one prompt for each.
    """
    shape = tuple(clips_BFCHW.shape)
    if len(shape) != 5 or shape[2] != channels:
        raise ValueError(
            f"this discriminator takes clips of shape (B, F, {channels}, H, W), got {shape}; "
            "give a batch of clips of its own kind, pixels or latents"
        )
    if len(prompts) != shape[0]:
        raise ValueError(f"{shape[0]} clips have {len(prompts)} prompts; give one each")


def require_whole_chunks(frames: int, chunks: int) -> int:
    """Frames of each of the ``chunks`` equal parts of a clip.

    Raises:
        ValueError: the frames cannot be dealt out evenly.
    """
    if chunks < 1 or frames % chunks:
        raise ValueError(
            f"{frames} frames cannot be cut into {chunks} equal chunks; give clips of whole chunks, "
            "and an augmentation whose `every` divides the frames of a chunk"
        )
    return frames // chunks


def _require_same_range(discriminator: nn.Module, codec: Any) -> None:
    if sees(discriminator) == "latents":
        return
    wanted = tuple(getattr(discriminator, "pixel_range", PIXEL_RANGE))
    given = tuple(getattr(codec, "pixel_range", PIXEL_RANGE))
    if wanted != given:
        raise ValueError(
            f"{type(discriminator).__name__} takes pixels in {list(wanted)}, and {type(codec).__name__} decodes to "
            f"{list(given)}; give them one range, streamstill's is {list(PIXEL_RANGE)}"
        )
