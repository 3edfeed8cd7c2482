"""Video autoencoders of diffusers as codecs: Wan, LTX-Video, HunyuanVideo, and DC-AE picture by picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from streamstill.codec.counting import clip_latents
from streamstill.codec.pretrained import DTYPES, DtypeName, fingerprint, frozen, library, require_fingerprint
from streamstill.config import require_one_of, require_positive
from streamstill.types import Geometry

Family: TypeAlias = Literal["wan", "ltx", "hunyuan", "dc"]

_CLASSES = {
    "wan": "AutoencoderKLWan",
    "ltx": "AutoencoderKLLTXVideo",
    "hunyuan": "AutoencoderKLHunyuanVideo",
    "dc": "AutoencoderDC",
}
STREAMING = ("wan", "dc")  # decode in pieces exactly as whole
_EXTRA = "codecs"


@dataclass(frozen=True, kw_only=True)
class DiffusersCodecConfig:
    """Where an autoencoder lies, and what must be known of it while its weights are not loaded.

    ``DiffusersCodec.from_pretrained`` fills it in. ``source`` may be changed: the weights are known by ``fingerprint``.
    """

    kind: Literal["diffusers"] = "diffusers"
    source: str  # a folder, or a repository on a hub
    subfolder: str = ""  # where in it the autoencoder lies: "vae" in a pipeline
    family: Family
    latent_channels: int
    compression: tuple[int, int, int]
    first_frames: int = 1  # pixel frames of the first latent frame
    fingerprint: str = ""
    dtype: DtypeName = "float32"  # of the weights; latents and pixels are always float32
    tile: int | None = None  # latent rows and columns of a tile; None: the picture in one piece
    overlap: int = 8  # latent rows and columns that tiles share

    def __post_init__(self) -> None:
        require_one_of(self.family, tuple(_CLASSES), "family")
        require_one_of(self.dtype, tuple(DTYPES), "dtype")
        require_positive(self, "latent_channels", "first_frames")
        if min(self.compression) < 1:
            raise ValueError(f"every compression must be at least 1, got {self.compression}")
        if self.tile is not None and not 0 <= self.overlap < self.tile:
            raise ValueError(
                f"tiles of {self.tile} latents cannot share {self.overlap}; the overlap must be 0 to {self.tile - 1}"
            )


class WanPast(NamedTuple):
    """What Wan's decoder remembers: the last inputs of each of its causal convolutions.

    ``()`` stands for one that has only seen the first latent frame, which passes it by.
    """

    features: tuple[Tensor | tuple[()], ...]


class Whole(NamedTuple):
    """The state of an autoencoder that cannot go on: a whole clip lies behind."""


class DiffusersCodec:
    """A frozen autoencoder of diffusers behind ``VideoCodec``. Gradients pass through it, and it goes to its input.

    Latents are the mode of what the encoder gives, in units of the autoencoder's own statistics: its ``latents_mean``
    and ``latents_std`` where it has them, and its ``scaling_factor``. They are what the model's own diffusion
    transformer was trained on.

    Args:
        autoencoder: a loaded one; without it, the weights are loaded when they are first needed.
    """

    def __init__(self, config: DiffusersCodecConfig, autoencoder: Any = None) -> None:
        self.config = config
        self._autoencoder = None if autoencoder is None else frozen(autoencoder)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        subfolder: str = "",
        dtype: DtypeName = "float32",
        tile: int | None = None,
        overlap: int = 8,
    ) -> "DiffusersCodec":
        """The autoencoder in a folder or on a hub, loaded.

        Raises:
            ModuleNotFoundError: diffusers is not installed, or accelerate, by which it reads weights.
            OSError: there is no such model.
            ValueError: it is none of the known kinds, or the tiles do not fit each other.
        """
        described = _library().AutoencoderKLWan.load_config(source, subfolder=subfolder or None)
        family = _family(described.get("_class_name", "nothing known"), source)
        autoencoder = _loaded(family, source, subfolder, dtype)
        return cls.of(autoencoder, source, subfolder=subfolder, dtype=dtype, tile=tile, overlap=overlap)

    @classmethod
    def of(
        cls,
        autoencoder: Any,
        source: str | Path,
        *,
        subfolder: str = "",
        dtype: DtypeName = "float32",
        tile: int | None = None,
        overlap: int = 8,
    ) -> "DiffusersCodec":
        """A codec of an autoencoder that is in memory already, and lies in ``source`` as well.

        Raises:
            ValueError: it is none of the known kinds, or the tiles do not fit each other.
        """
        config = DiffusersCodecConfig(
            source=str(source),
            subfolder=subfolder,
            family=_family(type(autoencoder).__name__, source),
            latent_channels=_channels(autoencoder),
            compression=_compression(autoencoder),
            fingerprint=fingerprint(autoencoder),
            dtype=dtype,
            tile=tile,
            overlap=overlap,
        )
        return cls(config, autoencoder)

    def __deepcopy__(self, memo: dict[int, Any]) -> "DiffusersCodec":
        return self  # it never changes: copies of a student share it

    @property
    def latent_channels(self) -> int:
        """C of the latents."""
        return self.config.latent_channels

    @property
    def compression(self) -> tuple[int, int, int]:
        """Pixel frames, rows and columns per latent frame, row and column."""
        return self.config.compression

    @property
    def first_frames(self) -> int:
        """Pixel frames that the first latent frame of a video makes."""
        return self.config.first_frames

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._autoencoder is not None

    def encode(self, pixels_BFCHW: Tensor) -> Tensor:
        """Latents of shape (B, F, C, H, W) of clips of ``first_frames + compression[0] * (F - 1)`` frames.

        Raises:
            ValueError: frames, height or width do not fit the autoencoder.
        """
        _, frames, _, height, width = pixels_BFCHW.shape
        clip_latents(self, Geometry(frames=frames, height=height, width=width, fps=1))
        autoencoder = self._at(pixels_BFCHW.device)
        x_BFCHW = pixels_BFCHW.to(DTYPES[self.config.dtype])
        if self.config.family == "dc":
            z_BFCHW = autoencoder.encode(x_BFCHW.flatten(0, 1)).latent.unflatten(0, x_BFCHW.shape[:2])
        else:
            z_BFCHW = autoencoder.encode(x_BFCHW.transpose(1, 2)).latent_dist.mode().transpose(1, 2)
        mean, scale = _statistics(autoencoder)
        return (z_BFCHW.float() - mean) * scale

    def decode(self, latents_BFCHW: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Pixels of these latent frames, and what the next call needs; ``None`` starts a video.

        Raises:
            ValueError: a video is to go on, and this autoencoder decodes only whole clips exactly.
        """
        autoencoder = self._at(latents_BFCHW.device)
        mean, scale = _statistics(autoencoder)
        z_BFCHW = (latents_BFCHW.float() / scale + mean).to(DTYPES[self.config.dtype])
        if self.config.family == "wan":
            pixels_BFCHW, state = _decoded_by_wan(autoencoder, z_BFCHW, state)
        elif self.config.family == "dc":
            pixels = autoencoder.decode(z_BFCHW.flatten(0, 1)).sample
            pixels_BFCHW = pixels.unflatten(0, z_BFCHW.shape[:2])
        else:
            self._require_start(state)
            pixels_BFCHW, state = _decoded_whole(autoencoder, z_BFCHW), Whole()
        return pixels_BFCHW.float(), state

    def _require_start(self, state: Any) -> None:
        if state is not None:
            raise ValueError(
                f"{_CLASSES[self.config.family]} decodes only whole clips: every pixel frame depends on latents that "
                "come after it, so pieces would differ from the whole; decode all latents in one call, or stream "
                f"with a causal codec ({', '.join(_CLASSES[family] for family in STREAMING)})"
            )

    def _at(self, device: torch.device) -> Any:
        """The autoencoder, on this device."""
        if self._autoencoder is None:
            config = self.config
            autoencoder = _loaded(config.family, config.source, config.subfolder, config.dtype)
            require_fingerprint(fingerprint(autoencoder), config.fingerprint, config.source)
            self._autoencoder = autoencoder
        if next(self._autoencoder.parameters()).device != device:
            self._autoencoder.to(device)
        return self._autoencoder


