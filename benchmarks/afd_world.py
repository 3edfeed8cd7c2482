"""AFD beside every baseline on the embedded world, at equal compute or equal updates: trains, judges, prints a table.

    python benchmarks/afd_world.py [--out runs/afd_world] [--students sandwich full] [--methods sft afd ...]
        [--seeds 0 1 2] [--seconds 150] [--updates N] [--held-out 512] [--quick] [--table]

A base that saw only the loose world; the real world as a black-box teacher, 200 clips. For each seed one warm student
is made, then one discriminator that learns to tell it (not along with it: one that was right all the way has margins
of 20 and learns nothing more), and every method goes on from them: for as many updates as ``--seconds`` of
processor time at one thread are worth (the price of an update is measured first, on copies), or for ``--updates``. So
the end of every run is known beforehand, and every student's rate falls towards it. What is done is kept in ``--out``,
its students as well, and not done again; several processes with other seeds may share it. ``--table`` only prints.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from streamstill.config import write_json
from streamstill.metrics import Interval, interval_over_seeds
from streamstill.recipes.base import ACTIONS, OPEN, Base, run_base
from streamstill.recipes.few_steps import FewSteps, in_few_steps
from streamstill.recipes.methods import Method, Methods, build_method, score_of, teach, turns_worth
from streamstill.recipes.quickstart import SEEN, Quickstart, Warmed, Warmup, held_out, shipped_base, taught, warm_up
from streamstill.recipes.run_folder import RunFolder
from streamstill.recipes.stages import students_clips
from streamstill.report.comparison import AGAINST_TEACHER, against_teacher, rows_of
from streamstill.student.student import Student
from streamstill.teachers import WorldTeacher
from streamstill.tensor_file import write_tensors
from streamstill.training.batches import prompt_batches
from streamstill.training.discriminators.build import build_discriminator
from streamstill.training.objectives.adversary import Adversary
from streamstill.training.objectives.afd import AfdConfig, advantages
from streamstill.training.objectives.score import StudentScore
from streamstill.training.optim import OptimConfig
from streamstill.training.policies import OldSchedule
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
PAIRS = 32  # that a discriminator learns from in a step of its warm-up, however few the prompts are
JUDGED = ("afd", "gan", "reward-weighted")  # methods that ask a discriminator


def shuffled(score: Tensor) -> Tensor:
    """The true advantages, dealt to other rollouts."""
    true = advantages(score)
    return true.flatten()[torch.randperm(true.numel())].view_as(true)


def constant(score: Tensor) -> Tensor:
    """No advantage for anybody: reward 1/2."""
    return torch.zeros_like(score)


def methods_of(corner: str) -> Methods:
    """The numbers of the comparison: AFD's are the quickstart's, slower to follow and with a replay; all rates fall."""
    plain, afd = Methods(prompts_per_update=4), Quickstart().afd
    adversary = replace(afd.adversary, steps_per_turn=2, replay=10 * PAIRS)
    afd = replace(afd, adversary=adversary, old=OldSchedule(decay=0.9), spare_first_chunk=corner == "open")
    few = replace(SEEN, rollouts_per_prompt=2)
    return replace(
        plain,
        sft=replace(plain.sft, optim=falling(5e-4)),
        afd=afd,
        gan=replace(plain.gan, adversary=few, optim=falling(3e-5)),
        score=replace(plain.score, optim=falling(5e-4)),
        dmd=replace(plain.dmd, optim=falling(3e-5)),
        reward_weighted=replace(plain.reward_weighted, adversary=afd.adversary, optim=falling(2e-4)),
    )


def falling(lr: float) -> OptimConfig:
    """A rate that rises for 10 updates and then falls to a tenth at the end of the run, as AFD's in the quickstart."""
    return replace(Quickstart().afd.optim, lr=lr)


def with_afd(config: Methods, **changes: Any) -> Methods:
    """The same with other numbers of AFD; ``adversary`` holds changes of the adversary's."""
    adversary = replace(config.afd.adversary, **changes.pop("adversary", {}))
    return replace(config, afd=replace(config.afd, adversary=adversary, **changes))


def rate(lr: float) -> dict[str, OptimConfig]:
    """The discriminator's learning rate."""
    return {"optim": OptimConfig(lr=lr, weight_decay=0.01)}


def many(config: Methods) -> Methods:
    """More prompts in an update: what does not compare rollouts of one prompt needs fewer of each."""
    return replace(config, prompts_per_update=16)


