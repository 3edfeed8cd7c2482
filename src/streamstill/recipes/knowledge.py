"""``kd``: stage 1 of the 2-in-1 distillation: an open teacher does homework, a bidirectional student learns from it."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from streamstill.config import require_positive, write_json
from streamstill.flow.times import Sampling
from streamstill.recipes.base import world_prompts
from streamstill.recipes.open_source import OpenSource, fresh_student
from streamstill.recipes.quickstart import shipped_base
from streamstill.recipes.run_folder import RunFolder
from streamstill.recipes.stages import averaged, train
from streamstill.recipes.student_teacher import StudentTeacher
from streamstill.report.comparison import environment
from streamstill.student.student import Student
from streamstill.teachers import WorldTeacher
from streamstill.teachers.homework import Assignment, HomeworkStore, homework_key
from streamstill.teachers.homework_collection import collect_homework
from streamstill.teachers.pipelines.config import PipelineConfig
from streamstill.teachers.prompts import read_prompts
from streamstill.training.batches import fresh_batches
from streamstill.training.devices import CPU, moved
from streamstill.training.homework_batches import Taught, homework_batches
from streamstill.training.objectives.knowledge import KnowledgeConfig, KnowledgeDistillation
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import TrainerConfig
from streamstill.types import ClipRequest
from streamstill.worlds import World


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Flow matching in the bidirectional mode, which the shipped base has never learnt, on the world's clips."""

    steps: int = 250
    batch: int = 8
    learn: KnowledgeConfig = field(
        default_factory=lambda: KnowledgeConfig(
            optim=OptimConfig(lr=1e-3, warmup_steps=20, decay="cosine", final_fraction=0.05, weight_decay=0.01),
            ema_decay=0.98,
            kd_weight=0.0,
        )
    )

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch")


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """Everything that fixes the run."""

    teacher: str = ""  # folder of a bidirectional student; empty: the shipped base after its preparation
    pipeline: PipelineConfig | None = None  # the teacher is this pipeline of diffusers, and no student
    prepare: Preparation = field(default_factory=Preparation)  # of the shipped base alone
    teacher_steps: int = 12  # these two of a student that teaches; a pipeline's are in its own table
    guidance: float = 1.0
    prompts: str = ""  # a list to ask, as `collect` reads it; empty: the world's
    clips: int = 160
    velocities: int = 2
    held_out_clips: int = 16
    start: str = "base"  # "base": the shipped one; "fresh": fresh weights; or the folder of a student
    preset: str = "nano"  # of fresh weights
    layout: str | None = None  # of fresh weights; None: the preset's own sandwich
    sampling: Sampling = field(default_factory=Sampling)
    steps: int = 350
    batch: int = 8
    learn: KnowledgeConfig = field(
        default_factory=lambda: KnowledgeConfig(
            optim=OptimConfig(lr=2e-3, warmup_steps=50, decay="cosine", final_fraction=0.02, weight_decay=0.01),
            ema_decay=0.98,
            full_weight_from=0.3,  # below it a velocity says little of the clip and much of the teacher's error over t
        )
    )
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "teacher_steps", "clips", "held_out_clips", "steps", "batch")
        if self.learn.kd_weight:
            require_positive(self, "velocities")
        if self.pipeline is not None and (self.teacher, self.teacher_steps, self.guidance) != ("", 12, 1.0):
            raise ValueError(
                "teacher, teacher_steps and guidance are those of a student that teaches, and this run has a pipeline; "
                "leave them out, and set pipeline.steps and pipeline.guidance"
            )
        if self.start != "fresh" and (self.preset, self.layout) != ("nano", None):
            raise ValueError(
                f"preset and layout are those of fresh weights, and this run starts from {self.start!r}; "
                "set start=fresh, or leave them out"
            )

    @property
    def assignment(self) -> Assignment:
        """What the teacher is asked for."""
        return Assignment(shift=self.sampling.shift, velocities=self.velocities)


def run_knowledge(config: Knowledge, out: Path, console: Console, *, device: torch.device = CPU) -> Student:
    """Prepare, ask, learn, compare; returns Student-KD and saves it in ``out/student``.

    A student that begins beside a pipeline with fresh weights is saved in ``out/start`` before it learns.
    """
    source = _opened(config, device)
    student = pupil(config, source).to(device)  # what is wrong with either is said before anything is written
    _prompts(config)  # likewise
    inputs = {"teacher_weights": source.weights, "start_weights": student.fingerprint}
    run = RunFolder.open(out, recipe="kd", config=config, inputs=inputs)
    if config.pipeline is not None and config.start == "fresh":
        student.save_pretrained(out / "start")
    if isinstance(source.teacher, StudentTeacher) and not config.teacher:
        with run.stage("prepare") as folder:
            console.rule("prepare: the shipped base learns to see a whole clip at once", align="left")
            _prepare(source.teacher.student, config, folder, console)
    with run.stage("homework") as folder:
        console.rule("homework: the open teacher answers once", align="left")
        store, taught, held_out = _homework(source, config, folder, console)
    student.keep_text_in(folder / "text")
    del source  # from here on there is the store and nothing else
    before = held_out_errors(student, store, held_out, config)
    with run.stage("learn") as folder:
        console.rule("learn: the student never meets its teacher", align="left")
        objective = KnowledgeDistillation(student, config.learn)
        settings = TrainerConfig(steps=config.steps, seed=config.seed, checkpoint_every=50, log_every=5)
        batches = homework_batches(store, taught, batch=config.batch, seed=config.seed)
        trainer = train(objective, batches, settings, folder, console, title="learn")
    averaged(trainer, "student", student)
    student.eval().save_pretrained(out / "student")
    errors = {"start": before, "student": held_out_errors(student, store, held_out, config)}
    write_json(out / "report.json", {"held_out": errors, "seconds": run.seconds, "environment": environment(device)})
    for who, row in errors.items():
        console.print(f"  {who}: " + ", ".join(f"{name} {error:.4f}" for name, error in row.items()))
    console.print(f"  {out / 'report.json'}, {out / 'student'}")
    return student


