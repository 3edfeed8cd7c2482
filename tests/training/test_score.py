"""Scores of whole clips: the network's own velocity, guided; and the fit to a teacher that only shows clips."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamstill.flow.times import Sampling
from streamstill.testing import tiny_student
from streamstill.training.batches import Examples
from streamstill.training.objectives.score import (
    FakeScore,
    RealScore,
    ScoreFit,
    ScoreFitConfig,
    StudentScore,
    fake_score,
    noised_clips,
)
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.afd_parts import dice, disturb, weights
from tests.training.clips import PROMPTS, examples, latents
from tests.training.toys import CENTRE, SPREAD, GaussianNetwork, PointStudent, point_batches

T = torch.tensor([0.3, 0.7, 1.0])


def answers_both(real: RealScore, fake: FakeScore) -> object:
    """Whether one class fits both scores is a question of types."""
    return real, fake


def test_a_score_is_the_bidirectional_velocity_of_its_own_prompts() -> None:
    student = tiny_student()
    expected = student.network.velocity_bidirectional(latents(3), T, student.encode_prompts(PROMPTS))
    score = StudentScore(student)
    assert answers_both(score, score)
    torch.testing.assert_close(score.velocity(latents(3), T, PROMPTS), expected)


@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_guidance_is_that_of_the_samplers(scale: float) -> None:
    student = tiny_student()
    with_prompt, without = (
        student.network.velocity_bidirectional(latents(3), T, text)
        for text in (student.encode_prompts(PROMPTS), student.encode_nothing(3))
    )
    guided = StudentScore(student, guidance=scale).velocity(latents(3), T, PROMPTS)
    torch.testing.assert_close(guided, without + scale * (with_prompt - without))


def test_clips_of_other_latents_are_refused() -> None:
    with pytest.raises(ValueError, match=r"this score is of latents of \(96, 4, 4\), the clips have \(8, 4, 4\)"):
        StudentScore(tiny_student()).velocity(torch.zeros(1, 4, 8, 4, 4), T[:1], PROMPTS[:1])


def test_a_fake_score_is_a_copy_that_learns_even_of_a_frozen_student() -> None:
    student = tiny_student().requires_grad_(False)
    fake = fake_score(student)
    before = weights(student)
    disturb(fake.module, seed=1)
    assert torch.equal(weights(student), before)
    assert all(parameter.requires_grad for parameter in fake.module.parameters())
    fake.velocity(latents(3), T, PROMPTS).square().mean().backward()
    assert all(parameter.grad is None for parameter in fake.student.text.parameters())


def test_times_are_those_of_training_and_prompts_are_hidden_at_the_asked_rate() -> None:
    noised = noised_clips(torch.zeros(4000, 1, 1, 1, 1), ("p",) * 4000, shift=3.0, hidden=0.25, generator=dice())
    assert noised.t_B.min() > 0
    assert noised.t_B.max() <= 1
    u_B = noised.t_B / (3 - 2 * noised.t_B)  # the shift undone
    assert float(u_B.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(noised.hidden_B.float().mean()) == pytest.approx(0.25, abs=0.03)
    expected = noised.t_B[:, None, None, None, None] * noised.noise_BFCHW
    torch.testing.assert_close(noised.x_t, expected)


def test_a_fit_to_gaussian_points_finds_their_mean_and_spread(tmp_path: Path) -> None:
    student = PointStudent(GaussianNetwork((0.0, 0.0), 0.5), Sampling(steps=4, shift=1.0))
    config = ScoreFitConfig(optim=OptimConfig(lr=0.03, decay="cosine", max_grad_norm=None), micro_batch=64)

    def batch(step: int) -> Examples:
        group = point_batches(step)
        return Examples(group.latents_PMFCHW[0], group.prompts * 64)

    Trainer(ScoreFit(student.as_student(), config), batch, TrainerConfig(steps=150), tmp_path).run()
    assert student.network.centre.tolist() == pytest.approx(CENTRE, abs=0.02)
    assert float(student.network.spread.detach()) == pytest.approx(SPREAD, abs=0.02)


def fit(folder: Path, steps: int) -> ScoreFit:
    config = ScoreFitConfig(optim=OptimConfig(lr=3e-3), micro_batch=4, prompt_dropout=0.2, ema_decay=0.9)
    objective = ScoreFit(tiny_student(), config)
    Trainer(objective, lambda _: examples(), TrainerConfig(steps=steps), folder).run()
    return objective


def test_a_fit_lowers_the_loss_on_one_batch_and_the_text_encoder_learns_too(tmp_path: Path) -> None:
    fresh = ScoreFit(tiny_student(), ScoreFitConfig())
    (same,) = fresh.micro_batches("score", examples(), dice(7))

    def loss(objective: ScoreFit) -> float:
        with torch.no_grad():
            return float(objective.loss("score", same).value)

    trained = fit(tmp_path, steps=30)
    assert loss(trained) < 0.9 * loss(fresh)
    assert not torch.equal(weights(trained.student.text), weights(fresh.student.text))


def test_a_fit_stopped_and_resumed_equals_never_stopped(tmp_path: Path) -> None:
    for name, stops in (("whole", (4,)), ("stopped", (1, 3, 4))):
        for steps in stops:
            fit(tmp_path / name, steps)
    states = [(tmp_path / name / "training" / "state.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert states[0] == states[1]


def test_a_hidden_prompt_makes_no_difference() -> None:
    objective = ScoreFit(tiny_student(), ScoreFitConfig(prompt_dropout=0.0))
    (shown,) = objective.micro_batches("score", examples()[:3], dice())

    def loss(hidden: bool, prompts: tuple[str, ...]) -> Tensor:
        changed = type(shown)(shown.clean_BFCHW, shown.noise_BFCHW, shown.t_B, prompts, torch.tensor([hidden] * 3))
        return objective.loss("score", changed).value

    others = PROMPTS[::-1]
    assert torch.equal(loss(True, PROMPTS), loss(True, others))
    assert not torch.equal(loss(False, PROMPTS), loss(False, others))
    assert not shown.hidden_B.any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"micro_batch": 0}, "micro_batch must be at least 1"),
        ({"full_weight_from": 0.0}, r"full_weight_from is a time in \(0, 1\]"),
        ({"prompt_dropout": 1.0}, r"prompt_dropout is a share in \[0, 1\)"),
    ],
)
def test_configs_are_checked(changes: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ScoreFitConfig(**changes)  # type: ignore[arg-type]
