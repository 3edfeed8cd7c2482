"""Credit by chunk, and rollouts that are not the lagged student's own."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from streamstill.testing import TINY, tiny_student
from streamstill.training.discriminators.motion import ChunkMotionDiscriminator
from streamstill.training.objectives.afd import (
    AdversarialFlowDistillation,
    Trial,
    Verdict,
    advantages,
    negative_aware_error,
    rewards,
)
from tests.training.afd_parts import CONFIG, ROLLOUTS, Brightness, afd, dice, disturb, group, weights

CHUNKS = 2


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=dice(seed), dtype=torch.float64)


def by_chunk() -> AdversarialFlowDistillation:
    torch.manual_seed(2)
    return afd(ChunkMotionDiscriminator(16), credit="chunk", reward_slope=0.2)


def verdicts(objective: AdversarialFlowDistillation, turn: Trial) -> list[Verdict]:
    micros = objective.micro_batches("student", turn, dice(1))
    assert all(isinstance(micro, Verdict) for micro in micros)
    return micros  # type: ignore[return-value]


def test_a_chunk_is_compared_with_the_same_chunk_of_the_prompts_other_rollouts() -> None:
    score_PKC, constant_P1C = normal(3, 5, 4), 100 * normal(3, 1, 4, seed=1)
    advantage_PKC = advantages(score_PKC + constant_P1C)
    torch.testing.assert_close(advantage_PKC, advantages(score_PKC))
    assert advantage_PKC.mean(dim=1).abs().max() < 1e-12
    assert float(advantage_PKC.square().mean()) == pytest.approx(1, abs=1e-3)


def test_the_spread_of_chunks_is_one_for_all() -> None:
    """A chunk position at which all rollouts score nearly the same gets advantages near zero."""
    spread_C = torch.tensor([1.0, 0.01]).double()
    advantage_PKC = advantages(spread_C * normal(3, 50, 2))
    assert float(advantage_PKC[..., 1].std() / advantage_PKC[..., 0].std()) == pytest.approx(0.01, rel=0.2)


def test_each_chunk_goes_its_own_way() -> None:
    """At the old estimate: -2 (2r - 1) (target - old) per dimension, with every chunk's own reward."""
    old, target = normal(3, CHUNKS, 6), normal(3, CHUNKS, 6, seed=1)
    new, reward_BK = old.clone().requires_grad_(), torch.tensor([[1.0, 0.5], [0.0, 0.7], [0.5, 0.0]]).double()
    error_BK = negative_aware_error(new, old, target, reward_BK, beta=0.3)
    (slope,) = torch.autograd.grad(error_BK.sum(), new)
    torch.testing.assert_close(slope, -2 * (2 * reward_BK - 1)[..., None] * (target - old) / 6)


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_equal_rewards_of_all_chunks_are_the_reward_of_the_rollout(beta: float) -> None:
    new, old, target = (normal(3, CHUNKS, 6, seed=seed) for seed in range(3))
    reward_B = torch.rand(3, generator=dice(4), dtype=torch.float64)
    whole_B, by_chunk_BK = (
        negative_aware_error(new, old, target, reward, beta=beta)
        for reward in (reward_B, reward_B[:, None].expand(-1, CHUNKS))
    )
    torch.testing.assert_close(by_chunk_BK.mean(1), whole_B)


def test_rewards_are_those_of_the_discriminators_chunk_scores() -> None:
    objective = by_chunk()
    turn = objective.begin(group(), 0, dice())
    score_PKC = objective.adversary.chunk_scores(turn.round, dice(1))
    expected_BK = rewards(advantages(score_PKC), clip=5.0, slope=0.2).flatten(0, 1)
    rollouts = turn.round.rollouts_PKFCHW.flatten(0, 1)
    seen = 0
    for verdict in verdicts(objective, turn):
        for row, clip in enumerate(verdict.rollouts_BFCHW):
            (index,) = [i for i in range(len(rollouts)) if torch.equal(clip, rollouts[i])]
            torch.testing.assert_close(verdict.worth_BC[row], expected_BK[index])
            seen += 1
    assert seen == 2 * ROLLOUTS
    assert expected_BK.shape == (2 * ROLLOUTS, CHUNKS)
    assert (expected_BK[:, 0] - expected_BK[:, 1]).abs().max() > 0.01


