"""Which order of blocks learns best at equal latency, on the embedded world: prints the tables of docs/benchmarks.md.

    python benchmarks/layouts.py [--quick] [--out runs/layouts]

The order is searched first (recipes/placement.py). Then every layout is trained from scratch with the same clips, steps
and batch, for each seed, and judged by the flow matching loss on clips, times and noise that are the same for all and
were not trained on. SSA-only gets as many blocks as take the sandwich's measured time. The shape of S2DiT's Tables 3
and 4, not their scale. Goes on where it stopped: what is in --out is not computed again.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from streamstill.config import write_json
from streamstill.flow.times import Sampling
from streamstill.recipes.base import SMALL, student_config, world_prompts
from streamstill.recipes.placement import PlacementRun, run_placement
from streamstill.recipes.stages import averaged, train
from streamstill.report.card import machine
from streamstill.streaming.timing import Stopwatch, in_turns
from streamstill.student.layout import hourglass
from streamstill.student.presets import named_layout
from streamstill.student.sandwich import SandwichConfig
from streamstill.student.student import Student, build_student
from streamstill.teachers import WorldTeacher
from streamstill.training.batches import fresh_batches
from streamstill.training.objectives.flow_matching import FlowMatching, FlowMatchingConfig, NoisedExamples
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import TrainerConfig
from streamstill.worlds import World

DEPTH, FULL_BLOCKS = 8, 3
HELD_OUT_SEED = 77_000_007
DRAWS = 4  # of times and noise for every held-out clip
PASSES = 5  # in one turn of the stopwatch


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What fixes the experiment."""

    width: int = 64
    head_dim: int = 32
    steps: int = 300
    search_steps: int = 600
    batch: int = 4
    seeds: int = 3
    random_layouts: int = 2
    held_out_clips: int = 128

    def learn(self, steps: int) -> FlowMatchingConfig:
        """The optimiser of every run: warm-up, cosine, weight average."""
        optim = OptimConfig(
            lr=2e-3,
            warmup_steps=min(50, steps // 4),
            decay="cosine",
            total_steps=steps,
            final_fraction=0.05,
            weight_decay=0.01,
        )
        return FlowMatchingConfig(optim=optim, ema_decay=0.98, micro_batch=self.batch)


def network(layout: str, asked: Asked) -> SandwichConfig:
    """A nano of another width and layout."""
    shape = student_config(SMALL, sampling=Sampling()).network
    assert isinstance(shape, SandwichConfig)
    return replace(shape, layout=layout, width=asked.width, head_dim=asked.head_dim)


def fresh_student(layout: str, asked: Asked, *, seed: int) -> Student:
    """Untrained, for 32x32 clips of the world."""
    shape = student_config(SMALL, sampling=Sampling())
    return build_student(replace(shape, network=network(layout, asked)), seed=seed)


def searched(asked: Asked, out: Path, console: Console) -> dict[str, str]:
    """Orders of the same counts: the best by loss with shared weights, by the supernet's logits, by swap worths."""
    config = PlacementRun(
        layout="L" * FULL_BLOCKS + "S" * (DEPTH - FULL_BLOCKS),
        steps=asked.search_steps,
        batch=asked.batch,
        learn=replace(asked.learn(asked.search_steps), micro_batch=max(asked.batch // 2, 1), ema_decay=None),
    )
    found = run_placement(config, out / "search", console)
    assert found.worths is not None
    gain = np.array(found.worths.worths["L"]) - np.array(found.worths.worths["S"])
    return {
        "searched, ranking": found.ranking[0].layout,
        "ranked second": found.ranking[1].layout,
        "searched, logits": found.layout,
        "searched, worths": _order(np.argsort(-gain, kind="stable")),
    }


def random_orders(asked: Asked, *, avoid: set[str]) -> list[str]:
    """Orders of the same counts, none of them among those that are tested anyway."""
    dice, found = np.random.default_rng(5), list[str]()
    while len(found) < asked.random_layouts:
        layout = _order(dice.permutation(DEPTH))
        if layout not in avoid | set(found):
            found.append(layout)
    return found


def _order(places: np.ndarray[tuple[int], np.dtype[np.int64]]) -> str:
    """The layout with full blocks at the first of these places."""
    full = set(places[:FULL_BLOCKS].tolist())
    return "".join("L" if place in full else "S" for place in range(DEPTH))


def pass_ms(layouts: Sequence[str], asked: Asked, *, rounds: int) -> dict[str, float]:
    """Median milliseconds of one velocity pass of one clip, windows filled, in turns."""
    watch = Stopwatch(torch.device("cpu"))
    turns = {layout: _timed(layout, asked, watch) for layout in dict.fromkeys(layouts)}
    with torch.inference_mode():
        in_turns(turns, rounds=2)
        return {name: statistics.median(taken) / PASSES for name, taken in in_turns(turns, rounds=rounds).items()}


def _timed(layout: str, asked: Asked, watch: Stopwatch) -> Callable[[], float]:
    student = fresh_student(layout, asked, seed=0).eval()
    chunk, text = student.network.chunk_frames, torch.randn(1, 24, student.text.text_width)
    x = torch.randn(1, chunk, *student.latent_shape[1:])
    with torch.no_grad():
        state: object = student.network.initial_state(1, *student.latent_shape[2:], like=x)
        for _ in range(3):
            state = student.network.remember(x, text, state)  # type: ignore[arg-type]

    def passes() -> None:
        for _ in range(PASSES):
            student.network.velocity(x, torch.ones(1), text, state)  # type: ignore[arg-type]

    return lambda: watch.of(passes)


def equal_time_depth(asked: Asked, sandwich: str, *, rounds: int) -> int:
    """How many SSA blocks take the sandwich's time, to the nearest block."""
    few, many = "S" * DEPTH, "S" * (2 * DEPTH)
    took = pass_ms([sandwich, few, many], asked, rounds=rounds)
    a_block = (took[many] - took[few]) / DEPTH
    return max(round(DEPTH + (took[sandwich] - took[few]) / a_block), 1)


def held_out(asked: Asked, student: Student) -> list[NoisedExamples]:
    """The same clips, times and noise for every layout and seed."""
    prompts = world_prompts(1000, seed=HELD_OUT_SEED)
    size = asked.held_out_clips
    clips = fresh_batches(WorldTeacher(World()), prompts, SMALL, student.codec, batch=size, seed=HELD_OUT_SEED)(0)
    dice = torch.Generator().manual_seed(HELD_OUT_SEED)
    learning = FlowMatching(student, replace(asked.learn(asked.steps), micro_batch=16))
    return [micro for _ in range(DRAWS) for micro in learning.micro_batches("student", clips, dice)]


def trained_loss(layout: str, asked: Asked, *, seed: int, out: Path, console: Console) -> float:
    """The held-out loss of a layout after training; read from its file if that is there."""
    folder = out / f"{layout}-{seed}"
    result = folder / "result.json"
    if result.is_file():
        return float(json.loads(result.read_text())["loss"])
    student = fresh_student(layout, asked, seed=seed)
    batches = fresh_batches(
        WorldTeacher(World()), world_prompts(2000, seed=seed), SMALL, student.codec, batch=asked.batch, seed=seed
    )
    folder.mkdir(parents=True, exist_ok=True)
    settings = TrainerConfig(steps=asked.steps, seed=seed, checkpoint_every=200, log_every=20)
    objective = FlowMatching(student, asked.learn(asked.steps))
    trainer = train(objective, batches, settings, folder / "training", console, title=f"{layout} {seed}")
    averaged(trainer, "student", student)
    student.eval()
    with torch.no_grad():
        losses = [float(objective.loss("student", micro).value) for micro in held_out(asked, student)]
    write_json(result, {"loss": statistics.fmean(losses), "layout": layout, "seed": seed})
    return statistics.fmean(losses)


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval over seeds (Student's t)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.4f}"
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.4f} [{mean - half:.4f}, {mean + half:.4f}]"


T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def report(
    groups: dict[str, list[str]], losses: dict[tuple[str, int], float], took: dict[str, float], seeds: int
) -> None:
    """The table: time, loss, and the difference to the hourglass, paired by seed."""

    def of(name: str) -> list[float]:
        return [statistics.fmean(losses[layout, seed] for layout in groups[name]) for seed in range(seeds)]

    print("| layout | order | ms a pass | held-out loss | minus hourglass, by seed |\n|---|---|---|---|---|")
    for name, layouts in groups.items():
        ms = statistics.fmean(took[layout] for layout in layouts)
        apart = [mine - theirs for mine, theirs in zip(of(name), of("hourglass"), strict=True)]
        shown = ", ".join(layouts)
        print(f"| {name} | {shown} | {ms:.2f} | {interval(of(name))} | {interval(apart)} |")


def main() -> None:
    """Search, train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("runs/layouts"))
    parser.add_argument("--quick", action="store_true", help="minutes: few steps, one seed; shows that it runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--leave-out", nargs="*", default=[], help="names of the table's rows that are not wanted")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    asked = Asked(steps=20, search_steps=20, seeds=1, random_layouts=1, held_out_clips=16) if given.quick else Asked()
    console, rounds = Console(), 5 if given.quick else 30
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / "asked.json", asdict(asked))
    found = searched(asked, given.out, console)
    sandwich = found["searched, ranking"]
    hour = hourglass(DEPTH)
    shallow = "S" * equal_time_depth(asked, sandwich, rounds=rounds)
    groups = {name: [layout] for name, layout in found.items()} | {
        "equal-share": [named_layout("sandwich", DEPTH)],
        "hourglass": [hour],
        "random orders": random_orders(asked, avoid={*found.values(), hour}),
        "SSA-only, equal time": [shallow],
        "SSA-only, equal depth": ["S" * DEPTH],
        "LCHA-only, equal depth": ["L" * DEPTH],
        "full attention, equal depth": ["F" * DEPTH],
    }
    groups = {name: members for name, members in groups.items() if name not in given.leave_out}
    layouts = list(dict.fromkeys(layout for members in groups.values() for layout in members))
    losses = {
        (layout, seed): trained_loss(layout, asked, seed=seed, out=given.out, console=console)
        for layout in layouts
        for seed in range(asked.seeds)
    }
    took = pass_ms(layouts, asked, rounds=rounds)
    about = machine("cpu")
    print(f"\n{asked}; {given.threads} threads, {about['device_name']}, torch {about['torch']}\n")
    report(groups, losses, took, asked.seeds)


if __name__ == "__main__":
    main()
