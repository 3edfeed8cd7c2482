"""What becomes of a video far beyond the training length: judges in windows along long rollouts; prints a table.

    python benchmarks/drift.py [NAME=STUDENT ...] [--times 20] [--clips 64] [--out runs/drift.png]

A STUDENT is the folder of a student of the embedded world; without one it is the shipped base. All answer the same
prompts from the same noise, beside the real world. It is ``streamstill drift`` with an interval in every cell and a
figure.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from streamstill.cli.long_streams import named_folder
from streamstill.recipes.base import world_prompts
from streamstill.recipes.quickstart import shipped_base
from streamstill.report.drift import Drift, drift_of, drift_of_clips, world_looks, world_streams
from streamstill.student.student import Student

METRICS = ("in_sight", "size", "dynamic_degree", "sharpness", "physics_error")
WINDOWS = (1, 2, 3, 5, 10)  # of the table, and the last


def main(words: list[str] | None = None) -> None:
    """Make, judge, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("students", nargs="*", metavar="NAME=STUDENT")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("runs/drift.png"))
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    folders = [named_folder(word) for word in asked.students]
    students = {name: Student.from_pretrained(folder) for name, folder in folders} or {"base": shipped_base()}
    if len(students) < len(asked.students):
        raise SystemExit(f"two of {asked.students} have one name; give each a name of its own, NAME=STUDENT")
    prompts = world_prompts(asked.clips, seed=11)
    sizes = {student.config.geometry for student in students.values()}
    if len(sizes) > 1:
        raise SystemExit(f"the students make clips of {len(sizes)} sizes; compare those of one size")
    (size,) = sizes
    clips = world_streams(prompts, size, times=asked.times)
    parties = {"world": drift_of_clips(clips, prompts, world_looks, frames=size.frames)}
    parties |= {name: drift_of(one.eval(), prompts, world_looks, times=asked.times) for name, one in students.items()}
    _print(parties, asked.times)
    _draw(parties, asked.times, asked.out)


def _print(parties: dict[str, Drift], times: int) -> None:
    shown = [*(window for window in WINDOWS if window < times), times]
    print("| measure | who |" + "".join(f" window {window} |" for window in shown))
    print("|---|---|" + "---|" * len(shown))
    for metric in METRICS:
        for who, drift in parties.items():
            cells = "".join(f" {drift.at(metric, window).words} |" for window in shown)
            print(f"| {metric.replace('_', ' ')} | {who} |{cells}")


def _draw(parties: dict[str, Drift], times: int, out: Path) -> None:
    figure, axes = plt.subplots(1, len(METRICS), figsize=(4 * len(METRICS), 3))
    windows = range(1, times + 1)
    for axis, metric in zip(axes, METRICS, strict=True):
        for who, drift in parties.items():
            axis.plot(windows, [drift.at(metric, window).mean for window in windows], label=who)
        axis.set_title(metric.replace("_", " "))
        axis.set_xlabel("training lengths")
    axes[0].legend()
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
