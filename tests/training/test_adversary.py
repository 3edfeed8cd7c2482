"""The adversary: alike treatment of both sides, its losses, scores per clip and per chunk, accuracy, the average."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamstill.testing import tiny_student
from streamstill.training.discriminators.augmentation import Augmentation
from streamstill.training.discriminators.blindfold import Blindfold
from streamstill.training.discriminators.centroid import CentroidDiscriminator
from streamstill.training.discriminators.motion import ChunkMotionDiscriminator, MotionDiscriminator
from streamstill.training.objectives.adversary import Adversary, AdversaryConfig, Comparison, Round
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.afd_parts import dice, group, weights
from tests.training.clips import C

OPEN_EYES = Blindfold(blur=1, stride=1, noise=0)
CONFIG = AdversaryConfig(optim=OptimConfig(lr=1e-3), rollouts_per_prompt=4)
CHUNKS = 2  # of the tiny student's four latent frames


class Linear(nn.Module):
    """A score whose gradient is known: linear in the pixels; prompts count for nothing."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, clips_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.weight * clips_BFCHW.sum((1, 2, 3, 4)) / clips_BFCHW[0].numel() ** 0.5


def adversary(judge: nn.Module | None = None, **changes: Any) -> Adversary:
    torch.manual_seed(1)
    return Adversary(tiny_student(), judge or MotionDiscriminator(16), replace(CONFIG, **changes))


def chunk_judge() -> ChunkMotionDiscriminator:
    torch.manual_seed(1)
    return ChunkMotionDiscriminator(16)


def latent_judge() -> MotionDiscriminator:
    torch.manual_seed(1)
    return MotionDiscriminator(16, in_channels=C, sees="latents")


def turn_of(objective: Adversary) -> Round:
    return objective.begin(group(), 0, dice())


def mirror() -> Round:
    """A turn in which the student answers exactly what the teacher did."""
    return Round(group(), group().latents_PMFCHW)


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(), Augmentation(file="mjpeg", codec_round_trip=True, shrink=2, every=2), Augmentation(file="8bit")],
    ids=["plain", "all", "8bit"],
)
@pytest.mark.parametrize("judge", [MotionDiscriminator, latent_judge], ids=["pixels", "latents"])
def test_a_clip_looks_the_same_whoever_made_it(augmentation: Augmentation, judge: Any) -> None:
    of_pixels = judge is MotionDiscriminator
    changes = {"augmentation": augmentation} if of_pixels else {}
    objective = adversary(judge(), blindfold=replace(CONFIG.blindfold, noise=0), **changes)
    (pairs,) = objective.micro_batches("discriminator", mirror(), dice(3))
    teacher = {row.sum().item() for row in pairs.teacher_BFCHW}
    assert teacher == {row.sum().item() for row in pairs.student_BFCHW}
    assert len(teacher) == 4


def test_the_noise_of_both_sides_is_drawn_alike_but_not_the_same() -> None:
    objective = adversary(blindfold=Blindfold(blur=1, stride=1, noise=0.4))
    (pairs,) = objective.micro_batches("discriminator", mirror(), dice(3))
    clean = objective.student.codec.decode(group().latents_PMFCHW.flatten(0, 1))[0].clamp(-1, 1)
    noises = [min((row - one for one in clean), key=lambda n: float(n.abs().sum())) for row in pairs.teacher_BFCHW]
    other = [min((row - one for one in clean), key=lambda n: float(n.abs().sum())) for row in pairs.student_BFCHW]
    for side in (noises, other):
        assert float(torch.stack(side).std()) == pytest.approx(0.4, rel=0.03)
    assert not torch.allclose(noises[0], other[0])


def test_the_switch_takes_blindfold_and_augmentation_away() -> None:
    objective = adversary(blinded=False, augmentation=Augmentation(shrink=4))
    latents = group().latents_PMFCHW.flatten(0, 1)
    assert torch.equal(objective.seen(latents, dice()), objective.student.codec.decode(latents)[0].clamp(-1, 1))


