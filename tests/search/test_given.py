"""Tables from elsewhere: times with known answers, which files ``coreml-table`` takes, what it says of the others."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from streamstill.search.cost_table import CostTable
from streamstill.search.counted import counted_table
from streamstill.search.given import COREML, coreml_table, table_from_times, table_wanted
from streamstill.search.measure import measure_table
from streamstill.search.probes import probe_layouts, switches
from streamstill.search.targets import MEASURED_HERE, TARGETS
from streamstill.student.costs import Workload
from streamstill.student.layout import parse_layout
from streamstill.student.presets import PRESETS, preset
from tests.search import tables

NETWORK, WORKLOAD = tables.NETWORK, tables.WORKLOAD


def from_a_phone(**changes: object) -> CostTable:
    """L takes 3 ms and S 1 ms; numbers of 2 bytes."""
    made = tables.table({"L": (3, 2, 1), "S": (1, 3, 1)}, switch=(0.5, 0, 1), ends=(2, 1, 1))
    chunk = replace(WORKLOAD, value_bytes=2)
    return replace(made, **{"target": COREML, "dtype": "float16", "workload": chunk, **changes})  # type: ignore[arg-type]


def checked(path: Path, *, kinds: str = "LS", chunk: Workload | None = WORKLOAD) -> CostTable:
    return coreml_table(path, network=NETWORK, kinds=kinds, chunk=chunk)


@pytest.mark.parametrize("source", ["given", "measured"])
def test_a_table_of_this_network_is_taken_as_it_is(tmp_path: Path, source: str) -> None:
    """Its numbers may have another size than this machine's."""
    made = from_a_phone(source=source)
    made.save(tmp_path / "t.json")
    assert checked(tmp_path / "t.json") == made
    assert coreml_table(tmp_path / "t.json", network=replace(NETWORK, layout="SS"), kinds="S", chunk=None) == made


def test_without_a_chunk_any_chunk_will_do(tmp_path: Path) -> None:
    made = from_a_phone(workload=replace(WORKLOAD, height=4, value_bytes=2))
    made.save(tmp_path / "t.json")
    assert checked(tmp_path / "t.json", chunk=None) == made
    with pytest.raises(ValueError, match="was made for height=4, this network has height=8"):
        checked(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("changes", "kinds", "said"),
    [
        ({"target": "cpu"}, "LS", r"t\.json was given for the target cpu; the target coreml-table takes a table whose"),
        ({"target": "coreml-table"}, "LS", "takes a table whose target is coreml"),
        ({"source": "counted"}, "LS", "was counted for the target coreml; .* that was measured or given"),
        ({"network": replace(NETWORK, width=96)}, "LS", "was made for width=96, this network has width=64"),
        ({"workload": replace(WORKLOAD, text_tokens=9)}, "LS", "was made for text_tokens=9, this network has text_tok"),
        ({}, "LSF", "knows the blocks LS, not F"),
        ({}, "LX", "unknown letters"),
    ],
)
def test_a_table_of_something_else_is_refused(
    tmp_path: Path, changes: dict[str, object], kinds: str, said: str
) -> None:
    from_a_phone(**changes).save(tmp_path / "t.json")
    with pytest.raises(ValueError, match=said):
        checked(tmp_path / "t.json", kinds=kinds)


def test_a_file_that_is_no_table_of_this_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(ValueError, match="there is no cost table"):
        checked(path)
    from_a_phone().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))
    with pytest.raises(ValueError, match="has format 0, this version reads cost tables of format 1"):
        checked(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        checked(path)


def test_the_example_that_the_sentence_names_is_there_and_is_taken() -> None:
    with pytest.raises(ValueError, match=re.escape(table_wanted())):
        coreml_table(None, network=preset("phone"), kinds="LS", chunk=None)
    example = Path(table_wanted().rpartition("--table ")[2])
    size = PRESETS["phone"]
    chunk = Workload(height=size.latent_height, width=size.latent_width, frames=3, text_tokens=size.text_tokens)
    table = coreml_table(example, network=preset("phone"), kinds="LSK", chunk=chunk)
    assert (table.source, table.letters) == ("given", "LSK")
    assert table.predicted("L" * 32).ms == pytest.approx(900)  # S2DiT Table 3


def test_core_ml_is_a_target_that_is_not_measured_here() -> None:
    assert set(TARGETS) - set(MEASURED_HERE) == {"coreml-table"}
    with pytest.raises(ValueError, match=re.escape(table_wanted())):
        measure_table(NETWORK, WORKLOAD, kinds="L", target="coreml-table", device_name="this machine")


COSTS = {"L": 2.0, "S": 1.0, "switch": 0.5, "ends": 1.5}


def times(kinds: str = "LS", depth: int = 3) -> dict[str, float]:
    """What networks take if their parts' costs add up."""
    layouts = probe_layouts(parse_layout(kinds), depth)
    blocks = {layout: sum(COSTS[letter] for letter in layout) for layout in layouts}
    return {layout: ms + COSTS["ends"] + COSTS["switch"] * switches(layout) for layout, ms in blocks.items()}


def made_from(times_ms: dict[str, float], kinds: str = "LS") -> CostTable:
    how = {"device_name": "a phone", "dtype": "float16", "note": "by hand"}
    return table_from_times(times_ms, network=NETWORK, chunk=replace(WORKLOAD, value_bytes=2), kinds=kinds, **how)


def test_times_of_whole_networks_become_the_costs_that_made_them(tmp_path: Path) -> None:
    made = made_from(times())
    assert {block.letter: pytest.approx(block.cost.ms) for block in made.blocks} == {"L": 2, "S": 1}
    assert (made.down.ms, made.up.ms, made.ends.ms) == pytest.approx((0.25, 0.25, 1.5))
    assert made.predicted("LSLSS").ms == pytest.approx(2 * 2 + 3 * 1 + 2 * 0.5 + 1.5)
    counted = counted_table(NETWORK, made.workload, kinds="LS", flops_per_second=1, bytes_per_second=1)
    assert made.predicted("LSLSS").mb == counted.predicted("LSLSS").mb
    assert (made.source, made.target, made.device, made.dtype) == ("given", COREML, "a phone", "float16")
    assert made.note == "by hand; fit off by at most 0.0 % on its 6 layouts, bytes counted"
    made.save(tmp_path / "t.json")
    assert checked(tmp_path / "t.json") == made


@pytest.mark.parametrize("wrong", [None, 0.0, -1.0, float("nan"), float("inf")])
def test_a_layout_without_a_time_is_named(wrong: float | None) -> None:
    some = {layout: ms for layout, ms in times().items() if layout != "SSSS"}
    with pytest.raises(ValueError, match="of the layouts LL, LLLL, SS, SSSS, LSLS, LSSL; SSSS has none: measure it"):
        made_from(some if wrong is None else some | {"SSSS": wrong})