def test_a_chunk_of_reward_one_half_gives_no_gradient_whatever_the_others_get() -> None:
    """One chunk after the other is blamed; the loss is the mean, so their gradients add up to the whole."""
    objective = by_chunk()
    (verdict, *_) = verdicts(objective, objective.begin(group(), 0, dice()))

    def slope(reward_BK: Tensor) -> Tensor:
        network = objective.student.network
        network.zero_grad(set_to_none=True)
        objective.loss("student", replace(verdict, worth_BC=reward_BK)).value.backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    half, reward_BK = torch.full_like(verdict.worth_BC, 0.5), verdict.worth_BC
    first, second = half.clone(), half.clone()
    first[:, 0], second[:, 1] = reward_BK[:, 0], reward_BK[:, 1]
    assert slope(half).abs().max() < 1e-6
    torch.testing.assert_close(slope(first) + slope(second), slope(reward_BK), rtol=1e-3, atol=1e-6)


def test_a_comparison_may_give_whole_rollouts_where_scores_are_by_chunk() -> None:
    objective = by_chunk()
    objective.compare = lambda score_PKC: advantages(score_PKC.mean(dim=2))
    assert all(v.worth_BC.shape[1] == 1 for v in verdicts(objective, objective.begin(group(), 0, dice())))


def test_a_comparison_of_another_shape_is_refused() -> None:
    objective = by_chunk()
    objective.compare = lambda score_PKC: score_PKC[:, :, :1]
    with pytest.raises(ValueError, match=r"shape \(2, 4, 1\); it must give one for each rollout, \(2, 4\), or one for"):
        verdicts(objective, objective.begin(group(), 0, dice()))


def test_a_judge_of_whole_clips_cannot_give_credit_by_chunk() -> None:
    with pytest.raises(ValueError, match="one score per clip"):
        afd(Brightness(1.0), credit="chunk")


def test_off_policy_rollouts_are_always_the_starts_own() -> None:
    on, off = afd(), afd(rollouts="start")
    fresh = on.begin(group(), 0, dice()).round.rollouts_PKFCHW
    for objective in (on, off):
        disturb(objective.student.network, seed=5)
        objective.end(objective.begin(group(), 0, dice()), 0)
    assert torch.equal(off.begin(group(), 1, dice()).round.rollouts_PKFCHW, fresh)
    assert not torch.allclose(on.begin(group(), 1, dice()).round.rollouts_PKFCHW, fresh)
    assert torch.equal(weights(off.memory["old"]), weights(on.memory["old"]))


def worths(credit: str, compare: Callable[[Tensor], Tensor] = advantages, *, spare: bool) -> Tensor:
    torch.manual_seed(2)
    objective = afd(ChunkMotionDiscriminator(16), credit=credit, spare_first_chunk=spare)
    objective.compare = compare
    return torch.cat([v.worth_BC for v in verdicts(objective, objective.begin(group(), 0, dice()))])


def test_a_spared_first_chunk_has_reward_one_half_and_the_others_that_of_the_clip() -> None:
    spared_BK, plain_B1 = worths("clip", spare=True), worths("clip", spare=False)
    assert (spared_BK[:, 0] == 0.5).all()
    assert torch.equal(spared_BK[:, 1:], plain_B1.expand(-1, CHUNKS - 1))
    assert (plain_B1 - 0.5).abs().max() > 0.01


def test_chunks_are_compared_without_the_one_that_is_spared() -> None:
    """Where its scores are wild, they would take the others' spread, and their mean of 1/2, with them."""

    def wild(score_PKC: Tensor) -> Tensor:
        first = torch.where(torch.arange(score_PKC.shape[1]) == 0, 50.0, 0.0)[None, :, None]
        chunks = score_PKC.shape[2]
        return advantages(
            torch.cat([score_PKC[:, :, :1] + first, score_PKC[:, :, 1:]], 2) if chunks == CHUNKS else score_PKC
        )

    spared_BK, plain_BK = worths("chunk", wild, spare=True), worths("chunk", wild, spare=False)
    assert (spared_BK[:, 0] == 0.5).all()
    assert float(spared_BK[:, 1:].mean()) == pytest.approx(0.5, abs=1e-5)
    assert spared_BK[:, 1:].std() > 3 * plain_BK[:, 1:].std()


def test_where_all_is_first_chunk_there_is_nothing_to_spare() -> None:
    student = tiny_student(replace(TINY, frames=4))
    with pytest.raises(ValueError, match="clips of 2 latent frames are one chunk"):
        AdversarialFlowDistillation(student, Brightness(1.0), replace(CONFIG, spare_first_chunk=True))
