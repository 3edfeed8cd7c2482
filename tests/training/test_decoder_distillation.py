"""A light decoder learns what the full codec decodes; the full one is asked, and never changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamstill.codec.learned import LearnedCodec
from streamstill.codec.light_decoder import LightDecoder, LightDecoderConfig
from streamstill.codec.patch import PatchCodec
from streamstill.training.batches import Examples
from streamstill.training.discriminators.build import build_discriminator
from streamstill.training.discriminators.motion import MotionConfig
from streamstill.training.objectives.decoder_distillation import DecoderDistillation, DecoderDistillationConfig
from streamstill.training.objectives.reconstruction import ReconstructionConfig
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.codec.parts import codec

CONFIG = DecoderDistillationConfig(optim=OptimConfig(lr=3e-3), ema_decay=None, micro_batch=3)
PROMPTS = ("a red ball", "a blue ball", "a red box", "a blue box")


def calm() -> LearnedCodec:
    """A codec whose pixels stay on the screen."""
    full = codec().requires_grad_(False)
    full.decoder.linear.weight.mul_(0.3)
    last = full.decoder.leave[-1]
    assert isinstance(last, nn.Linear)
    last.weight.mul_(0.2)
    return full


FULL = calm()


def light(seed: int = 1) -> LightDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LightDecoder(LightDecoderConfig.of(FULL, width=8))


def latents(seed: int = 0) -> Tensor:
    return torch.randn(4, 2, 6, 2, 2, generator=torch.Generator().manual_seed(seed))


def batch(step: int) -> Examples:
    return Examples(latents(step % 6), PROMPTS)


def distilled(folder: Path, steps: int, config: DecoderDistillationConfig = CONFIG) -> LightDecoder:
    decoder, discriminator = light(), None
    if config.reconstruction.adversarial:
        discriminator = build_discriminator(MotionConfig(width=8), codec=FULL, seed=0)
    objective = DecoderDistillation(decoder, FULL, config, discriminator)
    Trainer(objective, batch, TrainerConfig(steps=steps, checkpoint_every=2), folder).run()
    return decoder


def error(decoder: LightDecoder) -> float:
    return float((decoder.decode(latents())[0] - FULL.decode(latents())[0].clamp(-1, 1)).detach().abs().mean())


def test_it_learns_the_full_decoder_and_leaves_it_alone(tmp_path: Path) -> None:
    before = [tensor.clone() for tensor in FULL.state_dict().values()]
    assert error(distilled(tmp_path, 80)) < error(light()) / 3
    assert all(torch.equal(now, then) for now, then in zip(FULL.state_dict().values(), before, strict=True))


def test_the_target_is_what_the_full_codec_shows_on_a_screen() -> None:
    objective = DecoderDistillation(light(), FULL, CONFIG)
    turn = objective.begin(Examples(3 * latents(), PROMPTS), 0, torch.Generator().manual_seed(0))
    assert torch.equal(turn.pixels_BFCHW, FULL.decode(3 * latents())[0].clamp(-1, 1))
    assert torch.equal(turn.latents_BFCHW, 3 * latents())
    micros = objective.micro_batches("decoder", turn, torch.Generator().manual_seed(0))
    assert [micro.prompts for micro in micros] == [PROMPTS[:2], PROMPTS[2:]]


def test_noise_is_for_the_light_decoder_alone() -> None:
    objective = DecoderDistillation(light(), FULL, replace(CONFIG, noise=0.5))
    turn = objective.begin(batch(0), 0, torch.Generator().manual_seed(0))
    assert torch.equal(turn.pixels_BFCHW, FULL.decode(latents())[0].clamp(-1, 1))
    assert float((turn.latents_BFCHW - latents()).std()) == pytest.approx(0.5, rel=0.15)


class Perfect(LightDecoder):
    """Decodes as the full codec does."""

    def decode(self, latents_BFCHW: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return FULL.decode(latents_BFCHW, state)


def test_who_decodes_as_the_full_one_has_no_loss() -> None:
    objective = DecoderDistillation(Perfect(light().config), FULL, CONFIG)
    turn = objective.begin(Examples(0.2 * latents(), PROMPTS), 0, torch.Generator().manual_seed(0))
    assert turn.pixels_BFCHW.abs().max() < 1
    for micro in objective.micro_batches("decoder", turn, torch.Generator().manual_seed(0)):
        assert float(objective.loss("decoder", micro).value) < 1e-6


def test_with_a_weight_a_discriminator_plays_first(tmp_path: Path) -> None:
    config = replace(CONFIG, reconstruction=ReconstructionConfig(adversarial=0.1))
    discriminator = build_discriminator(MotionConfig(width=8), codec=FULL, seed=0)
    objective = DecoderDistillation(light(), FULL, config, discriminator)
    assert [player.name for player in objective.players] == ["discriminator", "decoder"]
    turn = objective.begin(batch(0), 0, torch.Generator().manual_seed(0))
    (micro, _) = objective.micro_batches("discriminator", turn, torch.Generator().manual_seed(0))
    objective.loss("discriminator", micro).value.backward()
    assert all(parameter.grad is None for parameter in objective.decoder.parameters())
    whole, parts = distilled(tmp_path / "whole", 4, config), distilled(tmp_path / "parts", 2, config)
    parts = distilled(tmp_path / "parts", 4, config)
    pairs = zip(whole.state_dict().values(), parts.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_decoder_of_another_codec_is_refused() -> None:
    with pytest.raises(ValueError, match="distil one from that codec"):
        DecoderDistillation(light(), PatchCodec(), CONFIG)
    with pytest.raises(ValueError, match="noise must not be negative"):
        DecoderDistillationConfig(noise=-1.0)
