"""Is AFD's signal real? The quickstart's AFD stage with true, shuffled and constant rewards: prints a table.

    python benchmarks/quickstart_controls.py RUN [--updates 8] [--out runs/controls]

RUN is a finished quickstart folder: its warm student, discriminator and teacher clips are taken from there.
Shuffled rewards show what gradient noise alone does; constant rewards (1/2) must move nothing.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from streamstill.config import from_dict
from streamstill.metrics import Interval
from streamstill.recipes.quickstart import Quickstart, base_of, distil, held_out, warm_up
from streamstill.recipes.run_folder import RECIPE, RunFolder
from streamstill.recipes.stages import students_clips
from streamstill.report.comparison import as_table, judged
from streamstill.training.objectives.afd import advantages


def shuffled(score_PK: Tensor) -> Tensor:
    """The true advantages, dealt to other rollouts."""
    true = advantages(score_PK)
    return true.flatten()[torch.randperm(true.numel())].view_as(true)


def constant(score_PK: Tensor) -> Tensor:
    """No advantage for anybody."""
    return torch.zeros_like(score_PK)


CONTROLS = {"true": advantages, "shuffled": shuffled, "constant": constant}


def main() -> None:
    """Run the three and print their scores beside the warm student's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path)
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/controls"))
    asked = parser.parse_args()
    console = Console()
    written = json.loads((asked.run / RECIPE).read_text(encoding="utf-8"))["config"]
    config = replace(from_dict(Quickstart, written), afd_updates=asked.updates)
    requests = held_out(config)
    scores: dict[str, dict[str, Interval]] = {}
    for name, compare in CONTROLS.items():
        warmed = warm_up(config, base_of(config), RunFolder(asked.run), console)
        if not scores:
            scores["warm"] = judged(students_clips(warmed.student, requests, seed=config.seed), requests)
        folder = asked.out / name
        folder.mkdir(parents=True, exist_ok=True)
        distil(warmed, config, folder, console, compare=compare)
        scores[name] = judged(students_clips(warmed.student, requests, seed=config.seed), requests)
    console.print(as_table(scores))


if __name__ == "__main__":
    main()
