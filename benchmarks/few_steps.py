"""A student with few steps beside a student with many: judges that no objective sees; prints a table.

    python benchmarks/few_steps.py [STUDENT ...] [--steps 4 1] [--against 32] [--reference STUDENT]
        [--held-out 256] [--seed 0]

STUDENTs are students of the embedded world (the shipped base without one), named by their folders. Each answers the
same held-out prompts with every number of steps of ``--steps``, and the reference (the first student unless another is
given) with ``--against`` steps, from the same noise and at its own shift. The last column says how far the farthest
metric that is no error lies from the reference's, and by how much the physics error exceeds the reference's.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch

from streamstill.metrics import Interval
from streamstill.recipes.quickstart import Quickstart, held_out, shipped_base
from streamstill.recipes.stages import students_clips
from streamstill.report.comparison import judged
from streamstill.student.student import Student
from streamstill.types import ClipRequest

ERROR = "physics_error"
SHOWN = (ERROR, "dynamic_degree", "prompt_obedience", "permanence", "sharpness")

Scores = Mapping[str, Interval]


def differences(scores: Scores, reference: Scores) -> tuple[float, float]:
    """The largest relative difference of the metrics that are no errors, and the relative excess of the error."""
    apart = [scores[name].mean / reference[name].mean - 1 for name in SHOWN]
    return max(abs(value) for value in apart[1:]), apart[0]


def main(words: list[str] | None = None) -> None:
    """Ask, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("students", nargs="*", type=Path)
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 1])
    parser.add_argument("--against", type=int, default=32)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--held-out", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    students = {_name(path): Student.from_pretrained(path) for path in asked.students} or {"base": shipped_base()}
    name = _name(asked.reference) if asked.reference else next(iter(students))
    best = Student.from_pretrained(asked.reference) if asked.reference else students[name]
    requests = held_out(Quickstart(held_out_clips=asked.held_out, seed=asked.seed))
    print("| student | steps |" + "".join(f" {metric} |" for metric in SHOWN) + " apart; error |")
    print("|---|---|" + "---|" * (len(SHOWN) + 1))
    reference = _scores(best, asked.against, requests, asked.seed)
    print(_row(name, asked.against, reference, reference), flush=True)
    for name, student in students.items():
        for steps in asked.steps:
            print(_row(name, steps, _scores(student, steps, requests, asked.seed), reference), flush=True)


def _name(path: Path) -> str:
    """The last two folders: students are often called ``student``."""
    return "/".join(path.parts[-2:])


def _scores(student: Student, steps: int, requests: list[ClipRequest], seed: int) -> Scores:
    return judged(students_clips(student.with_steps(steps).eval(), requests, seed=seed), requests)


def _row(name: str, steps: int, scores: Scores, reference: Scores) -> str:
    cells = "".join(f" {scores[m].words} |" for m in SHOWN)
    apart, excess = differences(scores, reference)
    return f"| {name} | {steps} |{cells} {apart:.1%}; {excess:+.0%} |"


if __name__ == "__main__":
    main()
