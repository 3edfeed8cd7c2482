"""Causal flow matching: the target is the path's velocity, at the noise levels that sampling will meet."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from streamstill.flow.times import shifted
from streamstill.testing import TINY, tiny_student
from streamstill.training.batches import Examples, encode_clips
from streamstill.training.objectives.flow_matching import FlowMatching, FlowMatchingConfig, NoisedExamples
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig
from streamstill.types import ClipRequest
from streamstill.worlds import World
from tests.training.clips import PROMPTS, examples, latents


def noised_once(objective: FlowMatching, given: Examples, seed: int = 0) -> list[NoisedExamples]:
    return list(objective.micro_batches("student", given, torch.Generator().manual_seed(seed)))


class Oracle(nn.Module):
    """Answers with the velocity that leads from the clean context straight to x_t."""

    chunk_frames = 2

    def velocity_in_context(self, x_t: Tensor, t_BK: Tensor, text_BLD: Tensor, *, context_BFCHW: Tensor) -> Tensor:
        t = t_BK.repeat_interleave(self.chunk_frames, dim=1)[..., None, None, None]
        return (x_t - context_BFCHW) / t


def test_who_knows_the_velocity_has_no_loss() -> None:
    student = tiny_student().double()
    student.network = Oracle()  # type: ignore[assignment]
    objective = FlowMatching(student, FlowMatchingConfig(micro_batch=3))
    given = examples()
    given = Examples(given.latents_BFCHW.double(), given.prompts)
    for micro in noised_once(objective, given):
        loss = objective.loss("student", micro)
        assert float(loss.value) < 1e-12
        assert float(loss.metrics["clean_mse"]) < 1e-12


def test_the_loss_is_the_mean_squared_error_of_the_velocity() -> None:
    objective = FlowMatching(tiny_student(), FlowMatchingConfig())
    (micro,) = noised_once(objective, examples())
    clean, noise, t = micro.examples.latents_BFCHW, micro.noise_BFCHW, micro.t_BK.repeat_interleave(2, dim=1)
    t = t[..., None, None, None]
    network, text = objective.student.network, objective.student.encode_prompts(micro.examples.prompts)
    velocity = network.velocity_in_context((1 - t) * clean + t * noise, micro.t_BK, text, context_BFCHW=clean)
    torch.testing.assert_close(objective.loss("student", micro).value, (velocity - (noise - clean)).square().mean())


@pytest.mark.parametrize(("floor", "weight"), [(0.0, 100.0), (0.05, 100.0), (0.5, 4.0), (1.0, 1.0)])
def test_below_full_weight_an_error_of_the_clean_estimate_weighs_no_more_than_at_it(
    floor: float, weight: float
) -> None:
    """At t = 0.1 the weight of a clean error is 1 / max(t, floor)^2."""
    objective = FlowMatching(tiny_student(), FlowMatchingConfig(full_weight_from=floor))
    (micro,) = noised_once(objective, examples())
    low = NoisedExamples(micro.examples, micro.noise_BFCHW, torch.full_like(micro.t_BK, 0.1))
    loss = objective.loss("student", low)
    torch.testing.assert_close(loss.value, weight * loss.metrics["clean_mse"], rtol=1e-3, atol=0.0)


def test_every_chunk_of_every_clip_has_a_time_of_its_own() -> None:
    (micro,) = noised_once(FlowMatching(tiny_student(), FlowMatchingConfig(micro_batch=6)), examples())
    assert micro.t_BK.shape == (6, 2)
    assert len(set(micro.t_BK.flatten().tolist())) == 12


def test_noise_levels_are_shifted_as_the_samplers_are() -> None:
    """Undoing the student's shift must leave times that are uniform on (0, 1]."""
    student = tiny_student()
    objective = FlowMatching(student, FlowMatchingConfig(micro_batch=4000))
    (micro,) = noised_once(objective, Examples(latents(1).expand(4000, -1, -1, -1, -1), PROMPTS[:1] * 4000))
    uniform = shifted(micro.t_BK, 1 / student.config.schedule_shift).flatten()
    shares = torch.histc(uniform, bins=10, min=0, max=1) / uniform.numel()
    assert micro.t_BK.min() > 0
    assert micro.t_BK.max() <= 1
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.02, rtol=0)


def test_micro_batches_are_the_batch_in_order() -> None:
    given = examples(answers=3)
    micros = noised_once(FlowMatching(tiny_student(), FlowMatchingConfig(micro_batch=4)), given)
    assert [len(micro.examples.prompts) for micro in micros] == [4, 4, 1]
    assert tuple(prompt for micro in micros for prompt in micro.examples.prompts) == given.prompts
    assert torch.equal(torch.cat([micro.examples.latents_BFCHW for micro in micros]), given.latents_BFCHW)


def test_noise_and_times_come_from_the_generator_alone() -> None:
    objective = FlowMatching(tiny_student(), FlowMatchingConfig())
    (one,), (same,), (other,) = (noised_once(objective, examples(), seed) for seed in (1, 1, 2))
    assert torch.equal(one.noise_BFCHW, same.noise_BFCHW)
    assert torch.equal(one.t_BK, same.t_BK)
    assert not torch.equal(one.t_BK, other.t_BK)


def test_network_and_text_encoder_both_learn() -> None:
    objective = FlowMatching(tiny_student(), FlowMatchingConfig())
    (micro,) = noised_once(objective, examples())
    objective.loss("student", micro).value.backward()
    assert [name for name, p in objective.student.named_parameters() if p.grad is None] == []
    (player,) = objective.players
    assert {id(p) for p in player.module.parameters()} == {id(p) for p in objective.student.parameters()}


def test_a_micro_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="micro_batch must be at least 1, got 0"):
        FlowMatchingConfig(micro_batch=0)


def test_a_tiny_student_overfits_one_clip(tmp_path: Path) -> None:
    request, losses = ClipRequest.of(TINY, prompt=PROMPTS[0], seed=0), []
    one = encode_clips([(request.prompt, World().render(request))] * 4, tiny_student().codec)
    config = FlowMatchingConfig(optim=OptimConfig(lr=5e-3))
    trainer = Trainer(
        FlowMatching(tiny_student(), config),
        lambda _: one,
        TrainerConfig(steps=150),
        tmp_path,
        on_step=lambda _, metrics: losses.append(metrics["student/clean_mse"]),
    )
    trainer.run()
    start, end = sum(losses[:5]) / 5, sum(losses[-20:]) / 20
    assert end < 0.05 * start
    assert end < 0.8 * float(one.latents_BFCHW.var(dim=(1, 3, 4)).mean())  # what the best constant colours leave
