"""Stopping by any route and running again equals never stopping: the same bits in every file."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamstill.training.trainer import Trainer, TrainerConfig
from tests.training.toys import OPTIM, Duel, Regression, duel, rows

STEPS = 14

ENDS_OF_AN_INTERRUPT = (-signal.SIGINT, 1)  # 1: an installed library runs Python code while the interpreter ends
SLOW_RUN = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started with it ignored
from tests.training.toys import Duel, rows
from streamstill.training.trainer import Trainer, TrainerConfig

def slowly(step, metrics):
    print(step, flush=True)
    time.sleep(0.4 if step == 5 else 0.02)

config = TrainerConfig(steps=14, seed=7, checkpoint_every=4)
Trainer(Duel(), rows, config, Path(sys.argv[1]), on_step=slowly).run()
"""


def log_without_times(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """The state file holds parameters, optimisers, averages, memory and counters: compare its bytes."""
    states = [(folder / "training" / "state.safetensors").read_bytes() for folder in (one, other)]
    assert states[0] == states[1]
    assert log_without_times(one) == log_without_times(other)


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("never_stopped")
    duel(folder, STEPS).run()
    return folder


@pytest.mark.parametrize("stop", [1, 2, 3, 7, 13])
def test_stopping_and_running_again_equals_never_stopping(tmp_path: Path, never_stopped: Path, stop: int) -> None:
    duel(tmp_path, stop).run()
    duel(tmp_path, STEPS).run()
    assert_same_run(tmp_path, never_stopped)


def test_stopping_after_every_step_equals_never_stopping(tmp_path: Path, never_stopped: Path) -> None:
    for steps in range(1, STEPS + 1):
        duel(tmp_path, steps).run()
    assert_same_run(tmp_path, never_stopped)


def test_a_crash_between_checkpoints_equals_never_stopping(tmp_path: Path, never_stopped: Path) -> None:
    def crash(step: int, metrics: object) -> None:
        if step == 9:
            raise RuntimeError("power cut")

    config = TrainerConfig(steps=STEPS, seed=7, checkpoint_every=4)
    with pytest.raises(RuntimeError, match="power cut"):
        Trainer(Duel(), rows, config, tmp_path, on_step=crash).run()
    assert len(log_without_times(tmp_path)) == 10
    duel(tmp_path, STEPS).run()
    assert_same_run(tmp_path, never_stopped)


def slow_run(folder: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def interrupted_at(folder: Path, step: int, number: signal.Signals, times: int = 1) -> tuple[int, str]:
    """Start a run, send the signal after this step; returns the exit code and what was written to stderr."""
    with slow_run(folder) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if int(line) == step:
                break
        run.send_signal(number)
        said = ""
        if times == 2:
            assert run.stderr is not None
            while "stopping" not in said:  # the first signal has arrived
                said += run.stderr.readline()
            run.send_signal(number)
        _, errors = run.communicate(timeout=60)
    return run.returncode, said + errors


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_an_interrupt_finishes_the_step_saves_and_resumes_exactly(tmp_path: Path, never_stopped: Path) -> None:
    code, errors = interrupted_at(tmp_path, 5, signal.SIGINT)
    assert code in ENDS_OF_AN_INTERRUPT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "stopping after this step; the same command resumes" in errors
    assert 6 <= duel(tmp_path, STEPS).restore() == len(log_without_times(tmp_path)) < STEPS
    duel(tmp_path, STEPS).run()
    assert_same_run(tmp_path, never_stopped)


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_a_second_interrupt_stops_at_once_and_loses_no_checkpoint(tmp_path: Path, never_stopped: Path) -> None:
    code, errors = interrupted_at(tmp_path, 5, signal.SIGINT, times=2)
    assert code in ENDS_OF_AN_INTERRUPT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert duel(tmp_path, STEPS).restore() == 4
    duel(tmp_path, STEPS).run()
    assert_same_run(tmp_path, never_stopped)


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_a_kill_resumes_from_the_last_checkpoint(tmp_path: Path, never_stopped: Path) -> None:
    code, _ = interrupted_at(tmp_path, 6, signal.SIGKILL)
    assert code == -signal.SIGKILL
    duel(tmp_path, STEPS).run()
    assert_same_run(tmp_path, never_stopped)


def test_running_a_finished_run_changes_no_file_and_gives_the_weights(tmp_path: Path) -> None:
    first = duel(tmp_path, 5)
    first.run()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()}
    task = Duel()
    Trainer(task, rows, TrainerConfig(steps=5, seed=7), tmp_path).run()
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before}
    trained = first.objective
    assert isinstance(trained, Duel)
    assert torch.equal(task.first.weight, trained.first.weight)
    assert torch.equal(task.lagged.get_parameter("0.weight"), trained.lagged.get_parameter("0.weight"))


def test_a_resumed_average_is_the_same_average(tmp_path: Path) -> None:
    first = duel(tmp_path, 6)
    first.run()
    second = duel(tmp_path, 6)
    second.restore()
    averages = [trainer.ema("student") for trainer in (first, second)]
    assert averages[0] is not None
    assert averages[1] is not None
    assert averages[0].updates == averages[1].updates == 4
    for name, average in averages[0].averages.items():
        assert torch.equal(average, averages[1].averages[name])


def regression(folder: Path, task: Regression, seed: int = 0, steps: int = 3) -> Trainer[Tensor, Tensor, Tensor]:
    return Trainer(task, rows, TrainerConfig(steps=steps, seed=seed), folder)


def test_another_learning_rate_is_taken_from_the_new_config(tmp_path: Path) -> None:
    regression(tmp_path, Regression()).run()
    task = Regression(optim=replace(OPTIM, lr=0.5, warmup_steps=0))
    regression(tmp_path, task, steps=4).run()
    assert log_without_times(tmp_path)[-1]["student/lr"] == 0.5


def test_another_seed_is_refused(tmp_path: Path) -> None:
    regression(tmp_path, Regression(), seed=1).run()
    with pytest.raises(ValueError, match="was made with seed 1, this run has seed 2; resume with seed=1"):
        regression(tmp_path, Regression(), seed=2).run()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Regression(width=4), r"student/ema/weight' where this run needs float32 \(2, 4\)"),
        (Regression(ema_decay=None), "student/ema/bias' where this run needs nothing"),
    ],
)
def test_another_architecture_is_refused_and_left_as_it_was(tmp_path: Path, other: Regression, said: str) -> None:
    regression(tmp_path, Regression()).run()
    before = other.module.weight.detach().clone()
    with pytest.raises(ValueError, match=said):
        regression(tmp_path, other).run()
    assert torch.equal(other.module.weight, before)


def test_a_damaged_state_is_not_silently_started_over(tmp_path: Path) -> None:
    trainer = regression(tmp_path, Regression())
    trainer.run()
    trainer.state_path.write_bytes(trainer.state_path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged or was cut off"):
        regression(tmp_path, Regression()).run()
