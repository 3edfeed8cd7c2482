"""A codec learns to give clips back: by the trainer, with and without a discriminator, and resumes exactly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamstill.codec.learned import LearnedCodec
from streamstill.training.crops import PixelClips
from streamstill.training.discriminators.build import build_discriminator
from streamstill.training.discriminators.motion import MotionConfig
from streamstill.training.objectives.autoencoding import Autoencoding, AutoencodingConfig
from streamstill.training.objectives.reconstruction import ReconstructionConfig
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.codec.parts import codec, smooth_pixels

CONFIG = AutoencodingConfig(optim=OptimConfig(lr=3e-3), ema_decay=None, micro_batch=3)
ADVERSARIAL = replace(CONFIG, reconstruction=ReconstructionConfig(adversarial=0.1, adversarial_from=1))
PROMPTS = ("a red ball", "a blue ball", "a red box", "a blue box")


def shown(step: int) -> PixelClips:
    return PixelClips(smooth_pixels(4, 4, 8, 8, seed=100 + step % 5), PROMPTS)


def trained(folder: Path, steps: int, config: AutoencodingConfig = CONFIG) -> tuple[LearnedCodec, dict[str, float]]:
    """A tiny codec after so many steps, and what the last of them logged."""
    ours, logged = codec(), {}
    discriminator = None
    if config.reconstruction.adversarial:
        discriminator = build_discriminator(MotionConfig(width=8), codec=ours, seed=0)

    def remember(step: int, metrics: Any) -> None:
        logged.update(metrics)

    objective = Autoencoding(ours, config, discriminator)
    Trainer(objective, shown, TrainerConfig(steps=steps, checkpoint_every=3), folder, on_step=remember).run()
    return ours, logged


def test_it_learns_to_give_clips_back(tmp_path: Path) -> None:
    ours, logged = trained(tmp_path, 60)
    clip = smooth_pixels(4, 4, 8, 8, seed=100)
    errors = [(one.decode(one.encode(clip))[0] - clip).square().mean() for one in (ours, codec())]
    assert errors[0] < errors[1] / 4
    assert logged["codec/psnr"] > 15
    assert {"codec/pixel", "codec/pyramid", "codec/temporal", "codec/latent_std"} < logged.keys()


def test_a_linear_start_is_not_lost(tmp_path: Path) -> None:
    """From the best linear codec on, training lowers its own loss, and leaves the linear part alone."""
    ours = codec()
    ours.begin_with([shown(step).pixels_BFCHW for step in range(5)])
    objective = Autoencoding(ours, CONFIG)
    before = loss_of(objective)
    Trainer(objective, shown, TrainerConfig(steps=60), tmp_path).run()
    assert loss_of(objective) < 0.95 * before
    fresh = codec()
    fresh.begin_with([shown(step).pixels_BFCHW for step in range(5)])
    assert torch.equal(ours.decoder.linear.weight, fresh.decoder.linear.weight)
    assert torch.equal(ours.encoder.linear.weight, fresh.encoder.linear.weight)


def loss_of(objective: Autoencoding) -> float:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        turns = [objective.begin(shown(step), 0, generator) for step in range(5)]
        micros = [micro for turn in turns for micro in objective.micro_batches("codec", turn, generator)]
        return float(sum(objective.loss("codec", micro).value for micro in micros))


def test_the_loss_is_the_reconstruction_of_noised_latents_and_their_size() -> None:
    objective = Autoencoding(codec(), replace(CONFIG, noise=0.3, latent_weight=2.0, micro_batch=8))
    (micro,) = objective.micro_batches("codec", (shown(0), 5), torch.Generator().manual_seed(1))
    wanted = micro.clips.pixels_BFCHW
    latents = objective.codec.encode(wanted)
    made = objective.codec.decode(latents + 0.3 * micro.noise_BFCHW)[0]
    expected = objective.reconstruction.loss(made, wanted, PROMPTS, step=5).value + 2 * latents.square().mean()
    torch.testing.assert_close(objective.loss("codec", micro).value, expected)
    assert micro.noise_BFCHW.std() == pytest.approx(1, abs=0.1)


def test_a_batch_is_cut_into_micro_batches() -> None:
    micros = Autoencoding(codec(), CONFIG).micro_batches("codec", (shown(0), 0), torch.Generator().manual_seed(0))
    assert [micro.clips.prompts for micro in micros] == [PROMPTS[:2], PROMPTS[2:]]
    assert torch.equal(torch.cat([micro.clips.pixels_BFCHW for micro in micros]), shown(0).pixels_BFCHW)


def test_with_a_weight_a_discriminator_plays_first(tmp_path: Path) -> None:
    ours, logged = trained(tmp_path, 3, ADVERSARIAL)
    assert {"discriminator/loss", "discriminator/told_apart", "codec/adversarial"} < logged.keys()
    discriminator = build_discriminator(MotionConfig(width=8), codec=ours, seed=0)
    names = [player.name for player in Autoencoding(ours, ADVERSARIAL, discriminator).players]
    assert names == ["discriminator", "codec"]


def test_the_discriminators_loss_asks_no_gradient_of_the_codec() -> None:
    ours = codec()
    discriminator = build_discriminator(MotionConfig(width=8), codec=ours, seed=0)
    objective = Autoencoding(ours, ADVERSARIAL, discriminator)
    micros = objective.micro_batches("discriminator", (shown(0), 0), torch.Generator().manual_seed(0))
    objective.loss("discriminator", micros[0]).value.backward()
    assert all(parameter.grad is None for parameter in ours.parameters())
    assert any(parameter.grad is not None for parameter in discriminator.parameters())


@pytest.mark.parametrize("config", [CONFIG, replace(ADVERSARIAL, ema_decay=0.9)], ids=["plain", "adversarial"])
def test_stopping_and_resuming_is_never_stopping(tmp_path: Path, config: AutoencodingConfig) -> None:
    whole, _ = trained(tmp_path / "whole", 5, config)
    trained(tmp_path / "parts", 3, config)
    parts, _ = trained(tmp_path / "parts", 5, config)
    assert all(torch.equal(one, other) for one, other in zip(tensors(whole), tensors(parts), strict=True))


def tensors(ours: LearnedCodec) -> list[Tensor]:
    return list(ours.state_dict().values())


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="noise and latent_weight must not be negative"):
        AutoencodingConfig(noise=-0.1)
    with pytest.raises(ValueError, match="micro_batch must be at least 1"):
        AutoencodingConfig(micro_batch=0)
