"""``streamstill search run`` and ``search place`` from the words to the files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from streamstill.report.card import machine
from tests.cli.conftest import Run
from tests.recipes.test_search import given_table


@pytest.fixture
def table(tmp_path: Path) -> Path:
    given_table().save(tmp_path / "table.json")
    return tmp_path / "table.json"


def test_a_search_says_the_layout_why_and_how_to_train_it(run: Run, table: Path) -> None:
    told = run("search", "run", "--preset", "nano", "--budget-ms", 11, "--table", table, "--out", "found")
    assert told.status == 0
    assert "layout LSSL: 10.5 ms a pass and 11 MB predicted" in told.out
    assert "2 L + 2 S uses up the budgets best" in told.out
    assert "next: streamstill distill base --set preset=nano --set layout=LSSL" in told.out
    assert {path.name for path in Path("found").iterdir()} == {"layout.png", "front.png", "search.json", "search.md"}


def test_the_line_that_trains_it_is_understood(run: Run) -> None:
    """Two steps of what ``next:`` says, with the layout changed."""
    words = ("--set", "layout=LSLS", "--set", "steps=2", "--set", "batch=2", "--out", "trained")
    assert run("distill", "base", "--set", "preset=nano", *words).status == 0
    config = json.loads(Path("trained/student/config.json").read_text())
    assert config["student"]["network"]["layout"] == "LSLS"


def test_an_order_is_learnt_and_then_taken(run: Run, table: Path) -> None:
    small = (
        "steps=4",
        "batch=2",
        "learn.micro_batch=1",
        "learn.optim.warmup_steps=1",
        "held_out_clips=2",
        "prompts=20",
    )
    told = run("search", "place", "--layout", "LLSS", "--out", "placed", *(w for s in small for w in ("--set", s)))
    assert told.status == 0
    assert "group 3 is at full resolution in" in told.out
    placed = json.loads(Path("placed/placement.json").read_text())
    assert len(placed["ranking"]) == 6  # all orders of two L and two S
    found = run("search", "run", "--budget-ms", 50, "--table", table, "--worths", "placed/placement.json")
    assert found.status == 0
    assert f"layout {placed['ranking'][0]['layout']}:" in found.out


def test_a_table_from_a_phone_is_searched_like_any_other(run: Run, table: Path, tmp_path: Path) -> None:
    asked = ("search", "run", "--preset", "nano", "--budget-ms", 11, "--target", "coreml-table", "--out", "found")
    replace(given_table(), target="coreml", device="a phone").save(tmp_path / "phone.json")
    told = run(*asked, "--table", "phone.json")
    assert told.status == 0
    assert "layout LSSL: 10.5 ms a pass and 11 MB predicted" in told.out
    assert "given, coreml, a phone" in Path("found/search.md").read_text()
    assert not Path("found/cost_table.json").exists()
    run(*asked, "--table", table).says("was given for the target cpu; the target coreml-table takes a table")


def test_a_phones_own_measurement_is_not_taken_for_this_machines(run: Run, tmp_path: Path) -> None:
    here = machine("cpu")["device_name"]
    replace(given_table(), source="measured", target="coreml", device=here).save(tmp_path / "phone.json")
    told = run("search", "run", "--budget-ms", 11, "--target", "coreml-table", "--table", "phone.json")
    assert told.status == 0
    assert "measured" not in told.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run",), "a search needs a budget"),
        (("run", "--budget-ms", "1", "--table", "table.json"), "no network of 4 blocks fits 1 ms"),
        (("run", "--budget-ms", "9", "--table", "away.json"), "there is no cost table away.json"),
        (("run", "--budget-ms", "9", "--target", "coreml-table"), "Core ML cannot be timed here"),
        (("run", "--budget-ms", "9", "--preset", "huge"), "unknown preset 'huge'"),
        (("place", "--layout", "LLLL"), "one full-resolution kind among S blocks"),
        (("place", "--layout", "LLSS", "--set", "steps=0"), "steps must be at least 1"),
    ],
)
def test_bad_words_get_one_sentence_and_write_no_answer(
    run: Run, table: Path, words: tuple[str, ...], said: str
) -> None:
    run("search", *words, "--out", "found").says(said)
    assert not list(Path().glob("found/*.json"))
