"""A student as an open teacher says what it says in the bidirectional mode, and its name knows its weights."""

from dataclasses import replace

import pytest
import torch

from streamstill.codec.video import to_frames
from streamstill.flow.times import sampler_times
from streamstill.recipes.student_teacher import StudentTeacher
from streamstill.streaming.whole import sample_whole
from streamstill.teachers import require_open
from streamstill.teachers.homework import Assignment, seeded_noise
from streamstill.teachers.homework_collection import do_homework, ode_path
from streamstill.testing import TINY, tiny_student
from streamstill.types import ClipRequest

PROMPTS = ("a red ball is dropped", "a blue ball is thrown")
REQUESTS = [ClipRequest.of(TINY, prompt=prompt, seed=seed) for seed, prompt in enumerate(PROMPTS)]


def test_it_is_an_open_teacher_of_the_students_own_shape() -> None:
    teacher = StudentTeacher(tiny_student())
    assert require_open(teacher, "homework") is teacher
    assert teacher.latent_shape == tiny_student().latent_shape


def test_its_latents_are_those_of_sample_whole_and_depend_on_their_own_request_alone() -> None:
    student, teacher = tiny_student(), StudentTeacher(tiny_student(), steps=3, guidance=2.0)
    made = teacher.latents(REQUESTS)
    assert not made.requires_grad
    for request, latents in zip(REQUESTS, made, strict=True):
        with torch.no_grad():
            wanted = sample_whole(
                student.network,
                student.encode_prompts([request.prompt]),
                frames=student.latent_shape[0],
                latent_shape=student.latent_shape[1:],
                sampling=replace(student.config.sampling, steps=3),
                generator=torch.Generator().manual_seed(request.seed),
                guidance=2.0,
                empty_text_BLD=student.encode_nothing(1),
            )[0]
        assert torch.equal(latents, wanted)


def test_its_clip_is_its_latents_decoded() -> None:
    teacher = StudentTeacher(tiny_student(), steps=2)
    clip = teacher.generate(REQUESTS[0])
    assert clip.geometry == TINY
    with torch.no_grad():
        pixels, _ = teacher.student.codec.decode(teacher.latents(REQUESTS[:1]))
    assert (clip.frames_FCHW == to_frames(pixels[0])).all()
    assert clip.provenance["teacher"] == teacher.name


def test_guidance_is_in_its_velocity() -> None:
    student = tiny_student()
    x_t, t_B = (
        torch.randn(2, *student.latent_shape, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0.4, 0.9]),
    )
    with torch.no_grad():
        plain = student.network.velocity_bidirectional(x_t, t_B, student.encode_prompts(PROMPTS))
        nothing = student.network.velocity_bidirectional(x_t, t_B, student.encode_nothing(2))
    torch.testing.assert_close(StudentTeacher(student).velocity(x_t, t_B, PROMPTS), plain)
    guided = StudentTeacher(student, guidance=3.0).velocity(x_t, t_B, PROMPTS)
    torch.testing.assert_close(guided, nothing + 3 * (plain - nothing))
    assert not guided.requires_grad


def test_the_path_from_a_clips_own_noise_ends_in_the_clip() -> None:
    """Velocities, the sampler's schedule and the clips of one teacher fit together."""
    teacher, shift = StudentTeacher(tiny_student(), steps=4), tiny_student().config.sampling.shift
    noise = torch.stack([seeded_noise(request.seed, teacher.latent_shape) for request in REQUESTS])
    path = ode_path(
        lambda x_t, t: teacher.velocity(x_t, t.expand(2), PROMPTS), noise, sampler_times(4, shift=shift), every=4
    )
    torch.testing.assert_close(path[:, -1], teacher.latents(REQUESTS), rtol=1e-4, atol=1e-4)


def test_its_name_knows_the_weights_and_how_they_are_sampled() -> None:
    student = tiny_student()
    names = {StudentTeacher(student).name, StudentTeacher(tiny_student()).name, StudentTeacher(student, steps=3).name}
    names |= {StudentTeacher(student, guidance=2.0).name, StudentTeacher(tiny_student(seed=1)).name}
    assert len(names) == 4
    assert student.fingerprint in StudentTeacher(student).name


def test_it_can_do_homework_with_its_own_embeddings() -> None:
    student = tiny_student()
    (one, _) = do_homework(
        StudentTeacher(student, steps=1), REQUESTS, Assignment(shift=8.0, text=True, dtype="float32")
    )
    assert one.text_LD is not None
    torch.testing.assert_close(one.text_LD, student.encode_prompts(PROMPTS)[0].detach())


def test_a_request_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"this teacher makes clips of Geometry\(frames=8.* and was asked for"):
        StudentTeacher(tiny_student()).latents([replace(REQUESTS[0], frames=16)])
