"""The scripts in ``benchmarks``, at a size at which only their arithmetic can be checked."""

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
TINY = (
    "--width 64 --head-dim 32 --depth 4 --latent-height 4 --latent-width 8 --text-tokens 3 --text-width 16 --rounds 2"
)


def loaded(name: str) -> ModuleType:
    """A script in ``benchmarks``, as a module; it may import others from there, as it does when it is run."""
    if str(ROOT / "benchmarks") not in sys.path:
        sys.path.append(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(name: str) -> Callable[[list[str]], None]:
    """The ``main`` of a script in ``benchmarks``."""
    main: Callable[[list[str]], None] = loaded(name).main
    return main


def tables(printed: str) -> list[dict[str, list[str]]]:
    """The Markdown tables, each as its rows by the first cell."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", printed, re.MULTILINE):
        cells = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in table.splitlines()]
        found.append({row[0]: row[1:] for row in cells[2:]})
    return found


def test_the_comparison_with_wan_is_consistent(capsys: pytest.CaptureFixture[str]) -> None:
    script("student_vs_wan")([*TINY.split(), "--all"])
    steps, ratios = tables(capsys.readouterr().out)
    assert {name[0] for name in steps} >= set("shLSFKACRUH")
    for velocity, span, remember, fps, tflop, rate, parameters, state in steps.values():
        low, high = (float(part) for part in span.split(" .. "))
        assert 0 < low <= float(velocity) <= high
        assert float(fps) == pytest.approx(12_000 / (4 * float(velocity) + float(remember)), rel=1e-2)
        assert float(rate) == pytest.approx(1000 * float(tflop) / float(velocity), rel=1e-2)
        assert int(parameters.replace(",", "")) > 10_000
        assert float(state) > 0
    assert ratios.keys() == steps.keys() - {"sandwich"}
    for name, (ratio, span, target) in ratios.items():
        low, high = (float(part) for part in span.split(" .. "))
        assert float(ratio) == pytest.approx(float(steps["sandwich"][0]) / float(steps[name][0]), rel=2e-2)
        assert 0 < low <= high
        if target != "-":
            at_most = float(target.split(",")[0].removeprefix("<= "))
            assert ("met" in target) == (float(ratio) <= at_most) or float(ratio) == pytest.approx(at_most, abs=2e-3)


def test_wan_and_our_full_attention_are_of_equal_size(capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed")
    script("student_vs_wan")(TINY.split())
    steps, _ = tables(capsys.readouterr().out)
    ours, wan = steps["F, full attention"], steps["Wan (diffusers)"]
    *_, our_flops, _, _, our_state = map(_number, ours)
    *_, its_flops, _, _, its_state = map(_number, wan)
    assert its_flops == pytest.approx(our_flops, rel=0.2)
    assert its_state == pytest.approx(our_state, rel=0.01)


@pytest.mark.slow
def test_the_memory_of_adapters_is_compared_row_by_row(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft", reason='install the lora extra: pip install "streamstill[lora]"')
    tiny = "--width 64 --head-dim 32 --depth 2 --latent-height 4 --latent-width 4 --rank 4 --rollouts 2 --rounds 2"
    script("afd_memory")(tiny.split())
    memory, ((taken, (parts, ratio, span, target)),) = (table.items() for table in tables(capsys.readouterr().out))
    rows = dict(memory)
    sft, afd, judged = (list(map(_number, rows[name][:4])) for name in rows)
    assert sft[2:] == [1, 1]
    for peak, own, to_sft, own_to_sft in (afd, judged):
        assert 0 < own < peak
        assert to_sft == pytest.approx(peak / sft[0], abs=2e-3)
        assert own_to_sft == pytest.approx(own / sft[1], abs=0.1 / sft[1] * 2 + 1e-3)
    low, high = (float(part) for part in span.split(" .. "))
    assert 0 < low <= high
    assert float(ratio) == pytest.approx(float(taken) / float(parts), rel=1e-2)
    assert ("met" in target) == (float(ratio) <= 1.1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize(("requests", "kills", "without_keys"), [(60, 3, False), (30, 1, True)])
def test_a_collection_that_is_killed_again_and_again_pays_once(
    capsys: pytest.CaptureFixture[str], requests: int, kills: int, without_keys: bool
) -> None:
    pytest.importorskip("tenacity", reason='install the api extra: pip install "streamstill[api]"')
    words = ["--requests", str(requests), "--kills", str(kills), "--concurrency", "8", "--rate", "2400"]
    script("collect_stress")([*words, "--without-keys"] if without_keys else words)
    counts, verdicts = tables(capsys.readouterr().out)
    assert {is_so for (is_so,) in verdicts.values()} == {"met"}
    count = {name: int(float(value)) for name, (value,) in counts.items()}
    assert count["kills"] == kills
    assert count["clips in the cache"] + count["refused, kept with a reason"] + count["unsure"] == requests
    assert count["clips in the cache"] <= count["server: paid"] <= count["submissions in the journal"]
    assert without_keys or count["unsure"] == 0


@pytest.mark.slow
def test_the_speed_of_the_cache_is_measured_where_it_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    script("clip_store")(["--clips", "64", "--rows", "6000", "--seconds", "0.5"])
    (speeds,) = tables(capsys.readouterr().out)
    assert len(speeds) == 14
    assert all(float(measured) > 0 for measured, _ in speeds.values())


@pytest.mark.slow
def test_the_speed_of_a_cache_in_a_bucket_is_measured_too(
    bucket: str, service: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script("clip_store")(["--clips", "32", "--rows", "0", "--seconds", "0.5", "--store", bucket, "--endpoint", service])
    (speeds,) = tables(capsys.readouterr().out)
    assert len(speeds) == 11
    assert all(float(measured) > 0 for measured, _ in speeds.values())
    assert {"copied to a folder, clips/s", "random read of that copy, clips/s"} < speeds.keys()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_every_script_can_be_loaded_and_says_how_it_is_run(path: Path) -> None:
    assert script(path.stem).__doc__
    assert f"python benchmarks/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script("student_vs_wan")([*TINY.split(), "--device", "cuda"])
    assert "--device cuda was asked for and torch sees no GPU; use --device cpu" in capsys.readouterr().err


def _number(cell: str) -> float:
    return float(cell.replace(",", "").split(" ")[0])
