import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamstill.codec.build import CodecConfig, TextConfig, build_codec, build_text, codec_fingerprint
from streamstill.codec.diffusers_vae import DiffusersCodec, DiffusersCodecConfig
from streamstill.codec.learned import LearnedCodec, LearnedCodecConfig
from streamstill.codec.patch import PatchCodec
from streamstill.codec.text import WordEncoder, WordEncoderConfig
from streamstill.codec.text_cache import CachedText
from streamstill.codec.text_models import TextModelConfig
from streamstill.codec.tiling import Tiled
from streamstill.config import from_dict, to_dict

WAN = DiffusersCodecConfig(
    source="somewhere", family="wan", latent_channels=16, compression=(4, 8, 8), fingerprint="aaaaaaaaaaaa"
)
LEARNED = LearnedCodecConfig(compression=(1, 4, 4), latent_channels=4, width=8, blocks=1)
T5 = TextModelConfig(source="somewhere", family="t5", width=16, tokens=8, fingerprint="aaaaaaaaaaaa")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Of a codec and a text encoder, as a student's config is."""

    codec: CodecConfig
    text: TextConfig


@pytest.mark.parametrize("codec", [PatchCodec(size=2), WAN, replace(WAN, tile=16), LEARNED])
@pytest.mark.parametrize("text", [WordEncoderConfig(width=16), T5])
def test_every_kind_comes_back_from_json_as_itself(codec: CodecConfig, text: TextConfig) -> None:
    held = Holder(codec=codec, text=text)
    again = from_dict(Holder, json.loads(json.dumps(to_dict(held))))
    assert again == held
    assert (type(again.codec), type(again.text)) == (type(codec), type(text))


def test_a_patch_codec_is_its_own_config() -> None:
    config = PatchCodec(frames=1, size=2)
    assert build_codec(config) is config


def test_borrowed_codecs_and_text_encoders_are_built_without_their_weights() -> None:
    codec, tiled, text = build_codec(WAN), build_codec(replace(WAN, tile=16, overlap=4)), build_text(T5)
    assert isinstance(codec, DiffusersCodec)
    assert isinstance(tiled, Tiled)
    assert (tiled.size, tiled.overlap, tiled.compression) == (16, 4, (4, 8, 8))
    assert isinstance(text, CachedText)
    assert not codec.loaded
    assert not text.encoder.loaded


def test_the_small_text_encoder_is_a_module_that_learns() -> None:
    text = build_text(WordEncoderConfig(width=16))
    assert isinstance(text, WordEncoder)
    assert all(parameter.requires_grad for parameter in text.parameters())


def test_a_learned_codec_comes_with_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    codec = LearnedCodec(LEARNED)
    codec.save_pretrained(tmp_path)
    built = build_codec(LearnedCodecConfig.of(tmp_path))
    pixels = torch.rand(1, 2, 3, 8, 8)
    assert torch.equal(built.encode(pixels), codec.encode(pixels))


def test_fingerprints_differ_where_latents_do() -> None:
    def learned(seed: int) -> LearnedCodec:
        torch.manual_seed(seed)
        return LearnedCodec(LEARNED)

    different: list[Any] = [
        PatchCodec(),
        PatchCodec(size=2),
        build_codec(WAN),
        build_codec(replace(WAN, fingerprint="bbbbbbbbbbbb")),
        build_codec(replace(WAN, tile=16)),
        build_codec(replace(WAN, tile=16, overlap=4)),
        learned(0),
        learned(1),
    ]
    prints = [codec_fingerprint(codec) for codec in different]
    assert len(set(prints)) == len(different)
    assert all(len(one) == 12 for one in prints)
    same: list[Any] = [PatchCodec(), build_codec(replace(WAN, source="elsewhere", subfolder="vae")), learned(0)]
    assert [codec_fingerprint(codec) for codec in same] == [prints[0], prints[2], prints[6]]


def test_a_codec_of_another_kind_has_no_fingerprint() -> None:
    class Mine:
        latent_channels, compression = 3, (1, 1, 1)

    mine: Any = Mine()
    with pytest.raises(ValueError, match="the latents of Mine cannot be told from others; give a codec of build_codec"):
        codec_fingerprint(mine)
