"""``few``: a student that needs many steps teaches itself to need few; no teacher and no clips are asked for."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from safetensors import safe_open

from streamstill.config import require_positive, write_json
from streamstill.metrics import sharpness
from streamstill.recipes.base import world_prompts
from streamstill.recipes.quickstart import shipped_base
from streamstill.recipes.run_folder import RunFolder
from streamstill.recipes.stages import averaged, shown, students_latents, train
from streamstill.report.comparison import environment
from streamstill.student.student import Student
from streamstill.teachers.prompts import read_prompts
from streamstill.tensor_file import write_tensors
from streamstill.training.devices import CPU
from streamstill.training.homework_batches import Paths
from streamstill.training.objectives.initialisation import OdeRegression, OdeRegressionConfig
from streamstill.training.optim import OptimConfig
from streamstill.training.own_paths import own_path_batches, own_paths, require_passed
from streamstill.training.trainer import TrainerConfig

WAYS = ("many steps", "few steps before", "few steps after")


@dataclass(frozen=True, kw_only=True)
class FewSteps:
    """Everything that fixes the run."""

    student: str = ""  # folder of a student that streams; empty: the shipped base
    steps: int = 2  # of the student that it becomes
    path_steps: int = 8  # of the rollouts that it learns from, a multiple of steps
    prompts: str = ""  # a list to ask, as `collect` reads it; empty: the world's
    paths: int = 512
    updates: int = 400
    batch: int = 8
    learn: OdeRegressionConfig = field(
        default_factory=lambda: OdeRegressionConfig(
            optim=OptimConfig(lr=1e-3, warmup_steps=10, decay="cosine", final_fraction=0.1, weight_decay=0.01),
            ema_decay=0.98,
        )
    )
    compared_paths: int = 64  # that nobody learns from
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "steps", "path_steps", "paths", "updates", "batch", "compared_paths")
        require_passed(self.path_steps, kept=self.steps)


def run_few_steps(config: FewSteps, out: Path, console: Console, *, device: torch.device = CPU) -> Student:
    """Follow the student's paths, learn where they end, compare; returns the student and saves it in ``out/student``.

    Raises:
        ValueError: no student in the folder.
    """
    many = (Student.from_pretrained(config.student) if config.student else shipped_base()).to(device)
    prompts = _prompts(config)
    run = RunFolder.open(out, recipe="few", config=config, inputs={"student_weights": many.fingerprint})
    student = in_few_steps(many, prompts, config, run, console)
    student.eval().save_pretrained(out / "student")
    with run.stage("compare"):
        scores = compared(many, student, prompts[-config.compared_paths :], config)
    write_json(out / "report.json", {"compared": scores, "seconds": run.seconds, "environment": environment(device)})
    for way, row in scores.items():
        console.print(f"  {way}: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    console.print(f"  {out / 'report.json'}, {out / 'student'}")
    return student


def in_few_steps(many: Student, prompts: list[str], config: FewSteps, run: RunFolder, console: Console) -> Student:
    """The two stages; what the folder has already is taken from there."""
    student = many.with_steps(config.steps)
    with run.stage("paths") as folder:
        console.rule(f"paths: from noise to clean in {config.path_steps} steps", align="left")
        paths = _kept_paths(student, prompts, config, folder / "paths.safetensors")
    with run.stage("learn") as folder:
        console.rule(f"learn: the end of the path in {config.steps}", align="left")
        settings = TrainerConfig(steps=config.updates, seed=config.seed, checkpoint_every=100, log_every=5)
        batches = own_path_batches(paths, batch=config.batch, seed=config.seed)
        trainer = train(OdeRegression(student, config.learn), batches, settings, folder, console, title="learn")
    averaged(trainer, "student", student)
    return student


def compared(many: Student, student: Student, prompts: list[str], config: FewSteps) -> dict[str, dict[str, float]]:
    """How far few steps end from where many end, from the same noise, and how sharp the pictures are.

    ``distance`` is the root of the mean squared difference of the clean latents.
    """
    askable = (many.with_steps(config.path_steps), many.with_steps(config.steps), student)
    made = {way: _answers(one, prompts, config) for way, one in zip(WAYS, askable, strict=True)}
    ends = made[WAYS[0]]
    return {
        way: {"distance": float((clean - ends).square().mean().sqrt()), "sharpness": _sharpness(many, clean, prompts)}
        for way, clean in made.items()
    }


def _prompts(config: FewSteps) -> list[str]:
    """One for each path, the compared ones last."""
    count = config.paths + config.compared_paths
    if not config.prompts:
        return world_prompts(count, seed=config.seed)
    listed = [row.prompt for row in read_prompts(Path(config.prompts))]
    return [listed[i % len(listed)] for i in range(count)]


def _kept_paths(student: Student, prompts: list[str], config: FewSteps, kept: Path) -> Paths:
    """Followed once; a file of another student's paths, or of others, is not taken."""
    asked = prompts[: config.paths]
    question = [student.fingerprint, config.steps, config.path_steps, config.seed, asked]
    mark = hashlib.sha256(json.dumps(question).encode()).hexdigest()
    if kept.exists():
        with safe_open(kept, framework="pt") as file:
            if (file.metadata() or {}).get("mark") == mark:
                return Paths(file.get_tensor("points"), student.config.sampling.times(), tuple(asked))
    paths = own_paths(student.eval(), asked, steps=config.path_steps, seed=config.seed)
    write_tensors(kept, {"points": paths.points_BJFCHW}, {"mark": mark})
    return paths


def _answers(student: Student, prompts: list[str], config: FewSteps) -> torch.Tensor:
    generator = torch.Generator().manual_seed(config.seed + 1)  # the paths that were learned from had the seed itself
    return students_latents(student.eval(), prompts, generator=generator)


def _sharpness(student: Student, clean_BFCHW: torch.Tensor, prompts: list[str]) -> float:
    return fmean(sharpness(clip) for clip in shown(student, clean_BFCHW, prompts))
