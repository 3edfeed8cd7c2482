"""A video language model of the real classes, tiny and random: it knows the prompt because it is read after it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streamstill.training.discriminators.losses import bradley_terry_loss
from streamstill.training.discriminators.reward_vlm import RewardVlmConfig, RewardVlmDiscriminator, fitting_size
from streamstill.training.optim import OptimConfig, build_optimizer
from tests.training.discriminators.parts import OTHER, PROMPT, drifting, pixels

pytest.importorskip("peft", reason='install the lora extra: pip install "streamstill[lora]"')


@pytest.fixture(scope="module")
def config(qwen2_vl: Path) -> RewardVlmConfig:
    return RewardVlmConfig(model=str(qwen2_vl), rank=4, alpha=8, frames=4, dtype="float32")


@pytest.fixture
def judge(config: RewardVlmConfig) -> RewardVlmDiscriminator:
    torch.manual_seed(0)
    return RewardVlmDiscriminator.from_pretrained(config)


def test_the_score_depends_on_the_prompt_and_each_clip_has_its_own(judge: RewardVlmDiscriminator) -> None:
    clips = pixels(3)
    score_B = judge(clips, [PROMPT] * 3)
    assert score_B.shape == (3,)
    assert len(set(score_B.tolist())) == 3
    assert not torch.isclose(judge(clips, [OTHER] * 3), score_B).any()


def test_a_score_read_before_the_prompt_would_not_know_it(judge: RewardVlmDiscriminator) -> None:
    """The trap: to a causal model what comes later does not exist, so the last token of the clip is blind to it."""
    (one, ends), (other, _) = (judge.states(pixels(1), [prompt]) for prompt in (PROMPT, "a green box"))
    ids, _ = judge._ids([PROMPT], seen=_tokens_of_the_clip(judge))
    last_of_clip = int((ids[0] == judge.config.vision_end_token_id).nonzero())
    assert torch.equal(one[:, : last_of_clip + 1], other[:, : last_of_clip + 1])
    assert last_of_clip < int(ends[0]) - 1 == one.shape[1] - 1
    assert not torch.allclose(one[0, -1], other[0, -1])
    read_early = torch.stack([judge.score(states[0, last_of_clip]) for states in (one, other)])
    assert torch.equal(read_early[0], read_early[1])


def _tokens_of_the_clip(judge: RewardVlmDiscriminator) -> int:
    _, grid = judge._patches(pixels(1))
    return int(grid.prod()) // 4


def test_a_longer_prompt_beside_it_changes_no_score(judge: RewardVlmDiscriminator) -> None:
    alone = torch.cat([judge(pixels(2)[row : row + 1], [prompt]) for row, prompt in enumerate((PROMPT, "a box"))])
    torch.testing.assert_close(judge(pixels(2), [PROMPT, "a box"]), alone)


def test_the_patches_lie_as_the_model_reads_them(judge: RewardVlmDiscriminator) -> None:
    """Row by row, in the order of transformers: merged cells side by side, colours before frames before pixels."""
    numbered = torch.arange(4 * 3 * 16 * 24).view(1, 4, 3, 16, 24) / 2304 - 1
    rows, grid = judge._patches(numbered)
    assert grid.tolist() == [2, 4, 6]
    assert rows.shape == (2 * 4 * 6, 3 * 2 * 4 * 4)
    mean, deviation = 0.48145466, 0.26862954  # of red
    for row, (frame, top, left) in {0: (0, 0, 0), 1: (0, 0, 4), 2: (0, 4, 0), 4: (0, 0, 8), 24: (2, 0, 0)}.items():
        red = (numbered[0, frame : frame + 2, 0, top : top + 4, left : left + 4] + 1) / 2
        torch.testing.assert_close(rows[row, : 2 * 16].view(2, 4, 4), (red - mean) / deviation)


def test_only_the_adapters_of_the_language_model_and_the_score_learn(judge: RewardVlmDiscriminator) -> None:
    bradley_terry_loss(judge(drifting(1, step=2), [PROMPT]), judge(drifting(1, step=0), [PROMPT])).backward()
    learning = {name for name, parameter in judge.named_parameters() if parameter.grad is not None}
    assert {name for name, parameter in judge.named_parameters() if parameter.requires_grad} == learning
    adapters = learning - {"score.weight"}
    assert all("lora_" in name and "language_model" in name for name in adapters)
    assert len(adapters) == 2 * 2 * 7  # A and B, of seven layers, in two blocks


def test_the_adapters_begin_as_nothing(
    judge: RewardVlmDiscriminator, config: RewardVlmConfig, transformers: Any
) -> None:
    plain = transformers.Qwen2VLModel.from_pretrained(config.model)
    states, _ = judge.states(pixels(1), [PROMPT])
    judge.model = plain
    torch.testing.assert_close(states, judge.states(pixels(1), [PROMPT])[0])


def test_a_gradient_reaches_the_pixels(judge: RewardVlmDiscriminator) -> None:
    clips = pixels(1).requires_grad_()
    judge(clips, [PROMPT]).sum().backward()
    assert clips.grad is not None
    assert torch.isfinite(clips.grad).all()
    assert clips.grad.abs().sum() > 0


def test_it_learns_to_tell_two_motions_apart(judge: RewardVlmDiscriminator) -> None:
    optimizer = build_optimizer(judge, OptimConfig(lr=1e-2))
    still, moving, prompts = drifting(4, step=0), drifting(4, step=3), [PROMPT, OTHER] * 2
    losses: list[float] = []
    for _ in range(10):
        loss = bradley_terry_loss(judge(moving, prompts), judge(still, prompts))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_half_precision_is_for_what_is_frozen(config: RewardVlmConfig) -> None:
    judge = RewardVlmDiscriminator.from_pretrained(replace(config, dtype="bfloat16"))
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in judge.parameters()}
    assert kinds == {(False, torch.bfloat16), (True, torch.float32)}
    score_B: Tensor = judge(pixels(2), [PROMPT, OTHER])
    assert score_B.dtype == torch.float32
    assert torch.isfinite(score_B).all()


sides = st.integers(1, 3000)


@given(height=sides, width=sides, step=st.sampled_from([8, 28]), cap=st.integers(1, 300))
def test_a_fitting_size_is_of_whole_steps_and_under_the_cap(height: int, width: int, step: int, cap: int) -> None:
    fitted = fitting_size(height, width, step=step, max_pixels=cap * step * step)
    assert min(fitted) >= step
    assert all(side % step == 0 for side in fitted)
    assert fitted[0] * fitted[1] <= cap * step * step
    assert (fitted[0] <= fitted[1]) or height >= width
    if min(height, width) >= step:
        assert fitted[0] <= height
        assert fitted[1] <= width


def test_a_clip_that_fits_keeps_its_size() -> None:
    assert fitting_size(56, 84, step=28, max_pixels=10**6) == (56, 84)


def test_a_cap_below_one_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="max_pixels is 700, this model needs at least 784"):
        fitting_size(64, 64, step=28, max_pixels=700)


def test_half_a_patch_of_frames_is_refused(config: RewardVlmConfig) -> None:
    with pytest.raises(ValueError, match="frames must be a multiple of 2, got 3"):
        RewardVlmDiscriminator.from_pretrained(replace(config, frames=3))


def test_another_kind_of_model_is_refused_by_name(encoders: dict[str, Path], config: RewardVlmConfig) -> None:
    with pytest.raises(ValueError, match=r"a model of the type 'videomae'; .* one of \['qwen2_vl'\]"):
        RewardVlmDiscriminator.from_pretrained(replace(config, model=str(encoders["videomae"])))
