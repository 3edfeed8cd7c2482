"""Rollouts on their way to noise: nothing is lost, every chunk has its own level, what is worth what stays with it."""

from dataclasses import replace

import pytest
import torch

from streamstill.flow.times import Sampling, sampler_times
from streamstill.training.batches import PromptGroup
from streamstill.training.objectives.adversary import Round
from streamstill.training.objectives.renoised import Renoised, renoised

SAMPLING = Sampling(steps=4, shift=5.0)


def parts_of(*, micro_batch: int = 4, seed: int = 0) -> list[Renoised]:
    """Two prompts with three rollouts of four frames each; rollout i is filled with i and worth i."""
    values = torch.arange(6.0)
    rollouts = values.view(2, 3, 1, 1, 1, 1).expand(2, 3, 4, 1, 2, 2).contiguous()
    turn = Round(PromptGroup(torch.zeros(2, 1, 4, 1, 2, 2), ("first", "second")), rollouts)
    dice = torch.Generator().manual_seed(seed)
    worth = values.view(6, 1)
    return renoised(turn, worth, sampling=SAMPLING, chunk_frames=2, micro_batch=micro_batch, generator=dice)


def test_every_rollout_comes_once_with_its_worth_and_prompt() -> None:
    parts = parts_of()
    assert [len(part.prompts) for part in parts] == [3, 3]
    met = []
    for part in parts:
        for row, prompt in enumerate(part.prompts):
            value = float(part.rollouts_BFCHW[row].mean())
            assert float(part.worth_BC[row]) == value
            assert prompt == ("first" if value < 3 else "second")
            met.append(value)
    assert sorted(met) == [0, 1, 2, 3, 4, 5]
    assert met != sorted(met)


def test_chunks_have_levels_of_the_sampler_each_its_own() -> None:
    (part,) = parts_of(micro_batch=6, seed=3)
    levels = sampler_times(SAMPLING.steps, shift=SAMPLING.shift)[:-1]
    assert part.t_BK.shape == (6, 2)
    assert all(min(abs(t - float(level)) for level in levels) < 1e-6 for t in part.t_BK.flatten().tolist())
    assert (part.t_BK[:, 0] != part.t_BK[:, 1]).any()
    assert torch.equal(part.t_BF, part.t_BK[:, [0, 0, 1, 1]])


def test_a_noised_chunk_lies_on_the_line_from_rollout_to_noise() -> None:
    (part,) = parts_of(micro_batch=6)
    t = part.t_BK[:, [0, 0, 1, 1], None, None, None]
    torch.testing.assert_close(part.x_t, (1 - t) * part.rollouts_BFCHW + t * part.noise_BFCHW)
    untouched = replace(part, t_BK=torch.zeros_like(part.t_BK))
    assert torch.equal(untouched.x_t, part.rollouts_BFCHW)


@pytest.mark.parametrize("micro_batch", [1, 4, 6])
def test_the_size_of_micro_batches_changes_nothing_else(micro_batch: int) -> None:
    whole, cut = parts_of(micro_batch=6), parts_of(micro_batch=micro_batch)
    for name in ("rollouts_BFCHW", "noise_BFCHW", "t_BK", "worth_BC"):
        assert torch.equal(torch.cat([getattr(part, name) for part in cut]), getattr(whole[0], name))
