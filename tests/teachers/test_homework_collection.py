"""A teacher is asked once, what it says is what it would say again, and a run that stopped goes on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamstill.flow.times import sampler_times, shifted
from streamstill.teachers import CollectReport
from streamstill.teachers.homework import Assignment, HomeworkStore
from streamstill.teachers.homework_collection import collect_homework, do_homework, ode_path
from streamstill.types import ClipRequest
from tests.teachers.fakes import NoiseTeacher, question
from tests.teachers.open_teachers import GaussianTeacher, Reader, gaussian_rate
from tests.teachers.test_homework import require_same

PLAIN = Assignment(shift=3.0, dtype="float32")
REQUESTS = [question(seed, prompt=f"ball {seed}") for seed in range(5)]


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float16", 2e-3)])
def test_a_kept_velocity_is_the_teachers_at_the_kept_noised_clip(dtype: str, error: float) -> None:
    teacher, assignment = GaussianTeacher(), replace(PLAIN, velocities=3, dtype=dtype)  # type: ignore[arg-type]
    for one in do_homework(teacher, REQUESTS, assignment):
        torch.testing.assert_close(one.latents_FCHW, teacher.latents([one.request])[0], atol=error, rtol=error)
        for index, t in enumerate(one.t_V):
            again = teacher.velocity(one.x_t_FCHW(index)[None], t[None], [one.request.prompt])[0]
            torch.testing.assert_close(one.velocity_VFCHW[index], again, atol=error, rtol=error)


def test_what_is_kept_rounded_is_what_was_asked_about() -> None:
    """The teacher is asked about the clip as the student will see it, not as it was before rounding."""
    half = replace(PLAIN, dtype="float16")
    (one,) = do_homework(GaussianTeacher(), REQUESTS[:1], half)
    assert torch.equal(one.latents_FCHW, one.latents_FCHW.half().float())
    exact = GaussianTeacher().velocity(one.x_t_FCHW(0)[None], one.t_V[:1], ["p"])[0]
    assert torch.equal(one.velocity_VFCHW[0], exact.half().float())


def test_answers_do_not_depend_on_who_else_is_asked() -> None:
    together = do_homework(Reader(), REQUESTS, replace(PLAIN, text=True, path_levels=2, path_steps=4))
    for request, one in zip(REQUESTS, together, strict=True):
        (alone,) = do_homework(Reader(), [request], one.assignment)
        require_same(one, alone)


def test_noise_and_times_differ_between_clips_and_between_velocities() -> None:
    homework = do_homework(GaussianTeacher(), REQUESTS, replace(PLAIN, velocities=4))
    assert len({seed for one in homework for seed in one.noise_seeds}) == 20
    assert len({float(t) for one in homework for t in one.t_V}) == 20


def test_times_are_drawn_from_the_students_schedule() -> None:
    """Undoing the shift must leave times that are uniform on (0, 1]."""
    (one,) = do_homework(GaussianTeacher(latent_shape=(1, 1, 1, 1)), REQUESTS[:1], replace(PLAIN, velocities=4000))
    shares = torch.histc(shifted(one.t_V, 1 / 3.0), bins=10, min=0, max=1) / 4000
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.02, rtol=0)


def test_a_path_follows_the_teachers_ode() -> None:
    """Euler multiplies by known factors; with many steps a Gaussian's noise shrinks to its spread, exactly."""
    (one,) = do_homework(GaussianTeacher(spread=0.5), REQUESTS[:1], replace(PLAIN, path_levels=4, path_steps=400))
    path = one.path_JFCHW
    assert path is not None
    assert path.shape == (5, 4, 3, 2, 2)
    widths = ((1 - one.assignment.path_times_J) ** 2 * 0.25 + one.assignment.path_times_J**2).sqrt()
    torch.testing.assert_close(path, widths[:, None, None, None, None] * path[0], rtol=0.02, atol=1e-3)


def test_the_kept_points_are_those_of_the_whole_path() -> None:
    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return gaussian_rate(t, 0.5) * x_t

    times, noise = sampler_times(6, shift=3.0), torch.ones(2, 3)
    every, all_points = ode_path(velocity, noise, times, every=3), ode_path(velocity, noise, times, every=1)
    assert all_points.shape == (2, 7, 3)
    assert torch.equal(every, all_points[:, ::3])
    factors = 1 + (times[1:] - times[:-1]) * gaussian_rate(times[:-1], 0.5)
    torch.testing.assert_close(all_points[0, :, 0], torch.cat([torch.ones(1), factors.cumprod(0)]))


