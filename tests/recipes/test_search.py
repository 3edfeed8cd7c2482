"""A search from budgets to a layout: what it writes, what it says, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from streamstill.config import with_overrides
from streamstill.recipes import search
from streamstill.recipes.base import Base, student_config
from streamstill.recipes.search import Search, run_search, training_line
from streamstill.search.allocate import Budget, allocate
from streamstill.search.cost_table import BlockCost, CostTable, PartCost
from streamstill.student.costs import Workload
from streamstill.student.presets import PRESETS, preset
from streamstill.student.student import Student

QUIET = Console(quiet=True)


def part(ms: float, mb: float = 1.0, passing: float = 0.0) -> PartCost:
    held = round(mb * 1e6)
    return PartCost(
        ms=ms, ms_low=ms, ms_high=ms, weight_bytes=held, state_bytes=0, activation_bytes=round(passing * 1e6)
    )


def given_table(name: str = "nano") -> CostTable:
    """L costs 3 ms and 2 MB, S 1 ms and 3 MB; a switch 0.5 ms, the ends 2 ms."""
    size = PRESETS[name]
    workload = Workload(
        height=size.latent_height, width=size.latent_width, frames=size.chunk_frames, text_tokens=size.text_tokens
    )
    return CostTable(
        source="given",
        target="cpu",
        device="somewhere else",
        dtype="float32",
        versions="",
        note="made up",
        network=preset(name),
        workload=workload,
        blocks=(BlockCost(letter="L", cost=part(3, 2)), BlockCost(letter="S", cost=part(1, 3))),
        down=part(0.25, 0),
        up=part(0.25, 0),
        ends=part(2, 1),
    )


@pytest.fixture
def table(tmp_path: Path) -> str:
    given_table().save(tmp_path / "table.json")
    return str(tmp_path / "table.json")


def test_the_papers_rule_takes_the_counts_that_best_use_up_the_budget(tmp_path: Path, table: str) -> None:
    """2 L + 2 S: 2 + 6 + 2 + 0.5 = 10.5 ms is the nearest below 11."""
    found = run_search(Search(budget_ms=11, table=table), tmp_path / "out", QUIET)
    assert (found.layout, found.ms, found.mb) == ("LSSL", 10.5, 11.0)
    assert found.checked is None  # the table is of another machine
    assert "2 L + 2 S" in found.why


def test_memory_counts_as_well(tmp_path: Path, table: str) -> None:
    """4 S need 13 MB, 4 L only 9: one S uses up 10 MB."""
    found = run_search(Search(budget_mb=10, table=table), tmp_path / "out", QUIET)
    assert sorted(found.layout) == list("LLLS")
    assert found.mb <= 10


def test_everything_is_written_and_says_the_same(tmp_path: Path, table: str) -> None:
    config, out = Search(budget_ms=11, budget_mb=30, table=table), tmp_path / "out"
    found = run_search(config, out, QUIET)
    assert {path.name for path in out.iterdir()} == {"layout.png", "front.png", "search.json", "search.md"}
    kept = json.loads((out / "search.json").read_text())
    assert kept["found"]["layout"] == found.layout
    assert kept["format"] == search.FORMAT
    said = (out / "search.md").read_text()
    assert f"**{found.layout}**: {found.ms:.4g} ms" in said
    assert training_line(config, found.layout) in said
    assert "not measured" in said


def test_worths_decide_order_and_counts(tmp_path: Path, table: str) -> None:
    """L is worth most at positions 1 and 2; within 11.2 ms two of them fit."""
    worths = tmp_path / "placement.json"
    worths.write_text(json.dumps({"worths": {"worths": {"L": [0, 5, 4, 1], "S": [0, 0, 0, 0]}}}))
    found = run_search(Search(budget_ms=11.2, table=table, worths=str(worths)), tmp_path / "out", QUIET)
    assert (found.layout, found.ms) == ("SLLS", 11.0)
    assert "largest sum of worths, 9" in found.why


def test_the_best_ranked_order_that_fits_is_taken(tmp_path: Path, table: str) -> None:
    """LSLS has two low runs and takes 11 ms, LLSS one and 10.5."""
    ranking = [{"layout": "LSLS", "loss": 0.1}, {"layout": "LLSS", "loss": 0.2}, {"layout": "SSLL", "loss": 0.3}]
    (tmp_path / "placement.json").write_text(json.dumps({"worths": None, "ranking": ranking}))
    wide, narrow, none = (
        Search(budget_ms=ms, table=table, worths=str(tmp_path / "placement.json")) for ms in (11, 10.7, 7)
    )
    assert run_search(wide, tmp_path / "wide", QUIET).layout == "LSLS"
    found = run_search(narrow, tmp_path / "narrow", QUIET)
    assert found.layout == "LLSS"
    assert "Of 2 ranked orders within 10.7 ms, LLSS has the least held-out loss" in found.why
    with pytest.raises(ValueError, match=r"none of the 3 ranked orders fits 7 ms; the cheapest, LLSS, takes 10\.5 ms"):
        run_search(none, tmp_path / "none", QUIET)


def test_a_measured_table_is_made_kept_and_checked(tmp_path: Path) -> None:
    config = Search(budget_ms=10_000, budget_mb=10_000, rounds=2)
    found = run_search(config, tmp_path / "out", QUIET)
    table = CostTable.load(tmp_path / "out" / "cost_table.json")
    assert table.source == "measured"
    assert table.predicted(found.layout).ms == pytest.approx(found.ms)
    assert found.checked is not None
    assert found.checked.measured_ms > 0
    assert "measured, prediction" in (tmp_path / "out" / "search.md").read_text()


def test_another_budget_in_the_same_folder_uses_the_table_that_is_there(tmp_path: Path) -> None:
    run_search(Search(budget_ms=10_000, rounds=2), tmp_path / "out", QUIET)
    kept = tmp_path / "out" / "cost_table.json"
    first = kept.read_bytes()
    run_search(Search(budget_mb=10_000, kinds="L", rounds=1), tmp_path / "out", QUIET)
    assert kept.read_bytes() == first
    run_search(Search(budget_ms=10_000, rounds=3), tmp_path / "out", QUIET)
    assert CostTable.load(kept).rounds == 3
    kept.write_bytes(first.replace(b'"versions": "', b'"versions": "older '))
    run_search(Search(budget_ms=10_000, rounds=2), tmp_path / "out", QUIET)
    assert "older" not in CostTable.load(kept).versions


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget_ms": None}, "a search needs a budget"),
        ({"budget_ms": 1.0}, "no network of 4 blocks fits 1 ms; the fastest one is 4 S with 6.5 ms and 13 MB"),
        ({"budget_ms": float("nan")}, "a budget must be positive and finite"),
        ({"budget_ms": -3.0}, "a budget must be positive and finite"),
        ({"preset": "nan"}, "unknown preset 'nan'.* did you mean 'nano'"),
        ({"target": "toaster"}, "unknown target 'toaster'"),
        ({"preset": "micro"}, "the cost table was made for width=96, this network has width=256"),
        ({"kinds": "LX"}, "unknown letters"),
        ({"kinds": "LK"}, "knows the blocks LS"),
        ({"worths": "nowhere.json"}, "there is no file of worths nowhere.json"),
        ({"table": "nowhere.json"}, "there is no cost table nowhere.json"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_sentence(
    tmp_path: Path, table: str, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run_search(Search(**{"budget_ms": 11, "table": table, **changes}), tmp_path / "out", QUIET)  # type: ignore[arg-type]


def test_a_placement_run_without_worths_is_refused(tmp_path: Path, table: str) -> None:
    cases = {
        '{"worths": null}': "has neither worths nor ranked orders",
        "{}": "has neither worths nor ranked orders",
        "no json": r"is no placement\.json",
        "[]": r"is no placement\.json",
        '{"ranking": [{"layout": "LS", "loss": 1}]}': "ranks orders of 2 blocks, the preset nano has 4",
    }
    for text, said in cases.items():
        (tmp_path / "placement.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            run_search(
                Search(budget_ms=11, table=table, worths=str(tmp_path / "placement.json")), tmp_path / "out", QUIET
            )


def test_the_shipped_table_of_the_papers_phone_ratios_can_be_searched(tmp_path: Path) -> None:
    """All-LCHA 900 and all-SSA 258 ms at equal depth: with 531 ms, the sandwich's, 42.5 % of the blocks are LCHA."""
    shipped = Path(search.__file__).parents[1] / "assets" / "cost_tables" / "phone_paper_ratios.json"
    found = run_search(Search(preset="phone", budget_ms=531, table=str(shipped)), tmp_path / "out", QUIET)
    assert found.ms <= 531
    assert found.layout.count("L") / 32 == pytest.approx((531 - 258) / (900 - 258), abs=1 / 32)
    assert replace(Search(budget_ms=1), preset="phone").depth == 32