class Counting:
    """A student's codec that counts the clips it decodes."""

    def __init__(self, codec: Any) -> None:
        self.codec, self.decoded = codec, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.codec, name)

    def decode(self, latents: torch.Tensor) -> Any:
        self.decoded.append(len(latents))
        return self.codec.decode(latents)


def test_many_looks_at_a_clip_decode_it_once() -> None:
    objective = adversary(blindfold=Blindfold(noise=0.5), looks=3, micro_batch=2)
    one_look = adversary(objective.discriminator, blindfold=Blindfold(noise=0.5), micro_batch=2)
    counting: Any = Counting(objective.student.codec)
    objective.student.codec = counting
    assert not torch.allclose(objective.scores(mirror(), dice()), one_look.scores(mirror(), dice()))
    assert counting.decoded == [2, 2]


def test_a_judge_of_latents_is_shown_latents() -> None:
    latents = group().latents_PMFCHW.flatten(0, 1)
    assert torch.equal(adversary(latent_judge(), blinded=False).seen(latents, dice()), latents)
    noised = adversary(latent_judge(), blindfold=Blindfold(noise=0.5)).seen(latents, dice())
    assert float((noised - latents).std()) == pytest.approx(0.5, rel=0.03)


def test_pixels_cannot_be_augmented_for_a_judge_of_latents() -> None:
    with pytest.raises(ValueError, match=r"sees latents, and Augmentation\(.*\) is for pixels"):
        adversary(latent_judge(), augmentation=Augmentation(shrink=2))


def test_a_judge_of_other_latents_than_the_codecs_is_refused() -> None:
    with pytest.raises(ValueError, match=f"sees latents of 7 channels, and PatchCodec gives latents of {C}"):
        adversary(MotionDiscriminator(16, in_channels=7, sees="latents"))


@pytest.mark.parametrize(("loss", "value"), [("bradley_terry", math.log(2)), ("gan", math.log(2))])
def test_a_judge_without_an_opinion_pays_log_2(loss: Any, value: float) -> None:
    objective = adversary(Linear(0.0), loss=loss)
    (pairs,) = objective.micro_batches("discriminator", turn_of(objective), dice())
    found = objective.loss("discriminator", pairs)
    assert found.value.item() == pytest.approx(value, abs=1e-6)
    assert float(found.metrics["pair_accuracy"]) == 0


def test_the_loss_is_chosen_by_the_config() -> None:
    values = []
    for loss in ("bradley_terry", "gan"):
        objective = adversary(loss=loss)
        (pairs,) = objective.micro_batches("discriminator", turn_of(objective), dice())
        values.append(objective.loss("discriminator", pairs).value.item())
    assert values[0] != values[1]


@pytest.mark.parametrize(("r1", "r2"), [(0.5, 0.0), (0.0, 2.0), (0.5, 2.0)])
def test_penalties_add_their_weight_times_the_squared_gradient(r1: float, r2: float) -> None:
    plain, objective = adversary(Linear(3.0)), adversary(Linear(3.0), r1=r1, r2=r2, rollouts_per_prompt=32)
    turn = objective.begin(group(), 0, dice())
    (pairs,) = objective.micro_batches("discriminator", turn, dice())
    found = objective.loss("discriminator", pairs)
    without = plain.loss("discriminator", replace(pairs, teacher_nearby_BFCHW=None, student_nearby_BFCHW=None))
    # the squared gradient is 9; 64 draws of a chi-square of one degree leave it 18 % of spread
    assert found.value.item() - without.value.item() == pytest.approx(9 * (r1 + r2), rel=0.6)
    assert set(found.metrics) - set(without.metrics) == {name for name, w in (("r1", r1), ("r2", r2)) if w}


def test_without_penalties_no_other_dice_are_thrown() -> None:
    objective, turn = adversary(), mirror()
    one, other = dice(), dice()
    objective.micro_batches("discriminator", turn, one)
    torch.randperm(2, generator=other), torch.randperm(2, generator=other)
    for _ in range(2):
        objective.seen(turn.rollouts_PKFCHW.flatten(0, 1), other)
    assert torch.equal(one.get_state(), other.get_state())


