"""A small causal autoencoder that is trained here: for users without any pretrained one."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from streamstill.codec.causal import CausalDecoder, CausalEncoder, CodecState, begin_linear, cells, require_shape
from streamstill.codec.linear_start import moments, principal, scales
from streamstill.codec.module_folder import read_module_config, read_weights, save_module
from streamstill.codec.pretrained import fingerprint, frozen, require_fingerprint
from streamstill.codec.video import latent_shape
from streamstill.config import require_positive
from streamstill.types import Geometry

KIND = "learned_codec"


@dataclass(frozen=True, kw_only=True)
class LearnedCodecConfig:
    """Size of the autoencoder.

    Args:
        compression: pixel frames, rows and columns per latent; rows and columns are even.
        latent_channels: C of the latents.
        width: features at the latents' resolution; half of it at twice that resolution.
        blocks: of each resolution, in the encoder; the decoder has as many.
        whitening: how far ``calibrate`` evens the channels out: 1 gives each variance 1, 0 leaves each the share of
            the pixels' variance that it has.
        path: folder whose weights ``build_learned_codec`` takes; "" for fresh ones, which a state dict must fill.
        fingerprint: of the weights; "" accepts any. ``of`` fills in both.
    """

    kind: Literal["learned"] = "learned"
    compression: tuple[int, int, int] = (2, 8, 8)
    latent_channels: int = 48
    width: int = 96
    blocks: int = 2
    whitening: float = 0.5
    path: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        require_shape(self.compression, self.width)
        require_positive(self, "latent_channels", "blocks")
        if not 0 <= self.whitening <= 1:
            raise ValueError(f"whitening must be in [0, 1], got {self.whitening}")

    @classmethod
    def of(cls, folder: str | Path) -> "LearnedCodecConfig":
        """The config of a saved codec, its weights included by ``path``.

        Raises:
            ValueError: it is no learned codec's folder.
        """
        return replace(read_module_config(folder, kind=KIND, config=cls), path=str(folder))


class LearnedCodec(nn.Module):
    """Answers ``VideoCodec``; ``save_pretrained`` and ``from_pretrained`` as usual.

    Nothing in it looks ahead: latents of a clip's beginning are the same whatever comes after, and decoding in pieces
    gives the pixels of decoding whole, to rounding. Latents are shifted and scaled, channel by channel, to mean 0 and
    a variance of 1 on average over the clips that ``calibrate`` was given; before that they are as the encoder makes
    them.
    """

    mean_C: Tensor
    std_C: Tensor  # what latents are divided by; their own standard deviation where whitening is 1

    def __init__(self, config: LearnedCodecConfig) -> None:
        super().__init__()
        self.config = replace(config, path="", fingerprint="")  # the sizes; the weights are this module's own
        sizes = config.compression, config.latent_channels, config.width, config.blocks
        self.encoder, self.decoder = CausalEncoder(*sizes), CausalDecoder(*sizes)
        self.register_buffer("mean_C", torch.zeros(config.latent_channels))
        self.register_buffer("std_C", torch.ones(config.latent_channels))

    @property
    def latent_channels(self) -> int:
        """C of the latents."""
        return self.config.latent_channels

    @property
    def compression(self) -> tuple[int, int, int]:
        """Pixel frames, rows and columns per latent frame, row and column."""
        return self.config.compression

    def encode(self, pixels_BFCHW: Tensor) -> Tensor:
        """Latents of shape (B, F/frames, C, H/rows, W/columns).

        Raises:
            ValueError: frames, height or width is not divisible by the compression.
        """
        _, frames, _, height, width = pixels_BFCHW.shape
        latent_shape(self, Geometry(frames=frames, height=height, width=width, fps=1))
        return (self.encoder(pixels_BFCHW) - self._per_channel(self.mean_C)) / self._per_channel(self.std_C)

    def decode(self, latents_BFCHW: Tensor, state: CodecState | None = None) -> tuple[Tensor, CodecState]:
        """Pixels of these latent frames, and what the next call needs; ``None`` starts a video.

        Raises:
            ValueError: the latents have other channels, or the state belongs to clips of another number or size.
        """
        self.decoder.require_fitting(latents_BFCHW, state)
        return self.decoder(latents_BFCHW * self._per_channel(self.std_C) + self._per_channel(self.mean_C), state)

    @torch.no_grad()
    def begin_with(self, clips: Iterable[Tensor]) -> None:
        """Begin as the best linear codec of these clips: principal components of the latents' pixels, variance 1.

        The linear part stays as it is from then on; the network learns what it leaves.

        Args:
            clips: pixels of shape (B, F, 3, H, W); one at a time is in memory.

        Raises:
            ValueError: there is no clip, or a latent has fewer pixel values than channels.
        """
        rows = (cells(pixels_BFCHW, self.compression) for pixels_BFCHW in clips)
        found = moments((row, row[:, :0]) for row in rows)
        if self.latent_channels > len(found.mean_x):
            raise ValueError(
                f"a latent of {self.latent_channels} channels stands for only {len(found.mean_x)} values of pixels; "
                "give it fewer channels"
            )
        directions, std_C = principal(found, self.latent_channels)
        inward_CX = (directions / std_C).T
        begin_linear(self.encoder, inward_CX, -inward_CX @ found.mean_x)
        begin_linear(self.decoder, directions * std_C, found.mean_x)

    @torch.no_grad()
    def calibrate(self, clips: Iterable[Tensor]) -> None:
        """Shift and scale the latents to mean 0 and variance 1 on average; what is decoded stays the same.

        How the variance is shared among the channels is the config's ``whitening``. What a channel is in pixels is
        read from the linear part of the decoder.

        Args:
            clips: pixels of shape (B, F, 3, H, W); one at a time is in memory.

        Raises:
            ValueError: there is no clip.
        """
        raw = (self.encoder(pixels_BFCHW).movedim(2, -1).flatten(0, 3) for pixels_BFCHW in clips)
        found = moments((row, row[:, :0]) for row in raw)
        reach_C = self.decoder.linear.weight.double().norm(dim=0)
        self.mean_C.copy_(found.mean_x)
        self.std_C.copy_(scales(found.xx.diagonal().clamp_min(0).sqrt(), reach_C, self.config.whitening))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json``, each whole or not at all; the config comes last.

        Raises:
            OSError: they could not be written, for example to a full disk.
        """
        save_module(self, folder, kind=KIND, config=replace(self.config, fingerprint=fingerprint(self)))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LearnedCodec":
        """Read what ``save_pretrained`` wrote, ready to use.

        Raises:
            ValueError: not a learned codec's folder, another format version, or a damaged file.
        """
        codec = cls(read_module_config(folder, kind=KIND, config=LearnedCodecConfig))
        read_weights(codec, folder)
        return codec.eval()

    def _per_channel(self, value_C: Tensor) -> Tensor:
        return value_C[:, None, None]


def build_learned_codec(config: LearnedCodecConfig) -> LearnedCodec:
    """A frozen codec: of the weights in ``config.path``, or fresh ones for a state dict to fill.

    Raises:
        ValueError: the folder is no learned codec, or holds one of other sizes or weights than the config says.
    """
    if not config.path:
        return frozen(LearnedCodec(config))
    codec = LearnedCodec.from_pretrained(config.path)
    if codec.config != replace(config, path="", fingerprint=""):
        raise ValueError(
            f"the codec in {config.path} has other sizes than were asked for: {codec.config} and {config}; "
            "take LearnedCodecConfig.of(folder)"
        )
    require_fingerprint(fingerprint(codec), config.fingerprint, config.path)
    return frozen(codec)
