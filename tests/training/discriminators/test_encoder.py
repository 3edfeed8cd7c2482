"""A pretrained encoder of the real classes, tiny and random, under a head that knows the prompt."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from streamstill.training.discriminators.encoder import EncoderConfig, EncoderDiscriminator
from streamstill.training.discriminators.losses import bradley_terry_loss
from streamstill.training.discriminators.pretrained import evenly, normalised, resized
from streamstill.training.optim import OptimConfig, build_optimizer
from tests.training.discriminators.parts import OTHER, PROMPT, drifting, pixels

each = pytest.mark.parametrize("kind", ["vjepa2", "videomae"])


def discriminator(folder: Path, train_blocks: int = 0) -> EncoderDiscriminator:
    torch.manual_seed(0)
    return EncoderDiscriminator.from_pretrained(folder, train_blocks=train_blocks, width=16)


@each
def test_clips_of_any_size_are_scored_by_clip_and_prompt(encoders: dict[str, Path], kind: str) -> None:
    judge = discriminator(encoders[kind])
    for clips in (pixels(2), pixels(2, 5, 20, 12), pixels(2, 16, 48, 64)):
        score_B = judge(clips, [PROMPT, PROMPT])
        assert score_B.shape == (2,)
        assert score_B[0] != score_B[1]
        assert not torch.allclose(score_B, judge(clips, [OTHER, OTHER]))
        torch.testing.assert_close(judge(clips[1:], [PROMPT]), score_B[1:])


@each
def test_the_weights_are_those_of_the_folder(encoders: dict[str, Path], kind: str, transformers: Any) -> None:
    model = transformers.AutoModel.from_pretrained(encoders[kind]).eval()
    clips = pixels(2, 8, 32, 32)
    fitted = normalised(clips, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        torch.testing.assert_close(discriminator(encoders[kind]).tokens(clips), model(fitted).last_hidden_state)


@each
@pytest.mark.parametrize("train_blocks", [0, 2])
def test_only_the_head_and_the_last_blocks_learn(encoders: dict[str, Path], kind: str, train_blocks: int) -> None:
    judge = discriminator(encoders[kind], train_blocks)
    bradley_terry_loss(judge(drifting(2, step=2), [PROMPT] * 2), judge(drifting(2, step=0), [PROMPT] * 2)).backward()
    learning = {name for name, parameter in judge.named_parameters() if parameter.grad is not None}
    assert {name for name, parameter in judge.named_parameters() if parameter.requires_grad} == learning
    inside = {name for name in learning if name.startswith("encoder.")}
    blocks = {name.split("layer.")[1].split(".")[0] for name in inside if "layer." in name}
    assert blocks == ({"1", "2"} if train_blocks else set())
    assert any(name.startswith("head.") for name in learning)
    assert any(name.startswith("encoder.layernorm") for name in inside) is bool(train_blocks)


@each
def test_what_is_frozen_stays_in_evaluation_mode(encoders: dict[str, Path], kind: str) -> None:
    judge = discriminator(encoders[kind], train_blocks=1).train()
    modes = {name: module.training for name, module in judge.named_modules()}
    assert modes["head"]
    assert not modes["encoder"]
    assert {mode for name, mode in modes.items() if "layer.2" in name} == {True}
    assert {mode for name, mode in modes.items() if "layer.0" in name} == {False}
    assert not any(module.training for module in judge.eval().modules())


@each
def test_a_gradient_reaches_the_pixels_and_no_frozen_weight(encoders: dict[str, Path], kind: str) -> None:
    judge, clips = discriminator(encoders[kind]), pixels(1).requires_grad_()
    judge(clips, [PROMPT]).sum().backward()
    assert clips.grad is not None
    assert clips.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in judge.encoder.parameters())


@each
def test_it_learns_to_tell_two_motions_apart(encoders: dict[str, Path], kind: str) -> None:
    judge = discriminator(encoders[kind])
    optimizer = build_optimizer(judge, OptimConfig(lr=1e-2))
    still, moving, prompts = drifting(8, step=0), drifting(8, step=3), [PROMPT, OTHER] * 4
    losses = []
    for _ in range(15):
        loss = bradley_terry_loss(judge(moving, prompts), judge(still, prompts))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_frames_are_taken_evenly_with_both_ends() -> None:
    numbered = torch.arange(9.0).view(1, 9, 1, 1, 1)
    assert evenly(numbered, 3).flatten().tolist() == [0, 4, 8]
    assert evenly(numbered, 1).flatten().tolist() == [0]
    assert evenly(numbered[:, :2], 4).flatten().tolist() == [0, 0, 1, 1]


def test_a_resized_wave_keeps_its_shape_and_a_checkerboard_vanishes() -> None:
    grey = torch.full((1, 2, 3, 9, 7), 0.25)
    torch.testing.assert_close(resized(grey, 32, 32), torch.full((1, 2, 3, 32, 32), 0.25))
    fine = (torch.arange(16) % 2 * 2.0 - 1).expand(1, 2, 3, 16, 16)
    assert resized(fine, 4, 4)[..., 1:-1].abs().max() < 0.2


def test_a_pixel_of_the_mean_is_nought() -> None:
    mean, deviation = (0.5, 0.25, 0.75), (0.1, 0.2, 0.3)
    pixel = torch.tensor([0.0, -0.1, 1.1]).view(1, 1, 3, 1, 1)
    expected = torch.tensor([0.0, 1.0, 1.0])
    torch.testing.assert_close(normalised(pixel, (mean, deviation)).flatten(), expected)


@each
def test_more_blocks_than_there_are_cannot_learn(encoders: dict[str, Path], kind: str) -> None:
    with pytest.raises(ValueError, match="the encoder has 3 blocks, and 4 of them should learn; lower train_blocks"):
        discriminator(encoders[kind], train_blocks=4)


def test_another_kind_of_model_is_refused_by_name(qwen2_vl: Path) -> None:
    with pytest.raises(ValueError, match=r"a model of the type 'qwen2_vl'; .* one of \['videomae', 'vjepa2'\]"):
        discriminator(qwen2_vl)


@pytest.mark.usefixtures("transformers")
def test_a_folder_that_holds_no_model_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises((OSError, ValueError), match=tmp_path.name):
        discriminator(tmp_path)


def test_without_the_library_the_line_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "streamstill\[encoders\]"'):
        discriminator(tmp_path)


def test_a_negative_number_of_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="train_blocks must not be negative, got -1"):
        EncoderConfig(encoder="somewhere", train_blocks=-1)
