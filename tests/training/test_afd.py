"""One turn of AFD: who rolls out, what the discriminator sees, what the student is told."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from streamstill.streaming.rollout import rollout
from streamstill.student.network import Network
from streamstill.training.discriminators.blindfold import Blindfold
from streamstill.training.objectives.adversary import AdversaryConfig, Comparison
from streamstill.training.objectives.afd import (
    AdversarialFlowDistillation,
    AfdConfig,
    Trial,
    Verdict,
    negative_aware_error,
)
from streamstill.training.policies import OldSchedule
from tests.training.afd_parts import (
    ADVERSARY,
    ROLLOUTS,
    Brightness,
    Indifferent,
    afd,
    dice,
    disturb,
    group,
    lagged,
    weights,
)

OPEN_EYES = AdversaryConfig(rollouts_per_prompt=3, blindfold=Blindfold(blur=1, stride=1, noise=0))


def verdicts(objective: AdversarialFlowDistillation, turn: Trial, seed: int = 1) -> list[Verdict]:
    micros = objective.micro_batches("student", turn, dice(seed))
    assert all(isinstance(micro, Verdict) for micro in micros)
    return micros  # type: ignore[return-value]


def comparison(objective: AdversarialFlowDistillation, turn: Trial, seed: int = 1) -> Comparison:
    (micro,) = objective.micro_batches("discriminator", turn, dice(seed))
    assert isinstance(micro, Comparison)
    return micro


def test_the_lagged_copy_makes_the_rollouts() -> None:
    objective = afd()
    disturb(objective.student.network, seed=5)
    made = objective.begin(group(), 0, dice()).round.rollouts_PKFCHW
    text_BLD = objective.student.encode_prompts(group().prompts).repeat_interleave(ROLLOUTS, dim=0).detach()
    by_whom = {
        name: rollout(
            network,
            text_BLD,
            frames=4,
            latent_shape=objective.student.latent_shape[1:],
            sampling=objective.adversary.sampling,
            generator=dice(),
        )
        for name, network in (("old", lagged(objective)), ("student", objective.student.network))
    }
    assert torch.equal(made.flatten(0, 1), by_whom["old"])
    assert not torch.allclose(by_whom["student"], by_whom["old"])
    assert not made.requires_grad


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_the_lagged_copy_follows_by_exactly_its_decay(decay: float) -> None:
    objective = afd(old=OldSchedule(decay=decay))
    disturb(objective.student.network, seed=5)
    old, new = weights(lagged(objective)), weights(objective.student.network)
    turn = objective.begin(group(), 0, dice())
    metrics = objective.end(turn, 0)
    torch.testing.assert_close(weights(lagged(objective)), decay * old + (1 - decay) * new)
    assert metrics["distance_to_old"] == pytest.approx((new - old).norm().item(), rel=1e-4)
    assert torch.equal(weights(objective.student.network), new)


def test_the_start_is_neither_moved_nor_learnt() -> None:
    objective = afd(prior=0.1)
    start = objective.memory["start"]
    before = weights(start)
    disturb(objective.student.network, seed=5)
    objective.end(objective.begin(group(), 0, dice()), 0)
    assert torch.equal(weights(start), before)
    frozen = [*start.parameters(), *lagged(objective).parameters()]
    assert not any(parameter.requires_grad for parameter in frozen)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [({}, {"old"}), ({"prior": 0.1}, {"old", "start"}), ({"rollouts": "start"}, {"old", "start"})],
)
def test_the_start_is_kept_only_where_it_is_asked_for(changes: dict[str, Any], kept: set[str]) -> None:
    assert set(afd(**changes).memory) == kept


def test_what_the_judges_average_remembers_survives_too() -> None:
    objective = afd(adversary=replace(ADVERSARY, ema_decay=0.9))
    assert set(objective.memory) == {"judge", "old"}
    before = weights(objective.memory["judge"])
    disturb(objective.adversary.discriminator, seed=5)
    objective.end(objective.begin(group(), 0, dice()), 0)
    assert not torch.equal(weights(objective.memory["judge"]), before)


def test_the_discriminator_moves_first() -> None:
    assert [player.name for player in afd().players] == ["discriminator", "student"]


@pytest.mark.parametrize(("step", "rests"), [(0, True), (1, True), (2, False), (7, False)])
def test_the_student_rests_while_the_discriminator_warms_up(step: int, rests: bool) -> None:
    objective = afd(warmup_turns=2)
    turn = objective.begin(group(), step, dice())
    assert (verdicts(objective, turn) == []) is rests
    disturb(objective.student.network, seed=5)
    before = weights(lagged(objective))
    metrics = objective.end(turn, step)
    assert torch.equal(weights(lagged(objective)), before) is rests
    assert (not metrics) is rests
    assert comparison(objective, turn).prompts == turn.round.prompts


def test_the_discriminator_sees_each_rollout_beside_an_answer_to_its_own_prompt() -> None:
    objective = afd(adversary=OPEN_EYES)
    turn, asked = objective.begin(group(), 0, dice()), group()
    seen = comparison(objective, turn)
    screen = [
        [objective.student.codec.decode(clip[None])[0][0].clamp(-1, 1) for clip in answers]
        for answers in asked.latents_PMFCHW
    ]
    made = objective.student.codec.decode(turn.round.rollouts_PKFCHW.flatten(0, 1))[0].clamp(-1, 1)
    assert seen.prompts == (asked.prompts[0],) * 3 + (asked.prompts[1],) * 3
    torch.testing.assert_close(seen.student_BFCHW, made)
    for row in range(6):
        matches = [torch.allclose(seen.teacher_BFCHW[row], answer, atol=1e-6) for answer in screen[row // 3]]
        assert sum(matches) == 1


def test_all_the_teachers_answers_are_shown() -> None:
    objective = afd(adversary=OPEN_EYES)
    seen = comparison(objective, objective.begin(group(), 0, dice())).teacher_BFCHW
    assert [len({row.sum().item() for row in rows}) for rows in seen.split(3)] == [2, 2]


def test_the_discriminator_cannot_judge_by_values_that_no_screen_shows() -> None:
    objective = afd(adversary=OPEN_EYES)
    bright = torch.full((1, 4, 96, 4, 4), 3.0)
    assert torch.equal(objective.adversary.seen(bright, dice()), torch.ones(1, 8, 3, 16, 16))


def test_a_rollout_keeps_its_reward_noise_and_prompt_through_the_shuffle() -> None:
    objective = afd(Brightness(target=1.0), adversary=OPEN_EYES, reward_slope=0.2)
    turn = objective.begin(group(), 0, dice())
    rollouts, prompts = turn.round.rollouts_PKFCHW.flatten(0, 1), turn.round.prompts
    mean_B = objective.student.codec.decode(rollouts)[0].clamp(-1, 1).mean((1, 2, 3, 4))
    centred_PK = mean_B.view(2, 3) - mean_B.view(2, 3).mean(1, keepdim=True)
    spread = centred_PK.square().mean().sqrt() + 1e-4  # a spread of nothing is not divided by
    expected_B = (0.5 + 0.2 * centred_PK / spread).flatten().clamp(0, 1)
    order = []
    for verdict in verdicts(objective, turn):
        for row, prompt in enumerate(verdict.prompts):
            (index,) = [i for i in range(6) if torch.equal(verdict.rollouts_BFCHW[row], rollouts[i])]
            assert prompt == prompts[index]
            assert float(verdict.worth_BC[row]) == pytest.approx(float(expected_B[index]), abs=1e-3)
            order.append(index)
    assert sorted(order) == list(range(6))
    assert order != sorted(order)


def test_rewards_of_a_turn_average_one_half() -> None:
    objective = afd()
    rewards = torch.cat([v.worth_BC for v in verdicts(objective, objective.begin(group(), 0, dice()))])
    assert float(rewards.mean()) == pytest.approx(0.5, abs=1e-5)
    assert rewards.std() > 0.05


def test_noise_levels_are_the_samplers_own_and_all_of_them() -> None:
    objective = afd()
    levels = objective.adversary.sampling.times()[:-1].tolist()
    turn = objective.begin(group(), 0, dice())
    t_BK = torch.cat([v.t_BK for seed in range(5) for v in verdicts(objective, turn, seed)])
    assert t_BK.shape == (5 * 2 * ROLLOUTS, 2)
    assert {round(t, 6) for t in t_BK.flatten().tolist()} == {round(t, 6) for t in levels}
    assert (t_BK[:, 0] != t_BK[:, 1]).any()


def streamed(objective: AdversarialFlowDistillation, which: str, x_t: Tensor, verdict: Verdict) -> Tensor:
    """Velocities by the definition: chunk by chunk, after the rollout's own clean chunks."""
    text_BLD = objective.student.encode_prompts(verdict.prompts)
    policies = objective.policies
    with {"student": policies.student, "old": policies.old, "start": policies.start}[which]() as network:
        return streamed_by(network, x_t, verdict, text_BLD)


