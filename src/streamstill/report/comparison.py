"""Teacher, base, warm and student side by side: the numbers of a run, as JSON and in the terminal."""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

import streamstill
from streamstill.metrics import (
    Interval,
    background_flicker,
    flicker,
    frechet_distance,
    interval_if_any,
    set_interval,
    sharpness,
)
from streamstill.report.fresh_classifier import SMALLEST_SPREAD, accuracy_on_motion, accuracy_on_pixels
from streamstill.types import Clip, ClipRequest
from streamstill.worlds import judge, parse, track
from streamstill.worlds.motion_features import motion_features

METRICS = (
    "physics_error",
    "restitution_error",
    "energy_error",
    "momentum_error",
    "permanence",
    "size_error",
    "dynamic_degree",
    "prompt_obedience",
    "sharpness",
    "flicker",
    "background_flicker",
)
AGAINST_TEACHER = ("motion_distance", "told_apart_by_motion", "told_apart_by_pixels")
_SHOWN = ("physics_error", "restitution_error", "permanence", "dynamic_degree", "prompt_obedience", "sharpness")

Floats = NDArray[np.float64]
Scores = Mapping[str, Mapping[str, Interval]]


def rows_of(clips: Sequence[Clip], requests: Sequence[ClipRequest]) -> list[dict[str, float]]:
    """Every metric of every clip, NaN where it has no meaning; ``metrics.interval_over_seeds`` pools such rows."""
    _check_one_each(clips, requests)
    return [_row(clip, request) for clip, request in zip(clips, requests, strict=True)]


def judged(clips: Sequence[Clip], requests: Sequence[ClipRequest]) -> dict[str, Interval]:
    """Every metric over the clips, each with its 95 % interval; one that no clip has gets ``n=0`` and no number."""
    rows = rows_of(clips, requests)
    return {name: interval_if_any([row[name] for row in rows]) for name in METRICS}


def against_teacher(
    clips: Sequence[Clip], teacher: Sequence[Clip], requests: Sequence[ClipRequest], *, seed: int = 0
) -> dict[str, Interval]:
    """How far the clips as a set are from the teacher's for the same requests, by the names of ``AGAINST_TEACHER``.

    The Frechet distance is on motion features in units of the teacher's spread, without the share that the size of
    the sets explains; the others are the held-out accuracy of a fresh classifier, 1/2 where nothing tells them apart.

    Raises:
        ValueError: there are fewer than 8 requests, or not one clip of either party for each.
    """
    ours_ND, theirs_ND = _features(clips, requests), _features(teacher, requests)
    spread_D = np.sqrt(theirs_ND.var(axis=0) + SMALLEST_SPREAD**2)
    return {
        "told_apart_by_motion": accuracy_on_motion(theirs_ND, ours_ND, seed=seed),
        "told_apart_by_pixels": accuracy_on_pixels(teacher, clips, seed=seed),
        "motion_distance": set_interval(frechet_distance, theirs_ND / spread_D, ours_ND / spread_D, seed=seed),
    }


def as_json(scores: Scores, seconds: Mapping[str, float], device: torch.device | str = "cpu") -> dict[str, Any]:
    """What ``report.json`` holds."""
    metrics = {who: {name: value.as_json() for name, value in row.items()} for who, row in scores.items()}
    return {"metrics": metrics, "seconds": dict(seconds), "environment": environment(device)}


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Where the numbers were made, and on which device."""
    return {
        "streamstill": streamstill.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }


def as_table(scores: Scores) -> Table:
    """Means with their intervals, one row for each metric worth a glance, one column for each of the compared."""
    names = [name for name in (*_SHOWN, *AGAINST_TEACHER) if any(name in row for row in scores.values())]
    count = max(value.n for row in scores.values() for value in row.values())
    table = Table(title=f"held-out prompts, {count} clips each, mean [95 % interval]", title_justify="left")
    table.add_column("")
    for who in scores:
        table.add_column(who, justify="right")
    for name in names:
        table.add_row(name.replace("_", " "), *(_cell(row.get(name)) for row in scores.values()))
    return table


def _row(clip: Clip, request: ClipRequest) -> dict[str, float]:
    moving = clip.geometry.frames > 1
    return {
        **judge(clip, request),
        "sharpness": sharpness(clip),
        "flicker": flicker(clip) if moving else math.nan,
        "background_flicker": background_flicker(clip) if moving else math.nan,
    }


def _features(clips: Sequence[Clip], requests: Sequence[ClipRequest]) -> Floats:
    """Motion features of every clip, one row each."""
    _check_one_each(clips, requests)
    seen = [track(clip, parse(request.prompt)) for clip, request in zip(clips, requests, strict=True)]
    return np.array([motion_features(one) for one in seen])


def _check_one_each(clips: Sequence[Clip], requests: Sequence[ClipRequest]) -> None:
    if len(clips) != len(requests):
        raise ValueError(
            f"judging needs one clip for each request, got {len(clips)} clips for {len(requests)} requests"
        )


def _cell(value: Interval | None) -> str:
    if value is None or value.n == 0:
        return "-"
    return f"{value.mean:.3g} [{value.low:.2g}, {value.high:.2g}]"
