"""Homework as batches for training, read from the store as they are needed; a batch is a function of the step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamstill.teachers.homework import Homework, HomeworkStore
from streamstill.training.batches import Examples, turns_of


@dataclass(frozen=True, eq=False)
class Told:
    """What the teacher said about noised clips: its velocity, the noise and the time, one for each clip."""

    noise_BFCHW: Tensor
    t_B: Tensor
    velocity_BFCHW: Tensor

    def __getitem__(self, rows: slice) -> "Told":
        """Some of it."""
        return Told(self.noise_BFCHW[rows], self.t_B[rows], self.velocity_BFCHW[rows])


@dataclass(frozen=True, eq=False)
class Taught:
    """The teacher's clips, and what it said about them; None: only the clips are known."""

    examples: Examples
    told: Told | None = None

    def __getitem__(self, rows: slice) -> "Taught":
        """Some of it."""
        return Taught(self.examples[rows], None if self.told is None else self.told[rows])


@dataclass(frozen=True, eq=False)
class Paths:
    """ODE paths of the teacher: points of shape (B, J, F, C, H, W) at the times of shape (J,), from noise to clean."""

    points_BJFCHW: Tensor
    t_J: Tensor
    prompts: tuple[str, ...]

    @property
    def clean_BFCHW(self) -> Tensor:
        """Where the paths end."""
        return self.points_BJFCHW[:, -1]

    def __getitem__(self, rows: slice) -> "Paths":
        """Some of them."""
        return Paths(self.points_BJFCHW[rows], self.t_J, self.prompts[rows])


def homework_batches(store: HomeworkStore, keys: Sequence[str], *, batch: int, seed: int) -> Callable[[int], Taught]:
    """Batches in which every clip comes once before any comes again, then with its next velocity.

    Raises:
        ValueError: there is no homework, or a batch of none is asked for.
    """
    turn = _turns(len(keys), batch=batch, seed=seed)

    def batch_at(step: int) -> Taught:
        chosen = turn(step)
        homework = store.get([keys[row] for row, _ in chosen])
        examples = Examples(torch.stack([one.latents_FCHW for one in homework]), _prompts(homework))
        asked = min(len(one.t_V) for one in homework)
        if asked == 0:
            return Taught(examples)
        picks = [epoch % asked for _, epoch in chosen]
        pairs = list(zip(homework, picks, strict=True))
        told = Told(
            torch.stack([one.noise_FCHW(pick) for one, pick in pairs]),
            torch.stack([one.t_V[pick] for one, pick in pairs]),
            torch.stack([one.velocity_VFCHW[pick] for one, pick in pairs]),
        )
        return Taught(examples, told)

    return batch_at


def path_batches(store: HomeworkStore, keys: Sequence[str], *, batch: int, seed: int) -> Callable[[int], Paths]:
    """Batches of ODE paths; every clip comes once before any comes again.

    Raises:
        ValueError: there is no homework, or it was collected without paths, or with paths of other levels.
    """
    turn = _turns(len(keys), batch=batch, seed=seed)

    def batch_at(step: int) -> Paths:
        homework = store.get([keys[row] for row, _ in turn(step)])
        points = [one.path_JFCHW for one in homework if one.path_JFCHW is not None]
        if len(points) < len(homework) or len({one.assignment for one in homework}) > 1:
            raise ValueError(
                f"the homework in {store.path} has not the ODE paths of one assignment; collect it with path_levels "
                "and choose it by store.keys(assignment=...)"
            )
        return Paths(torch.stack(points), homework[0].assignment.path_times_J, _prompts(homework))

    return batch_at


def _prompts(homework: Sequence[Homework]) -> tuple[str, ...]:
    return tuple(one.request.prompt for one in homework)


def _turns(count: int, *, batch: int, seed: int) -> Callable[[int], list[tuple[int, int]]]:
    """Which rows a step gets, and how often each has come before."""
    if count < 1 or batch < 1:
        raise ValueError(f"a batch of {batch} cannot be drawn from {count} clips of homework; collect some first")

    rows_at = turns_of(count, batch=batch, seed=seed)
    return lambda step: [(row, (step * batch + place) // count) for place, row in enumerate(rows_at(step))]