def streamed_by(network: Network, x_t: Tensor, verdict: Verdict, text_BLD: Tensor) -> Tensor:
    state, velocities = network.initial_state(x_t.shape[0], 4, 4, like=x_t), []
    for k in range(verdict.t_BK.shape[1]):
        here = slice(2 * k, 2 * k + 2)
        velocities.append(network(x_t[:, here], verdict.t_BK[:, k], text_BLD, state)[0])
        state = network(verdict.rollouts_BFCHW[:, here], torch.zeros(x_t.shape[0]), text_BLD, state)[1]
    return torch.cat(velocities, dim=1)


@pytest.mark.parametrize("prior", [0.0, 0.3])
@torch.no_grad()
def test_the_students_loss_is_equations_4_and_5_given_the_rollouts_own_past(prior: float) -> None:
    objective = afd(prior=prior, beta=0.5)
    disturb(objective.student.network, seed=5)
    disturb(lagged(objective), seed=6)
    verdict = verdicts(objective, objective.begin(group(), 0, dice()))[0]
    t = verdict.t_BK.repeat_interleave(2, dim=1)[..., None, None, None]
    clean = verdict.rollouts_BFCHW
    x_t = (1 - t) * clean + t * verdict.noise_BFCHW
    velocity = {
        which: streamed(objective, which, x_t, verdict)
        for which in ("student", "old", "start")
        if prior or which != "start"
    }
    estimates = (x_t - t * velocity["student"], x_t - t * velocity["old"], clean)
    error_B = negative_aware_error(*estimates, verdict.worth_BC[:, 0], beta=0.5)
    expected = error_B.mean()
    if prior:
        expected = expected + prior * (velocity["student"] - velocity["start"]).square().mean()
    loss = objective.loss("student", verdict)
    torch.testing.assert_close(loss.value, expected, rtol=1e-4, atol=1e-6)
    assert ("drift_from_start" in loss.metrics) is (prior > 0)