def _family(class_name: str, source: str | Path) -> Family:
    for family, known in _CLASSES.items():
        if class_name == known:
            return family  # type: ignore[return-value]  # the keys are the families
    raise ValueError(
        f"{source} holds {class_name}, which is no codec here; give one of {', '.join(_CLASSES.values())}, and its "
        'subfolder ("vae") if it lies in a pipeline'
    )


def _loaded(family: Family, source: str | Path, subfolder: str, dtype: DtypeName) -> Any:
    model = getattr(_library(), _CLASSES[family])
    return frozen(model.from_pretrained(source, subfolder=subfolder or None, torch_dtype=DTYPES[dtype]))


def _library() -> Any:
    return library("diffusers", _EXTRA, "accelerate")


def _channels(autoencoder: Any) -> int:
    given = autoencoder.config
    return int(given.get("z_dim") or given["latent_channels"])


def _compression(autoencoder: Any) -> tuple[int, int, int]:
    frames = autoencoder.config.get("scale_factor_temporal") or autoencoder.temporal_compression_ratio
    size = int(autoencoder.spatial_compression_ratio)
    return int(frames), size, size


def _statistics(autoencoder: Any) -> tuple[Tensor, Tensor]:
    """Mean of the latents, and what they are multiplied by once it is gone; both of shape (C, 1, 1), float32."""
    found = {**autoencoder.config, **dict(autoencoder.named_buffers())}
    like = next(autoencoder.parameters())

    def of(name: str, otherwise: float) -> Tensor:
        given = found.get(name)
        values = otherwise if given is None else given
        return torch.as_tensor(values, device=like.device, dtype=torch.float32).reshape(-1, 1, 1)

    return of("latents_mean", 0.0), of("scaling_factor", 1.0) / of("latents_std", 1.0)


