import json
import math
from dataclasses import replace
from functools import cache
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from streamstill.metrics import Interval, interval_over_seeds
from streamstill.report.comparison import (
    AGAINST_TEACHER,
    METRICS,
    Scores,
    against_teacher,
    as_json,
    as_table,
    judged,
    rows_of,
)
from streamstill.types import Clip, ClipRequest
from streamstill.worlds import LooseWorld, World, judge, prompts

FREE = ("drop", "throw left", "throw right")
REQUESTS = [
    ClipRequest(prompt=prompt, seed=number, frames=16, height=32, width=32, fps=8.0)
    for number, prompt in enumerate(prompts(24, 91, actions=FREE, shapes=("ball",)))
]


@cache
def clips_of(world: World | LooseWorld, shift: int = 0) -> tuple[Clip, ...]:
    return tuple(world.render(replace(request, seed=request.seed + shift)) for request in REQUESTS)


@cache
def scores() -> Scores:
    teacher, student = clips_of(World()), clips_of(LooseWorld())
    beside = against_teacher(student, teacher, REQUESTS)
    return {"teacher": judged(teacher, REQUESTS), "student": {**judged(student, REQUESTS), **beside}}


def printed(shown: Scores, width: int) -> list[str]:
    page = StringIO()
    Console(width=width, file=page).print(as_table(shown))
    return page.getvalue().splitlines()


def test_every_clip_has_a_row_of_all_metrics() -> None:
    rows = rows_of(clips_of(World()), REQUESTS)
    assert len(rows) == len(REQUESTS)
    assert all(tuple(row) == METRICS for row in rows)
    for row, clip, request in zip(rows, clips_of(World()), REQUESTS, strict=True):
        for name, value in judge(clip, request).items():
            assert row[name] == pytest.approx(value, nan_ok=True)


def test_the_intervals_are_those_of_the_rows() -> None:
    rows, found = rows_of(clips_of(World()), REQUESTS), judged(clips_of(World()), REQUESTS)
    assert tuple(found) == METRICS
    for name in METRICS:
        numbers = [row[name] for row in rows if not math.isnan(row[name])]
        assert found[name].n == len(numbers)
        assert found[name].mean == pytest.approx(np.mean(numbers))
        assert found[name].low <= found[name].mean <= found[name].high


def test_rows_of_several_seeds_can_be_pooled() -> None:
    rows = [rows_of(clips_of(World(), shift), REQUESTS) for shift in (0, 100, 200)]
    pooled = interval_over_seeds(rows)
    assert set(pooled) == set(METRICS)
    assert pooled["sharpness"].n == 3 * len(REQUESTS)
    assert pooled["permanence"].mean == 1.0


def test_the_two_worlds_are_told_apart_and_one_world_is_not() -> None:
    apart = scores()["student"]
    assert apart["told_apart_by_motion"].mean > 0.7
    assert apart["motion_distance"].low > 1
    alike = against_teacher(clips_of(World(), 1000), clips_of(World()), REQUESTS)
    assert tuple(sorted(alike)) == tuple(sorted(AGAINST_TEACHER))
    assert alike["motion_distance"].high < apart["motion_distance"].low
    assert alike["told_apart_by_motion"].low <= 0.5


def test_the_report_has_every_number_as_plain_json() -> None:
    report = json.loads(json.dumps(as_json(scores(), {"warm": 1.5}), allow_nan=False))
    assert set(report) == {"metrics", "seconds", "environment"}
    assert set(report["metrics"]["teacher"]) == set(METRICS)
    assert set(report["metrics"]["student"]) == {*METRICS, *AGAINST_TEACHER}
    assert set(report["metrics"]["student"]["motion_distance"]) == {"mean", "low", "high", "n"}


def test_a_metric_without_a_clip_is_null() -> None:
    prompt = "a purple pendulum swings"
    request = ClipRequest(prompt=prompt, seed=0, frames=1, height=32, width=32, fps=8.0)
    found = judged([World().render(request)], [request])
    assert {name for name, value in found.items() if value.n == 0} == {
        *("physics_error", "restitution_error", "energy_error", "momentum_error"),
        *("permanence", "flicker", "background_flicker"),
    }
    report = as_json({"teacher": found}, {})
    assert report["metrics"]["teacher"]["flicker"] == {"mean": None, "low": None, "high": None, "n": 0}


def test_the_table_shows_the_compared_side_by_side() -> None:
    shown = {"teacher": scores()["teacher"], "base": scores()["teacher"], "student": scores()["student"]}
    lines = printed(shown, width=100)
    assert max(map(len, lines)) <= 100
    assert all(who in lines[2] for who in shown)
    assert sum("told apart by motion" in line for line in lines) == 1
    assert not any("energy" in line for line in lines)  # it is in the JSON
    alone = printed({"teacher": scores()["teacher"]}, width=100)
    assert not any("told apart" in line for line in alone)


def test_a_number_that_is_missing_is_a_dash() -> None:
    nothing = Interval(mean=math.nan, low=math.nan, high=math.nan, n=0)
    shown = {"teacher": {**scores()["teacher"], "restitution_error": nothing}}
    (line,) = [line for line in printed(shown, width=100) if "restitution" in line]
    assert "-" in line
    assert "nan" not in line


def test_parties_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="24 clips for 9 requests"):
        against_teacher(clips_of(World())[:9], clips_of(World()), REQUESTS[:9])
    with pytest.raises(ValueError, match="9 clips for 24 requests"):
        judged(clips_of(World())[:9], REQUESTS)
