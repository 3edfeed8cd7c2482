"""A light decoder for the latents of any codec: S2DiT has one for phones (D.1, whose text was not found)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from streamstill.codec.build import codec_fingerprint
from streamstill.codec.causal import CausalDecoder, CodecState, begin_linear, cells, require_shape
from streamstill.codec.counting import LatentSizes, first_frames, sizes_of
from streamstill.codec.linear_start import moments, regression
from streamstill.codec.module_folder import holds, read_module_config, read_weights, save_module
from streamstill.codec.pretrained import frozen
from streamstill.codec.tiling import Tiled
from streamstill.codec.video import VideoCodec
from streamstill.config import require_positive

KIND = "light_decoder"


@dataclass(frozen=True, kw_only=True)
class LightDecoderConfig:
    """Whose latents are decoded, and how small the decoder is; ``of`` fills in what is the codec's.

    Args:
        first_frames: pixel frames that the first latent frame of a video makes.
        width: features at the latents' resolution; half of it at twice that resolution.
        blocks: of each resolution.
        made_for: the codec's fingerprint; "" is any codec of these sizes.
    """

    latent_channels: int
    compression: tuple[int, int, int]
    first_frames: int
    width: int = 48
    blocks: int = 1
    made_for: str = ""

    def __post_init__(self) -> None:
        require_shape(self.compression, self.width)
        require_positive(self, "latent_channels", "first_frames", "blocks")
        if self.first_frames > self.compression[0]:
            raise ValueError(f"the first of {self.compression[0]} frames cannot be {self.first_frames} frames")

    @classmethod
    def of(cls, codec: LatentSizes, *, width: int = 48, blocks: int = 1) -> "LightDecoderConfig":
        """A decoder for this codec's latents."""
        return cls(
            latent_channels=codec.latent_channels,
            compression=codec.compression,
            first_frames=first_frames(codec),
            width=width,
            blocks=blocks,
            made_for=_fingerprint(codec),
        )


class LightDecoder(nn.Module):
    """``decode`` of a ``VideoCodec``, causal, its state a value; learns it by ``DecoderDistillation``."""

    def __init__(self, config: LightDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = CausalDecoder(config.compression, config.latent_channels, config.width, config.blocks)

    def decode(self, latents_BFCHW: Tensor, state: CodecState | None = None) -> tuple[Tensor, CodecState]:
        """Pixels of these latent frames, and what the next call needs; ``None`` starts a video.

        Raises:
            ValueError: the latents have other channels, or the state belongs to clips of another number or size.
        """
        self.decoder.require_fitting(latents_BFCHW, state)
        pixels_BFCHW, after = self.decoder(latents_BFCHW, state)
        return (pixels_BFCHW if state else pixels_BFCHW[:, self._missing :]), after

    def begin_with(self, shown: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Begin as the best linear map from latents to the full codec's pixels of them.

        The linear part stays as it is from then on; the network learns what it leaves.

        Args:
            shown: latents and pixels, each of shape (B, F, C, H, W); one pair at a time is in memory.

        Raises:
            ValueError: there is no pair.
        """
        rows = (
            (latents_BFCHW.movedim(2, -1).flatten(0, 3), cells(pixels_BFCHW, self.config.compression))
            for latents_BFCHW, pixels_BFCHW in map(self._without_the_short_one, shown)
        )
        begin_linear(self.decoder, *regression(moments(rows)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json``, each whole or not at all; the config comes last.

        Raises:
            OSError: they could not be written, for example to a full disk.
        """
        save_module(self, folder, kind=KIND, config=self.config)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LightDecoder":
        """Read what ``save_pretrained`` wrote, ready to use.

        Raises:
            ValueError: not a light decoder's folder, another format version, or a damaged file.
        """
        decoder = cls(read_module_config(folder, kind=KIND, config=LightDecoderConfig))
        read_weights(decoder, folder)
        return decoder.eval()

    @property
    def _missing(self) -> int:
        """Frames of a whole latent frame that the first of a video does not make."""
        return self.config.compression[0] - self.config.first_frames

    def _without_the_short_one(self, shown: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Latents and pixels without a first latent frame that makes fewer pixel frames."""
        latents_BFCHW, pixels_BFCHW = shown
        if not self._missing:
            return shown
        return latents_BFCHW[:, 1:], pixels_BFCHW[:, self.config.first_frames :]


@dataclass(frozen=True, eq=False)
class LightCodec:
    """A ``VideoCodec`` that encodes with the full codec and decodes with the light decoder.

    The fingerprint of a learned codec is that of its weights as they were saved: make this value first, and let both
    parts work in half precision afterwards.

    Raises:
        ValueError: the decoder was made for another codec's latents.
    """

    full: VideoCodec
    light: LightDecoder

    def __post_init__(self) -> None:
        of_full, config, name = LightDecoderConfig.of(self.full), self.light.config, type(self.full).__name__
        given, made_for = sizes_of(of_full), sizes_of(config)
        if given != made_for:
            raise ValueError(
                f"this light decoder was made for latents of {made_for} (channels, compression, first frames), "
                f"{name} has {given}; distil one from that codec"
            )
        if of_full.made_for and config.made_for and of_full.made_for != config.made_for:
            raise ValueError(
                f"this light decoder was made for another codec of the same sizes ({config.made_for}, this {name} is "
                f"{of_full.made_for}); distil one from this codec, or from the student that has it"
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path, full: VideoCodec) -> "LightCodec":
        """The full codec with the light decoder of this folder, frozen and on the CPU.

        Raises:
            ValueError: there is no such folder, it is no light decoder's, or one that was made for another codec.
        """
        if not Path(folder).is_dir():
            raise ValueError(f"there is no folder {folder} with a light decoder; `streamstill codec distill` makes one")
        if holds(Path(folder) / KIND, KIND):
            raise ValueError(f"{folder} is the run that made a light decoder; give {Path(folder) / KIND}, which it is")
        return cls(full, frozen(LightDecoder.from_pretrained(folder)))

    @property
    def latent_channels(self) -> int:
        """C of the latents."""
        return self.full.latent_channels

    @property
    def compression(self) -> tuple[int, int, int]:
        """Pixel frames, rows and columns per latent frame, row and column."""
        return self.full.compression

    @property
    def first_frames(self) -> int:
        """Pixel frames that the first latent frame of a video makes."""
        return self.light.config.first_frames

    def encode(self, pixels_BFCHW: Tensor) -> Tensor:
        """The full codec's latents."""
        return self.full.encode(pixels_BFCHW)

    def decode(self, latents_BFCHW: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The light decoder's pixels."""
        return self.light.decode(latents_BFCHW, state)


def _fingerprint(codec: LatentSizes) -> str:
    """That of the codec; of the one behind the tiles, whose latents they are; "" where nobody can tell."""
    full = codec.codec if isinstance(codec, Tiled) else codec
    try:
        return codec_fingerprint(cast(VideoCodec, full))
    except ValueError:  # a codec of another kind, or the sizes alone
        return ""