@torch.no_grad()
def test_normalised_each_chunk_counts_by_its_own_size_whatever_the_rewards_columns() -> None:
    objective = afd(beta=0.5, self_normalise=True)
    disturb(objective.student.network, seed=5)
    verdict = verdicts(objective, objective.begin(group(), 0, dice()))[0]
    t = verdict.t_BK.repeat_interleave(2, dim=1)[..., None, None, None]
    clean = verdict.rollouts_BFCHW
    x_t = (1 - t) * clean + t * verdict.noise_BFCHW
    new, old = (x_t - t * streamed(objective, which, x_t, verdict) for which in ("student", "old"))
    errors = []
    for frames in (slice(0, 2), slice(2, 4)):
        sides = (new[:, frames], old[:, frames], clean[:, frames])
        errors.append(negative_aware_error(*sides, verdict.worth_BC[:, 0], beta=0.5, normaliser="lagged"))
    assert verdict.t_BK[:, 0].ne(verdict.t_BK[:, 1]).any()
    torch.testing.assert_close(
        objective.loss("student", verdict).value, torch.stack(errors).mean(), rtol=1e-4, atol=1e-6
    )


def test_the_spread_of_the_scores_is_told_as_it_is_before_it_is_divided_out() -> None:
    spread = {}
    for name, judge in (("bright", Brightness(0.1)), ("indifferent", Indifferent())):
        objective = afd(judge)
        turn = objective.begin(group(), 0, dice())
        objective.micro_batches("student", turn, dice(1))
        spread[name] = objective.end(turn, 0)["score_spread"]
    assert spread["indifferent"] == 0
    assert spread["bright"] > 1e-4