def _decoded_by_wan(autoencoder: Any, z_BFCHW: Tensor, past: WanPast | None) -> tuple[Tensor, WanPast]:
    """Latent frame by latent frame, as diffusers does it within a clip, but with the cache as a value.

    The decoder writes into a list: an entry is None (nothing seen), "Rep" (passed by) or past inputs.
    """
    x_BCFHW = autoencoder.post_quant_conv(z_BFCHW.transpose(1, 2))
    features = () if past is None else past.features
    cache: list[Any] = ["Rep" if isinstance(feature, tuple) else feature for feature in features]
    cache += [None] * (sum(1 for _ in autoencoder.decoder.modules()) - len(cache))  # it takes as many as it has
    made = []
    for frame, x in enumerate(x_BCFHW.split(1, dim=2)):
        first = past is None and frame == 0
        made.append(autoencoder.decoder(x, feat_cache=cache, feat_idx=[0], first_chunk=first))
    pixels_BCFHW = _unpatched(autoencoder, torch.cat(made, dim=2)).clamp(-1, 1)
    return pixels_BCFHW.transpose(1, 2), _wan_past(cache)


def _wan_past(cache: Sequence[Any]) -> WanPast:
    seen = [feature for feature in cache if feature is not None]
    return WanPast(tuple(() if isinstance(feature, str) else feature for feature in seen))


def _unpatched(autoencoder: Any, x_BCFHW: Tensor) -> Tensor:
    """Wan 2.2 makes squares of pixels: C is colour, then column, then row of the square."""
    patch = autoencoder.config.patch_size
    if patch is None:
        return x_BCFHW
    cells = x_BCFHW.unflatten(1, (-1, patch, patch))
    return cells.permute(0, 1, 4, 5, 3, 6, 2).flatten(3, 4).flatten(4, 5)


def _decoded_whole(autoencoder: Any, z_BFCHW: Tensor) -> Tensor:
    """LTX's decoder may draw noise and want a time: the noise is always the same, the time that of clean latents."""
    options = {}
    if autoencoder.config.get("timestep_conditioning"):
        options["temb"] = z_BFCHW.new_zeros(z_BFCHW.shape[0])
    devices = [z_BFCHW.device] if z_BFCHW.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        pixels_BCFHW: Tensor = autoencoder.decode(z_BFCHW.transpose(1, 2), **options).sample
    return pixels_BCFHW.transpose(1, 2)
