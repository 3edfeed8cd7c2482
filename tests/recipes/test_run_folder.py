"""A run folder belongs to one run: the same command goes on, another is refused, time is counted."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from streamstill.recipes.run_folder import RunFolder
from tests.recipes.tiny import files, read


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Settings:
    seed: int = 0
    inner: Inner = Inner()


def interrupted_in(run: RunFolder, stage: str) -> None:
    with run.stage(stage):
        time.sleep(0.02)
        raise KeyboardInterrupt


def learnt(folder: Path) -> None:
    """Leave what a training stage leaves."""
    (folder / "warm" / "training").mkdir(parents=True)
    (folder / "warm" / "training" / "state.safetensors").write_bytes(b"weights")


def test_a_new_folder_holds_the_recipe_and_its_resolved_config(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "a" / "b", recipe="quickstart", config=Settings(seed=2), inputs={"clips": "here"})
    held = read(tmp_path / "a" / "b" / "recipe.json")
    assert (held["recipe"], held["inputs"]) == ("quickstart", {"clips": "here"})
    assert held["config"] == {"seed": 2, "inner": {"rate": 0.5}}


def test_the_same_run_is_found_again(tmp_path: Path) -> None:
    for _ in range(2):
        RunFolder.open(tmp_path, recipe="quickstart", config=Settings())
        if not (tmp_path / "warm").exists():
            learnt(tmp_path)


def test_other_settings_are_refused_with_what_differs(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, recipe="quickstart", config=Settings())
    learnt(tmp_path)
    said = r"holds a run of other settings: inner\.rate=0\.5 \(now 0\.1\), seed=0 \(now 3\); give another --out"
    with pytest.raises(ValueError, match=said):
        RunFolder.open(tmp_path, recipe="quickstart", config=Settings(seed=3, inner=Inner(rate=0.1)))


def test_another_recipe_and_another_input_are_refused(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, recipe="folder", config=Settings(), inputs={"clips": "cats"})
    learnt(tmp_path)
    with pytest.raises(ValueError, match="the recipe 'folder', not 'base'"):
        RunFolder.open(tmp_path, recipe="base", config=Settings())
    with pytest.raises(ValueError, match=r"clips=cats \(now dogs\)"):
        RunFolder.open(tmp_path, recipe="folder", config=Settings(), inputs={"clips": "dogs"})


def test_a_refused_folder_is_left_as_it_was(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, recipe="quickstart", config=Settings())
    learnt(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="other settings"):
        RunFolder.open(tmp_path, recipe="quickstart", config=Settings(seed=1))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_settings_may_change_while_nothing_was_learnt(tmp_path: Path) -> None:
    """Whoever mends a mistake that stopped the run while it collected need not delete the folder."""
    RunFolder.open(tmp_path, recipe="quickstart", config=Settings(seed=1))
    RunFolder.open(tmp_path, recipe="quickstart", config=Settings(seed=2))
    assert read(tmp_path / "recipe.json")["config"]["seed"] == 2


def test_a_run_that_can_be_prolonged_takes_a_larger_number_and_no_smaller_one(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, recipe="train", config=Settings(seed=3), longer="seed")
    learnt(tmp_path)
    RunFolder.open(tmp_path, recipe="train", config=Settings(seed=5), longer="seed")
    assert read(tmp_path / "recipe.json")["config"]["seed"] == 5
    said = r"holds a run of seed=5 and 4 were asked for; ask for as many or more \(it then goes on\), or give another"
    with pytest.raises(ValueError, match=said):
        RunFolder.open(tmp_path, recipe="train", config=Settings(seed=4), longer="seed")
    with pytest.raises(ValueError, match=r"inner\.rate=0\.5 \(now 0\.1\), seed=5 \(now 6\)"):
        RunFolder.open(tmp_path, recipe="train", config=Settings(seed=6, inner=Inner(rate=0.1)), longer="seed")
    assert read(tmp_path / "recipe.json")["config"]["seed"] == 5


def test_the_seconds_of_a_stage_add_up_over_attempts_and_interruptions(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path, recipe="quickstart", config=Settings())
    assert run.seconds == {}
    with run.stage("warm") as folder:
        assert folder == tmp_path / "warm"
        time.sleep(0.02)
    with pytest.raises(KeyboardInterrupt):
        interrupted_in(run, "warm")
    with run.stage("afd"):
        pass
    assert 0.04 <= run.seconds["warm"] < 1
    assert set(run.seconds) == {"warm", "afd"}
    assert files(tmp_path) == {"recipe.json", "seconds.json"}
