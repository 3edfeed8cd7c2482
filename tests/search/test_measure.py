"""Measured tables: the fit on times with known answers, probes that are real networks, and every target."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamstill.codec.patch import PatchCodec
from streamstill.search.cost_table import CostTable
from streamstill.search.counted import counted_table
from streamstill.search.measure import Checked, Repeats, checked_table, measure_table, validate
from streamstill.search.probes import ProbePool, fit, probe_layouts, switches
from streamstill.search.targets import TARGETS, onnx_pass, target_of
from streamstill.state import KVCache, tensors_of
from streamstill.streaming.timing import torch_threads
from streamstill.student.costs import Workload
from streamstill.student.layout import parse_layout
from streamstill.student.presets import preset
from streamstill.student.sandwich import SandwichConfig, SandwichDiT

SMALL = replace(preset("nano"), width=64, latent_channels=4, layout="LSSL")
WORK = Workload(height=4, width=4, frames=2, text_tokens=3)
QUICK = Repeats(rounds=3, warmup=1)
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason='no ONNX Runtime: pip install "streamstill[onnx]"',
)


def measured(kinds: str = "LS", *, target: str = "cpu", config: SandwichConfig = SMALL, **given: Any) -> CostTable:
    given = {"device_name": "this machine", "repeats": QUICK, **given}
    return measure_table(config, given.pop("workload", WORK), kinds=kinds, target=target, **given)


@pytest.mark.parametrize(("kinds", "depth"), [("L", 4), ("LS", 4), ("LFS", 5), ("LKSF", 8), ("LS", 32), ("LS", 1)])
def test_probes_tell_all_parts_apart(kinds: str, depth: int) -> None:
    wanted = parse_layout(kinds)
    layouts = probe_layouts(wanted, depth)
    counts = [[1, switches(layout), *(layout.count(kind) for kind in kinds)] for layout in layouts]
    unknown = 2 + len(kinds) if any(kind.low for kind in wanted) else 1 + len(kinds)
    assert np.linalg.matrix_rank(np.array(counts)) == unknown
    assert max(map(len, layouts)) <= 8


@pytest.mark.parametrize(("layout", "expected"), [("LL", 0), ("S", 1), ("LSSL", 1), ("SLS", 2), ("LSLSL", 2)])
def test_switches_are_the_runs_at_low_resolution(layout: str, expected: int) -> None:
    assert switches(layout) == expected


@given(
    costs=st.lists(st.floats(0.05, 50), min_size=5, max_size=5),
    noise=st.floats(0, 0.001),
)
def test_the_fit_finds_the_costs_that_made_the_times(costs: list[float], noise: float) -> None:
    kinds = parse_layout("LSF")
    layouts = probe_layouts(kinds, 8)
    ends, switch, *blocks = costs
    exact = [
        ends
        + switch * switches(layout)
        + sum(ms * layout.count(kind.letter) for kind, ms in zip(kinds, blocks, strict=True))
        for layout in layouts
    ]
    random = np.random.default_rng(0)
    taken = np.array(exact)[:, None] * (1 + noise * random.standard_normal((len(layouts), 21)))
    found = fit(layouts, kinds, taken)
    counts = np.array([[1, switches(text), *(text.count(kind.letter) for kind in kinds)] for text in layouts])
    assert counts @ found.ms == pytest.approx(np.array(exact), rel=1e-6 + 5 * noise)
    assert (found.low <= found.ms).all()
    assert (found.ms <= found.high).all()
    if not noise:
        assert found.ms == pytest.approx(np.array(costs), rel=1e-6, abs=1e-6)
        assert found.worst < 1e-6


def test_no_part_costs_less_than_nothing() -> None:
    kinds = parse_layout("LS")
    layouts = probe_layouts(kinds, 4)
    exact = np.array([5 * text.count("L") + text.count("S") - 0.3 * switches(text) + 0.1 for text in layouts])
    found = fit(layouts, kinds, exact[:, None])
    assert found.ms.min() == 0
    assert found.low.min() >= 0
    assert found.ms[2] == pytest.approx(5, rel=0.05)


def test_a_round_that_was_disturbed_does_not_move_the_costs() -> None:
    kinds = parse_layout("LS")
    layouts = probe_layouts(kinds, 4)
    exact = np.array([5 * text.count("L") + text.count("S") + 0.5 * switches(text) + 2 for text in layouts])
    taken = np.repeat(exact[:, None], 9, axis=1)
    taken[:, 4] *= 10
    assert fit(layouts, kinds, taken).ms == pytest.approx([2, 0.5, 5, 1])


@pytest.mark.parametrize("layout", ["LSSL", "SLS", "LLLL", "FSKS"])
def test_a_probe_computes_what_a_network_of_its_layout_computes(layout: str) -> None:
    pool = ProbePool(SMALL, WORK, (layout, "LLSSLL", "SSSS"), device=torch.device("cpu"), dtype=torch.float32)
    probe, inputs = pool.network(layout)
    alone = SandwichDiT(replace(SMALL, layout=layout)).eval()
    alone.load_state_dict(probe.state_dict())
    with torch.inference_mode():
        assert torch.equal(probe.velocity(*inputs), alone.velocity(*inputs))
    assert len({id(block) for block in probe.blocks}) == len(layout)
    assert len({tensor.data_ptr() for tensor in tensors_of(inputs[3])}) == len(list(tensors_of(inputs[3])))


def test_the_windows_of_a_probe_are_full() -> None:
    _, (*_, state) = ProbePool(SMALL, WORK, ("FSK",), device=torch.device("cpu"), dtype=torch.float32).network("FSK")
    for block in state.blocks:
        assert isinstance(block, KVCache)
        assert block.seen_B.tolist() == [block.key_BWSNE.shape[1]]


def test_a_measured_table_says_how_it_was_made_and_comes_back_from_its_file(tmp_path: Path) -> None:
    table = measured("SL")
    assert (table.source, table.target, table.device, table.dtype) == ("measured", "cpu", "this machine", "float32")
    assert table.letters == "SL"
    assert torch.__version__ in table.versions
    assert "3 rounds" in table.note
    assert all(block.cost.ms_low <= block.cost.ms <= block.cost.ms_high for block in table.blocks)
    assert table.predicted("LSSL").ms > 0
    table.save(tmp_path / "t.json")
    assert CostTable.load(tmp_path / "t.json") == table
    counted = counted_table(SMALL, WORK, kinds="SL", flops_per_second=1, bytes_per_second=1)
    assert table.predicted("LSL").mb == counted.predicted("LSL").mb


def test_low_kinds_alone_bring_a_full_one_along() -> None:
    assert measured("S").letters == "LS"


def test_full_kinds_alone_have_no_switch() -> None:
    table = measured("LF")
    assert (table.letters, table.down.ms, table.up.ms) == ("LF", 0, 0)


def test_decoding_is_measured_if_there_is_a_codec() -> None:
    codec = PatchCodec()
    table = measured(config=replace(SMALL, latent_channels=codec.latent_channels), codec=codec)
    assert table.decode is not None
    assert table.decode.ms > 0
    assert table.decode.activation_bytes == 4 * codec.frames * codec.size * codec.size * 3 * 2 * 4 * 4
    assert measured().decode is None


def test_half_precision_needs_its_own_workload() -> None:
    with pytest.raises(ValueError, match="value_bytes=2"):
        measured(dtype=torch.bfloat16)
    table = measured(dtype=torch.bfloat16, workload=replace(WORK, value_bytes=2))
    assert table.dtype == "bfloat16"
    (checked,) = validate(table, ["LS"], repeats=QUICK)
    assert checked.measured_ms > 0


def test_a_table_is_checked_on_as_many_threads_as_it_was_measured_with(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    real = SandwichDiT.velocity

    def spy(self: SandwichDiT, *given: Any, **named: Any) -> Any:
        used.append(torch.get_num_threads())
        return real(self, *given, **named)

    with torch_threads(2):
        table = measured()
    assert table.threads == 2
    monkeypatch.setattr(SandwichDiT, "velocity", spy)
    with torch_threads(1):
        validate(table, ["LS"], repeats=QUICK)
        assert torch.get_num_threads() == 1
    assert set(used) == {2}


def test_the_random_numbers_of_the_caller_are_not_touched() -> None:
    torch.manual_seed(3)
    expected = torch.randn(3)
    torch.manual_seed(3)
    measured()
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize("target", ["coreml", "cuda:7", ""])
def test_an_unknown_target_is_answered_with_those_there_are(target: str) -> None:
    with pytest.raises(ValueError, match=f"unknown target '{target}': choose one of {', '.join(TARGETS)}"):
        measured(target=target)


def test_cuda_without_a_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no GPU; use the target cpu"):
        measured(target="cuda")


def test_onnx_that_is_not_installed_comes_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'onnx is not installed; run: pip install "streamstill\[onnx\]"'):
        target_of("onnx", dtype=torch.float32)


def test_onnx_is_fed_with_float32_only() -> None:
    with pytest.raises(ValueError, match="measures float32, got bfloat16"):
        target_of("onnx", dtype=torch.bfloat16)


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (1, 0)])
def test_repeats_must_be_at_least_one(rounds: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Repeats(rounds=rounds, warmup=warmup)


def test_a_chunk_that_the_network_would_refuse_is_refused() -> None:
    with pytest.raises(ValueError, match="divisible by 2"):
        measured(workload=replace(WORK, height=5))
    with pytest.raises(ValueError, match="unknown letters"):
        measured("LX")


def test_only_what_was_measured_is_checked() -> None:
    counted = counted_table(SMALL, WORK, kinds="L", flops_per_second=1, bytes_per_second=1)
    with pytest.raises(ValueError, match="this one was counted"):
        validate(counted, ["L"])


def test_the_error_is_a_share_of_what_was_measured() -> None:
    assert Checked(layout="L", predicted_ms=11, measured_ms=10).error == pytest.approx(0.1)
    assert Checked(layout="L", predicted_ms=9, measured_ms=10).error == pytest.approx(-0.1)


HELD_OUT = ("LSSL", "LLSL", "LSSS", "SSLL", "SLLS", "LLLS", "SSSL")


@pytest.mark.slow
def test_predictions_are_near_what_networks_take() -> None:
    """In the same rounds, so a machine that is busy slows down both; the bound is loose all the same.

    benchmarks/search_accuracy.py measures it on a quiet machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    work = Workload(height=16, width=16, frames=2, text_tokens=24)
    asked = {"kinds": "LS", "target": "cpu", "device_name": "this machine", "repeats": Repeats(rounds=20)}
    _, checked = checked_table(preset("nano"), work, **asked, layouts=HELD_OUT)  # type: ignore[arg-type]
    torch.set_num_threads(threads)
    assert [layout.layout for layout in checked] == list(HELD_OUT)
    assert max(abs(layout.error) for layout in checked) < 0.5, checked


@needs_onnx
@pytest.mark.slow
def test_the_onnx_program_computes_the_same_velocity() -> None:
    pool = ProbePool(SMALL, WORK, ("LSK",), device=torch.device("cpu"), dtype=torch.float32)
    network, inputs = pool.network("LSK")
    (found,) = np.asarray(onnx_pass(network, inputs)())
    with torch.inference_mode():
        expected = network.velocity(*inputs).numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@needs_onnx
@pytest.mark.slow
def test_a_table_of_onnx_runtime_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    table = measured("L", target="onnx")
    assert (table.target, table.letters) == ("onnx", "L")
    assert "onnxruntime" in table.versions
    assert table.predicted("LL").ms > 0
