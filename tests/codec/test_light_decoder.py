"""The light decoder: any codec's latents, in pieces as whole, and first frames that are fewer."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamstill.codec.light_decoder import LightCodec, LightDecoder, LightDecoderConfig
from streamstill.codec.patch import PatchCodec
from streamstill.codec.tiling import Tiled
from streamstill.codec.video import VideoCodec
from tests.codec.parts import TINY_CODEC, codec, pixels, smooth_pixels

SIZES = LightDecoderConfig.of(codec(), width=8)
WAN_LIKE = LightDecoderConfig(latent_channels=6, compression=(4, 4, 4), first_frames=1, width=8)


def light(config: LightDecoderConfig = SIZES, *, seed: int = 0) -> LightDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LightDecoder(config).eval()


def latents(frames: int = 4, channels: int = 6) -> Tensor:
    return torch.randn(2, frames, channels, 2, 3, generator=torch.Generator().manual_seed(0))


def test_its_sizes_are_the_codecs() -> None:
    assert (SIZES.latent_channels, SIZES.compression, SIZES.first_frames) == (6, (2, 4, 4), 2)
    assert LightDecoderConfig.of(PatchCodec()).latent_channels == 96


@pytest.mark.parametrize("config", [SIZES, WAN_LIKE], ids=["even", "a short first frame"])
@pytest.mark.parametrize("pieces", [[1, 1, 1, 1], [1, 3], [3, 1]])
def test_decoding_in_pieces_is_decoding_whole(config: LightDecoderConfig, pieces: list[int]) -> None:
    decoder = light(config).double()
    whole, _ = decoder.decode(latents().double())
    frames = config.first_frames + 3 * config.compression[0]
    assert whole.shape == (2, frames, 3, 8, 12)
    state, made = None, []
    for piece in latents().double().split(pieces, dim=1):
        part, state = decoder.decode(piece, state)
        made.append(part)
    torch.testing.assert_close(torch.cat(made, dim=1), whole)


def test_it_begins_as_the_codec_itself_where_that_is_linear() -> None:
    full, clip = PatchCodec(frames=2, size=4), smooth_pixels()
    decoder = light(LightDecoderConfig.of(full, width=8))
    given = full.encode(clip)
    decoder.begin_with([(given, clip)])
    torch.testing.assert_close(decoder.decode(given)[0], clip, rtol=0, atol=2e-2)
    assert (light(LightDecoderConfig.of(full, width=8)).decode(given)[0] - clip).abs().mean() > 0.1


def test_a_short_first_frame_is_left_out_of_the_start() -> None:
    """Pixels that are a known linear map of the latents, but for the first frame, which is wild."""
    decoder, given = light(WAN_LIKE), latents(6).repeat(1, 1, 1, 4, 4)
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(6, 3, generator=generator)
    colours = torch.einsum("bfchw,cd->bfdhw", given[:, 1:], mixing).repeat_interleave(4, 1)
    wanted = colours.repeat_interleave(4, 3).repeat_interleave(4, 4)
    shown = torch.cat([100 * torch.randn(2, 1, 3, *wanted.shape[3:], generator=generator), wanted], dim=1)
    decoder.begin_with([(given, shown)])
    torch.testing.assert_close(decoder.decode(given)[0][:, 1:], wanted, rtol=1e-3, atol=1e-3)


def test_beside_a_codec_it_is_a_codec() -> None:
    full, decoder = codec(), light()
    both: VideoCodec = LightCodec(full, decoder)
    assert (both.latent_channels, both.compression) == (6, (2, 4, 4))
    given = both.encode(pixels())
    assert torch.equal(given, full.encode(pixels()))
    assert torch.equal(both.decode(given)[0], decoder.decode(given)[0])
    assert not torch.equal(both.decode(given)[0], full.decode(given)[0])


def test_a_decoder_of_another_codec_is_refused() -> None:
    with pytest.raises(ValueError, match=r"made for latents of \(6, \(2, 4, 4\), 2\)"):
        LightCodec(PatchCodec(), light())


def test_a_decoder_of_another_codec_of_the_same_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"another codec of the same sizes \(\w{12}, this LearnedCodec is \w{12}\)"):
        LightCodec(codec(seed=1), light())
    unsaid = light(replace(SIZES, made_for=""))
    assert LightCodec(codec(seed=1), unsaid).light is unsaid


def test_tiles_and_half_precision_afterwards_change_nothing_about_whose_decoder_it_is() -> None:
    tiled = Tiled(codec(), size=4, overlap=2)
    assert LightDecoderConfig.of(tiled, width=8) == SIZES
    assert LightCodec(tiled, light()).first_frames == 2
    with pytest.raises(ValueError, match="another codec of the same sizes"):
        LightCodec(Tiled(codec(seed=1), size=4, overlap=2), light())
    both = LightCodec(codec(), light())
    both.light.bfloat16()
    assert both.decode(latents().bfloat16())[0].dtype == torch.bfloat16


def test_sizes_alone_have_no_fingerprint() -> None:
    assert LightDecoderConfig.of(TINY_CODEC, width=8) == replace(SIZES, made_for="")


def test_a_codec_with_the_decoder_of_a_folder_is_frozen_and_ready(tmp_path: Path) -> None:
    light().save_pretrained(tmp_path / "run" / "light_decoder")
    both = LightCodec.from_pretrained(tmp_path / "run" / "light_decoder", codec())
    torch.testing.assert_close(both.decode(latents())[0], light().decode(latents())[0])
    assert not both.light.training
    assert not any(parameter.requires_grad for parameter in both.light.parameters())
    said = {
        tmp_path / "nowhere": "there is no folder .*nowhere with a light decoder; `streamstill codec distill` makes",
        tmp_path / "run": "run is the run that made a light decoder; give .*light_decoder, which it is",
        tmp_path: "is no light decoder: it has no config.json",
    }
    for folder, sentence in said.items():
        with pytest.raises(ValueError, match=sentence):
            LightCodec.from_pretrained(folder, codec())
    with pytest.raises(ValueError, match="made for latents of"):
        LightCodec.from_pretrained(tmp_path / "run" / "light_decoder", PatchCodec())


def test_a_folder_that_names_no_codec_is_still_read(tmp_path: Path) -> None:
    light().save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["light_decoder"].pop("made_for") == SIZES.made_for != ""
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert LightDecoder.from_pretrained(tmp_path).config == replace(SIZES, made_for="")


def test_it_comes_back_from_its_folder_bit_for_bit(tmp_path: Path) -> None:
    light().save_pretrained(tmp_path / "light")
    back = LightDecoder.from_pretrained(tmp_path / "light")
    assert back.config == SIZES
    assert torch.equal(back.decode(latents())[0], light().decode(latents())[0])
    codec().save_pretrained(tmp_path / "codec")
    with pytest.raises(ValueError, match="describes no light decoder"):
        LightDecoder.from_pretrained(tmp_path / "codec")


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="the first of 4 frames cannot be 5 frames"):
        replace(WAN_LIKE, first_frames=5)
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        replace(SIZES, blocks=0)
    with pytest.raises(ValueError, match="takes latents of 6 channels, got 4"):
        light().decode(latents(channels=4))
