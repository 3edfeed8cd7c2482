"""Knowledge distillation: where the optimum is known it is found, and a real student nears its teacher's velocity."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamstill.flow.times import shifted
from streamstill.testing import tiny_student
from streamstill.training.batches import Examples
from streamstill.training.homework_batches import Taught, Told
from streamstill.training.objectives.knowledge import (
    KnowledgeConfig,
    KnowledgeDistillation,
    NoisedHomework,
    velocity_in,
)
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.clips import PROMPTS, examples, latents
from tests.training.gaussian import Slope, student_with

FACTOR = 3.0  # the toy teacher's velocity is FACTOR * x_t / t


def noised_once(objective: KnowledgeDistillation, given: Taught, seed: int = 0) -> list[NoisedHomework]:
    return list(objective.micro_batches("student", given, torch.Generator().manual_seed(seed)))


def black_homework(count: int) -> Taught:
    """Clips of zeros: x_t is t times the noise, so flow matching's optimum is x_t / t; the teacher says otherwise."""
    dice = torch.Generator().manual_seed(1)
    noise = torch.randn(count, 4, 3, 8, 8, generator=dice, dtype=torch.float64)
    t_B = 1 - torch.rand(count, generator=dice, dtype=torch.float64)
    return Taught(Examples(torch.zeros_like(noise), PROMPTS[:1] * count), Told(noise, t_B, FACTOR * noise))


def taught(count: int = 6) -> Taught:
    """Clips with velocities that some other tiny student gave."""
    given, teacher = examples(count // 3), tiny_student(seed=7)
    noise, t_B = (
        torch.randn(given.latents_BFCHW.shape, generator=torch.Generator().manual_seed(3)),
        torch.linspace(0.2, 1, count),
    )
    t = t_B[:, None, None, None, None]
    with torch.no_grad():
        text_BLD = teacher.encode_prompts(given.prompts)
        velocity = teacher.network.velocity_bidirectional((1 - t) * given.latents_BFCHW + t * noise, t_B, text_BLD)
    return Taught(given, Told(noise, t_B, velocity))


def best_slope(config: KnowledgeConfig, given: Taught) -> tuple[float, float]:
    """Where the loss, a parabola in the toy's slope, is least, and how large it is there."""
    network = Slope()
    objective = KnowledgeDistillation(student_with(network), config)
    (micro,) = noised_once(objective, given)
    learnt = network.slope if config.mode == "bidirectional" else network.causal

    def gradient_at(slope: float) -> float:
        learnt.data.fill_(slope)
        (gradient,) = torch.autograd.grad(objective.loss("student", micro).value, learnt)
        return float(gradient)

    low, high = gradient_at(0.0), gradient_at(1.0)
    best = low / (low - high)
    learnt.data.fill_(best)
    return best, float(objective.loss("student", micro).value.detach())


@pytest.mark.parametrize("mode", ["bidirectional", "causal"])
def test_with_knowledge_alone_the_student_becomes_the_teacher(mode: Any) -> None:
    config = KnowledgeConfig(mode=mode, flow_weight=0.0, micro_batch=64)
    best, least = best_slope(config, black_homework(64))
    assert best == pytest.approx(FACTOR)
    assert least < 1e-12


@pytest.mark.parametrize("mode", ["bidirectional", "causal"])
def test_with_flow_matching_alone_the_teachers_velocity_does_not_count(mode: Any) -> None:
    config = KnowledgeConfig(mode=mode, kd_weight=0.0, micro_batch=64)
    assert best_slope(config, black_homework(64))[0] == pytest.approx(1.0)
    assert best_slope(config, Taught(black_homework(64).examples))[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("flow_weight", "kd_weight"), [(1.0, 1.0), (1.0, 3.0), (4.0, 0.5)])
def test_with_both_the_optimum_is_their_weighted_mean(flow_weight: float, kd_weight: float) -> None:
    config = KnowledgeConfig(flow_weight=flow_weight, kd_weight=kd_weight, micro_batch=64)
    best, _ = best_slope(config, black_homework(64))
    assert best == pytest.approx((flow_weight + kd_weight * FACTOR) / (flow_weight + kd_weight), rel=0.02)


def test_the_loss_is_the_weighted_sum_of_the_logged_errors() -> None:
    objective = KnowledgeDistillation(tiny_student(), KnowledgeConfig(flow_weight=0.5, kd_weight=2.0))
    (micro,) = noised_once(objective, taught())
    loss = objective.loss("student", micro)
    assert set(loss.metrics) == {"flow", "kd"}
    flow, kd = (torch.as_tensor(loss.metrics[name]).detach() for name in ("flow", "kd"))
    torch.testing.assert_close(loss.value.detach(), 0.5 * flow + 2 * kd)


def test_the_errors_are_those_of_the_bidirectional_velocity() -> None:
    student = tiny_student()
    (micro,) = noised_once(KnowledgeDistillation(student, KnowledgeConfig()), taught())
    clean, told = micro.taught.examples.latents_BFCHW, micro.taught.told
    assert told is not None
    text_BLD = student.encode_prompts(micro.taught.examples.prompts)

    def error(noise: Tensor, t_B: Tensor, target: Tensor) -> Tensor:
        t = t_B[:, None, None, None, None]
        velocity = student.network.velocity_bidirectional((1 - t) * clean + t * noise, t_B, text_BLD)
        return ((velocity - target) * (t / 0.05).clamp_max(1)).square().mean()

    loss = KnowledgeDistillation(student, KnowledgeConfig()).loss("student", micro)
    torch.testing.assert_close(loss.metrics["kd"], error(told.noise_BFCHW, told.t_B, told.velocity_BFCHW))
    flow = error(micro.noise_BFCHW, micro.t_BK[:, 0], micro.noise_BFCHW - clean)
    torch.testing.assert_close(loss.metrics["flow"], flow)


def test_each_mode_asks_its_own_side_of_the_network() -> None:
    for mode, asked, spared in (("bidirectional", "slope", "causal"), ("causal", "causal", "slope")):
        network = Slope()
        objective = KnowledgeDistillation(student_with(network), KnowledgeConfig(mode=mode))  # type: ignore[arg-type]
        (micro,) = noised_once(objective, black_homework(8))
        objective.loss("student", micro).value.backward()
        assert getattr(network, asked).grad.abs() > 0
        assert getattr(network, spared).grad is None


@pytest.mark.parametrize(("mode", "distinct"), [("bidirectional", 1), ("causal", 2)])
def test_times_are_the_clips_or_the_chunks_and_drawn_from_the_students_schedule(mode: Any, distinct: int) -> None:
    student = tiny_student()
    given = Taught(Examples(latents(1).expand(3000, -1, -1, -1, -1), PROMPTS[:1] * 3000))
    config = KnowledgeConfig(mode=mode, kd_weight=0.0, micro_batch=3000)
    (micro,) = noised_once(KnowledgeDistillation(student, config), given)
    assert micro.t_BK.shape == (3000, 2)
    assert {len(set(row)) for row in micro.t_BK[:50].tolist()} == {distinct}
    uniform = shifted(micro.t_BK[:, 0], 1 / student.config.sampling.shift)
    shares = torch.histc(uniform, bins=10, min=0, max=1) / 3000
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.025, rtol=0)


