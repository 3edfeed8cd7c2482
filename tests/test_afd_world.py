"""The comparison on the embedded world: its arithmetic, and one run of it at the smallest size."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from streamstill.report.comparison import AGAINST_TEACHER, METRICS
from streamstill.streaming.timing import torch_threads
from streamstill.student.presets import preset
from streamstill.student.sandwich import SandwichConfig
from streamstill.student.student import Student
from tests.test_benchmarks import script, tables

main = script("afd_world")


def keep(out: Path, method: str, seed: int, physics: list[float | None]) -> None:
    """What a run of a method leaves behind."""
    rows = [{**dict.fromkeys(METRICS, 1.0), "physics_error": value} for value in physics]
    kept: dict[str, Any] = {"method": method, "seconds": 30.0 + 10 * seed, "updates": 4, "rows": rows}
    kept["sets"] = dict.fromkeys(AGAINST_TEACHER, 0.5)
    path = out / "sandwich" / f"seed{seed}" / f"{method}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept), encoding="utf-8")


def test_the_share_of_the_gap_is_that_of_the_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        keep(tmp_path, "teacher", seed, [0.0, 0.0])
        keep(tmp_path, "base", seed, [2.0, 2.0])
        keep(tmp_path, "afd", seed, [0.5 + seed, 0.5 + seed, None])  # means 0.5 and 1.5: half of the gap
    main(["--out", str(tmp_path), "--table"])
    (rows,) = tables(capsys.readouterr().out)
    assert list(rows) == ["teacher", "base", "afd"]
    seeds, updates, seconds, closed, physics = rows["afd"][:5]
    assert (seeds, updates, seconds, closed) == ("2", "4", "35", "50%")
    mean, _, span = physics.partition(" ")
    low, high = (float(part) for part in span.strip("[]").split(", "))
    assert float(mean) == pytest.approx(1.0)
    assert low <= 0.5 + 1e-9
    assert high >= 1.5 - 1e-9
    assert (tmp_path / "sandwich.png").stat().st_size > 1000


def test_streams_are_columns_where_there_are_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        keep(tmp_path, "warm", seed, [1.0, 1.0])
    main(["--out", str(tmp_path), "--table"])
    assert "in sight" not in capsys.readouterr().out
    path = tmp_path / "sandwich" / "seed1" / "streams" / "warm.json"
    path.parent.mkdir()
    windows = [
        {"in_sight": 1 - window / 20, "physics_error": 3.0 if window in (0, 4) else None} for window in range(20)
    ]
    windows[7]["physics_error"] = 1.0
    path.write_text(json.dumps({"method": "warm", "streams": [windows, windows]}), encoding="utf-8")
    main(["--out", str(tmp_path), "--table"])
    printed = capsys.readouterr().out
    assert "in sight, 3rd length | in sight, 20th length | physics error, 2nd to 20th length |" in printed
    (rows,) = tables(printed)
    assert rows["warm"][0] == "2"
    assert [cell.split()[0] for cell in rows["warm"][-3:]] == ["0.9", "0.05", "2"]


@pytest.mark.slow
def test_a_method_is_run_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--out", str(tmp_path), "--seeds", "0", "--methods", "sft", "--updates", "1"]
    words += ["--held-out", "8", "--clips", "4", "--warm-steps", "1"]
    kept = tmp_path / "sandwich" / "seed0" / "sft.json"
    streams = kept.parent / "streams" / kept.name
    with torch_threads(None):
        main([*words, "--streams", "0"])
        first, changed = json.loads(kept.read_text(encoding="utf-8")), kept.stat().st_mtime_ns
        assert not streams.exists()
        main([*words, "--streams", "1"])
    assert kept.stat().st_mtime_ns == changed
    (stream,) = json.loads(streams.read_text(encoding="utf-8"))["streams"]
    world = json.loads((streams.parent / "teacher.json").read_text(encoding="utf-8"))["streams"][0]
    assert len(stream) == len(world) == 20
    assert {row["in_sight"] for row in world} == {1}
    assert {path.name for path in streams.parent.iterdir()} == {f"{n}.json" for n in ("teacher", "base", "warm", "sft")}
    assert first["updates"] == 1
    assert Student.from_pretrained(kept.with_suffix("")).config.sampling.steps == 4
    assert len(first["rows"]) == 8
    assert all(set(row) == set(METRICS) for row in first["rows"])
    assert all(math.isfinite(value) for value in first["sets"].values())
    assert "sft" in capsys.readouterr().out


@pytest.mark.slow
def test_streams_of_base_and_teacher_are_made_once_for_all_seeds(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--methods", "sft", "--updates", "1", "--streams", "1"]
    words += ["--held-out", "8", "--clips", "4", "--warm-steps", "1"]
    made = tmp_path / "sandwich" / "seed0" / "streams" / "base.json"
    made.parent.mkdir(parents=True)
    made.write_text(json.dumps({"method": "base", "streams": []}), encoding="utf-8")
    with torch_threads(None):
        main([*words, "--seeds", "1"])
    streams = tmp_path / "sandwich" / "seed1" / "streams"
    assert (streams / "base.json").read_bytes() == made.read_bytes()
    assert json.loads((streams / "warm.json").read_text(encoding="utf-8"))["streams"]
    assert json.loads((streams / "teacher.json").read_text(encoding="utf-8"))["streams"]


@pytest.mark.slow
def test_in_the_open_corner_every_student_takes_the_few_steps_asked_for(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--seeds", "0", "--methods", "sft", "--updates", "1", "--corner", "open"]
    words += ["--steps", "2", "--few-updates", "1", "--open-steps", "1", "--streams", "0"]
    with torch_threads(None):
        main([*words, "--held-out", "8", "--clips", "4", "--warm-steps", "1"])
    kept = tmp_path / "sandwich_open"
    assert Student.from_pretrained(kept / "seed0" / "sft").config.sampling.steps == 2
    assert Student.from_pretrained(kept / "base" / "student").config.sampling.steps == 4
    recipe = json.loads((kept / "seed0" / "warm" / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["config"]["actions"] == ["move"]
    paths = [load_file(kept / who / "paths" / "paths.safetensors")["points"] for who in ("base", "seed0/warm")]
    assert not torch.equal(*paths)  # the warm student's own, and the base's own


@pytest.mark.slow
def test_another_size_begins_with_a_base_of_its_own(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--seeds", "0", "--methods", "sft", "--updates", "1", "--streams", "0"]
    words += ["--preset", "micro", "--side", "16", "--base-steps", "1", "--warm-steps", "1"]
    with torch_threads(None):
        main([*words, "--held-out", "8", "--clips", "4"])
    student = Student.from_pretrained(tmp_path / "sandwich_micro_16" / "seed0" / "sft")
    assert isinstance(student.config.network, SandwichConfig)
    assert student.config.network.layout == preset("micro").layout
    assert (student.config.geometry.height, student.config.geometry.width) == (16, 16)


def test_a_method_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--methods", "magic"])
    assert "magic" in capsys.readouterr().err
