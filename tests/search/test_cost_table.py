"""Cost tables: what is read back, what is refused, and how costs of parts become those of a network."""

import json
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamstill.search.cost_table import BlockCost, CostTable, PartCost
from streamstill.search.counted import counted_table
from streamstill.student.costs import Workload, network_cost
from streamstill.student.layout import BlockKind
from streamstill.student.presets import PRESETS, preset
from tests.search.tables import NETWORK, WORKLOAD, part, table

TABLE = table({"L": (3.0, 5.0, 2.0), "S": (1.0, 4.0, 7.0)}, switch=(0.5, 1.0, 6.0), ends=(2.0, 3.0, 1.0))


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    decoding = replace(TABLE, decode=part(9.0, 1.0, 2.0))
    for written in (TABLE, decoding):
        written.save(tmp_path / "table.json")
        assert CostTable.load(tmp_path / "table.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def changed(path: Path, change: Any) -> Path:
    TABLE.save(path)
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path / "t.json", lambda values: values.update(format=99))
    with pytest.raises(ValueError, match=r"has format 99, this version reads cost tables of format 1"):
        CostTable.load(path)


@pytest.mark.parametrize("text", ["", "{", '{"format": 1', "\x00"])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="damaged"):
        CostTable.load(path)


@pytest.mark.parametrize("text", ["[]", "3", '{"format": 1, "table": 4}', "{}"])
def test_what_is_no_cost_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="format"):
        CostTable.load(path)


def test_a_missing_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="search measure"):
        CostTable.load(tmp_path / "nothing.json")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -0.1])
def test_a_cost_that_is_none_is_refused_also_in_a_file(tmp_path: Path, wrong: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        part(wrong)
    path = changed(tmp_path / "t.json", lambda values: values["table"]["ends"].update(ms=wrong))
    with pytest.raises(ValueError, match="finite"):
        CostTable.load(path)


def test_a_missing_or_unknown_field_in_a_file_is_named(tmp_path: Path) -> None:
    path = changed(tmp_path / "t.json", lambda values: values["table"].pop("down"))
    with pytest.raises(ValueError, match="down"):
        CostTable.load(path)
    path = changed(tmp_path / "t.json", lambda values: values["table"].update(sideways=1))
    with pytest.raises(ValueError, match="sideways"):
        CostTable.load(path)


def test_each_kind_has_one_cost() -> None:
    with pytest.raises(ValueError, match="once"):
        replace(TABLE, blocks=(*TABLE.blocks, TABLE.blocks[0]))
    with pytest.raises(ValueError, match="once"):
        replace(TABLE, blocks=())
    with pytest.raises(ValueError, match="one letter"):
        BlockCost(letter="LS", cost=part(1.0))


def test_another_geometry_is_refused_and_another_layout_is_not() -> None:
    TABLE.require_shape(replace(NETWORK, layout="SSSS"), WORKLOAD)
    with pytest.raises(ValueError, match="width=64, this network has width=128"):
        TABLE.require_shape(replace(NETWORK, width=128), WORKLOAD)
    with pytest.raises(ValueError, match="height=8, this network has height=16"):
        TABLE.require_shape(NETWORK, replace(WORKLOAD, height=16))
    with pytest.raises(ValueError, match="value_bytes=4"):
        TABLE.require_shape(NETWORK, replace(WORKLOAD, value_bytes=2))


def test_a_kind_that_was_not_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="knows the blocks LS, not F"):
        TABLE.block(BlockKind.FULL)
    with pytest.raises(ValueError, match="not F"):
        TABLE.predicted("LFL")


@pytest.mark.parametrize(
    ("layout", "switches"), [("LLL", 0), ("LSL", 1), ("LSSSL", 1), ("S", 1), ("SLS", 2), ("LSLSLS", 3), ("L S", 1)]
)
def test_the_time_is_the_sum_and_each_low_run_switches_once(layout: str, switches: int) -> None:
    expected = 2.0 + 3.0 * layout.count("L") + 1.0 * layout.count("S") + (0.5 + 0.25) * switches
    assert TABLE.predicted(layout).ms == expected


def test_memory_is_all_that_is_held_and_the_largest_of_what_passes() -> None:
    assert TABLE.predicted("LL").mb == pytest.approx(3 + 2 * 5 + 2)
    assert TABLE.predicted("LSSL").mb == pytest.approx(3 + 2 * 5 + 2 * 4 + (1.0 + 0.5) + 7)
    heavy_switch = replace(TABLE, up=part(0.0, 0.0, 50.0))
    assert heavy_switch.predicted("LSL").mb == pytest.approx(3 + 2 * 5 + 4 + 1 + 50)
    assert heavy_switch.predicted("LL").mb == TABLE.predicted("LL").mb


@given(layout=st.text("LS", min_size=1, max_size=20), more=st.sampled_from("LS"))
def test_one_more_block_never_takes_less_time_than_its_own(layout: str, more: str) -> None:
    before, after = TABLE.predicted(layout), TABLE.predicted(layout + more)
    assert after.ms >= before.ms + TABLE.block(BlockKind.LCHA if more == "L" else BlockKind.SSA).ms
    assert after.mb > before.mb


def test_held_and_passing_are_megabytes_of_a_million_bytes() -> None:
    cost = PartCost(ms=1, ms_low=1, ms_high=1, weight_bytes=2_000_000, state_bytes=500_000, activation_bytes=3_000_000)
    assert (cost.held_mb, cost.passing_mb) == (2.5, 3.0)


def test_the_shipped_example_has_the_paper_s_ratios_and_our_counted_bytes() -> None:
    with as_file(files("streamstill.assets") / "cost_tables" / "phone_paper_ratios.json") as path:
        shipped = CostTable.load(path)
    size = PRESETS["phone"]
    work = Workload(
        height=size.latent_height,
        width=size.latent_width,
        frames=size.chunk_frames,
        text_tokens=size.text_tokens,
        value_bytes=2,
    )
    shipped.require_shape(preset("phone"), work)
    assert shipped.source == "given"
    assert "not a measurement" in shipped.note
    for letter, ms in {"L": 900, "S": 258, "K": 1348}.items():  # S2DiT Table 3
        assert shipped.predicted(letter * 32).ms == pytest.approx(ms)
    assert set(shipped.letters) == set("LSK")  # of other kinds the paper has no network
    counted = counted_table(preset("phone"), work, kinds="LSK", flops_per_second=1e12, bytes_per_second=1e11)
    layout = preset("phone").layout
    assert shipped.predicted(layout).mb == counted.predicted(layout).mb
    held = network_cost(preset("phone"), work)
    assert shipped.predicted(layout).mb > (2 * held.parameters + held.state_bytes) / 1e6