def test_a_long_front_is_thinned_and_keeps_the_chosen_one(tmp_path: Path) -> None:
    """Five kinds with worths at depth 60: hundreds of choices, of which a reader is shown some."""
    costs = {letter: part(3 + 0.37 * i, 2 + 0.61 * (i * 3 % 5)) for i, letter in enumerate("LSKAC")}
    blocks = tuple(BlockCost(letter=letter, cost=cost) for letter, cost in costs.items())
    table = replace(given_table("phone"), blocks=blocks)
    worths = {letter: 1 + 0.29 * (i * 2 % 5) for i, letter in enumerate("LSKAC")}
    choices = allocate(table, depth=60, budget=Budget(), worths=worths)
    assert len(choices.front) > search.MOST_ROWS
    shown = search._thinned(choices)
    assert len(shown) <= search.MOST_ROWS
    assert choices.chosen in shown
    assert {choices.front[0], choices.front[-1]} <= set(shown)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_line_that_trains_it_gives_clips_that_fit_the_preset(name: str) -> None:
    words = training_line(Search(preset=name, budget_ms=1.0), "L" * PRESETS[name].depth).split()
    given = [words[number + 1] for number, word in enumerate(words) if word == "--set"]
    base = with_overrides(Base(), given)
    shape = student_config(base.geometry, sampling=base.sampling, size=base.preset, layout=base.layout)
    with torch.device("meta"):
        assert Student(shape).latent_shape[0] % PRESETS[name].chunk_frames == 0
