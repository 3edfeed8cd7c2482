"""Few steps beside many: the same weights, the same noise, and differences that are computed as they are named."""

from pathlib import Path

import pytest

from streamstill.metrics import Interval
from streamstill.recipes.quickstart import shipped_base
from streamstill.streaming.timing import torch_threads
from tests.test_benchmarks import loaded, tables

few_steps = loaded("few_steps")


def scores(**means: float) -> dict[str, Interval]:
    return {name: Interval(mean=mean, low=mean, high=mean, n=1) for name, mean in means.items()}


def test_the_farthest_metric_and_the_excess_of_the_error() -> None:
    reference = scores(physics_error=0.4, dynamic_degree=0.7, prompt_obedience=1.0, permanence=0.9, sharpness=10.0)
    here = scores(physics_error=0.3, dynamic_degree=0.63, prompt_obedience=1.0, permanence=0.9, sharpness=10.5)
    apart, excess = few_steps.differences(here, reference)
    assert apart == pytest.approx(0.1)
    assert excess == pytest.approx(-0.25)
    assert few_steps.differences(reference, reference) == (0, 0)


@pytest.mark.slow
def test_a_student_is_asked_with_each_number_of_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped_base().save_pretrained(tmp_path / "run" / "student")
    with torch_threads(None):
        few_steps.main([str(tmp_path / "run" / "student"), "--steps", "1", "--against", "2", "--held-out", "4"])
    printed = capsys.readouterr().out
    assert [line.split("|")[1:3] for line in printed.splitlines()[2:]] == [
        [" run/student ", " 2 "],
        [" run/student ", " 1 "],
    ]
    (rows,) = tables(printed)
    assert set(rows) == {"run/student"}
    assert "0.0%; +0%" in printed.splitlines()[2]
    assert "0.0%; +0%" not in printed.splitlines()[3]
