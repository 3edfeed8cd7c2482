"""What is known about the pipelines of one class: which sizes they make, and how latents and text pass their call."""

import inspect
from dataclasses import dataclass
from math import ceil, lcm
from typing import Any

import torch
from torch import Tensor

from streamstill.types import Geometry


@dataclass(frozen=True, kw_only=True)
class OpenForm:
    """How a pipeline whose network gives the velocity noise - clean at timestep 1000 t takes latents and text.

    ``text`` are the names under which its call takes what its ``encode_prompt`` gives, in that order. Latents are
    ``BCFHW``, or with ``tokens`` one row of channels for each place of each frame.
    """

    text: tuple[str, ...]
    tokens: bool = False

    def pack(self, latents_BFCHW: Tensor) -> Tensor:
        """Latents as the pipeline holds them."""
        return latents_BFCHW.movedim(2, -1).flatten(1, 3) if self.tokens else latents_BFCHW.transpose(1, 2)

    def unpack(self, held: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """``latents_BFCHW`` of what the pipeline holds; ``shape`` is that of one clip."""
        frames, channels, height, width = shape
        if self.tokens:
            return held.reshape(-1, frames, height, width, channels).movedim(-1, 2)
        return held.transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Pipelines of one class. Of an unknown class only clips are asked, in the sizes that its VAE suggests."""

    fps: float | None = None  # of the clips it was trained on; None: as asked
    pixel_step: int = 16  # height and width are multiples of it, whatever the VAE says
    frame_step: int = 1  # frames are 1 plus a multiple of it, whatever the VAE says
    form: OpenForm | None = None


_WAN = OpenForm(text=("prompt_embeds", "negative_prompt_embeds"))
_LTX = OpenForm(
    text=("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"),
    tokens=True,
)
_HUNYUAN = OpenForm(text=("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"))
_FAMILIES = {
    "WanPipeline": Family(fps=16, form=_WAN),
    "WanImageToVideoPipeline": Family(fps=16, form=_WAN),
    "LTXPipeline": Family(fps=25, pixel_step=32, form=_LTX),
    "LTXImageToVideoPipeline": Family(fps=25, pixel_step=32),
    "LTXConditionPipeline": Family(fps=25, pixel_step=32),
    "HunyuanVideoPipeline": Family(fps=24, form=_HUNYUAN),
    "HunyuanVideoImageToVideoPipeline": Family(fps=24),
    "CogVideoXPipeline": Family(fps=8, frame_step=8),  # its VAE gives 4k+1 frames for odd numbers of latent frames only
    "CogVideoXImageToVideoPipeline": Family(fps=8, frame_step=8),
}


def family_of(pipe: Any) -> Family:
    """What is known about this pipeline's class."""
    return _FAMILIES.get(type(pipe).__name__, Family())


def open_form(pipe: Any) -> OpenForm | None:
    """How latents and text pass its call, or None: it shows finished clips only."""
    form = family_of(pipe).form
    if form is None:
        return None
    given = transformer_of(pipe).config
    patched = form.tokens and (given.patch_size, given.patch_size_t) != (1, 1)  # a token is more than one place
    clamped = pipe.config.get("expand_timesteps") and "image" in parameters_of(pipe)  # its first frame stays clean
    return None if patched or clamped else form


def parameters_of(pipe: Any) -> dict[str, Any]:
    """The parameters of the pipeline's call by name, with their defaults."""
    return {name: parameter.default for name, parameter in inspect.signature(type(pipe).__call__).parameters.items()}


def transformer_of(pipe: Any) -> Any:
    """The network that is asked first; a pipeline of two experts may have only the second."""
    return getattr(pipe, "transformer", None) or getattr(pipe, "transformer_2", None)


def compression(pipe: Any) -> tuple[int, int]:
    """Frames and pixels for each latent: the VAE's factors, as the pipeline itself has read them."""
    frames = _first(pipe, "vae_scale_factor_temporal", "vae_temporal_compression_ratio")
    pixels = _first(pipe, "vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor")
    return frames or 4, pixels or 8


def native_size(pipe: Any, asked: Geometry) -> Geometry:
    """The least size that the pipeline can make and from which the asked one can be cut, at its own fps."""
    fps = family_of(pipe).fps or asked.fps
    frames = ceil((asked.frames - 1) / asked.fps * fps) + 1
    return rounded_up(pipe, Geometry(frames=frames, height=asked.height, width=asked.width, fps=fps))


def rounded_up(pipe: Any, size: Geometry) -> Geometry:
    """The size with frames, height and width rounded up to what the pipeline can make."""
    family, (frames, pixels) = family_of(pipe), compression(pipe)
    frames, pixels = lcm(frames, family.frame_step), lcm(pixels * _patch(pipe), family.pixel_step)
    return Geometry(
        frames=ceil((size.frames - 1) / frames) * frames + 1,
        height=ceil(size.height / pixels) * pixels,
        width=ceil(size.width / pixels) * pixels,
        fps=size.fps,
    )


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """``normalised = (raw - mean_C) * scale_C``, channel by channel; raw is what the VAE encodes to and decodes."""

    mean_C: Tensor
    scale_C: Tensor

    def raw(self, latents_BFCHW: Tensor) -> Tensor:
        """What the VAE decodes, of normalised latents."""
        mean, scale = (one[:, None, None].to(latents_BFCHW) for one in (self.mean_C, self.scale_C))
        return latents_BFCHW / scale + mean

    def normalised(self, raw_BFCHW: Tensor) -> Tensor:
        """What the network sees, of latents that the VAE encoded."""
        mean, scale = (one[:, None, None].to(raw_BFCHW) for one in (self.mean_C, self.scale_C))
        return (raw_BFCHW - mean) * scale


def latent_statistics(pipe: Any) -> LatentStatistics:
    """Wan: mean and 1/std of the VAE's config; LTX: its buffers and scaling factor; Hunyuan: the factor alone."""
    vae, channels = pipe.vae, transformer_of(pipe).config.out_channels
    told = {**vae.config, **dict(vae.named_buffers(recurse=False))}
    mean_C, std_C = (
        torch.full((channels,), plain) if told.get(name) is None else torch.as_tensor(told[name]).float().cpu()
        for name, plain in (("latents_mean", 0.0), ("latents_std", 1.0))
    )
    return LatentStatistics(mean_C, vae.config.get("scaling_factor", 1.0) / std_C)


def _first(pipe: Any, *names: str) -> int | None:
    return next((int(getattr(pipe, name)) for name in names if getattr(pipe, name, None)), None)


def _patch(pipe: Any) -> int:
    transformer = transformer_of(pipe)
    patch = transformer.config.get("patch_size", 1) if transformer is not None else 1
    return int(patch if isinstance(patch, int) else patch[-1])
