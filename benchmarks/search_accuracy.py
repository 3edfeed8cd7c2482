"""How well a cost table predicts networks it was not fitted to: prints the rows of docs/benchmarks.md.

    python benchmarks/search_accuracy.py [--preset nano] [--threads 1] [--rounds 60]

Twice: in the same rounds as the table's own probes (the error of the fit), and afterwards, each the median of 5 runs
(what a user sees). Run it on a machine with nothing else to do; the residual of the fit tells how quiet it was.
"""

import argparse

import torch

from streamstill.report.card import machine
from streamstill.search.measure import Repeats, checked_table, validate
from streamstill.student.costs import Workload
from streamstill.student.presets import LAYOUTS, PRESETS, named_layout, preset

RUNS = 5


def layouts(depth: int) -> list[str]:
    """At least six of this depth: the named ones without full attention, and some in between."""
    named = [named_layout(name, depth) for name in LAYOUTS if name != "full"]
    half = depth // 2
    others = ["LS" * half, "SL" * half, "L" * half + "S" * (depth - half), "S" * half + "L" * (depth - half)]
    return list(dict.fromkeys(named + others))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--preset", default="nano", choices=list(PRESETS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    size, config, about = PRESETS[asked.preset], preset(asked.preset), machine("cpu")
    chunk = Workload(
        height=size.latent_height, width=size.latent_width, frames=size.chunk_frames, text_tokens=size.text_tokens
    )
    tested = layouts(size.depth)
    repeats = Repeats(rounds=asked.rounds)
    table, together = checked_table(
        config,
        chunk,
        kinds="LS",
        target="cpu",
        device_name=about["device_name"],
        repeats=repeats,
        layouts=tested,
    )
    later = validate(table, tested, repeats=Repeats(rounds=RUNS))
    print(f"{asked.preset}, {asked.threads} threads, {about['device_name']}, torch {about['torch']}. {table.note}\n")
    print(
        "| layout | predicted ms | same rounds ms | error | later, median of 5, ms | error |\n|---|---|---|---|---|---|"
    )
    for now, after in zip(together, later, strict=True):
        print(
            f"| {now.layout} | {now.predicted_ms:.2f} | {now.measured_ms:.2f} | {now.error:+.1%} "
            f"| {after.measured_ms:.2f} | {after.error:+.1%} |"
        )
    for name, checks in (("same rounds", together), ("later", later)):
        print(f"\nlargest error, {name}: {max(abs(one.error) for one in checks):.1%}")


if __name__ == "__main__":
    main()