Variant = tuple[str, Callable[[Methods], Methods], Callable[[Tensor], Tensor]]
VARIANTS: dict[str, Variant] = {
    "sft": ("sft", lambda m: m, advantages),
    "sft, lr 1e-3": ("sft", lambda m: replace(m, sft=replace(m.sft, optim=falling(1e-3))), advantages),
    "afd": ("afd", lambda m: m, advantages),
    "gan": ("gan", many, advantages),
    "gan, anchored": ("gan", lambda m: replace(many(m), gan=replace(m.gan, anchor=1.0)), advantages),
    "dmd": ("dmd", many, advantages),
    "reward-weighted": ("reward-weighted", lambda m: m, advantages),
    "afd, shuffled rewards": ("afd", lambda m: m, shuffled),
    "afd, rewards 1/2": ("afd", lambda m: m, constant),
    "afd, anchored": ("afd", lambda m: with_afd(m, anchor=1.0), advantages),
    "afd, larger updates": (
        "afd",
        lambda m: with_afd(replace(m, prompts_per_update=16), optim=falling(1e-3)),
        advantages,
    ),
    "afd, newest judge": ("afd", lambda m: with_afd(m, adversary={"ema_decay": None}), advantages),
    "afd, no average": ("afd", lambda m: with_afd(m, ema_decay=None), advantages),
    "afd, off-policy": ("afd", lambda m: with_afd(m, rollouts="start"), advantages),
    "afd, frozen discriminator": ("afd", lambda m: with_afd(m, freeze_after=0), advantages),
    "afd, discriminator lr 3e-4": ("afd", lambda m: with_afd(m, adversary=rate(3e-4)), advantages),
    "afd, discriminator lr 3e-2": ("afd", lambda m: with_afd(m, adversary=rate(3e-2)), advantages),
    "afd, gan loss": ("afd", lambda m: with_afd(m, adversary={"loss": "gan"}), advantages),
    "afd, groups of 2": (
        "afd",
        lambda m: with_afd(replace(m, prompts_per_update=16), adversary={"rollouts_per_prompt": 2}),
        advantages,
    ),
    "afd, quick to follow": ("afd", lambda m: with_afd(m, old=OldSchedule()), advantages),
    "afd, no replay": ("afd", lambda m: with_afd(m, adversary={"replay": 0}), advantages),
    "afd, first chunk too": ("afd", lambda m: with_afd(m, spare_first_chunk=False), advantages),
    "afd, first chunk spared": ("afd", lambda m: with_afd(m, spare_first_chunk=True), advantages),
    "afd, not self-normalised": ("afd", lambda m: with_afd(m, self_normalise=False), advantages),
    "afd, min-max": ("afd", lambda m: with_afd(m, reward_map="min_max"), advantages),
    "afd, noisy context": ("afd", lambda m: with_afd(m, context="noisy"), advantages),
    "afd, one look": ("afd", lambda m: with_afd(m, adversary={"looks": 1}), advantages),
}
MAIN = ("sft", "afd", "gan", "gan, anchored", "dmd", "reward-weighted", "afd, shuffled rewards", "afd, rewards 1/2")


