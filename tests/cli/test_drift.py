"""``streamstill drift``: what it prints and writes, for prompts of the world and for any others."""

import json
from pathlib import Path

from PIL import Image

from streamstill.testing import tiny_student
from streamstill.types import Geometry
from tests.cli.conftest import Run


def test_drift_tells_and_keeps_how_a_stream_changes(run: Run, student: Path) -> None:
    told = run("drift", f"one={student}", f"other={student}", "--times", 3, "--count", 2, "--out", "d/drift.json")
    assert told.status == 0, told.err
    kept = json.loads(Path("d/drift.json").read_text())
    assert {*kept["drift"]} == {"world", "one", "other"}
    assert kept["drift"]["one"] == kept["drift"]["other"]
    assert [row["mean"] for row in kept["drift"]["world"]["in_sight"]["windows"]] == 3 * [1]
    assert len(kept["prompts"]) == 2
    assert "in sight" in told.out
    assert "d/drift.png" in told.out
    with Image.open("d/drift.png") as strip:
        assert strip.height > 1.5 * strip.width  # 2 prompts of 3 parties, 3 windows


def test_other_prompts_are_judged_by_looks_alone_and_a_short_list_goes_round(run: Run, student: Path) -> None:
    Path("mine.txt").write_text("A cat on a boat\nRain over a city\n")
    told = run("drift", student, "--prompts", "mine.txt", "--times", 2, "--count", 3, "--steps", 1)
    assert told.status == 0, told.err
    kept = json.loads(Path("runs/drift.json").read_text())
    assert list(kept["drift"]) == [student.name]
    assert "in_sight" not in kept["drift"][student.name]
    assert kept["drift"][student.name]["sharpness"]["change"]["n"] == 3
    assert kept["prompts"][0] == kept["prompts"][2] == "A cat on a boat"


def test_steps_and_seed_make_other_streams(run: Run, student: Path) -> None:
    made = []
    for flags in ((), ("--steps", 1), ("--seed", 1), ()):
        assert run("drift", student, "--times", 2, "--count", 1, *flags).status == 0
        made.append(json.loads(Path("runs/drift.json").read_text())["drift"][student.name])
    assert made[0] == made[3]
    assert made[0] != made[1]
    assert made[0] != made[2]


def test_bad_input_is_one_sentence_and_writes_nothing(run: Run, student: Path, tmp_path: Path) -> None:
    run("drift", student, "--times", 1).says("--times must be at least 2, got 1")
    run("drift", student, "--count", 0).says("count must be at least 1, got 0")
    run("drift", student, "--out", "d.txt").says("--out must be the name of a json file, got d.txt")
    run("drift", student, student).says("give each a name of its own, NAME=FOLDER")
    run("drift", f"world={student}").says("other than world")
    run("drift", "nowhere").says("nowhere")
    run("drift", student, "--prompts", "none.txt").says("there is no prompt file none.txt")
    tiny_student(Geometry(frames=16, height=16, width=16, fps=8)).save_pretrained(tmp_path / "long")
    run("drift", student, tmp_path / "long").says("only students of one size can be compared")
    assert not Path("runs").exists()
