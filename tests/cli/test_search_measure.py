"""``streamstill search measure``: a table on screen and in a file, the next command, and refusals in one sentence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamstill.search.cost_table import CostTable
from streamstill.student.presets import preset
from tests.cli.conftest import Run
from tests.cli.test_cli import next_command
from tests.recipes.test_search import given_table
from tests.recipes.tiny import files

SMALL = ("search", "measure", "--height", 4, "--width", 4, "--rounds", 2)


def test_a_preset_is_measured_and_the_next_command_searches(run: Run) -> None:
    told = run(*SMALL, "--out", "tables/nano.json")
    assert told.status == 0
    assert files(Path.cwd()) == {"tables/nano.json"}
    table = CostTable.load(Path("tables/nano.json"))
    assert (table.source, table.target, table.letters, table.dtype) == ("measured", "cpu", "LS", "float32")
    assert table.network == preset("nano")
    assert (table.workload.height, table.workload.width, table.workload.frames) == (4, 4, 2)
    assert table.decode is not None
    for word in ("weights MB", "state MB", "activations MB", "down", "up", "ends", "decode", table.note):
        assert word in told.out
    assert "cost table -> tables/nano.json" in told.out
    budget = f"{table.predicted('LSSL').ms:.3g}"
    expected = f"streamstill search run --table tables/nano.json --preset nano --budget-ms {budget}"
    assert next_command(told.out) == expected


def test_kinds_threads_and_dtype_are_as_asked_and_afterwards_as_before(run: Run) -> None:
    before = torch.get_num_threads()
    told = run(*SMALL, "--kinds", "FK", "--dtype", "bfloat16", "--threads", 2, "--out", "t.json")
    assert told.status == 0
    table = CostTable.load(Path("t.json"))
    assert (table.letters, table.dtype, table.workload.value_bytes) == ("FK", "bfloat16", 2)
    assert "2 threads" in table.note
    assert torch.get_num_threads() == before


def test_the_file_says_which_format_it_has(run: Run) -> None:
    run(*SMALL, "--out", "t.json")
    values = json.loads(Path("t.json").read_text(encoding="utf-8"))
    assert values["format"] == 1
    assert values["table"]["versions"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--preset", "nanoo"), "did you mean 'nano'"),
        (("--target", "toaster"), "choose one of cpu, cuda, onnx, executorch, coreml-table"),
        (("--target", "coreml-table"), "Core ML cannot be timed here"),
        (("--target", "executorch", "--dtype", "float16"), "executorch measures float32, got float16"),
        (("--table", "t.json"), "--table goes with --target coreml-table, got cpu"),
        (("--target", "coreml-table", "--table", "t.json"), "there is no cost table t.json"),
        (("--dtype", "int8"), "choose one of float32"),
        (("--kinds", "LZ"), "unknown letters ['Z']"),
        (("--height", 5), "divisible by 2"),
        (("--width", 0), "at least 1"),
        (("--rounds", 0), "rounds and warmup must be at least 1"),
        (("--threads", 0), "--threads must be at least 1"),
        (("--out", "table.txt"), "json file"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(run: Run, words: tuple[object, ...], sentence: str) -> None:
    told = run(*SMALL, *words)
    told.says(sentence)
    assert files(Path.cwd()) == set()


def test_a_table_from_a_phone_is_checked_printed_and_written(run: Run, tmp_path: Path) -> None:
    made = replace(given_table(), target="coreml", device="a phone")
    made.save(tmp_path / "phone.json")
    asked = ("search", "measure", "--target", "coreml-table", "--table", "phone.json")
    told = run(*asked, "--out", "tables/nano.json")
    assert told.status == 0
    assert CostTable.load(Path("tables/nano.json")) == made
    for word in ("nothing is measured here", "a phone, coreml", "weights MB", made.note):
        assert word in told.out
    assert next_command(told.out) == "streamstill search run --table tables/nano.json --preset nano --budget-ms 10.5"
    run(*asked, "--preset", "micro", "--out", "no.json").says("was made for width=96, this network has width=256")
    run(*asked, "--height", 4, "--out", "no.json").says("was made for height=16, this network has height=4")
    run(*asked, "--kinds", "LK", "--out", "no.json").says("knows the blocks LS, not K")
    assert files(Path.cwd()) == {"phone.json", "tables/nano.json"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_search_on_a_gpu_that_is_not_there_is_refused_before_anything_is_measured(run: Run) -> None:
    ended = run("search", "run", "--budget-ms", 50, "--target", "cuda", "--out", "found")
    assert (ended.status, "Traceback" in ended.err, Path("found").exists()) == (1, False, False)
    run("search", "run", "--budget-ms", -1, "--out", "found").says("budget")
    assert not Path("found").exists()


def test_cuda_without_a_gpu_is_refused(run: Run) -> None:
    run(*SMALL, "--target", "cuda").says("torch sees no GPU")


def test_help_has_an_example(run: Run) -> None:
    told = run("search", "measure", "--help")
    assert told.status == 0
    assert "Example: streamstill search measure" in told.out