def test_small_micro_batches_hold_the_same_pairs() -> None:
    whole, parts = adversary(blindfold=OPEN_EYES), adversary(blindfold=OPEN_EYES, micro_batch=3)
    turn = turn_of(whole)
    (pairs,) = whole.micro_batches("discriminator", turn, dice())
    pieces = parts.micro_batches("discriminator", turn, dice())
    assert [len(piece.prompts) for piece in pieces] == [2, 3, 3]
    assert torch.equal(torch.cat([piece.teacher_BFCHW for piece in pieces]), pairs.teacher_BFCHW)
    assert torch.equal(torch.cat([piece.student_BFCHW for piece in pieces]), pairs.student_BFCHW)
    assert sum((piece.prompts for piece in pieces), ()) == pairs.prompts
    torch.testing.assert_close(parts.scores(turn, dice()), whole.scores(turn, dice()))


def test_a_score_is_the_mean_of_its_chunks() -> None:
    objective = adversary(chunk_judge(), blindfold=OPEN_EYES)
    turn = turn_of(objective)
    score_PKC = objective.chunk_scores(turn, dice())
    assert score_PKC.shape == (2, 4, CHUNKS)
    assert not score_PKC.requires_grad
    torch.testing.assert_close(objective.scores(turn, dice()), score_PKC.mean(dim=2))


def test_a_change_in_the_last_chunk_leaves_the_scores_before_it_bit_for_bit() -> None:
    objective = adversary(chunk_judge(), blindfold=replace(OPEN_EYES, blur=4, stride=2))
    turn = turn_of(objective)
    changed = turn.rollouts_PKFCHW.clone()
    changed[:, :, 2:] = 0.5
    before, after = (objective.chunk_scores(one, dice()) for one in (turn, Round(turn.group, changed)))
    assert torch.equal(before[..., 0], after[..., 0])
    assert not torch.isclose(before[..., 1], after[..., 1]).any()


def test_the_loss_of_a_chunk_judge_is_over_all_chunks() -> None:
    objective = adversary(chunk_judge())
    (pairs,) = objective.micro_batches("discriminator", turn_of(objective), dice())
    assert pairs.chunks == CHUNKS
    teacher, student = (
        objective.discriminator.chunk_scores(clips, pairs.prompts, chunks=CHUNKS)  # type: ignore[operator]
        for clips in (pairs.teacher_BFCHW, pairs.student_BFCHW)
    )
    expected = -nn.functional.logsigmoid(teacher - student).mean()
    torch.testing.assert_close(objective.loss("discriminator", pairs).value, expected)


def test_scores_of_chunks_need_a_judge_of_chunks() -> None:
    objective = adversary()
    with pytest.raises(ValueError, match=r"MotionDiscriminator gives one score per clip.*MotionConfig\(per_chunk=True"):
        objective.chunk_scores(turn_of(objective), dice())


def test_the_margins_are_those_of_every_pair_of_a_prompt() -> None:
    objective = adversary(Linear(), blindfold=OPEN_EYES)
    turn = turn_of(objective)
    margin_PMK = objective.margins(turn, dice())
    decode = objective.student.codec.decode
    sums = [
        decode(x.flatten(0, 1))[0].clamp(-1, 1).sum((1, 2, 3, 4))
        for x in (group().latents_PMFCHW, turn.rollouts_PKFCHW)
    ]
    teacher_PM, student_PK = sums[0].view(2, 2), sums[1].view(2, 4)
    scale = (8 * 3 * 16 * 16) ** 0.5
    torch.testing.assert_close(margin_PMK, (teacher_PM[:, :, None] - student_PK[:, None]) / scale, atol=1e-4, rtol=1e-4)
    expected = (
        sum(float(teacher_PM[p, m] > student_PK[p, k]) for p in range(2) for m in range(2) for k in range(4)) / 16
    )
    assert objective.pair_accuracy(turn, dice()) == pytest.approx(expected)


def test_the_accuracy_against_oneself_is_one_half_and_a_tie_counts_half() -> None:
    assert adversary(Linear(), blindfold=OPEN_EYES).pair_accuracy(mirror(), dice()) == 0.5
    assert adversary(Linear(0.0)).pair_accuracy(mirror(), dice()) == 0.5


