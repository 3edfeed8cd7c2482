"""The switches of AFD that experiments turn: who freezes, how rewards are mapped, what is seen, what anchors."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from streamstill.recipes.stages import averaged
from streamstill.training.lora import Lora
from streamstill.training.objectives.adversary import Adversary
from streamstill.training.objectives.afd import AdversarialFlowDistillation, Verdict, min_max_rewards
from streamstill.training.objectives.flow_matching import NoisedExamples, flow_loss
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.afd_parts import ADVERSARY, BY_HEART, Brightness, Indifferent, afd, dice, group, lagged, weights


def student_micros(objective: AdversarialFlowDistillation, step: int = 0) -> list[Verdict]:
    turn = objective.begin(group(), step, dice())
    return cast(list[Verdict], list(objective.micro_batches("student", turn, dice(1))))


def gradient(objective: AdversarialFlowDistillation, micro: Verdict) -> Tensor:
    network = objective.student.network
    network.zero_grad()
    objective.loss("student", micro).value.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def test_a_frozen_discriminator_rests_and_the_student_goes_on() -> None:
    objective = afd(freeze_after=2)
    for step in range(4):
        turn = objective.begin(group(), step, dice())
        assert bool(objective.micro_batches("discriminator", turn, dice(1))) == (step < 2)
        assert objective.micro_batches("student", turn, dice(1))


def test_min_max_reaches_both_ends_and_is_one_half_where_all_are_equal() -> None:
    advantage = torch.tensor([[-9.0, 0.0, 1.0, 3.0]])
    torch.testing.assert_close(min_max_rewards(advantage, clip=5), torch.tensor([[0.0, 5 / 8, 6 / 8, 1.0]]))
    torch.testing.assert_close(min_max_rewards(torch.full((2, 3), 7.0), clip=5), torch.full((2, 3), 0.5))


def test_the_mean_of_min_max_is_not_one_half_and_that_of_centred_is() -> None:
    advantage = torch.tensor([[-0.5, -0.5, -0.5, 1.5]])
    assert float(min_max_rewards(advantage, clip=5).mean()) == pytest.approx(0.25)
    mapped = {name: student_micros(afd(Brightness(0.3), reward_map=name)) for name in ("centred", "min_max")}
    means = {name: float(torch.cat([m.worth_BC for m in micros]).mean()) for name, micros in mapped.items()}
    assert means["centred"] == pytest.approx(0.5, abs=1e-5)
    assert abs(means["min_max"] - 0.5) > 1e-3


@torch.no_grad()
def test_clean_context_is_the_rollout_and_noisy_context_what_was_noised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk has no past: only later ones can tell the two apart."""
    asked: dict[str, Tensor] = {}
    for context in ("clean", "noisy"):
        objective = afd(Brightness(0.3), context=context)
        seen: list[Tensor] = []
        network = objective.student.network
        real = network.velocity_in_context

        def spy(*given: Tensor, real: Any = real, seen: list[Tensor] = seen, **named: Tensor) -> Tensor:
            seen.append(named["context_BFCHW"])
            return cast(Tensor, real(*given, **named))

        monkeypatch.setattr(network, "velocity_in_context", spy)
        micro = student_micros(objective)[0]
        objective.loss("student", micro)
        asked[context] = seen[-1]
        assert torch.equal(seen[-1], micro.rollouts_BFCHW) == (context == "clean")
    assert asked["clean"].shape == asked["noisy"].shape


def test_an_anchor_is_flow_matching_on_the_turns_clips_each_once() -> None:
    objective = afd(Indifferent(), anchor=2.0, adversary=replace(ADVERSARY, optim=BY_HEART))
    micros = student_micros(objective)
    parts = [micro.anchor for micro in micros if micro.anchor is not None]
    shown = torch.cat([part.examples.latents_BFCHW for part in parts])
    teacher = group().latents_PMFCHW.flatten(0, 1)
    assert len(shown) == len(teacher)
    assert all((shown == clip).flatten(1).all(dim=1).sum() == 1 for clip in teacher)
    anchored = gradient(objective, micros[0])  # nobody prefers anything: the anchor alone has a gradient
    assert isinstance(micros[0].anchor, NoisedExamples)
    objective.student.network.zero_grad()
    share = micros[0].anchor_share
    (2 * share * flow_loss(objective.student, micros[0].anchor, full_weight_from=0.05).value).backward()
    alone = torch.cat([p.grad.flatten() for p in objective.student.network.parameters() if p.grad is not None])
    torch.testing.assert_close(anchored, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 3, 32])