def test_micro_batches_are_the_batch_in_order_and_by_the_generator_alone() -> None:
    objective, given = KnowledgeDistillation(tiny_student(), KnowledgeConfig(micro_batch=4)), taught()
    one, same, other = (noised_once(objective, given, seed) for seed in (1, 1, 2))
    assert [len(micro.taught.examples.prompts) for micro in one] == [3, 3]
    assert torch.equal(torch.cat([micro.taught.examples.latents_BFCHW for micro in one]), given.examples.latents_BFCHW)
    assert all(torch.equal(a.noise_BFCHW, b.noise_BFCHW) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0].noise_BFCHW, other[0].noise_BFCHW)


@pytest.mark.parametrize("mode", ["bidirectional", "causal"])
def test_network_and_text_encoder_both_learn(mode: Any) -> None:
    objective = KnowledgeDistillation(tiny_student(), KnowledgeConfig(mode=mode))
    (micro,) = noised_once(objective, taught())
    objective.loss("student", micro).value.backward()
    assert [name for name, p in objective.student.named_parameters() if p.grad is None] == []
    (player,) = objective.players
    assert player.module is objective.student
    assert objective.memory == {}


def test_homework_without_velocities_is_refused_at_the_first_step() -> None:
    given = Taught(examples())
    dice = torch.Generator()
    with pytest.raises(ValueError, match="this homework has no velocities and kd_weight is not 0; collect it with"):
        KnowledgeDistillation(tiny_student(), KnowledgeConfig()).begin(given, 0, dice)
    assert KnowledgeDistillation(tiny_student(), KnowledgeConfig(kd_weight=0.0)).begin(given, 0, dice) is given


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mode": "sideways"}, "unknown mode 'sideways': choose one of bidirectional, causal"),
        ({"kd_weight": -1.0}, "must not be negative and not both 0, got 1.0 and -1.0"),
        ({"kd_weight": 0.0, "flow_weight": 0.0}, "not both 0"),
        ({"full_weight_from": 0.0}, r"full_weight_from is a time in \(0, 1\], got 0.0"),
        ({"micro_batch": 0}, "micro_batch must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KnowledgeConfig(**changes)


@pytest.mark.parametrize("mode", ["bidirectional", "causal"])
def test_a_tiny_student_nears_its_teacher(tmp_path: Path, mode: Any) -> None:
    """In the causal mode it sees other things than its teacher, and comes near all the same."""
    given, losses, student = taught(), list[float](), tiny_student(seed=1)
    config = KnowledgeConfig(optim=OptimConfig(lr=5e-3), mode=mode, flow_weight=0.0)
    Trainer(
        KnowledgeDistillation(student, config),
        lambda _: given,
        TrainerConfig(steps=30),
        tmp_path,
        on_step=lambda _, metrics: losses.append(metrics["student/kd"]),
    ).run()
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_one_set_of_weights_serves_both_modes_and_converting_is_loading(tmp_path: Path) -> None:
    """A clip of one chunk has no past and no other chunk: both modes must say the same, before and after loading."""
    student, network = tiny_student(), tiny_student().network
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).network
    x_t = torch.randn(2, network.chunk_frames, *student.latent_shape[1:], generator=torch.Generator().manual_seed(0))
    t_BK, text_BLD = torch.tensor([[0.3], [0.9]]), student.encode_prompts(PROMPTS[:2])
    both = [velocity_in(loaded, mode, x_t, t_BK, text_BLD, clean_BFCHW=x_t) for mode in ("bidirectional", "causal")]
    torch.testing.assert_close(both[0], both[1])
    torch.testing.assert_close(both[0], network.velocity_bidirectional(x_t, t_BK[:, 0], text_BLD))
    longer = torch.cat([x_t, x_t], dim=1)
    apart = [
        velocity_in(loaded, mode, longer, t_BK.expand(2, 2), text_BLD, clean_BFCHW=longer)
        for mode in ("bidirectional", "causal")
    ]
    assert (apart[0] - apart[1]).abs().max() > 1e-3