def test_the_average_scores_and_the_discriminator_learns(tmp_path: Path) -> None:
    objective, plain = adversary(ema_decay=0.9), adversary()
    turn, start = turn_of(objective), weights(objective.discriminator)
    torch.testing.assert_close(objective.scores(turn, dice()), plain.scores(turn, dice()))
    Trainer(objective, group, TrainerConfig(steps=1), tmp_path).run()
    learnt, average = weights(objective.discriminator), weights(objective.judge)
    torch.testing.assert_close(average, 0.1 * start + 0.9 * learnt)
    alone = Adversary(objective.student, objective.judge, CONFIG)
    assert torch.equal(objective.scores(turn, dice()), alone.scores(turn, dice()))


def test_an_average_survives_a_stop(tmp_path: Path) -> None:
    states = []
    for name, stops in (("whole", (3,)), ("stopped", (1, 2, 3))):
        for steps in stops:
            objective = adversary(ema_decay=0.9, r1=0.1)
            Trainer(objective, group, TrainerConfig(steps=steps), tmp_path / name).run()
        states.append((tmp_path / name / "training" / "state.safetensors").read_bytes())
    assert states[0] == states[1]
    assert not torch.equal(weights(objective.judge), weights(objective.discriminator))


@pytest.mark.parametrize("judge", [Linear, chunk_judge, latent_judge, MotionDiscriminator])
@pytest.mark.parametrize("loss", ["bradley_terry", "gan"])
def test_every_judge_learns_by_either_loss(tmp_path: Path, judge: Any, loss: Any) -> None:
    accuracies: list[float] = []
    objective = adversary(judge(), loss=loss, r1=0.01, r2=0.01, optim=OptimConfig(lr=1e-3))
    before = weights(objective.discriminator)
    Trainer(
        objective,
        group,
        TrainerConfig(steps=3),
        tmp_path,
        on_step=lambda _, metrics: accuracies.append(metrics["discriminator/loss"]),
    ).run()
    assert all(math.isfinite(loss) for loss in accuracies)
    assert not torch.equal(weights(objective.discriminator), before)


def test_no_student_learns_from_the_adversary() -> None:
    objective = adversary()
    (pairs,) = objective.micro_batches("discriminator", turn_of(objective), dice())
    assert isinstance(pairs, Comparison)
    objective.loss("discriminator", pairs).value.backward()
    assert all(parameter.grad is None for parameter in objective.student.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollouts_per_prompt": 1}, "rollouts_per_prompt is 1, it must be at least 2"),
        ({"loss": "hinge"}, r"loss must be one of \['bradley_terry', 'gan'\], got 'hinge'"),
        ({"r1": -1.0}, "r1 and r2 must not be negative .* got r1=-1.0"),
        ({"penalty_distance": 0.0}, "penalty_distance must be positive"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\), or be None for no average, got 1.0"),
        ({"micro_batch": 0}, "micro_batch must be at least 1, got 0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(CONFIG, **changes)


def test_autocast_changes_neither_penalties_nor_small_differences_of_scores() -> None:
    torch.manual_seed(0)
    judge = CentroidDiscriminator()
    with torch.no_grad():
        judge.head.score.bias.add_(20.0)  # a constant of the prompt, which is free
    objective = adversary(judge, r1=1.0, r2=1.0, blindfold=OPEN_EYES)
    turn = turn_of(objective)
    scores, penalties = {}, {}
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (micro,) = objective.micro_batches("discriminator", turn, dice())
            penalties[enabled] = objective.loss("discriminator", micro).metrics
            scores[enabled] = objective.scores(turn, dice())
    for name in ("r1", "r2"):
        torch.testing.assert_close(penalties[True][name], penalties[False][name], rtol=0.02, atol=0)
    centred = [score - score.mean(dim=1, keepdim=True) for score in scores.values()]
    assert float(torch.corrcoef(torch.stack(centred).flatten(1))[0, 1]) > 0.95
