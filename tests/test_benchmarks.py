"""The scripts in ``benchmarks``, at a size at which only their arithmetic can be checked."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
TINY = (
    "--width 64 --head-dim 32 --depth 4 --latent-height 4 --latent-width 8 --text-tokens 3 --text-width 16 --rounds 2"
)


def script(name: str) -> Callable[[list[str]], None]:
    """The ``main`` of a script in ``benchmarks``."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[list[str]], None] = module.main
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


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
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