class Experiment:
    """One kind of student: its base, and for each seed what every method starts from."""

    def __init__(self, student: str, asked: argparse.Namespace, console: Console) -> None:
        self.kind, self.asked, self.console = student, asked, console
        self.folder: Path = asked.out / (student if asked.corner == "told" else f"{student}_open")
        self.teacher = WorldTeacher(World())

    def config(self, seed: int) -> Quickstart:
        """The quickstart with a longer warm-up, in which no discriminator learns to speak of."""
        asked = self.asked
        return Quickstart(
            actions=ACTIONS if asked.corner == "told" else OPEN,
            warm=Warmup(steps=asked.warm_steps, adversary_turns=1),
            afd=AfdConfig(),  # not used here: what is kept outlives changes of AFD's numbers
            held_out_clips=asked.held_out,
            clips=asked.clips,
            seed=seed,
        )

    def base(self) -> Student:
        """The shipped sandwich, in the open corner after some steps on its prompts; full attention from nothing."""
        if self.kind == "sandwich" and self.asked.corner == "told":
            return shipped_base()
        folder, full, config = self.folder / "base", self.kind == "full", Base()
        if not (folder / "student" / "config.json").exists():
            if self.asked.corner == "open":
                config = replace(config, actions=OPEN, prompts=900)
            if full:
                config = replace(config, layout="FFFF", steps=self.asked.base_steps)
            else:
                shipped_base().save_pretrained(folder / "shipped")
                learn = replace(config.learn, optim=falling(1e-3), ema_decay=0.98)
                config = replace(config, start=str(folder / "shipped"), learn=learn, steps=self.asked.open_steps)
            run_base(config, folder, self.console)
        return Student.from_pretrained(folder / "student")

    def run(self, name: str, seed: int) -> None:
        """Train, judge and keep, unless it has been done."""
        kept = self.folder / f"seed{seed}" / f"{_slug(name)}.json"
        if kept.exists():
            return
        config = self.config(seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        base = self.base().resized(config.geometry)
        run = RunFolder.open(self.folder / f"seed{seed}" / "warm", recipe="quickstart", config=config)
        warmed = warm_up(config, base, run, Console(quiet=True))
        if name == "base":  # one for all seeds
            student = self._in_few_steps(base, RunFolder(self.folder / "base"), seed=0)
        else:
            student = self._in_few_steps(warmed.student, run, seed=seed)
        updates, seconds = 0, 0.0
        if name not in ("base", "warm", "teacher"):
            updates, seconds = self._taught(name, replace(warmed, student=student), seed)
            student.eval().save_pretrained(kept.with_suffix(""))
        result = self._judged(None if name == "teacher" else student, held_out(config), seed)
        write_json(kept, {"method": name, "seconds": seconds, "updates": updates, **result})
        self.console.print(f"{self.kind} seed {seed} {name}: {updates} updates in {seconds:.0f} s, {_line(result)}")

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
        judge = build_discriminator(config.discriminator, codec=warmed.student.codec, seed=seed)
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
        rows = [{name: _number(value) for name, value in row.items()} for row in rows_of(clips, requests)]
        return {"rows": rows, "sets": {name: value.mean for name, value in sets.items()}}


def table(out: Path) -> dict[str, dict[str, dict[str, Interval]]]:
    """Everything that is there: student, method, metric."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(out.glob("*/seed*/*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(path.parts[-3], {}).setdefault(kept["method"], []).append(kept)
    return {kind: {name: _pooled(runs) for name, runs in by.items()} for kind, by in found.items()}


def _pooled(runs: list[dict[str, Any]]) -> dict[str, Interval]:
    rows = [[{k: float("nan") if v is None else v for k, v in row.items()} for row in run["rows"]] for run in runs]
    pooled = interval_over_seeds(rows)
    for name in AGAINST_TEACHER:
        values = [run["sets"][name] for run in runs]
        pooled[name] = Interval(mean=sum(values) / len(values), low=min(values), high=max(values), n=len(values))
    for name in ("updates", "seconds"):
        values = [float(run[name]) for run in runs]
        pooled[name] = Interval(mean=sum(values) / len(values), low=min(values), high=max(values), n=len(values))
    return pooled


def print_table(out: Path) -> None:
    """Markdown: a row for each method, and how much of the gap from base to teacher it closes."""
    for kind, by in table(out).items():
        order = [name for name in ("teacher", "base", "warm", *VARIANTS) if name in by]
        head = "| method | seeds | updates | seconds | gap closed |"
        print(f"\n{kind}\n\n{head}" + "".join(f" {name} |" for name in SHOWN))
        print("|---|---|---|---|---|" + "---|" * len(SHOWN))
        for name in order:
            row, closed = by[name], ""
            if {"base", "teacher"} <= by.keys() and name not in ("base", "teacher"):
                base, best = by["base"]["physics_error"].mean, by["teacher"]["physics_error"].mean
                closed = f"{(base - row['physics_error'].mean) / (base - best):.0%}"
            cells = "".join(f" {_cell(row[metric])} |" for metric in SHOWN)
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


def _cell(value: Interval) -> str:
    return f"{value.mean:.3g} [{value.low:.3g}, {value.high:.3g}]"


def _line(result: dict[str, Any]) -> str:
    values = [row["physics_error"] for row in result["rows"] if row["physics_error"] is not None]
    motion = [row["dynamic_degree"] for row in result["rows"]]
    return f"physics error {sum(values) / max(1, len(values)):.3f}, dynamic degree {sum(motion) / len(motion):.3f}"


def _number(value: float) -> float | None:
    return None if value != value else float(value)


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
    parser.add_argument("--warm-steps", type=int, default=600)
    parser.add_argument("--judge-turns", type=int, default=12)
    parser.add_argument("--base-steps", type=int, default=3000, help="of full attention, from nothing")
    parser.add_argument("--corner", default="told", choices=["told", "open"], help="what happens is told, or left open")
    parser.add_argument("--open-steps", type=int, default=800, help="of the shipped base on the open corner's prompts")
    parser.add_argument("--steps", type=int, default=4, help="of every student; fewer than 4 are learned first")
    parser.add_argument("--few-updates", type=int, default=300, help="to learn fewer steps")
    parser.add_argument("--quick", action="store_true", help="minutes: 20 s a method, one seed, 64 clips")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args(words)
    if asked.quick:
        asked.seconds, asked.seeds, asked.held_out, asked.warm_steps = 20.0, [0], 64, 100
    torch.set_num_threads(1)
    console = Console()
    names = list(VARIANTS) if "all" in asked.methods else asked.methods
    for seed in [] if asked.table else asked.seeds:
        for kind in asked.students:
            experiment = Experiment(kind, asked, console)
            for name in ("teacher", "base", "warm", *names):
                experiment.run(name, seed)
    print_table(asked.out)


if __name__ == "__main__":
    main()
