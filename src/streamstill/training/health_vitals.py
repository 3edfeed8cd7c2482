"""What is measured of a student at one checkup, and how it is written as flat numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.config import from_dict

START = -1  # the step of the checkup before the first update
_LEVELS = 127.5  # 8-bit levels per unit of pixels in [-1, 1]
_CELL = 4  # side of the square that is averaged before motion is measured, pixels
_MOVES = 8.0  # a cell moves when it changes by more than this from frame to frame, 8-bit levels


@dataclass(frozen=True, kw_only=True)
class Look:
    """Numbers about clips of anybody, means over the clips; 8-bit levels unless another unit is said."""

    sharpness: float  # root mean square of the spatial brightness gradient, per pixel
    motion: float  # mean absolute change between neighbouring frames, of cells of 4x4 pixels
    moving: float  # share of the cells that change by more than 8 levels: dynamic degree without a tracker
    flicker: float  # mean absolute change between neighbouring frames, of pixels


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the discriminator makes of the rollouts, on prompts that it does not learn from."""

    pair_accuracy: float  # share of the pairs of one prompt in which the teacher's clip has the higher score
    logit_gap: float  # mean of the teacher's score minus the student's
    mean_r: float  # mean probability (Bradley-Terry) that the student's rollout is taken for the teacher's clip
    advantage_spread: float  # standard deviation of the scores within a prompt, before they are normalised
    reliability: float  # correlation of these scores from scoring to scoring; 0: they are the blindfold's noise


@dataclass(frozen=True, kw_only=True)
class Moves:
    """What the trainer logged at the step; None where nobody logged it."""

    reward: float | None = None
    reward_spread: float | None = None
    student_grad_norm: float | None = None
    discriminator_grad_norm: float | None = None
    pair_accuracy: float | None = None  # on the prompts that are learnt from


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """One checkup after ``step`` (``START``: before the first)."""

    step: int
    student: Look
    teacher: Look
    held_out_error: float  # mean squared error of the clean estimate on the teacher's held-out clips
    judgement: Judgement | None = None
    moves: Moves
    distance_to_old: float | None = None  # |weights - old| / |old|
    distance_to_start: float | None = None


def look(pixels_BFCHW: Tensor) -> Look:
    """The numbers of clips with pixels in [-1, 1].

    Raises:
        ValueError: the clips have a single frame, so nothing can move.
    """
    if pixels_BFCHW.shape[1] < 2:
        raise ValueError("motion needs clips of at least 2 frames, these have 1; train on longer clips")
    levels = pixels_BFCHW.float() * _LEVELS
    cells = F.avg_pool2d(levels.flatten(0, 1), _CELL, ceil_mode=True).unflatten(0, levels.shape[:2])
    change = cells.diff(dim=1).abs()
    return Look(
        sharpness=float(_sharpness(levels).mean()),
        motion=float(change.mean()),
        moving=float((change.mean(dim=2) > _MOVES).float().mean()),
        flicker=float(levels.diff(dim=1).abs().mean()),
    )


def judgement(teacher_PM: Tensor, scorings_PK: Sequence[Tensor]) -> Judgement:
    """Compare every rollout with every clip of its prompt, in each of at least two scorings of the rollouts.

    The constant that a Bradley-Terry score has per prompt cancels in every number.
    """
    gaps = torch.stack([teacher_PM[:, None] - score_PK[:, :, None] for score_PK in scorings_PK])
    centred = torch.stack([score_PK - score_PK.mean(dim=1, keepdim=True) for score_PK in scorings_PK])
    scorings, prompts, rollouts = centred.shape
    power = centred.square().sum()
    shared = (centred.sum(dim=0).square().sum() - power) / (scorings - 1)  # mean product of two different scorings
    return Judgement(
        pair_accuracy=float((gaps.sign().mean() + 1) / 2),
        logit_gap=float(gaps.mean()),
        mean_r=float(torch.sigmoid(-gaps).mean()),
        advantage_spread=float((power / (scorings * prompts * (rollouts - 1))).sqrt()),
        reliability=float(shared / power) if power > 0 else 0.0,
    )


def moves(metrics: Mapping[str, float]) -> Moves:
    """The trainer's numbers of a step, by the names of the players ``student`` and ``discriminator``."""
    return Moves(
        reward=metrics.get("student/reward"),
        reward_spread=metrics.get("student/reward_spread"),
        student_grad_norm=metrics.get("student/grad_norm"),
        discriminator_grad_norm=metrics.get("discriminator/grad_norm"),
        pair_accuracy=metrics.get("discriminator/pair_accuracy"),
    )


def relative_distance(module: nn.Module, origin: nn.Module) -> float:
    """``|weights - origin's| / |origin's|`` (Euclidean, over all parameters)."""
    pairs = list(zip(module.parameters(), origin.parameters(), strict=True))
    apart = sum(float((new.detach() - old.detach()).double().square().sum()) for new, old in pairs)
    size = sum(float(old.detach().double().square().sum()) for _, old in pairs)
    return (apart / size) ** 0.5 if size > 0 else float(apart > 0)


def flat(vitals: Vitals) -> dict[str, float]:
    """Every number by its name, ``student/sharpness``; the step and what was not measured are left out."""
    numbers = _flat(vitals)
    del numbers["step"]
    return numbers


def from_flat(step: int, numbers: Mapping[str, float | None], *, where: str) -> Vitals:
    """What ``flat`` wrote; None stands for a number that was not finite.

    Raises:
        ValueError: a number is missing or unknown.
    """
    nested: dict[str, Any] = {"step": step, "moves": {}}
    for name, value in numbers.items():
        *parents, leaf = name.split("/")
        table = nested
        for parent in parents:
            table = table.setdefault(parent, {})
        table[leaf] = float("nan") if value is None else value
    return from_dict(Vitals, nested, where=f"{where}, step {step}")


def _sharpness(levels_BFCHW: Tensor) -> Tensor:
    """Per clip; squared, because a blurred edge has the same mean gradient as a sharp one."""
    luma_BFHW = levels_BFCHW.mean(dim=2)
    down, across = luma_BFHW.diff(dim=2)[..., :-1], luma_BFHW.diff(dim=3)[:, :, :-1]
    return (down.square() + across.square()).mean((1, 2, 3)).sqrt()


def _flat(table: Any, prefix: str = "") -> dict[str, float]:
    numbers: dict[str, float] = {}
    for each in fields(table):
        value, name = getattr(table, each.name), prefix + each.name
        if is_dataclass(value):
            numbers.update(_flat(value, name + "/"))
        elif value is not None:
            numbers[name] = value
    return numbers
