"""Teacher, base, warm and student side by side: the numbers of a run, as JSON and in the terminal."""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

import streamstill
from streamstill.metrics import Interval, interval, sharpness
from streamstill.types import Clip, ClipRequest
from streamstill.worlds import judge

METRICS = ("physics_error", "dynamic_degree", "prompt_obedience", "sharpness")
Scores = Mapping[str, Mapping[str, Interval]]


def judged(clips: Sequence[Clip], requests: Sequence[ClipRequest]) -> dict[str, Interval]:
    """Every metric over the clips, each with its 95 % interval; one that no clip has gets ``n=0`` and no number."""
    rows = [
        {**judge(clip, request), "sharpness": sharpness(clip)} for clip, request in zip(clips, requests, strict=True)
    ]
    return {name: _interval([row[name] for row in rows]) for name in METRICS}


def as_json(scores: Scores, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What ``report.json`` holds."""
    metrics = {who: {name: _plain(value) for name, value in row.items()} for who, row in scores.items()}
    return {"metrics": metrics, "seconds": dict(seconds), "environment": environment()}


def environment() -> dict[str, Any]:
    """Where the numbers were made."""
    return {
        "streamstill": streamstill.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def as_table(scores: Scores) -> Table:
    """Means with their intervals, one row for each of the compared."""
    count = max(value.n for row in scores.values() for value in row.values())
    table = Table(title=f"held-out prompts, {count} clips each, mean [95 % interval]", title_justify="left")
    table.add_column("")
    for name in METRICS:
        table.add_column(name.replace("_", " "), justify="right")
    for who, row in scores.items():
        table.add_row(who, *(f"{row[name].mean:.3g} [{row[name].low:.3g}, {row[name].high:.3g}]" for name in METRICS))
    return table


def _interval(values: Sequence[float]) -> Interval:
    if all(math.isnan(value) for value in values):  # no body was seen in flight: a long run must not end in an error
        return Interval(mean=math.nan, low=math.nan, high=math.nan, n=0)
    return interval(values)


def _plain(value: Interval) -> dict[str, float | int | None]:
    """JSON has no NaN: null stands for it."""
    return {name: None if math.isnan(number) else number for name, number in asdict(value).items()}
