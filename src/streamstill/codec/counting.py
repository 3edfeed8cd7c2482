"""How many latent frames a video has, and how many pixel frames they make.

Causal autoencoders give the first latent frame fewer pixel frames than the others (Wan: 1, then 4 each). A codec that
does so has ``first_frames``; without it, all latent frames make as many.
"""

from dataclasses import replace
from typing import Protocol, cast

from streamstill.codec.video import VideoCodec, latent_shape
from streamstill.types import Geometry


class LatentSizes(Protocol):
    """The sizes of latents: what any codec knows, and a decoder alone, too."""

    @property
    def latent_channels(self) -> int:
        """C of the latents."""
        ...

    @property
    def compression(self) -> tuple[int, int, int]:
        """Pixel frames, rows and columns per latent frame, row and column."""
        ...


def first_frames(codec: LatentSizes) -> int:
    """Pixel frames that the first latent frame of a video makes."""
    return int(getattr(codec, "first_frames", codec.compression[0]))


def sizes_of(codec: LatentSizes) -> tuple[int, tuple[int, ...], int]:
    """Channels, compression, first frames: codecs in which these are equal can decode each other's latents."""
    return codec.latent_channels, tuple(codec.compression), first_frames(codec)


def pixel_frames(codec: LatentSizes, latent_frames: int) -> int:
    """Pixel frames of a video with this many latent frames, counted from its start."""
    return first_frames(codec) + codec.compression[0] * (latent_frames - 1)


def latent_frames(codec: LatentSizes, frames: int) -> int:
    """Latent frames of a video with this many pixel frames; the inverse of ``pixel_frames``.

    Raises:
        ValueError: no whole number of latent frames makes as many.
    """
    first, each = first_frames(codec), codec.compression[0]
    more, rest = divmod(frames - first, each)
    if rest or more < 0:
        low = first + each * max(more, 0)
        raise ValueError(
            f"the first latent frame of this codec makes {first} pixel frames and every other {each}, which never "
            f"adds up to {frames}; use {low} or {low + each}"
        )
    return more + 1


def covering_latents(codec: LatentSizes, frames: int) -> int:
    """The fewest latent frames that make at least this many pixel frames."""
    more = max(frames - first_frames(codec), 0)
    return 1 - (-more // codec.compression[0])


def clip_latents(codec: LatentSizes, geometry: Geometry) -> tuple[int, int, int, int]:
    """(latent frames, C, latent height, latent width) of clips of this geometry.

    Raises:
        ValueError: the clip size does not fit the codec.
    """
    each = codec.compression[0]
    if first_frames(codec) != each:
        geometry = replace(geometry, frames=each * latent_frames(codec, geometry.frames))
    return latent_shape(cast(VideoCodec, codec), geometry)  # which asks for nothing but the sizes
