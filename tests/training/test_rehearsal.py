"""The student's clips as it learns through them: windows, takes that repeat themselves, the teacher beside them."""

from typing import Any

import pytest
import torch

from streamstill.streaming.learning_rollout import learning_rollout
from streamstill.streaming.rollout import rollout
from streamstill.testing import tiny_student
from streamstill.training.batches import PromptGroup
from streamstill.training.objectives.rehearsal import Rehearsal, RehearsalConfig, Take
from tests.training.afd_parts import dice, group
from tests.training.toys import PointStudent, StepwiseNetwork, point_batches

FRAMES = tiny_student().latent_shape[0]


def rehearsal(**changes: Any) -> Rehearsal:
    return Rehearsal(tiny_student(), RehearsalConfig(**changes))


def prompts_only() -> PromptGroup:
    asked = group()
    return PromptGroup(asked.latents_PMFCHW[:, :0], asked.prompts)


def test_takes_cover_every_prompt_in_order() -> None:
    takes = rehearsal(micro_batch=4).takes(group(), 3, dice())
    assert [len(take.prompts) for take in takes] == [3, 3]
    assert tuple(p for take in takes for p in take.prompts) == tuple(p for p in group().prompts for _ in range(3))
    assert len({take.plan.seed for take in takes} | {take.seed for take in takes}) == 4


def test_each_rollout_has_an_answer_of_the_teacher_to_its_own_prompt_and_all_answers_are_dealt() -> None:
    asked = group()
    takes = rehearsal(micro_batch=1).takes(asked, 4, dice())
    dealt: dict[str, list[int]] = {prompt: [] for prompt in asked.prompts}
    for take in takes:
        assert take.teacher_BFCHW is not None
        answers = asked.latents_PMFCHW[asked.prompts.index(take.prompts[0])]
        (which,) = [i for i, answer in enumerate(answers) if torch.equal(answer, take.teacher_BFCHW[0])]
        dealt[take.prompts[0]].append(which)
    assert all(sorted(which) == [0, 0, 1, 1] for which in dealt.values())


def test_prompts_alone_are_enough_where_nobody_compares() -> None:
    made = rehearsal()
    (take,) = made.takes(prompts_only(), 2, dice())
    assert take.teacher_BFCHW is None
    assert made.watched([take]).shape == (4, *made.student.latent_shape)
    with pytest.raises(ValueError, match="give prompts with at least one clip each"):
        made.round(prompts_only(), 2, dice())


def test_a_take_gives_the_same_clips_with_and_without_a_gradient() -> None:
    made = rehearsal()
    (take,) = made.takes(group(), 2, dice())
    learning, watched = made.perform(take), made.watched([take])
    assert learning.requires_grad
    assert not watched.requires_grad
    assert torch.equal(learning, watched)


def test_the_text_encoder_gets_no_gradient_and_the_network_does() -> None:
    made = rehearsal()
    (take,) = made.takes(group(), 1, dice())
    made.perform(take).square().mean().backward()
    assert all(p.grad is None for p in made.student.text.parameters())
    assert all(p.grad is not None for p in made.student.network.parameters())


def test_a_window_is_the_end_of_what_is_made_and_as_long_as_a_clip() -> None:
    made = rehearsal(frames=3 * FRAMES)
    starts = set()
    for seed in range(8):
        (take,) = made.takes(group(), 1, dice(seed))
        student, window = made.student, made.perform(take)
        whole = learning_rollout(
            student.network,
            student.encode_prompts(take.prompts),
            take.plan,
            latent_shape=student.latent_shape[1:],
            sampling=student.config.sampling,
        )
        starts.add(whole.shape[1] - FRAMES)
        torch.testing.assert_close(window, whole[:, -FRAMES:])
    assert min(starts) < FRAMES < max(starts)  # in units of chunks, all over the long rollout


def test_the_chunks_before_a_window_have_no_gradient() -> None:
    """A network with a weight for each step: those of the window's last steps and no others get one."""
    student = PointStudent(StepwiseNetwork((0.0, 0.0), 0.4, (sampling := tiny_student().config.sampling)), sampling)
    long = Rehearsal(student.as_student(), RehearsalConfig(frames=8))
    for seed in range(6):
        (take,) = long.takes(point_batches(0, answers=2), 3, dice(seed))
        gradient = torch.autograd.grad(long.perform(take).sum(), student.network.get_parameter("means"))[0]
        learnt = {take.plan.last_steps[chunk] for chunk in take.plan.learns}
        assert {int(step) for step in gradient[:, 0].nonzero()} == learnt
        assert float(gradient.abs().sum()) == pytest.approx(2 * 2 * 3, rel=1e-4)  # 2 coordinates, 2 frames, 3 clips


def test_rounds_are_truncated_rollouts_of_every_prompt() -> None:
    made = rehearsal(micro_batch=3)
    turn = made.round(group(), 2, dice())
    assert turn.rollouts_PKFCHW.shape == (2, 2, *made.student.latent_shape)
    again = made.watched(made.takes(group(), 2, dice()))
    assert torch.equal(turn.rollouts_PKFCHW.flatten(0, 1), again)


@pytest.mark.parametrize("sampler", ["euler", "few_step"])
def test_both_samplers_can_be_learnt_through(sampler: str) -> None:
    made = rehearsal(sampler=sampler)
    clips = [made.perform(take) for seed in range(4) for take in made.takes(group(), 1, dice(seed))]
    assert all(torch.isfinite(clip).all() for clip in clips)


@pytest.mark.parametrize("frames", [FRAMES - 2, FRAMES + 1])
def test_rollouts_that_do_not_suit_the_student_are_refused(frames: int) -> None:
    with pytest.raises(ValueError, match=f"rollouts of {frames} latent frames do not suit a student"):
        rehearsal(frames=frames)


def test_whole_chunks_are_what_the_student_streams() -> None:
    made = rehearsal(ends="final", depth=2)
    (take,) = made.takes(group(), 2, dice())
    assert set(take.plan.last_steps) == {made.student.config.sampling.steps - 1}
    assert take.plan.depth == 2
    streamed = rollout(
        made.student.network,
        made.student.encode_prompts(take.prompts),
        frames=made.frames,
        latent_shape=made.student.latent_shape[1:],
        sampling=made.student.config.sampling,
        generator=torch.Generator().manual_seed(take.plan.seed),
    )
    torch.testing.assert_close(made.perform(take), streamed)


def test_clips_of_another_length_are_refused() -> None:
    asked = group()
    with pytest.raises(ValueError, match="the teacher's clips have 2 latent frames, the student's 4"):
        rehearsal().takes(PromptGroup(asked.latents_PMFCHW[:, :, :2], asked.prompts), 2, dice())


def test_configs_are_checked() -> None:
    with pytest.raises(ValueError, match="micro_batch must be at least 1, got 0"):
        RehearsalConfig(micro_batch=0)
    with pytest.raises(ValueError, match=r"unknown sampler 'eular'.*did you mean 'euler'"):
        RehearsalConfig(sampler="eular")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown end of chunks 'finale'.*did you mean 'final'"):
        RehearsalConfig(ends="finale")  # type: ignore[arg-type]


def test_the_dice_of_a_take_begin_again_each_time() -> None:
    (take,) = rehearsal().takes(group(), 2, dice())
    assert isinstance(take, Take)
    assert torch.equal(torch.rand(3, generator=take.dice), torch.rand(3, generator=take.dice))
