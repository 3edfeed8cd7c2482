"""From a config to a discriminator that fits the codec."""

from typing import TypeAlias

import torch
from torch import nn

from streamstill.codec.video import VideoCodec
from streamstill.training.discriminators.centroid import CentroidConfig, CentroidDiscriminator
from streamstill.training.discriminators.discriminator import require_fitting
from streamstill.training.discriminators.encoder import EncoderConfig, EncoderDiscriminator
from streamstill.training.discriminators.head import WORDS
from streamstill.training.discriminators.motion import ChunkMotionDiscriminator, MotionConfig, MotionDiscriminator
from streamstill.training.discriminators.reward_vlm import RewardVlmConfig, RewardVlmDiscriminator

DiscriminatorConfig: TypeAlias = MotionConfig | CentroidConfig | EncoderConfig | RewardVlmConfig


def build_discriminator(config: DiscriminatorConfig, *, codec: VideoCodec, seed: int, words: int = WORDS) -> nn.Module:
    """A discriminator whose own weights are fresh; the same seed gives the same weights.

    Args:
        words: of a prompt that are read; give as many as the student reads. A video language model reads them all.

    Raises:
        ModuleNotFoundError: a library that the config needs is not installed.
        OSError: there is no such pretrained model.
        ValueError: a pretrained model of another kind, or a discriminator that does not take what the codec gives.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        discriminator = _built(config, codec, words)
    require_fitting(discriminator, codec)
    return discriminator


def _built(config: DiscriminatorConfig, codec: VideoCodec, words: int) -> nn.Module:
    if isinstance(config, EncoderConfig):
        return EncoderDiscriminator.from_pretrained(
            config.encoder, train_blocks=config.train_blocks, width=config.width, words=words
        )
    if isinstance(config, RewardVlmConfig):
        return RewardVlmDiscriminator.from_pretrained(config)
    if isinstance(config, CentroidConfig):
        return CentroidDiscriminator(config.features, threshold=config.threshold, words=words)
    channels = codec.latent_channels if config.sees == "latents" else 3
    made = ChunkMotionDiscriminator if config.per_chunk else MotionDiscriminator
    return made(config.width, in_channels=channels, sees=config.sees, words=words)
