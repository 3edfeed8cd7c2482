"""What the commands do, once their words are parsed."""

import re
from pathlib import Path

from rich.console import Console

from streamstill.config import require_one_of, with_overrides
from streamstill.recipes import Base, Folder, Quickstart, run_base, run_folder, run_quickstart
from streamstill.recipes.base import world_prompts
from streamstill.recipes.run_folder import RunFolder
from streamstill.recipes.stages import averaged, collect_clips, train
from streamstill.recipes.training import Training, taught
from streamstill.student.student import Student
from streamstill.teachers import FolderTeacher, Teacher, WorldTeacher
from streamstill.training.metric_log import TensorBoardTracker
from streamstill.types import ClipRequest, Geometry
from streamstill.worlds import LooseWorld, World

RECIPES = ("quickstart", "folder", "base")
_SIZE = re.compile(r"(\d+)x(\d+)x(\d+)@(\d+(?:\.\d+)?)")


def run_recipe(recipe: str, out: Path | None, clips: Path | None, overrides: list[str], console: Console) -> None:
    """``streamstill distill``."""
    require_one_of(recipe, RECIPES, "recipe")
    out = out or Path("runs") / recipe
    if (clips is None) == (recipe == "folder"):
        raise ValueError(
            "the recipe folder needs --clips DIR, a folder of videos with captions.jsonl"
            if recipe == "folder"
            else f"the recipe {recipe} has a teacher of its own; --clips belongs to the recipe folder"
        )
    if recipe == "quickstart":
        run_quickstart(with_overrides(Quickstart(), overrides), out, console)
        prompt = "A red ball is thrown to the left."
    elif recipe == "base":
        run_base(with_overrides(Base(), overrides), out, console)
        prompt = "A red ball is dropped."
    else:
        assert clips is not None
        run_folder(with_overrides(Folder(), overrides), clips, out, console)
        prompt = FolderTeacher.open(clips).prompts[0]
    _next(console, f'streamstill stream {out / "student"} --prompt "{prompt}"')


def collect_answers(
    teacher: str, cache: Path, prompts: Path | None, count: int, size: str, seed: int, console: Console
) -> None:
    """``streamstill collect``."""
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    geometry = parse_size(size)
    who, own = _teacher(teacher)
    asked = _read_prompts(prompts) if prompts else own
    requests = [
        ClipRequest.of(geometry, prompt=asked[i % len(asked)], seed=seed + i // len(asked)) for i in range(count)
    ]
    collect_clips(who, requests, cache, console)
    _next(console, f"streamstill train STUDENT --cache {cache}")


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
) -> None:
    """``streamstill train``."""
    config = with_overrides(Training(student=str(student), objective=objective, steps=steps), overrides)
    tracker = TensorBoardTracker(out / "tensorboard") if track else None
    pupil = Student.from_pretrained(config.student)
    method, batches, settings = taught(config, pupil, cache)
    run = RunFolder.open(out, recipe="train", config=config, inputs={"cache": str(cache)})
    with run.stage("training") as folder:
        trainer = train(method, batches, settings, folder, console, title=config.objective, tracker=tracker)
    averaged(trainer, "student", pupil if config.objective == "flow-matching" else pupil.network)
    pupil.eval().save_pretrained(out / "student")
    console.print(f"  student -> {out / 'student'}")
    _next(console, f'streamstill stream {out / "student"} --prompt "..."')


def parse_size(size: str) -> Geometry:
    """FRAMESxHEIGHTxWIDTH@FPS."""
    match = _SIZE.fullmatch(size)
    if match is None:
        raise ValueError(f"cannot read the size {size!r}; write FRAMESxHEIGHTxWIDTH@FPS, for example 16x32x32@8")
    frames, height, width = (int(match[i]) for i in (1, 2, 3))
    return Geometry(frames=frames, height=height, width=width, fps=float(match[4]))


def _teacher(given: str) -> tuple[Teacher, list[str]]:
    """The teacher of that name or folder, and prompts to ask when the user gives none."""
    if given == "world":
        return WorldTeacher(World()), world_prompts(100, seed=0)
    if given == "loose-world":
        return WorldTeacher(LooseWorld(), name="loose world"), world_prompts(100, seed=0)
    if not Path(given).is_dir():
        raise ValueError(f"unknown teacher {given!r}: give world, loose-world or a folder of clips with captions")
    folder = FolderTeacher.open(Path(given))
    return folder, list(folder.prompts)


def _read_prompts(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"there is no prompt file {path}; write one prompt a line")
    prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{path} has no prompt in it; write one prompt a line")
    return prompts


def _next(console: Console, command: str) -> None:
    console.print(f"next: [bold]{command}[/bold]", soft_wrap=True)
