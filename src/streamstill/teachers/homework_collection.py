"""Give an open teacher its homework, keep every answer, and go on where an earlier run stopped."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from streamstill.flow.path import noised
from streamstill.flow.samplers import VelocityFn, euler
from streamstill.flow.times import sampler_times, training_times
from streamstill.teachers.collection import CollectReport
from streamstill.teachers.homework import Assignment, Homework, HomeworkStore, homework_key, seeded_noise
from streamstill.teachers.teacher import OpenTeacher, ReadingTeacher, Teacher, require_open
from streamstill.types import ClipRequest


def collect_homework(
    teacher: Teacher,
    requests: Iterable[ClipRequest],
    store: HomeworkStore,
    assignment: Assignment,
    *,
    batch: int = 8,
    on_clip: Callable[[int, int], None] | None = None,
) -> CollectReport:
    """Ask what the store does not have, ``batch`` clips at a time, and commit after each batch.

    ``on_clip(done, total)`` is called after each batch. Whatever ends the run loses at most one batch; the same call
    goes on. Answers do not depend on ``batch``, but for rounding.

    Raises:
        TypeError: the teacher is not open, or is asked for embeddings and has none.
        ValueError: its latents are not of its own shape, or not finite.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    open_teacher = _able(teacher, assignment)
    name = open_teacher.name  # of weights: it takes a while
    by_key = {homework_key(name, request, assignment): request for request in requests}
    missing = [request for key, request in by_key.items() if key not in store]
    known = len(by_key) - len(missing)
    for start in range(0, len(missing), batch):
        part = missing[start : start + batch]
        store.add(do_homework(open_teacher, part, assignment, name=name))
        if on_clip is not None:
            on_clip(known + start + len(part), len(by_key))
    return CollectReport(requests=len(by_key), known=known)


@torch.no_grad()
def do_homework(
    teacher: OpenTeacher, requests: Sequence[ClipRequest], assignment: Assignment, *, name: str | None = None
) -> list[Homework]:
    """What the teacher says to these requests now, not stored."""
    name, prompts = name or teacher.name, [request.prompt for request in requests]
    keys = [homework_key(name, request, assignment) for request in requests]
    latents_BFCHW = assignment.rounded(_latents(teacher, requests), "latents")
    asked = [_Questions.of(key, assignment, latents_BFCHW.shape[1:]) for key in keys]
    velocity_BVFCHW = _velocities(teacher, latents_BFCHW, asked, prompts)
    path_BJFCHW = _paths(teacher, keys, assignment, prompts) if assignment.path_levels else None
    text_BLD = cast(ReadingTeacher, teacher).encode_prompts(prompts) if assignment.text else None
    return [
        Homework(
            teacher=name,
            request=request,
            assignment=assignment,
            latents_FCHW=latents_BFCHW[row],
            noise_seeds=asked[row].seeds,
            noise_marks=tuple(float(noise.flatten()[0]) for noise in asked[row].noise_VFCHW),
            t_V=asked[row].t_V,
            velocity_VFCHW=assignment.rounded(velocity_BVFCHW[row], "velocities"),
            path_JFCHW=None if path_BJFCHW is None else assignment.rounded(path_BJFCHW[row], "points of a path"),
            text_LD=None if text_BLD is None else assignment.rounded(text_BLD[row], "embeddings"),
        )
        for row, request in enumerate(requests)
    ]


@dataclass(frozen=True, eq=False)
class _Questions:
    """The noise and times at which the velocity of one clip is asked: a function of its key."""

    seeds: tuple[int, ...]
    noise_VFCHW: Tensor
    t_V: Tensor

    @classmethod
    def of(cls, key: str, assignment: Assignment, shape: Sequence[int]) -> "_Questions":
        seeds = tuple(_seed(key, f"noise {index}") for index in range(assignment.velocities))
        noise = [seeded_noise(seed, shape) for seed in seeds]
        dice = torch.Generator().manual_seed(_seed(key, "times"))
        t_V = training_times((len(seeds),), shift=assignment.shift, generator=dice)
        return cls(seeds, torch.stack(noise) if noise else torch.zeros(0, *shape), t_V)


def _velocities(
    teacher: OpenTeacher, latents_BFCHW: Tensor, asked: Sequence[_Questions], prompts: Sequence[str]
) -> Tensor:
    noise_BVFCHW = torch.stack([questions.noise_VFCHW for questions in asked])
    t_BV = torch.stack([questions.t_V for questions in asked])
    answers = [
        teacher.velocity(noised(latents_BFCHW, noise_BVFCHW[:, index], t_B), t_B, prompts).float().cpu()
        for index, t_B in enumerate(t_BV.unbind(dim=1))
    ]
    return torch.stack(answers, dim=1) if answers else noise_BVFCHW


def _paths(teacher: OpenTeacher, keys: Sequence[str], assignment: Assignment, prompts: Sequence[str]) -> Tensor:
    """States at the assignment's levels, shape (B, J, F, C, H, W), each path from a noise of its own."""
    noise = torch.stack([seeded_noise(_seed(key, "path"), teacher.latent_shape) for key in keys])

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return teacher.velocity(x_t, t.expand(x_t.shape[0]), prompts).float().cpu()

    times = sampler_times(assignment.path_steps, shift=assignment.shift)
    return ode_path(velocity, noise, times, every=assignment.path_steps // assignment.path_levels)


def ode_path(velocity_fn: VelocityFn, noise: Tensor, times: Tensor, *, every: int) -> Tensor:
    """The points of an Euler path at every ``every``-th of its times, noise first, stacked as a second axis."""
    points = [noise]
    for start in range(0, len(times) - 1, every):
        points.append(euler(velocity_fn, points[-1], times[start : start + every + 1]))
    return torch.stack(points, dim=1)


def _able(teacher: Teacher, assignment: Assignment) -> OpenTeacher:
    able = require_open(teacher, "homework")
    if assignment.text and not hasattr(teacher, "encode_prompts"):
        raise TypeError(
            f"the assignment asks for text embeddings and the teacher {teacher.name!r} gives none (it has no "
            "encode_prompts); set text to false"
        )
    return able


def _latents(teacher: OpenTeacher, requests: Sequence[ClipRequest]) -> Tensor:
    latents, wanted = teacher.latents(requests), (len(requests), *teacher.latent_shape)
    if latents.shape != wanted:
        raise ValueError(
            f"the teacher {teacher.name!r} gave latents of shape {tuple(latents.shape)} for {len(requests)} requests; "
            f"by its latent_shape they must be {wanted}"
        )
    return latents


def _seed(key: str, what: str) -> int:
    """The same in every process, unrelated between clips and between questions about one clip."""
    digest = hashlib.blake2b(f"{key} {what}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # torch takes 63 bits