def pupil(config: Knowledge, source: OpenSource) -> Student:
    """The student that learns: in the teacher's latents and size, fresh or as it was left.

    Raises:
        ValueError: the student to start from has another codec, size or sampling, or its latents another shape.
    """
    shared = source.shared
    if config.start == "fresh":
        student = fresh_student(
            shared, size=config.preset, layout=config.layout, sampling=config.sampling, seed=config.seed
        )
    else:
        known = config.start == "base"
        student = _fitting(shipped_base() if known else Student.from_pretrained(config.start), config, source)
    if student.latent_shape != source.teacher.latent_shape:
        raise ValueError(
            f"clips of {shared.geometry} are latents of {student.latent_shape} to the student and of "
            f"{source.teacher.latent_shape} to the teacher, which rounds sizes up; choose one that it can make"
        )
    return student


def held_out_errors(
    student: Student, store: HomeworkStore, keys: tuple[str, ...], config: Knowledge
) -> dict[str, float]:
    """Mean ``flow`` and ``kd`` errors on homework that was not learnt, always at the same noise and times."""
    objective = KnowledgeDistillation(student, config.learn)
    batches = homework_batches(store, keys, batch=min(config.batch, len(keys)), seed=config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    sums: dict[str, list[float]] = {}
    with torch.no_grad():
        for step in range(-(-len(keys) // config.batch)):
            for micro in objective.micro_batches("student", moved(batches(step), student.device), generator):
                for name, error in objective.loss("student", micro).metrics.items():
                    sums.setdefault(name, []).append(float(error))
    return {name: sum(errors) / len(errors) for name, errors in sums.items()}


def _opened(config: Knowledge, device: torch.device) -> OpenSource:
    """The open teacher; a student that teaches is on the device, a pipeline where its own config says."""
    if config.pipeline is not None:
        return OpenSource.of_pipeline(config.pipeline)
    student = (Student.from_pretrained(config.teacher) if config.teacher else shipped_base()).to(device)
    return OpenSource.of_student(student, steps=config.teacher_steps, guidance=config.guidance)


def _fitting(student: Student, config: Knowledge, source: OpenSource) -> Student:
    for name, here, there in (
        ("codec", student.config.codec, source.shared.codec),
        ("geometry", student.config.geometry, source.shared.geometry),
        ("sampling", student.config.sampling, config.sampling),
    ):
        if here != there:
            raise ValueError(
                f"the student to start from ({config.start}) has the {name} {here} and this run has {there}; "
                "start from another student, or set start=fresh"
            )
    return student


def _prepare(base: Student, config: Knowledge, folder: Path, console: Console) -> None:
    prepare = config.prepare
    clips = fresh_batches(
        WorldTeacher(World()),
        world_prompts(config.clips, seed=config.seed),
        base.config.geometry,
        base.codec,
        batch=prepare.batch,
        seed=config.seed,
    )
    settings = TrainerConfig(steps=prepare.steps, seed=config.seed, checkpoint_every=50, log_every=5)
    objective = KnowledgeDistillation(base, prepare.learn)
    trainer = train(objective, lambda step: Taught(clips(step)), settings, folder, console, title="prepare")
    averaged(trainer, "student", base)
    base.eval()


def _homework(
    source: OpenSource, config: Knowledge, folder: Path, console: Console
) -> tuple[HomeworkStore, tuple[str, ...], tuple[str, ...]]:
    """The store, the keys to learn from, and those that are held out."""
    path, teacher, total = folder / "store", source.teacher, config.clips + config.held_out_clips
    store, prompts = HomeworkStore.open(path), _prompts(config)
    requests = [
        ClipRequest.of(source.shared.geometry, prompt=prompts[i % len(prompts)], seed=config.seed + i)
        for i in range(total)
    ]
    columns = (TextColumn("  asking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        done = collect_homework(
            teacher,
            requests,
            store,
            config.assignment,
            batch=1 if config.pipeline is not None else 8,
            on_clip=lambda done, _: bar.update(task, completed=done),
        )
    source.embed(sorted(set(prompts[:total])), folder / "text")
    console.print(f"  {done.requests} clips, {done.asked} of them new -> {path}")
    name = teacher.name
    keys = tuple(homework_key(name, request, config.assignment) for request in requests)
    return store, keys[: config.clips], keys[config.clips :]


def _prompts(config: Knowledge) -> list[str]:
    if config.prompts:
        return [row.prompt for row in read_prompts(Path(config.prompts))]
    return world_prompts(config.clips + config.held_out_clips, seed=config.seed)
