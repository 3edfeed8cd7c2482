"""From a config to a discriminator: the kind, the same weights for the same seed, and only what fits the codec."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from streamstill.codec.patch import PatchCodec
from streamstill.config import from_dict, to_dict
from streamstill.training.discriminators.build import DiscriminatorConfig, build_discriminator
from streamstill.training.discriminators.centroid import CentroidConfig, CentroidDiscriminator
from streamstill.training.discriminators.discriminator import require_fitting
from streamstill.training.discriminators.encoder import EncoderConfig, EncoderDiscriminator
from streamstill.training.discriminators.motion import ChunkMotionDiscriminator, MotionConfig, MotionDiscriminator
from streamstill.training.discriminators.reward_vlm import RewardVlmConfig, RewardVlmDiscriminator
from tests.training.discriminators.parts import PROMPT, pixels

CODEC = PatchCodec()


@dataclass(frozen=True, kw_only=True)
class Holder:
    discriminator: DiscriminatorConfig


class Dim(nn.Module):
    """A discriminator of pixels in [0, 1]."""

    pixel_range = (0.0, 1.0)


@pytest.mark.parametrize(
    ("config", "made"),
    [
        (MotionConfig(width=16), MotionDiscriminator),
        (MotionConfig(width=16, per_chunk=True), ChunkMotionDiscriminator),
        (MotionConfig(width=16, sees="latents"), MotionDiscriminator),
    ],
)
def test_the_config_says_which_and_the_seed_which_weights(config: MotionConfig, made: type[nn.Module]) -> None:
    one, same, other = (build_discriminator(config, codec=CODEC, seed=seed) for seed in (3, 3, 4))
    assert isinstance(one, made)
    weights = [torch.cat([p.detach().flatten() for p in judge.parameters()]) for judge in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_global_dice_are_not_touched() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build_discriminator(MotionConfig(), codec=CODEC, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_latents_have_the_channels_of_the_codec() -> None:
    judge = build_discriminator(MotionConfig(sees="latents"), codec=PatchCodec(frames=1, size=2), seed=0)
    assert judge(torch.zeros(1, 4, 12, 8, 8), [PROMPT]).shape == (1,)


@pytest.mark.parametrize("kind", ["vjepa2", "videomae"])
def test_an_encoder_is_loaded_and_its_head_is_of_the_seed(encoders: dict[str, Path], kind: str) -> None:
    config = EncoderConfig(encoder=str(encoders[kind]), train_blocks=1, width=16)
    one, same, other = (build_discriminator(config, codec=CODEC, seed=seed) for seed in (3, 3, 4))
    assert isinstance(one, EncoderDiscriminator)
    scores = [judge(pixels(1), [PROMPT]) for judge in (one, same, other)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_a_language_model_is_loaded_and_its_score_is_of_the_seed(qwen2_vl: Path) -> None:
    pytest.importorskip("peft", reason='install the lora extra: pip install "streamstill[lora]"')
    config = RewardVlmConfig(model=str(qwen2_vl), rank=4, frames=4, dtype="float32")
    one, same, other = (build_discriminator(config, codec=CODEC, seed=seed) for seed in (3, 3, 4))
    assert isinstance(one, RewardVlmDiscriminator)
    scores = [judge(pixels(1), [PROMPT]) for judge in (one, same, other)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_a_discriminator_of_another_range_than_the_codecs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Dim takes pixels in \[0.0, 1.0\], and PatchCodec decodes to \[-1.0, 1.0\]"):
        require_fitting(Dim(), CODEC)
    bright = PatchCodec()
    object.__setattr__(bright, "pixel_range", (0.0, 1.0))
    require_fitting(Dim(), bright)
    with pytest.raises(ValueError, match=r"MotionDiscriminator takes pixels in \[-1.0, 1.0\]"):
        require_fitting(MotionDiscriminator(16), bright)


def test_a_discriminator_of_other_latents_is_refused() -> None:
    judge = MotionDiscriminator(16, in_channels=16, sees="latents")
    with pytest.raises(ValueError, match="sees latents of 16 channels, and PatchCodec gives latents of 96"):
        require_fitting(judge, CODEC)


def test_a_discriminator_of_black_and_white_is_refused() -> None:
    with pytest.raises(ValueError, match="sees pixels of 1 channels, and PatchCodec gives pixels of 3"):
        require_fitting(MotionDiscriminator(16, in_channels=1), CODEC)


@pytest.mark.parametrize(
    "config",
    [
        MotionConfig(sees="latents", per_chunk=True),
        CentroidConfig(features=24, threshold=0.3),
        EncoderConfig(encoder="somewhere", train_blocks=2),
        RewardVlmConfig(model="somewhere", rank=8),
    ],
    ids=lambda config: config.kind,
)
def test_a_config_comes_back_from_json_as_the_same_kind(config: DiscriminatorConfig) -> None:
    values = json.loads(json.dumps(to_dict(Holder(discriminator=config))))
    assert from_dict(Holder, values) == Holder(discriminator=config)


@pytest.mark.parametrize(
    ("values", "config"),
    [
        ({"width": 16}, MotionConfig(width=16)),
        ({"threshold": 0.3}, CentroidConfig(threshold=0.3)),
        ({"kind": "encoder", "encoder": "here"}, EncoderConfig(encoder="here")),
        ({"kind": "reward_vlm", "model": "here"}, RewardVlmConfig(model="here")),
    ],
)
def test_a_few_fields_are_enough_to_say_which_kind(values: dict[str, object], config: DiscriminatorConfig) -> None:
    assert from_dict(Holder, {"discriminator": values}) == Holder(discriminator=config)


def test_a_discriminator_of_centroids_has_the_numbers_of_its_config() -> None:
    made = build_discriminator(CentroidConfig(features=24, threshold=0.3), codec=CODEC, seed=3)
    assert isinstance(made, CentroidDiscriminator)
    assert (made.threshold, made.head.score.in_features) == (0.3, 24)
    clips = torch.rand(2, 8, 3, 16, 16) * 2 - 1
    assert made.track(clips).shape == (2, 8, 2)
    assert made(clips, ["a red ball is dropped"] * 2).shape == (2,)
    again = build_discriminator(CentroidConfig(features=24, threshold=0.3), codec=CODEC, seed=3)
    torch.testing.assert_close(made.state_dict(), again.state_dict())