def test_the_judges_average_rests_when_the_discriminator_is_frozen() -> None:
    objective = afd(freeze_after=1, adversary=replace(ADVERSARY, ema_decay=0.9))
    moved = []
    for step in range(3):
        before = weights(objective.adversary.judge)
        with torch.no_grad():
            for parameter in objective.adversary.discriminator.parameters():
                parameter.add_(0.1)
        objective.end(objective.begin(group(), step, dice()), step)
        moved.append(not torch.equal(weights(objective.adversary.judge), before))
    assert moved == [True, False, False]


def test_the_students_turn_gives_gradients_to_its_network_alone() -> None:
    objective = afd(prior=0.1)
    disturb(objective.student.network, seed=5)
    (verdict, *_) = verdicts(objective, objective.begin(group(), 0, dice()))
    objective.loss("student", verdict).value.backward()
    assert all(parameter.grad is not None for parameter in objective.student.network.parameters())
    others = (objective.student.text, objective.adversary.discriminator, *objective.memory.values())
    assert all(parameter.grad is None for module in others for parameter in module.parameters())


def test_the_discriminators_turn_gives_gradients_to_it_alone() -> None:
    objective = afd()
    objective.loss("discriminator", comparison(objective, objective.begin(group(), 0, dice()))).value.backward()
    assert any(parameter.grad is not None for parameter in objective.adversary.discriminator.parameters())
    assert all(p.grad is None for module in (objective.student, lagged(objective)) for p in module.parameters())


def test_the_discriminators_numbers_are_those_of_the_pairs() -> None:
    objective = afd(Brightness(target=-1.0), adversary=OPEN_EYES)
    pairs = comparison(objective, objective.begin(group(), 0, dice()))
    margin_B = pairs.student_BFCHW.mean((1, 2, 3, 4)) - pairs.teacher_BFCHW.mean((1, 2, 3, 4))
    loss = objective.loss("discriminator", pairs)
    torch.testing.assert_close(loss.value, torch.nn.functional.softplus(-margin_B).mean())
    assert float(loss.metrics["pair_accuracy"]) == pytest.approx(float((margin_B > 0).float().mean()))
    assert float(loss.metrics["margin"]) == pytest.approx(float(margin_B.mean()), abs=1e-5)


def test_an_indifferent_judge_gives_no_gradient() -> None:
    objective = afd(Indifferent())
    for verdict in verdicts(objective, objective.begin(group(), 0, dice())):
        assert torch.equal(verdict.worth_BC, torch.full((len(verdict.prompts), 1), 0.5))
        objective.loss("student", verdict).value.backward()
    gradients = [p.grad for p in objective.student.network.parameters() if p.grad is not None]
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-6


def test_another_comparison_can_be_given() -> None:
    """The control of design.md: rewards that ignore the scores."""
    objective = afd()
    objective.compare = torch.zeros_like
    turn = objective.begin(group(), 0, dice())
    assert all((verdict.worth_BC == 0.5).all() for verdict in verdicts(objective, turn))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beta": 0.0}, "beta must be positive"),
        ({"prior": -0.1}, "prior must not be negative, got -0.1"),
        ({"credit": "frame"}, "unknown credit 'frame': choose one of clip, chunk"),
        ({"rollouts": "student"}, "unknown maker of rollouts 'student': choose one of old, start"),
        ({"micro_batch": 0}, "micro_batch must be at least 1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AfdConfig(**changes)


def test_a_single_rollout_per_prompt_has_nothing_to_be_compared_with() -> None:
    with pytest.raises(ValueError, match="rollouts_per_prompt is 1, it must be at least 2"):
        AdversaryConfig(rollouts_per_prompt=1)
    assert ADVERSARY.rollouts_per_prompt == ROLLOUTS
