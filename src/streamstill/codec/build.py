"""From configs to codecs and text encoders. What borrows weights loads them when they are first used."""

import hashlib
import json
from typing import Any, TypeAlias

from torch import nn

from streamstill.codec.diffusers_vae import DiffusersCodec, DiffusersCodecConfig
from streamstill.codec.learned import LearnedCodecConfig, build_learned_codec
from streamstill.codec.patch import PatchCodec
from streamstill.codec.pretrained import fingerprint
from streamstill.codec.text import WordEncoder, WordEncoderConfig
from streamstill.codec.text_cache import CachedText
from streamstill.codec.text_models import TextModelConfig
from streamstill.codec.tiling import Tiled
from streamstill.codec.video import VideoCodec
from streamstill.config import to_dict

CodecConfig: TypeAlias = PatchCodec | DiffusersCodecConfig | LearnedCodecConfig
TextConfig: TypeAlias = WordEncoderConfig | TextModelConfig


def build_codec(config: CodecConfig) -> VideoCodec:
    """The codec that a config describes. A learned one is small and a module: it is saved with whatever holds it.

    Raises:
        ValueError: the folder of a learned codec is none, or one of other sizes.
    """
    if isinstance(config, LearnedCodecConfig):
        return build_learned_codec(config)
    if isinstance(config, DiffusersCodecConfig):
        codec = DiffusersCodec(config)
        return codec if config.tile is None else Tiled(codec, size=config.tile, overlap=config.overlap)
    return config


def build_text(config: TextConfig) -> WordEncoder | CachedText:
    """The text encoder that a config describes; a small trainable one has fresh weights."""
    return CachedText(config) if isinstance(config, TextModelConfig) else WordEncoder(config)


def codec_fingerprint(codec: VideoCodec) -> str:
    """Twelve hexadecimal digits that differ where two codecs give other latents; loads no weights.

    Raises:
        ValueError: a codec of another kind.
    """
    if isinstance(codec, Tiled):
        return _digest(["tiled", codec_fingerprint(codec.codec), codec.size, codec.overlap])
    if isinstance(codec, DiffusersCodec):
        return _digest(["diffusers", codec.config.fingerprint])
    if isinstance(codec, PatchCodec):
        return _digest(["patch", to_dict(codec)])
    if isinstance(codec, nn.Module):
        return fingerprint(codec)
    raise ValueError(f"the latents of {type(codec).__name__} cannot be told from others; give a codec of build_codec")


def _digest(described: list[Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