def test_every_clip_of_the_anchor_weighs_the_same_however_the_turn_is_cut(micro_batch: int) -> None:
    objective = afd(Indifferent(), anchor=1.0, micro_batch=micro_batch)
    micros = student_micros(objective)
    clips = [0 if micro.anchor is None else len(micro.anchor.examples.prompts) for micro in micros]
    assert sum(clips) == len(group().latents_PMFCHW.flatten(0, 1))
    for micro, count in zip(micros, clips, strict=True):
        assert micro.anchor_share * sum(clips) == pytest.approx(count * len(micros))


def test_the_text_encoder_gets_no_gradient_from_the_anchor() -> None:
    objective = afd(Indifferent(), anchor=1.0)
    objective.loss("student", student_micros(objective)[0]).value.backward()
    assert all(parameter.grad is None for parameter in objective.student.text.parameters())


def test_without_an_anchor_nothing_is_drawn_for_it() -> None:
    assert all(micro.anchor is None for micro in student_micros(afd(Indifferent())))


def test_more_looks_make_scores_steadier_and_keep_their_mean() -> None:
    """Two scorings of the same rollouts differ by the blindfold's noise only."""
    objective = afd()
    turn = objective.begin(group(), 0, dice()).round
    spread = {}
    for looks in (1, 16):
        config = replace(ADVERSARY, looks=looks)
        adversary = Adversary(objective.student, objective.adversary.discriminator, config)
        first, second = (adversary.scores(turn, dice(seed)) for seed in (1, 2))
        spread[looks] = float((first - second).square().mean())
    assert 0 < spread[16] < spread[1] / 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"anchor": -1.0}, "anchor must not be negative"),
        ({"freeze_after": -1}, "None never freezes"),
        ({"reward_slope": 0.0}, "reward_slope must be positive"),
        ({"advantage_clip": -5.0}, "advantage_clip must be positive"),
        ({"warmup_turns": -3}, "warmup_turns is a number of turns"),
        ({"full_weight_from": 0.0}, "full_weight_from is a time"),
        ({"reward_map": "median"}, "reward map"),
        ({"context": "dirty"}, "context"),
    ],
)
def test_bad_switches_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        afd(**changes)


def test_no_look_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="looks"):
        replace(ADVERSARY, looks=0)


def test_the_lagged_student_is_untouched_by_the_anchor() -> None:
    objective = afd(Indifferent(), anchor=1.0)
    before = weights(lagged(objective))
    gradient(objective, student_micros(objective)[0])
    assert torch.equal(weights(lagged(objective)), before)


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["copies", "adapters"])
def test_a_run_can_return_the_average_of_the_students_weights(lora: Lora | None, tmp_path: Path) -> None:
    objective = afd(Brightness(0.3), ema_decay=0.5, lora=lora, adversary=replace(ADVERSARY, optim=BY_HEART))
    trained = objective.policies.trained
    trainer = Trainer(objective, group, TrainerConfig(steps=3), tmp_path)
    expected, kept = weights(trained), []
    for step in range(3):
        trainer.turn(step)
        share = min(0.5, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * weights(trained)
        kept.append(weights(trained))
    assert (kept[0] - kept[2]).abs().max() > 0
    averaged(trainer, "student", trained)
    torch.testing.assert_close(weights(trained), expected)
    objective.policies.merged()


def test_without_a_decay_no_average_is_kept(tmp_path: Path) -> None:
    trainer = Trainer(afd(), group, TrainerConfig(steps=1), tmp_path)
    assert trainer.ema("student") is None
