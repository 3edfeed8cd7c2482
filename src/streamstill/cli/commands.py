"""What the commands do, once their words are parsed."""

from pathlib import Path

import torch
from rich.console import Console

from streamstill.cli.collect import Asked
from streamstill.cli.devices import device_to_train_on
from streamstill.cli.shell import quoted, say_next
from streamstill.config import require_one_of, with_overrides
from streamstill.recipes import (
    Base,
    FewSteps,
    Folder,
    Knowledge,
    Quickstart,
    run_base,
    run_few_steps,
    run_folder,
    run_knowledge,
    run_quickstart,
)
from streamstill.recipes.base import world_prompts
from streamstill.recipes.run_folder import RunFolder
from streamstill.recipes.stages import ask, averaged, settle, train
from streamstill.recipes.training import Training, resting_steps, taught
from streamstill.student.student import Student
from streamstill.teachers import FolderTeacher, Teacher, WorldTeacher
from streamstill.teachers.place import Place
from streamstill.teachers.plugins import known_teachers
from streamstill.teachers.prompts import read_prompts
from streamstill.training.metric_log import TensorBoardTracker
from streamstill.training.objectives.afd import AdversarialFlowDistillation
from streamstill.training.objectives.score import StudentScore
from streamstill.training.objectives.self_forcing import SelfForcing
from streamstill.worlds import LooseWorld, World

RECIPES = ("quickstart", "folder", "base", "kd", "few")


def run_recipe(
    recipe: str,
    out: Path | None,
    clips: Path | None,
    overrides: list[str],
    console: Console,
    *,
    device: str = "cpu",
) -> None:
    """``streamstill distill``."""
    require_one_of(recipe, RECIPES, "recipe")
    there = device_to_train_on(device, console)
    out = out or Path("runs") / recipe
    if (clips is None) == (recipe == "folder"):
        raise ValueError(
            "the recipe folder needs --clips DIR, a folder of videos with captions.jsonl"
            if recipe == "folder"
            else f"the recipe {recipe} has a teacher of its own; --clips belongs to the recipe folder"
        )
    if recipe == "quickstart":
        run_quickstart(with_overrides(Quickstart(), overrides), out, console, device=there)
        prompt = "A red ball is thrown to the left."
    elif recipe == "base":
        run_base(with_overrides(Base(), overrides), out, console, device=there)
        prompt = "A red ball is dropped."
    elif recipe == "kd":
        say_next(console, _distil_knowledge(with_overrides(Knowledge(), overrides), out, console, there))
        return
    elif recipe == "few":
        few = with_overrides(FewSteps(), overrides)
        run_few_steps(few, out, console, device=there)
        prompt = read_prompts(Path(few.prompts))[0].prompt if few.prompts else "A red ball is dropped."
    else:
        assert clips is not None
        run_folder(with_overrides(Folder(), overrides), clips, out, console, device=there)
        prompt = FolderTeacher.open(clips).prompts[0]
    say_next(console, f"streamstill stream {quoted(out / 'student')} --prompt {quoted(prompt, always=True)}")


def _distil_knowledge(config: Knowledge, out: Path, console: Console, device: torch.device) -> str:
    """The command that shows the student in the mode that it has learnt."""
    frames = run_knowledge(config, out, console, device=device).config.geometry.frames
    steps = config.teacher_steps if config.pipeline is None else config.pipeline.steps
    whole = f" --whole --frames {frames} --steps {steps}" if config.learn.mode == "bidirectional" else ""
    prompt = read_prompts(Path(config.prompts))[0].prompt if config.prompts else "A red ball is thrown to the left."
    return f"streamstill stream {quoted(out / 'student')} --prompt {quoted(prompt, always=True)}{whole}"


def collect_answers(found: Teacher | None, asked: Asked, console: Console) -> None:
    """``streamstill collect`` for teachers on this machine; ``found`` is an installed one."""
    who, own = _teacher(asked.teacher) if found is None else (found, list(getattr(found, "prompts", ())))
    own_list = isinstance(who, WorldTeacher) and asked.prompts is None  # it has several wordings of a scene
    requests = asked.requests(own, seed_each=own_list)
    store = ask(who, requests, asked.cache, console)
    say_next(console, f"streamstill train STUDENT --cache {quoted(str(store.path))}")


def train_student(
    student: Path,
    cache: Path,
    objective: str,
    steps: int,
    out: Path,
    overrides: list[str],
    console: Console,
    *,
    track: bool = False,
    device: str = "cpu",
) -> None:
    """``streamstill train``."""
    config = with_overrides(Training(student=str(student), objective=objective, steps=steps), overrides)
    tracker = TensorBoardTracker(out / "tensorboard") if track else None
    pupil = Student.from_pretrained(config.student).to(device_to_train_on(device, console))
    inputs = {"cache": Place.of(cache).uri, "student_weights": pupil.fingerprint}
    method, batches, settings = taught(config, pupil, cache)
    if isinstance(method, SelfForcing) and isinstance(method.real, StudentScore):
        inputs["score_weights"] = method.real.student.fingerprint
    run = RunFolder.open(out, recipe="train", config=config, inputs=inputs, longer="steps")
    if resting := resting_steps(config):
        console.print(f"  the first {resting} of {config.steps} steps teach the discriminator only")
    with run.stage("training") as folder:
        trainer = train(method, batches, settings, folder, console, title=config.objective, tracker=tracker)
    if isinstance(method, AdversarialFlowDistillation):
        settle(trainer, method)
    else:
        averaged(trainer, "student", pupil if config.objective == "flow-matching" else pupil.network)
    pupil.eval().save_pretrained(out / "student")
    console.print(f"  student -> {out / 'student'}")
    say_next(console, f'streamstill stream {quoted(out / "student")} --prompt "..."')


def _teacher(given: str) -> tuple[Teacher, list[str]]:
    """The teacher of that name or folder, and prompts to ask when the user gives none."""
    if given == "world":
        return WorldTeacher(World()), world_prompts(100, seed=0)
    if given == "loose-world":
        return WorldTeacher(LooseWorld(), name="loose world"), world_prompts(100, seed=0)
    if not Path(given).is_dir():
        raise ValueError(
            f"unknown teacher {given!r}: give world, loose-world or a folder of clips with captions, api, "
            f"or one of {', '.join(known_teachers())}"
        )
    folder = FolderTeacher.open(Path(given))
    return folder, list(folder.prompts)
