"""The learned codec answers the contract of ``VideoCodec``, keeps its scale, and comes back from its folder."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamstill.codec.learned import LearnedCodec, LearnedCodecConfig, build_learned_codec
from streamstill.codec.video import VideoCodec, latent_shape
from streamstill.config import from_dict, to_dict
from streamstill.types import Geometry
from tests.codec.parts import TINY_CODEC, codec, pixels, smooth_pixels


def decoded_in(pieces: list[int], of: VideoCodec, latents: Tensor) -> Tensor:
    state, made = None, []
    for piece in latents.split(pieces, dim=1):
        part, state = of.decode(piece, state)
        made.append(part)
    return torch.cat(made, dim=1)


def saved(folder: Path, of: LearnedCodec | None = None) -> Path:
    (of or codec()).save_pretrained(folder)
    return folder


def test_latents_have_the_shape_that_the_contract_says() -> None:
    ours: VideoCodec = codec()
    latents = ours.encode(pixels(2, 8, 8, 12))
    assert latents.shape[1:] == latent_shape(ours, Geometry(frames=8, height=8, width=12, fps=1))
    assert ours.decode(latents)[0].shape == (2, 8, 3, 8, 12)


@pytest.mark.parametrize("compression", [(1, 2, 2), (2, 8, 8), (4, 8, 4)])
def test_any_even_compression_can_be_built(compression: tuple[int, int, int]) -> None:
    ours = codec(replace(TINY_CODEC, compression=compression))
    assert ours.decode(ours.encode(pixels(1, 4, 16, 16)))[0].shape == (1, 4, 3, 16, 16)


@pytest.mark.parametrize("pieces", [[1, 1, 1, 1], [2, 2], [3, 1]])
def test_decoding_in_pieces_is_decoding_whole(pieces: list[int]) -> None:
    ours = codec(replace(TINY_CODEC, blocks=2)).double()
    ours.calibrate([pixels().double()])
    latents = ours.encode(pixels().double())
    torch.testing.assert_close(decoded_in(pieces, ours, latents), ours.decode(latents)[0])


def test_the_first_frames_latents_do_not_depend_on_later_frames() -> None:
    ours, one = codec(replace(TINY_CODEC, blocks=2)), pixels()
    other = torch.cat([one[:, :4], pixels(seed=5)[:, 4:]], dim=1)
    assert torch.equal(ours.encode(one)[:, :2], ours.encode(other)[:, :2])
    torch.testing.assert_close(ours.encode(one[:, :4]), ours.encode(one)[:, :2])
    assert not torch.equal(ours.encode(one)[:, 2:], ours.encode(other)[:, 2:])


def moments_of(ours: LearnedCodec, clips: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of every latent channel over the clips."""
    latents = torch.cat([ours.encode(clip) for clip in clips]).transpose(1, 2).flatten(2)
    return latents.mean(dim=(0, 2)), latents.var(dim=(0, 2), correction=0)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_calibrated_latents_have_mean_0_and_variance_1_on_average_and_decode_to_the_same_pixels(
    whitening: float,
) -> None:
    ours, clips = codec(replace(TINY_CODEC, whitening=whitening)), [pixels(seed=seed) for seed in range(3)]
    before = [ours.decode(ours.encode(clip))[0] for clip in clips]
    ours.calibrate(clips)
    mean_C, variance_C = moments_of(ours, clips)
    torch.testing.assert_close(mean_C, torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(variance_C.mean(), torch.tensor(1.0), rtol=1e-4, atol=0)
    assert bool((variance_C.std() < 1e-4) == (whitening == 1))
    for clip, known in zip(clips, before, strict=True):
        torch.testing.assert_close(ours.decode(ours.encode(clip))[0], known, rtol=1e-4, atol=1e-5)


def begun(whitening: float) -> LearnedCodec:
    ours = codec(replace(TINY_CODEC, whitening=whitening)).double()
    ours.begin_with([smooth_pixels().double()])
    ours.calibrate([smooth_pixels().double()])
    return ours


def test_without_whitening_an_error_in_any_channel_is_as_large_in_pixels() -> None:
    def moved(ours: LearnedCodec) -> Tensor:
        latents = torch.zeros(7, 1, 6, 1, 1, dtype=torch.float64)
        latents[1:, 0, :, 0, 0] = torch.eye(6, dtype=torch.float64)  # a clip for each channel, after one with none
        made = ours.decode(latents)[0]
        return (made[1:] - made[:1]).square().sum(dim=(1, 2, 3, 4))

    assert moved(begun(0.0)).std() < 1e-6 * moved(begun(0.0)).mean()
    assert moved(begun(1.0)).max() > 10 * moved(begun(1.0)).min()


def test_half_of_the_whitening_is_half_of_the_way() -> None:
    clip = [smooth_pixels().double()]
    none, half, full = (moments_of(begun(whitening), clip)[1].sqrt() for whitening in (0.0, 0.5, 1.0))
    torch.testing.assert_close(full, torch.ones_like(full))
    assert bool((none.diff() < 0).all())  # the first component is the largest
    torch.testing.assert_close(half / half[0], (none / none[0]).sqrt())


def test_calibrating_twice_is_calibrating_once() -> None:
    ours = codec()
    ours.calibrate([pixels()])
    mean, std = ours.mean_C.clone(), ours.std_C.clone()
    ours.calibrate([pixels()])
    assert torch.equal(ours.mean_C, mean)
    assert torch.equal(ours.std_C, std)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_a_channel_that_never_changes_is_not_blown_up(whitening: float) -> None:
    ours, still = codec(replace(TINY_CODEC, whitening=whitening)), torch.zeros(1, 2, 3, 4, 4)
    known = ours.decode(ours.encode(still))[0]
    ours.calibrate([still])
    if whitening == 1:
        assert torch.equal(ours.std_C, torch.ones(6))
    assert bool((ours.std_C > 1e-3).all())
    torch.testing.assert_close(ours.decode(ours.encode(still))[0], known)
    with pytest.raises(ValueError, match="give at least one"):
        ours.calibrate([])


def test_with_as_many_channels_as_pixels_it_begins_lossless() -> None:
    ours, clip = codec(LearnedCodecConfig(compression=(1, 2, 2), latent_channels=12, width=4)).double(), pixels()
    ours.begin_with([clip.double()])
    torch.testing.assert_close(ours.decode(ours.encode(clip.double()))[0], clip.double())
    latents = ours.encode(clip.double()).transpose(1, 2).flatten(2)
    torch.testing.assert_close(latents.var(dim=(0, 2), correction=0), torch.ones(12, dtype=torch.float64))


def test_it_begins_as_the_best_linear_codec_of_the_clips() -> None:
    """Its error is the variance outside the largest components, which no untrained codec comes near."""
    clip, ours = smooth_pixels(), codec()
    untrained = (ours.decode(ours.encode(clip))[0] - clip).square().mean()
    ours.begin_with([clip])
    found = (ours.decode(ours.encode(clip))[0] - clip).square().mean()
    whole = clip.permute(0, 1, 3, 4, 2).reshape(4, 4, 2, 4, 4, 4, 4, 3).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, 96)
    left_out = torch.linalg.eigvalsh(torch.cov(whole.T, correction=0))[:-6].sum() / 96
    torch.testing.assert_close(found, left_out, rtol=1e-2, atol=1e-6)
    assert found < untrained / 20