def test_what_is_there_is_not_asked_again(tmp_path: Path) -> None:
    teacher, store, seen = GaussianTeacher(), HomeworkStore(tmp_path / "homework"), list[tuple[int, int]]()
    first = collect_homework(teacher, REQUESTS[:3], store, PLAIN, batch=2)
    assert first == CollectReport(requests=3, known=0)
    again = collect_homework(
        teacher, [*REQUESTS, REQUESTS[0]], store, PLAIN, batch=1, on_clip=lambda *done: seen.append(done)
    )
    assert (again.requests, again.known, again.asked) == (5, 3, 2)
    assert teacher.asked == REQUESTS
    assert seen == [(4, 5), (5, 5)]
    assert collect_homework(teacher, REQUESTS, store, PLAIN).asked == 0
    assert collect_homework(replace(teacher, name="gaussian@2"), REQUESTS, store, PLAIN).asked == 5
    assert collect_homework(teacher, REQUESTS, store, replace(PLAIN, velocities=1)).asked == 5


@dataclass(frozen=True)
class Tired(GaussianTeacher):
    answers: int = 3

    def latents(self, requests: Sequence[ClipRequest]) -> Tensor:
        if len(self.asked) >= self.answers:
            raise KeyboardInterrupt
        return super().latents(requests)


def test_a_run_that_was_stopped_keeps_whole_batches_and_goes_on(tmp_path: Path) -> None:
    store = HomeworkStore(tmp_path / "homework")
    with pytest.raises(KeyboardInterrupt):
        collect_homework(Tired(), REQUESTS, store, PLAIN, batch=2)
    assert len(store) == 4
    rest = GaussianTeacher()
    assert collect_homework(rest, REQUESTS, store, PLAIN, batch=2).asked == 1
    assert rest.asked == REQUESTS[4:]
    (one,) = store.get(store.keys()[:1])
    require_same(one, do_homework(rest, REQUESTS[:1], PLAIN)[0])


def test_embeddings_are_the_teachers_own_and_asked_for_only_if_wanted() -> None:
    (one,) = do_homework(Reader(), REQUESTS[:1], replace(PLAIN, text=True))
    assert one.text_LD is not None
    assert torch.equal(one.text_LD, torch.full((2, 5), float(len("ball 0"))))
    assert do_homework(Reader(), REQUESTS[:1], PLAIN)[0].text_LD is None


def test_a_teacher_that_cannot_do_it_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    store = HomeworkStore(tmp_path / "homework")
    with pytest.raises(TypeError, match="homework needs an open teacher, and 'noise' shows finished clips only"):
        collect_homework(NoiseTeacher(), REQUESTS, store, PLAIN)
    with pytest.raises(TypeError, match=r"the teacher 'gaussian@1' gives none .*; set text to false"):
        collect_homework(GaussianTeacher(), REQUESTS, store, replace(PLAIN, text=True))
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        collect_homework(GaussianTeacher(), REQUESTS, store, PLAIN, batch=0)
    assert not (tmp_path / "homework").exists()


@dataclass(frozen=True)
class Wrong(GaussianTeacher):
    factor: float = 1.0
    extra: int = 0

    def latents(self, requests: Sequence[ClipRequest]) -> Tensor:
        return self.factor * super().latents(requests)[:, self.extra :]


def test_latents_of_another_shape_or_beyond_the_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latents of shape \(5, 3, 3, 2, 2\) for 5 requests; .* must be \(5, 4, 3"):
        do_homework(Wrong(extra=1), REQUESTS, PLAIN)
    with pytest.raises(ValueError, match="gave latents that are not finite in float16; mend the teacher, or keep"):
        do_homework(Wrong(factor=1e6), REQUESTS, replace(PLAIN, dtype="float16"))
    assert do_homework(Wrong(factor=1e6), REQUESTS, PLAIN)[0].latents_FCHW.abs().max() > 1e5
