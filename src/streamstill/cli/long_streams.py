"""What ``streamstill drift`` does: students beside each other on the same prompts, far beyond the training length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from streamstill.cli.devices import device_named
from streamstill.config import require_positive, write_json
from streamstill.media import write_strip
from streamstill.recipes.base import world_prompts
from streamstill.report.comparison import environment
from streamstill.report.drift import (
    Drift,
    as_table,
    drift_of,
    drift_of_clips,
    looks,
    windows_of,
    world_looks,
    world_streams,
)
from streamstill.student.student import Student
from streamstill.teachers.prompts import read_prompts
from streamstill.types import Clip, Frames
from streamstill.worlds import parse

SHOWN, COLUMNS = 3, 10  # streams of each student in the strip, and frames of each
WORLD = "world"  # beside students that answer prompts of the embedded world


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The words of the command."""

    students: tuple[str, ...]
    times: int
    prompts: Path | None
    count: int
    steps: int | None
    seed: int
    at_once: int
    device: str
    out: Path

    def __post_init__(self) -> None:
        require_positive(self, "count", "at_once")
        if self.times < 2:
            raise ValueError(
                f"--times must be at least 2, got {self.times}: the last length is compared with the first"
            )
        if self.out.suffix != ".json":
            raise ValueError(f"--out must be the name of a json file, got {self.out}")
        names = [name for name, _ in self.folders]
        if len({*names, WORLD}) <= len(names):
            raise ValueError(
                f"the students are called {', '.join(names)}; "
                f"give each a name of its own, NAME=FOLDER, other than {WORLD}"
            )

    @property
    def folders(self) -> list[tuple[str, Path]]:
        """Their names and where they are."""
        return [named_folder(word) for word in self.students]

    def loaded(self) -> dict[str, Student]:
        """The students by name, with the steps that were asked for.

        Raises:
            ValueError: their clips differ in size, so that their windows cannot be compared.
        """
        device = device_named(self.device)
        students = {name: Student.from_pretrained(folder).to(device) for name, folder in self.folders}
        sizes = {name: student.config.geometry for name, student in students.items()}
        if len({*sizes.values()}) > 1:
            told = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(f"only students of one size can be compared, got {told}; ask for them one by one")
        steps = self.steps
        return students if steps is None else {name: one.with_steps(steps) for name, one in students.items()}

    @property
    def asked(self) -> list[str]:
        """A prompt for each stream; a short list is gone through again, with other noise."""
        if self.prompts is None:
            return world_prompts(self.count, seed=11)
        listed = [row.prompt for row in read_prompts(self.prompts)]
        return [listed[number % len(listed)] for number in range(self.count)]


def tell_drift(asked: Asked, console: Console) -> None:
    """Stream, measure, print; write the JSON and a strip beside it."""
    prompts, students = asked.asked, asked.loaded()
    in_world = all(_is_of_world(prompt) for prompt in prompts)
    measure, glimpses = world_looks if in_world else looks, _Glimpses()
    size = next(iter(students.values())).config.geometry
    whose = "of the embedded world" if asked.prompts is None else f"of {asked.prompts}"
    console.print(f"  {asked.count} prompts {whose}, {asked.times} times {size.frames} frames", soft_wrap=True)
    parties: dict[str, Drift] = {}
    if in_world:
        clips = world_streams(prompts, size, times=asked.times)
        parties[WORLD] = drift_of_clips(clips, prompts, measure, frames=size.frames)
        glimpses.of_clips(WORLD, clips, size.frames)
    for name, student in students.items():
        console.print(f"  {name} streams", markup=False, soft_wrap=True)
        parties[name] = drift_of(
            student,
            prompts,
            measure,
            times=asked.times,
            seed=asked.seed,
            at_once=asked.at_once,
            on_window=glimpses.of(name),
        )
    strip = asked.out.with_suffix(".png")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    glimpses.write(strip, fps=size.fps, columns=min(asked.times, COLUMNS))
    drifts = {name: drift.as_json() for name, drift in parties.items()}
    write_json(
        asked.out, {"times": asked.times, "prompts": prompts, "drift": drifts, "environment": environment(asked.device)}
    )
    console.print(as_table(parties))
    console.print(f"  {asked.out}, {strip}", markup=False, soft_wrap=True)


class _Glimpses:
    """The last frames of the windows of the first streams, for a strip: a row for each stream and party."""

    def __init__(self) -> None:
        self.frames: dict[tuple[int, str], list[Frames]] = {}

    def of(self, party: str) -> Callable[[int, Clip], None]:
        """What ``drift_of`` calls."""

        def look(number: int, window: Clip) -> None:
            if number < SHOWN:
                self.frames.setdefault((number, party), []).append(window.frames_FCHW[-1])

        return look

    def of_clips(self, party: str, clips: Sequence[Clip], frames: int) -> None:
        """The same of finished clips."""
        look = self.of(party)
        for number, clip in enumerate(clips[:SHOWN]):
            for window in windows_of(clip, frames):
                look(number, window)

    def write(self, path: Path, *, fps: float, columns: int) -> None:
        """Rows of one prompt under each other."""
        rows = sorted(self.frames, key=lambda row: row[0])
        clips = [Clip(frames_FCHW=np.stack(self.frames[row]), fps=fps) for row in rows]
        write_strip(path, clips, labels=[party for _, party in rows], columns=columns)


def _is_of_world(prompt: str) -> bool:
    try:
        parse(prompt)
    except ValueError:
        return False
    return True


def named_folder(word: str) -> tuple[str, Path]:
    """``NAME=FOLDER``, or a folder, which is called by its own name."""
    name, separator, folder = word.partition("=")
    path = Path(folder if separator else word)
    return (name if separator else path.name), path
