"""AFD beside every baseline on the embedded world, at equal compute or equal updates: trains, judges, prints a table.

    python benchmarks/afd_world.py [--out runs/afd_world] [--students sandwich full] [--methods sft afd ...]
        [--seeds 0 1 2] [--seconds 150] [--updates N] [--held-out 512] [--streams 64] [--quick] [--table]
        [--after sft] [--preset micro --side 64 --base-steps 3000 --device cuda]

A base that saw only the loose world; the real world as a black-box teacher, 200 clips. For each seed one warm student
is made, then one discriminator that learns to tell it (not along with it: one that was right all the way has margins
of 20 and learns nothing more), and every method goes on from them: for as many updates as ``--seconds`` of
processor time at one thread are worth (the price of an update is measured first, on copies), or for ``--updates``. So
the end of every run is known beforehand, and every student's rate falls towards it. Judged are clips of the training
length, and whether the body is still there in streams of 20 training lengths. What is done is kept in ``--out``,
its students as well, and not done again; several processes with other seeds may share it. ``--table`` only prints.
``--after sft`` lets every method go on from what that one made in the same ``--out``: a second stage beside more of the
first.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from _afd_variants import JUDGED, MAIN, PAIRS, VARIANTS, falling, methods_of
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from streamstill.cli.devices import device_named
from streamstill.config import write_json
from streamstill.metrics import NO_INTERVAL, Interval, interval_over_seeds
from streamstill.recipes.base import ACTIONS, OPEN, SMALL, Base, run_base, world_prompts
from streamstill.recipes.few_steps import FewSteps, in_few_steps
from streamstill.recipes.methods import Method, build_method, score_of, teach, turns_worth
from streamstill.recipes.quickstart import SEEN, Quickstart, Warmed, Warmup, held_out, shipped_base, taught, warm_up
from streamstill.recipes.run_folder import RunFolder
from streamstill.recipes.stages import students_clips
from streamstill.report.comparison import AGAINST_TEACHER, against_teacher, rows_of
from streamstill.report.drift import Drift, drift_of, drift_of_clips, world_looks, world_streams
from streamstill.student.student import Student
from streamstill.teachers import WorldTeacher
from streamstill.tensor_file import write_tensors
from streamstill.training.batches import prompt_batches
from streamstill.training.discriminators.build import build_discriminator
from streamstill.training.objectives.adversary import Adversary
from streamstill.training.objectives.afd import AfdConfig
from streamstill.training.objectives.score import StudentScore
from streamstill.types import Clip, ClipRequest
from streamstill.worlds import World

SHOWN = (
    "physics_error",
    "dynamic_degree",
    "prompt_obedience",
    "permanence",
    "size_error",
    "sharpness",
    *AGAINST_TEACHER,
)
SPREAD = ("updates", "seconds", *AGAINST_TEACHER)  # one number a run: least and most stand for the interval
GIVEN = ("teacher", "base", "warm")  # compared without being taught
SHARED = GIVEN[:2]  # the same for all seeds, and so are their streams
TIMES = 20  # training lengths of a stream
LATE = "physics error, 2nd to 20th length"
STREAMED = ("in sight, 3rd length", "in sight, 20th length", LATE)


class Experiment:
    """One kind of student: its base, and for each seed what every method starts from."""

    def __init__(self, student: str, asked: argparse.Namespace, console: Console) -> None:
        self.kind, self.asked, self.console = student, asked, console
        other = [str(word) for word in (asked.preset, asked.side) if word not in ("nano", SMALL.height)]
        self.first: Path = asked.out / "_".join([student, *(["open"] if asked.corner == "open" else []), *other])
        self.folder = (
            self.first.with_name(f"{self.first.name}_after_{_slug(asked.after)}") if asked.after else self.first
        )
        self.shipped = student == "sandwich" and not other  # the package has such a base
        self.device = device_named(asked.device)
        self.teacher = WorldTeacher(World())

    def config(self, seed: int) -> Quickstart:
        """The quickstart with a longer warm-up, in which no discriminator learns to speak of."""
        asked = self.asked
        return Quickstart(
            geometry=replace(SMALL, height=asked.side, width=asked.side),
            actions=ACTIONS if asked.corner == "told" else OPEN,
            warm=Warmup(steps=asked.warm_steps, adversary_turns=1),
            afd=AfdConfig(),  # not used here: what is kept outlives changes of AFD's numbers
            held_out_clips=asked.held_out,
            clips=asked.clips,
            seed=seed,
        )

    def base(self) -> Student:
        """The shipped sandwich, in the open corner after some steps on its prompts; any other student from nothing."""
        if self.shipped and self.asked.corner == "told":
            return shipped_base().to(self.device)
        folder, asked, config = self.first / "base", self.asked, Base(geometry=self.config(0).geometry)
        if not (folder / "student" / "config.json").exists():
            if asked.corner == "open":
                config = replace(config, actions=OPEN, prompts=900)
            if not self.shipped:
                layout = "full" if self.kind == "full" else None
                config = replace(config, preset=asked.preset, layout=layout, steps=asked.base_steps)
            else:
                shipped_base().save_pretrained(folder / "shipped")
                learn = replace(config.learn, optim=falling(1e-3), ema_decay=0.98)
                config = replace(config, start=str(folder / "shipped"), learn=learn, steps=asked.open_steps)
            run_base(config, folder, self.console, device=self.device)
        return Student.from_pretrained(folder / "student").to(self.device)

    def run(self, name: str, seed: int) -> None:
        """Train, judge, stream and keep, unless it has been done."""
        kept = self.folder / f"seed{seed}" / f"{_slug(name)}.json"
        streams = kept.parent / "streams" / kept.name
        streams.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            self._compare(name, seed, kept)
        done = sorted(self.first.glob(f"seed*/streams/{kept.name}")) if name in SHARED else []
        if self.asked.streams and done and not streams.exists():
            shutil.copyfile(done[0], streams)
        if self.asked.streams and not streams.exists():
            student = self._given(name, seed) if name in GIVEN else Student.from_pretrained(kept.with_suffix(""))
            drift = self._streamed(student.to(self.device) if student else None)
            write_json(streams, {"method": name, "streams": [[_plain(row) for row in one] for one in drift.streams]})
            self.console.print(f"{self.kind} seed {seed} {name}: in sight {drift.at('in_sight', TIMES).mean:.3f}")

    def _compare(self, name: str, seed: int, kept: Path) -> None:
        """One method's student, taught and judged."""
        updates, seconds = 0, 0.0
        if name in GIVEN:
            student = self._given(name, seed)
        else:
            warmed = self._warmed(seed)
            student = warmed.student
            updates, seconds = self._taught(name, warmed, seed)
            student.eval().save_pretrained(kept.with_suffix(""))
        result = self._judged(student, held_out(self.config(seed)), seed)
        write_json(kept, {"method": name, "seconds": seconds, "updates": updates, **result})
        self.console.print(f"{self.kind} seed {seed} {name}: {updates} updates in {seconds:.0f} s, {_line(result)}")

    def _given(self, name: str, seed: int) -> Student | None:
        """Who is compared without being taught; nobody in the teacher's place."""
        if name == "base":  # one for all seeds
            base = self.base().resized(self.config(seed).geometry)
            return self._in_few_steps(base, RunFolder(self.first / "base"), seed=0)
        return None if name == "teacher" else self._warmed(seed).student

    def _warmed(self, seed: int) -> Warmed:
        """What every method of the seed begins with; made once."""
        config = self.config(seed)
        base = self.base().resized(config.geometry)
        run = RunFolder.open(self.first / f"seed{seed}" / "warm", recipe="quickstart", config=config)
        warmed = warm_up(config, base, run, Console(quiet=True))
        if self.asked.after:
            before = Student.from_pretrained(self.first / f"seed{seed}" / _slug(self.asked.after))
            return replace(warmed, student=before.to(self.device))
        return replace(warmed, student=self._in_few_steps(warmed.student, run, seed=seed))

    def _in_few_steps(self, many: Student, run: RunFolder, *, seed: int) -> Student:
        """The student in as many steps as were asked for, taught by its own paths where these are fewer."""
        steps, asked = self.asked.steps, taught(self.config(seed))
        if steps == many.config.sampling.steps:
            return many
        config = FewSteps(steps=steps, paths=384, updates=self.asked.few_updates, seed=seed)
        prompts = [asked[i % len(asked)].prompt for i in range(config.paths)]
        return in_few_steps(many, prompts, config, run, Console(quiet=True))

    def _taught(self, name: str, warmed: Warmed, seed: int) -> tuple[int, float]:
        """Teach the warm student, in place; updates and seconds of processor time."""
        kind, change, compare = VARIANTS[name]
        numbers, spent, real = change(methods_of(self.asked.corner)), 0.0, None
        judge = self._judge(warmed, seed) if kind in JUDGED else warmed.discriminator
        if kind == "dmd":  # a third of the time goes into the score that it matches

            def fitted() -> Method:
                return score_of(warmed.student, warmed.examples, numbers, seed=seed)

            fit = fitted()
            spent = teach(fit, self._turns(fitted, share=1 / 3), seed=seed + 1, player="score")
            assert isinstance(fit.averaged, Student)
            real = StudentScore(fit.averaged.eval().requires_grad_(False))

        def build(student: Student, discriminator: nn.Module) -> Method:
            return build_method(
                kind, student, discriminator, warmed.examples, numbers, seed=seed, real=real, compare=compare
            )

        turns = self._turns(lambda: build(*deepcopy((warmed.student, judge))), share=2 / 3 if real else 1.0)
        return turns, spent + teach(build(warmed.student, judge), turns, seed=seed + 1)

    def _turns(self, build: Callable[[], Method], *, share: float) -> int:
        """How many turns a share of the time pays for, or as many as were asked for."""
        return int(self.asked.updates) or turns_worth(share * self.asked.seconds, build())

    def _judge(self, warmed: Warmed, seed: int) -> nn.Module:
        """A discriminator that has learned to tell the warm student; made once and kept."""
        config, kept = self.config(seed), self.folder / f"seed{seed}" / "discriminator.safetensors"
        judge = build_discriminator(
            config.discriminator, codec=warmed.student.codec, seed=seed, words=warmed.student.words
        )
        if kept.exists():
            judge.load_state_dict(load_file(kept))
            return judge
        prompts = min(config.warm.prompts, len(set(warmed.examples.prompts)))
        groups = prompt_batches(warmed.examples, prompts=prompts, answers=2, seed=seed)
        turns = self.asked.judge_turns
        learn = replace(SEEN, steps_per_turn=12, rollouts_per_prompt=PAIRS // prompts, replay=PAIRS * turns)
        adversary = Adversary(warmed.student, judge, learn)
        teach(Method(adversary, groups, judge), turns, seed=seed + 2, player="discriminator")
        write_tensors(kept, judge.state_dict())
        return judge

    def _judged(self, student: Student | None, requests: list[ClipRequest], seed: int) -> dict[str, Any]:
        """Rows of every clip, and the numbers of the whole set."""
        teacher = [self.teacher.generate(request) for request in requests]
        others = [replace(request, seed=request.seed + 50_000) for request in requests]
        clips: Sequence[Clip] = (
            [self.teacher.generate(request) for request in others]
            if student is None
            else students_clips(student.eval(), requests, seed=seed)
        )
        sets = against_teacher(clips, teacher, requests, seed=seed)
        rows = [_plain(row) for row in rows_of(clips, requests)]
        return {"rows": rows, "sets": {name: value.mean for name, value in sets.items()}}

    def _streamed(self, student: Student | None) -> Drift:
        """Streams of 20 training lengths, the teacher's the world's own; the same prompts for all seeds."""
        prompts = world_prompts(self.asked.streams, seed=11, actions=self.config(0).actions)
        if student is not None:
            return drift_of(student.eval(), prompts, world_looks, times=TIMES)
        size = self.config(0).geometry
        return drift_of_clips(world_streams(prompts, size, times=TIMES), prompts, world_looks, frames=size.frames)


def table(out: Path) -> dict[str, dict[str, dict[str, Interval]]]:
    """Everything that is there: student, method, metric."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(out.glob("*/seed*/*.json")):
        kept, streams = json.loads(path.read_text(encoding="utf-8")), path.parent / "streams" / path.name
        kept["streams"] = json.loads(streams.read_text(encoding="utf-8"))["streams"] if streams.exists() else []
        found.setdefault(path.parts[-3], {}).setdefault(kept["method"], []).append(kept)
    return {kind: {name: _pooled(runs) for name, runs in by.items()} for kind, by in found.items()}


def _pooled(runs: list[dict[str, Any]]) -> dict[str, Interval]:
    """Over seeds; of streams, those of the seeds that have some."""
    pooled = interval_over_seeds([[_numbers(row) for row in run["rows"]] for run in runs])
    for name in SPREAD:
        values = [float({**run, **run["sets"]}[name]) for run in runs]
        pooled[name] = Interval(mean=sum(values) / len(values), low=min(values), high=max(values), n=len(values))
    streamed = [[_of_stream(one) for one in run["streams"]] for run in runs if run["streams"]]
    if not streamed:
        return pooled | dict.fromkeys(STREAMED, NO_INTERVAL)
    return pooled | interval_over_seeds(streamed, same_clips=True)  # ``world_prompts`` of one seed, see ``_streamed``


def _of_stream(windows: list[dict[str, float | None]]) -> dict[str, float]:
    """Whether the body is there, and how wrong its flights are beyond the first length; none may be left there."""
    wrong = [window["physics_error"] for window in windows[1:] if window["physics_error"] is not None]
    there = (_numbers(windows[number])["in_sight"] for number in (2, TIMES - 1))
    return dict(zip(STREAMED, (*there, sum(wrong) / len(wrong) if wrong else float("nan")), strict=True))


def print_table(out: Path) -> None:
    """Markdown: a row for each method, and how much of the gap from base to teacher it closes."""
    for kind, by in table(out).items():
        order = [name for name in (*GIVEN, *VARIANTS) if name in by]
        shown = [*SHOWN, *(name for name in STREAMED if any(row[name].n for row in by.values()))]
        head = "| method | seeds | updates | seconds | gap closed |"
        print(f"\n{kind}\n\n{head}" + "".join(f" {name} |" for name in shown))
        print("|---|---|---|---|---|" + "---|" * len(shown))
        for name in order:
            row, closed = by[name], ""
            if {"base", "teacher"} <= by.keys() and name not in ("base", "teacher"):
                base, best = by["base"]["physics_error"].mean, by["teacher"]["physics_error"].mean
                closed = f"{(base - row['physics_error'].mean) / (base - best):.0%}"
            cells = "".join(f" {row[metric].words} |" for metric in shown)
            spent = f"{row['updates'].mean:.0f} | {row['seconds'].mean:.0f}"
            print(f"| {name} | {row['updates'].n} | {spent} | {closed} |{cells}")
        _draw(by, order, out / f"{kind}.png")


def _draw(by: dict[str, dict[str, Interval]], order: list[str], path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 0.4 * len(order) + 1.2), sharey=True)
    for axis, metric in zip(axes, ("physics_error", "dynamic_degree", "sharpness"), strict=True):
        values = [by[name][metric] for name in order]
        spans = [[v.mean - v.low for v in values], [v.high - v.mean for v in values]]
        axis.errorbar([v.mean for v in values], range(len(order)), xerr=spans, fmt="o", capsize=3)
        axis.set_title(metric.replace("_", " "))
        axis.grid(visible=True, alpha=0.3)
    axes[0].set_yticks(range(len(order)), order)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _line(result: dict[str, Any]) -> str:
    values = [row["physics_error"] for row in result["rows"] if row["physics_error"] is not None]
    motion = [row["dynamic_degree"] for row in result["rows"]]
    return f"physics error {sum(values) / max(1, len(values)):.3f}, dynamic degree {sum(motion) / len(motion):.3f}"


def _plain(row: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if value != value else float(value) for name, value in row.items()}


def _numbers(row: Mapping[str, float | None]) -> dict[str, float]:
    """What ``_plain`` was made of."""
    return {name: float("nan") if value is None else value for name, value in row.items()}


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def main(words: list[str] | None = None) -> None:
    """Parse, run what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("runs/afd_world"))
    parser.add_argument("--students", nargs="+", default=["sandwich"], choices=["sandwich", "full"])
    parser.add_argument("--methods", nargs="+", default=list(MAIN), choices=[*VARIANTS, "all"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--updates", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=512)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--streams", type=int, default=64, help="of 20 training lengths; 0 leaves them out")
    parser.add_argument("--warm-steps", type=int, default=600)
    parser.add_argument("--judge-turns", type=int, default=12)
    parser.add_argument("--base-steps", type=int, default=3000, help="of a student that is not shipped, from nothing")
    parser.add_argument("--preset", default="nano", help="size of the student")
    parser.add_argument("--side", type=int, default=SMALL.height, help="of the pictures, pixels")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--corner", default="told", choices=["told", "open"], help="what happens is told, or left open")
    parser.add_argument("--open-steps", type=int, default=800, help="of the shipped base on the open corner's prompts")
    parser.add_argument("--steps", type=int, default=4, help="of every student; fewer than 4 are learned first")
    parser.add_argument("--few-updates", type=int, default=300, help="to learn fewer steps")
    parser.add_argument("--after", default="", choices=["", *VARIANTS], help="go on from the students of this method")
    parser.add_argument("--quick", action="store_true", help="minutes: 20 s a method, one seed, 64 clips")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args(words)
    if asked.quick:
        asked.seconds, asked.seeds, asked.held_out, asked.warm_steps, asked.streams = 20.0, [0], 64, 100, 4
    torch.set_num_threads(1)
    console = Console()
    names = list(VARIANTS) if "all" in asked.methods else asked.methods
    for seed in [] if asked.table else asked.seeds:
        for kind in asked.students:
            experiment = Experiment(kind, asked, console)
            for name in (*GIVEN, *names):
                experiment.run(name, seed)
    print_table(asked.out)


if __name__ == "__main__":
    main()
