"""Tiny random autoencoders of the real classes: statistics, sizes, decoding in pieces."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamstill.codec.build import build_codec
from streamstill.codec.counting import clip_latents, pixel_frames
from streamstill.codec.diffusers_vae import DiffusersCodec, DiffusersCodecConfig, WanPast
from streamstill.codec.tiling import Tiled
from streamstill.config import from_dict, to_dict
from streamstill.state import tensors_of
from streamstill.types import Geometry
from tests.codec.tiny_models import dc, hunyuan, ltx, noisy_ltx, saved_vae, wan, wan_2_2

BUILDERS = {"wan": wan, "wan 2.2": wan_2_2, "ltx": ltx, "noisy ltx": noisy_ltx, "hunyuan": hunyuan, "dc": dc}
STREAMING, WHOLE = ["wan", "wan 2.2", "dc"], ["ltx", "noisy ltx", "hunyuan"]
SIZES = {
    "wan": (4, (4, 8, 8)),
    "wan 2.2": (4, (4, 16, 16)),
    "ltx": (8, (8, 16, 16)),
    "noisy ltx": (8, (8, 16, 16)),
    "hunyuan": (4, (4, 8, 8)),
    "dc": (4, (1, 4, 4)),
}
every = pytest.mark.parametrize("name", BUILDERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = saved_vae(BUILDERS[name], tmp_path_factory.mktemp("vae"))
        return made[name]

    return folder


def clip(codec: DiffusersCodec, latents: int = 3, *, batch: int = 2) -> Tensor:
    _, rows, columns = codec.compression
    shape = (batch, pixel_frames(codec, latents), 3, 2 * rows, columns)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@every
def test_sizes_are_those_of_the_model_and_of_what_it_makes(name: str, folders: Callable[[str], Path]) -> None:
    codec = DiffusersCodec.from_pretrained(folders(name))
    assert (codec.latent_channels, codec.compression) == SIZES[name]
    pixels = clip(codec)
    _, frames, _, height, width = pixels.shape
    latents = codec.encode(pixels)
    assert latents.shape[1:] == clip_latents(codec, Geometry(frames=frames, height=height, width=width, fps=8))
    assert codec.decode(latents)[0].shape == pixels.shape


@pytest.mark.parametrize("name", STREAMING)
@pytest.mark.parametrize("pieces", [(1, 1, 2), (2, 2), (3, 1)])
def test_decoding_in_pieces_equals_decoding_whole(
    name: str, pieces: tuple[int, ...], folders: Callable[[str], Path]
) -> None:
    codec, state, made = DiffusersCodec.from_pretrained(folders(name)), None, []
    latents = codec.encode(clip(codec, 4))
    for piece in latents.split(pieces, dim=1):
        pixels, state = codec.decode(piece, state)
        made.append(pixels)
    assert made[0].shape[1] == pixel_frames(codec, pieces[0])
    assert torch.equal(torch.cat(made, dim=1), codec.decode(latents)[0])


@pytest.mark.parametrize("name", ["wan", "wan 2.2"])
def test_a_state_is_a_value(name: str, folders: Callable[[str], Path]) -> None:
    codec = DiffusersCodec.from_pretrained(folders(name))
    latents = codec.encode(clip(codec, 4))
    _, state = codec.decode(latents[:, :2])
    before = [tensor.clone() for tensor in tensors_of(state)]
    once, _ = codec.decode(latents[:, 2:], state)
    again, _ = codec.decode(latents[:, 2:], state)
    assert torch.equal(once, again)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(state), strict=True))


def test_the_state_of_wan_stops_growing(folders: Callable[[str], Path]) -> None:
    codec = DiffusersCodec.from_pretrained(folders("wan"))
    latents, state, sizes = codec.encode(clip(codec, 5)), None, []
    for latent in latents.split(1, dim=1):
        _, state = codec.decode(latent, state)
        assert isinstance(state, WanPast)
        sizes.append(sum(tensor.numel() for tensor in tensors_of(state)))
    assert sizes[2] == sizes[3] == sizes[4]


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_not_causal_refuses_to_go_on_and_repeats_itself(name: str, folders: Callable[[str], Path]) -> None:
    codec = DiffusersCodec.from_pretrained(folders(name))
    latents = codec.encode(clip(codec))
    whole, state = codec.decode(latents)
    assert torch.equal(codec.decode(latents)[0], whole)
    with pytest.raises(ValueError, match="decodes only whole clips: every pixel frame depends on latents that come"):
        codec.decode(latents, state)


@pytest.mark.parametrize("name", ["ltx", "hunyuan"])
def test_the_refusal_is_true_the_future_changes_the_past(name: str, folders: Callable[[str], Path]) -> None:
    codec = DiffusersCodec.from_pretrained(folders(name))
    latents = codec.encode(clip(codec))
    other = latents.clone()
    other[:, -1] += 1
    first = pixel_frames(codec, 1)
    assert not torch.equal(codec.decode(latents)[0][:, :first], codec.decode(other)[0][:, :first])


def test_ltx_leaves_the_global_dice_alone(folders: Callable[[str], Path]) -> None:
    codec = DiffusersCodec.from_pretrained(folders("noisy ltx"))
    latents = codec.encode(clip(codec))
    torch.manual_seed(5)
    codec.decode(latents)
    after = torch.rand(())
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(()))


@pytest.mark.parametrize("name", ["wan", "wan 2.2", "ltx", "hunyuan"])
def test_latents_are_the_models_own_in_units_of_its_statistics(name: str, folders: Callable[[str], Path]) -> None:
    codec = DiffusersCodec.from_pretrained(folders(name))
    model: Any = codec._autoencoder
    if name == "ltx":  # its statistics are buffers, and those of a fresh model are 0 and 1
        model.latents_mean.copy_(torch.linspace(-1, 1, 8))
        model.latents_std.copy_(torch.linspace(0.5, 2, 8))
    pixels = clip(codec)
    raw = model.encode(pixels.transpose(1, 2)).latent_dist.mode()
    mean, std, scale = statistics(name)
    torch.testing.assert_close(codec.encode(pixels), ((raw - mean) / std * scale).transpose(1, 2))
    theirs = model.decode(raw).sample.transpose(1, 2)
    torch.testing.assert_close(codec.decode(codec.encode(pixels))[0], theirs, rtol=1e-3, atol=1e-3)


def statistics(name: str) -> tuple[Tensor, Tensor, float]:
    """Mean, deviation and factor, written down once more."""
    if name.startswith("wan"):
        mean, std, scale = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([1.0, 2.0, 0.5, 1.5]), 1.0
    elif name == "ltx":
        mean, std, scale = torch.linspace(-1, 1, 8), torch.linspace(0.5, 2, 8), 0.7
    else:
        mean, std, scale = torch.zeros(4), torch.ones(4), 0.476986
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1), scale


def test_dc_encodes_every_picture_by_itself(folders: Callable[[str], Path]) -> None:
    codec = DiffusersCodec.from_pretrained(folders("dc"))
    pixels = clip(codec)
    latents = codec.encode(pixels)
    model: Any = codec._autoencoder
    torch.testing.assert_close(latents[:, 1], model.encode(pixels[:, 1]).latent * 0.5)
    torch.testing.assert_close(codec.decode(latents)[0][:, 1], model.decode(latents[:, 1] / 0.5).sample)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_and_in_pieces_still_the_same(dtype: Any, folders: Callable[[str], Path]) -> None:
    full = DiffusersCodec.from_pretrained(folders("wan"))
    half = DiffusersCodec.from_pretrained(folders("wan"), dtype=dtype)
    assert half.config.fingerprint != full.config.fingerprint
    latents = full.encode(clip(full))
    torch.testing.assert_close(half.encode(clip(full)), latents, rtol=0.1, atol=0.1)
    whole, _ = half.decode(latents)
    torch.testing.assert_close(whole, full.decode(latents)[0], rtol=0.1, atol=0.1)
    first, state = half.decode(latents[:, :1])
    second, _ = half.decode(latents[:, 1:], state)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert whole.dtype == half.encode(clip(full)).dtype == torch.float32


@every
def test_gradients_pass_and_weights_stay_frozen(name: str, folders: Callable[[str], Path]) -> None:
    codec = DiffusersCodec.from_pretrained(folders(name))
    latents = codec.encode(clip(codec, batch=1)).requires_grad_()
    codec.decode(latents)[0].square().sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0
    model: Any = codec._autoencoder
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_config_is_enough_and_weights_wait_until_they_are_needed(folders: Callable[[str], Path]) -> None:
    loaded = DiffusersCodec.from_pretrained(folders("wan"))
    config = from_dict(DiffusersCodecConfig, json.loads(json.dumps(to_dict(loaded.config))))
    assert config == loaded.config
    later = build_codec(config)
    assert isinstance(later, DiffusersCodec)
    assert (later.latent_channels, later.compression, later.first_frames) == (4, (4, 8, 8), 1)
    assert not later.loaded
    assert torch.equal(later.encode(clip(loaded)), loaded.encode(clip(loaded)))
    assert later.loaded


def test_copies_share_the_weights(folders: Callable[[str], Path]) -> None:
    codec = DiffusersCodec.from_pretrained(folders("dc"))
    assert deepcopy([codec])[0] is codec


def test_other_weights_in_the_same_place_are_noticed(tmp_path: Path) -> None:
    config = DiffusersCodec.from_pretrained(saved_vae(dc, tmp_path)).config
    saved_vae(dc, tmp_path, seed=1)
    codec = build_codec(config)
    with pytest.raises(ValueError, match=r"holds other weights \(\w{12}\) than those that were used before"):
        codec.encode(torch.zeros(1, 1, 3, 8, 8))


def test_it_is_found_in_the_subfolder_of_a_pipeline(tmp_path: Path) -> None:
    saved_vae(dc, tmp_path / "vae")
    assert DiffusersCodec.from_pretrained(tmp_path, subfolder="vae").config.subfolder == "vae"


def test_tiles_stream_too(folders: Callable[[str], Path]) -> None:
    config = DiffusersCodec.from_pretrained(folders("wan"), tile=2, overlap=1).config
    tiled = build_codec(config)
    assert isinstance(tiled, Tiled)
    pixels = torch.rand(1, 9, 3, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = tiled.encode(pixels)
    whole, _ = tiled.decode(latents)
    first, state = tiled.decode(latents[:, :1])
    second, _ = tiled.decode(latents[:, 1:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    in_one_piece = build_codec(replace(config, tile=None)).decode(latents)[0]
    assert 0 < (whole - in_one_piece).abs().mean() < 0.5 * in_one_piece.abs().mean()


def test_clips_that_do_not_fit_are_refused(folders: Callable[[str], Path]) -> None:
    codec = DiffusersCodec.from_pretrained(folders("wan"))
    with pytest.raises(ValueError, match="which never adds up to 8; use 5 or 9"):
        codec.encode(torch.zeros(1, 8, 3, 16, 16))
    with pytest.raises(ValueError, match="width 12 is not divisible by the codec's 8"):
        codec.encode(torch.zeros(1, 5, 3, 16, 12))


def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLMochi"}))
    with pytest.raises(ValueError, match="holds AutoencoderKLMochi, which is no codec here; give one of Autoencoder"):
        DiffusersCodec.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"family": "mochi"}, "unknown family 'mochi': choose one of wan, ltx, hunyuan, dc"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"latent_channels": 0}, "latent_channels must be at least 1"),
        ({"compression": (4, 0, 8)}, r"every compression must be at least 1, got \(4, 0, 8\)"),
        ({"tile": 8, "overlap": 8}, "tiles of 8 latents cannot share 8; the overlap must be 0 to 7"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change: dict[str, Any], said: str) -> None:
    good = DiffusersCodecConfig(source="x", family="wan", latent_channels=16, compression=(4, 8, 8))
    with pytest.raises(ValueError, match=said):
        replace(good, **change)


@every
def test_one_that_is_in_memory_is_the_same_codec_as_the_one_on_disk(name: str, folders: Callable[[str], Path]) -> None:
    loaded = DiffusersCodec.from_pretrained(folders(name))
    autoencoder = type(BUILDERS[name]()).from_pretrained(folders(name))
    ours = DiffusersCodec.of(autoencoder, folders(name), tile=8, overlap=2)
    assert ours.config == replace(loaded.config, tile=8, overlap=2)
    assert ours.loaded
    assert torch.equal(ours.encode(clip(ours)), loaded.encode(clip(loaded)))


def test_one_in_memory_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="there holds Linear, which is no codec here"):
        DiffusersCodec.of(torch.nn.Linear(1, 1), "there")
