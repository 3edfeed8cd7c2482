import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from streamstill.training.metric_log import MetricLog, TensorBoardTracker


class Notes:
    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.seen.append((step, dict(metrics)))


def lines(log: MetricLog) -> list[dict[str, float]]:
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def filled(folder: Path, steps: int) -> MetricLog:
    log = MetricLog(folder / "deep" / "metrics.jsonl")
    for step in range(steps):
        log.record(step, 0.5, {"student/loss": 1.0 / (step + 1)})
    return log


def test_a_line_is_in_the_file_when_record_returns(tmp_path: Path) -> None:
    log = filled(tmp_path, 1)
    assert lines(log) == [{"step": 0, "seconds": 0.5, "student/loss": 1.0}]


def test_the_tracker_sees_the_same_numbers(tmp_path: Path) -> None:
    notes = Notes()
    MetricLog(tmp_path / "metrics.jsonl", notes).record(3, 0.25, {"a": 1.0})
    assert notes.seen == [(3, {"seconds": 0.25, "a": 1.0})]


def test_rewinding_drops_the_step_and_what_follows(tmp_path: Path) -> None:
    log = filled(tmp_path, 6)
    log.rewind(4)
    assert [line["step"] for line in lines(log)] == [0, 1, 2, 3]
    log.rewind(9)
    assert len(lines(log)) == 4
    log.rewind(0)
    assert lines(log) == []


def test_rewinding_nothing_is_fine(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.rewind(0)
    assert not log.path.exists()


def test_a_last_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    log = filled(tmp_path, 3)
    with log.path.open("a") as file:
        file.write('{"step": 3, "sec')
    log.rewind(99)
    assert [line["step"] for line in lines(log)] == [0, 1, 2]


def test_a_foreign_file_is_refused_and_kept(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.path.write_text("step,loss\n0,1.0\n")
    with pytest.raises(ValueError, match=r"line 1 of .*metrics\.jsonl"):
        log.rewind(5)
    assert log.path.read_text() == "step,loss\n0,1.0\n"


def test_a_number_that_is_not_finite_is_null_so_that_every_json_reader_copes(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.record(0, 0.1, {"a": float("nan"), "b": float("inf")})
    assert json.loads(log.path.read_text(), parse_constant=pytest.fail) == {
        "step": 0,
        "seconds": 0.1,
        "a": None,
        "b": None,
    }


def test_without_tensorboard_the_message_is_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "streamstill\[track\]"'):
        TensorBoardTracker(tmp_path)


def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = TensorBoardTracker(tmp_path / "events")
    tracker.log(0, {"student/loss": 1.0})
    tracker.close()
    assert any(tmp_path.rglob("events.out.tfevents.*"))