def test_more_channels_than_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="stands for only 12 values of pixels; give it fewer"):
        codec(LearnedCodecConfig(compression=(1, 2, 2), latent_channels=13, width=4)).begin_with([pixels()])


def test_it_comes_back_from_its_folder_bit_for_bit(tmp_path: Path) -> None:
    ours = codec()
    ours.calibrate([pixels()])
    back = LearnedCodec.from_pretrained(saved(tmp_path / "codec", ours))
    assert back.config == ours.config
    assert torch.equal(back.encode(pixels()), ours.encode(pixels()))
    assert not back.training


def test_a_config_names_its_weights_and_builds_them_frozen(tmp_path: Path) -> None:
    folder = saved(tmp_path / "codec")
    config = LearnedCodecConfig.of(folder)
    assert config.path == str(folder)
    assert len(config.fingerprint) == 12
    assert from_dict(LearnedCodecConfig, to_dict(config)) == config
    built = build_learned_codec(config)
    assert torch.equal(built.encode(pixels()), codec().encode(pixels()))
    assert not any(parameter.requires_grad for parameter in built.parameters())


def test_without_a_path_it_waits_for_a_state_dict() -> None:
    built = build_learned_codec(TINY_CODEC)
    built.load_state_dict(codec().state_dict())
    assert torch.equal(built.encode(pixels()), codec().encode(pixels()))


def test_a_frozen_codec_lets_a_gradient_through() -> None:
    latents = torch.randn(1, 2, 6, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    build_learned_codec(TINY_CODEC).decode(latents)[0].square().sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0


def test_other_weights_and_other_sizes_in_the_folder_are_refused(tmp_path: Path) -> None:
    config = LearnedCodecConfig.of(saved(tmp_path / "codec"))
    with pytest.raises(ValueError, match="has other sizes than were asked for"):
        build_learned_codec(replace(config, width=16))
    saved(tmp_path / "codec", codec(seed=1))
    with pytest.raises(ValueError, match="holds other weights"):
        build_learned_codec(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is no learned codec: it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "describes no learned codec"),
        (lambda folder: rewritten(folder, format=9), "has format 9, this version of streamstill reads format 1"),
        (lambda folder: (folder / "model.safetensors").unlink(), "was not saved whole"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "is damaged or cut short"),
        (lambda folder: codec(replace(TINY_CODEC, width=4)).save_pretrained(folder / "other"), ""),
    ],
)
def test_a_folder_that_is_not_whole_says_so(tmp_path: Path, change: object, message: str) -> None:
    folder = saved(tmp_path / "codec")
    assert callable(change)
    change(folder)
    if not message:  # weights of another size beside this config
        (folder / "other" / "model.safetensors").replace(folder / "model.safetensors")
        message = "model.safetensors does not belong to"
    with pytest.raises(ValueError, match=message):
        LearnedCodec.from_pretrained(folder)


def rewritten(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    back = LearnedCodec.from_pretrained(saved(tmp_path / "codec", codec().half()))
    assert {parameter.dtype for parameter in back.parameters()} == {torch.float32}


def test_bad_input_is_refused_in_words() -> None:
    ours = codec()
    with pytest.raises(ValueError, match="height 10 is not divisible by the codec's 4; use 8 or 12"):
        ours.encode(pixels(1, 8, 10, 12))
    with pytest.raises(ValueError, match="takes latents of 6 channels, got 5"):
        ours.decode(torch.zeros(1, 2, 5, 2, 2))
    _, state = ours.decode(torch.zeros(1, 2, 6, 2, 2))
    with pytest.raises(ValueError, match=r"belongs to 1 clips of 2x2 latents, got 2 of 2x2; begin a video with None"):
        ours.decode(torch.zeros(2, 2, 6, 2, 2), state)
    with pytest.raises(ValueError, match="latent_channels must be at least 1, got 0"):
        LearnedCodecConfig(latent_channels=0)
    with pytest.raises(ValueError, match=r"whitening must be in \[0, 1\], got 1.5"):
        LearnedCodecConfig(whitening=1.5)
