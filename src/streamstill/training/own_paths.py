"""The ODE paths of a student itself: how its many-step rollouts went from noise to clean, chunk by chunk.

With them ``OdeRegression`` makes a few-step student out of a many-step one, and nothing else is needed: no teacher, no
clips. Unlike the paths of a bidirectional teacher they are causal, so a student that sees the past alone can follow
them to their ends; Causal Forcing (arXiv 2602.02214) takes an autoregressive teacher for the same reason. S2DiT says
nothing of an initialisation; this one is our choice.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from streamstill.flow.samplers import VelocityFn, euler
from streamstill.flow.times import Sampling
from streamstill.streaming.rollout import CLIPS_AT_ONCE, rollout
from streamstill.student.student import Student
from streamstill.training.batches import pieces, turns_of
from streamstill.training.homework_batches import Paths


def own_paths(student: Student, prompts: Sequence[str], *, steps: int, seed: int) -> Paths:
    """A path for each prompt, followed in ``steps`` Euler steps and kept at the student's own sampling times.

    Args:
        student: its ``config.sampling`` says which times are kept; the few-step student will visit these.
        steps: of the paths, a multiple of the kept ones, so that every kept time is a time of the path.

    Raises:
        ValueError: no prompt, or steps that miss the kept times.
    """
    few = student.config.sampling
    if not prompts:
        raise ValueError("paths are made for prompts and none was given; give at least one")
    require_passed(steps, kept=few.steps)
    generator = torch.Generator().manual_seed(seed)
    fine = Sampling(steps=steps, shift=few.shift)
    points = [
        _followed(student, prompts[rows], fine, keep_every=steps // few.steps, generator=generator)
        for rows in pieces(len(prompts), CLIPS_AT_ONCE)
    ]
    return Paths(torch.cat(points).cpu(), few.times(), tuple(prompts))


def require_passed(steps: int, *, kept: int) -> None:
    """Refuse paths that do not pass the times of a student with ``kept`` steps.

    Raises:
        ValueError: ``steps`` is no multiple of ``kept``, or not more.
    """
    if steps <= kept or steps % kept:
        raise ValueError(
            f"paths of {steps} steps do not pass the times of a student with {kept}; "
            f"use a multiple, for example {4 * kept}"
        )


def own_path_batches(paths: Paths, *, batch: int, seed: int) -> Callable[[int], Paths]:
    """Batches in which every path comes once before any comes again."""
    rows_at = turns_of(len(paths.prompts), batch=batch, seed=seed)

    def batch_at(step: int) -> Paths:
        rows = rows_at(step)
        return Paths(paths.points_BJFCHW[rows], paths.t_J, tuple(paths.prompts[row] for row in rows))

    return batch_at


@torch.no_grad()
def _followed(
    student: Student, prompts: Sequence[str], fine: Sampling, *, keep_every: int, generator: torch.Generator
) -> Tensor:
    """``points_BJFCHW``, J from noise to clean."""
    chunks: list[Tensor] = []

    def keeping(velocity_fn: VelocityFn, noise: Tensor, times: Tensor, _: torch.Generator | None = None) -> Tensor:
        """Euler's sampler; of the points at which it asks for a velocity some are kept."""
        passed: list[Tensor] = []

        def asked(x_t: Tensor, t: Tensor) -> Tensor:
            passed.append(x_t)
            return velocity_fn(x_t, t)

        clean = euler(asked, noise, times)
        chunks.append(torch.stack([*passed[::keep_every], clean], dim=1))
        return clean

    rollout(
        student.network,
        student.encode_prompts(prompts),
        frames=student.latent_shape[0],
        latent_shape=student.latent_shape[1:],
        sampling=fine,
        generator=generator,
        sampler=keeping,
    )
    return torch.cat(chunks, dim=2)
