"""Causal flow matching: the target is the path's velocity, at the noise levels that sampling will meet."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from streamstill.codec.text import WordEncoder
from streamstill.flow.times import shifted, training_times
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


@pytest.mark.parametrize(("floor", "weight"), [(0.01, 100.0), (0.05, 100.0), (0.5, 4.0), (1.0, 1.0)])
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
    uniform = shifted(micro.t_BK, 1 / student.config.sampling.shift).flatten()
    shares = torch.histc(uniform, bins=10, min=0, max=1) / uniform.numel()
    assert micro.t_BK.min() > 0
    assert micro.t_BK.max() <= 1
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.02, rtol=0)


def test_micro_batches_are_the_batch_in_order() -> None:
    given = examples(answers=3)
    micros = noised_once(FlowMatching(tiny_student(), FlowMatchingConfig(micro_batch=4)), given)
    assert [len(micro.examples.prompts) for micro in micros] == [3, 3, 3]
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


def test_without_prompt_dropout_nothing_more_is_drawn_than_noise_and_times() -> None:
    student, given, after = tiny_student(), examples(), torch.Generator().manual_seed(0)
    expected = torch.randn(given.latents_BFCHW.shape, generator=after)
    times = training_times((6, 2), shift=student.config.sampling.shift, generator=after)
    generator = torch.Generator().manual_seed(0)
    (micro,) = FlowMatching(student, FlowMatchingConfig()).micro_batches("student", given, generator)
    assert micro.hidden_B is None
    assert torch.equal(micro.noise_BFCHW, expected)
    assert torch.equal(micro.t_BK, times)
    assert torch.equal(generator.get_state(), after.get_state())


def test_prompt_dropout_hides_that_share_of_the_prompts_by_the_generator_alone() -> None:
    config = FlowMatchingConfig(micro_batch=4000, prompt_dropout=0.2)
    given = Examples(latents(1).expand(4000, -1, -1, -1, -1), PROMPTS[:1] * 4000)
    objective = FlowMatching(tiny_student(), config)
    (one,), (same,), (other,) = (noised_once(objective, given, seed) for seed in (1, 1, 2))
    assert one.hidden_B is not None
    assert same.hidden_B is not None
    assert other.hidden_B is not None
    assert one.hidden_B.float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert torch.equal(one.hidden_B, same.hidden_B)
    assert not torch.equal(one.hidden_B, other.hidden_B)


def test_a_hidden_prompt_does_not_count_and_the_others_do() -> None:
    objective = FlowMatching(tiny_student(), FlowMatchingConfig(prompt_dropout=0.5))
    (micro,) = noised_once(objective, examples())
    hidden = torch.tensor([False, True, False, True, True, False])

    def loss(*changed: int) -> float:
        prompts = tuple("something else" if i in changed else p for i, p in enumerate(micro.examples.prompts))
        given = NoisedExamples(Examples(micro.examples.latents_BFCHW, prompts), micro.noise_BFCHW, micro.t_BK, hidden)
        return float(objective.loss("student", given).value.detach())

    assert loss(1, 3, 4) == loss()
    assert len({loss(), loss(0), loss(2), loss(5)}) == 4


def test_network_and_text_encoder_both_learn_from_hidden_prompts() -> None:
    objective = FlowMatching(tiny_student(), FlowMatchingConfig(prompt_dropout=0.5))
    (micro,) = noised_once(objective, examples())
    hidden = torch.ones(6, dtype=torch.bool)
    objective.loss("student", NoisedExamples(micro.examples, micro.noise_BFCHW, micro.t_BK, hidden)).value.backward()
    assert [name for name, p in objective.student.named_parameters() if p.grad is None] == []
    assert isinstance(objective.student.text, WordEncoder)
    assert objective.student.text.positions.grad is not None
    assert objective.student.text.positions.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_dropout": 1.0}, r"prompt_dropout is a share in \[0, 1\), got 1.0; 0 hides no prompt"),
        ({"prompt_dropout": -0.1}, "prompt_dropout is a share"),
        ({"prompt_dropout": float("nan")}, "prompt_dropout is a share"),
        ({"full_weight_from": 0.0}, r"full_weight_from is a time in \(0, 1\], got 0.0"),
    ],
)
def test_shares_and_times_outside_their_range_are_refused(changes: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FlowMatchingConfig(**changes)  # type: ignore[arg-type]


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
