"""What becomes of a video far beyond the training length: judges in windows along long rollouts; prints a table.

    python benchmarks/drift.py [NAME=STUDENT ...] [--times 20] [--clips 32] [--out runs/drift.png]

A STUDENT is the folder of a student of the embedded world; without one it is the shipped base. All answer the same
prompts from the same noise. Each window is as long as a training clip and is judged by itself, beside the same seconds
of the real world.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from streamstill.codec.video import to_frames
from streamstill.metrics import interval, sharpness
from streamstill.recipes.base import world_prompts
from streamstill.recipes.quickstart import shipped_base
from streamstill.streaming.rollout import rollout
from streamstill.student.student import Student
from streamstill.teachers import WorldTeacher
from streamstill.types import Clip, ClipRequest
from streamstill.worlds import World, dynamic_degree, parse, physics_error, track

METRICS = ("visible", "mass", "dynamic degree", "sharpness", "physics error")


def windows(clip: Clip, prompt: str, frames: int) -> list[dict[str, float]]:
    """The measures of each window: share of frames with the body, its area over the expected one, and how it moves."""
    parts = [clip.frames_FCHW[i : i + frames] for i in range(0, len(clip.frames_FCHW), frames)]
    return [_measured(replace(clip, frames_FCHW=part), prompt) for part in parts]


def _measured(clip: Clip, prompt: str) -> dict[str, float]:
    seen = track(clip, parse(prompt))
    mass = float(seen.mass_F[seen.visible_F].mean()) if seen.visible_F.any() else float("nan")
    return {
        "visible": float(seen.visible_F.mean()),
        "mass": mass,
        "dynamic degree": dynamic_degree(seen),
        "sharpness": sharpness(clip),
        "physics error": physics_error(seen),
    }


@torch.inference_mode()
def long_clips(student: Student, prompts: list[str], times: int) -> list[Clip]:
    """Rollouts of ``times`` training lengths, one for each prompt."""
    latents = rollout(
        student.network,
        student.encode_prompts(prompts),
        frames=times * student.latent_shape[0],
        latent_shape=student.latent_shape[1:],
        sampling=student.config.sampling,
        generator=torch.Generator().manual_seed(0),
    )
    pixels, _ = student.codec.decode(latents)
    return [Clip(frames_FCHW=to_frames(one), fps=student.config.geometry.fps) for one in pixels]


def main(words: list[str] | None = None) -> None:
    """Make, judge, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("students", nargs="*", metavar="NAME=STUDENT")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("runs/drift.png"))
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    students = dict(_named(word) for word in asked.students) or {"base": shipped_base()}
    if len(students) < len(asked.students):
        raise SystemExit(f"two of {asked.students} have one name; give each a name of its own, NAME=STUDENT")
    prompts = world_prompts(asked.clips, seed=11)
    sizes = {student.config.geometry for student in students.values()}
    if len(sizes) > 1:
        raise SystemExit(f"the students make clips of {len(sizes)} sizes; compare those of one size")
    (size,) = sizes
    long, teacher = replace(size, frames=asked.times * size.frames), WorldTeacher(World())
    requests = [ClipRequest.of(long, prompt=prompt, seed=i) for i, prompt in enumerate(prompts)]
    parties = {"world": [teacher.generate(request) for request in requests]}
    parties |= {name: long_clips(student, prompts, asked.times) for name, student in students.items()}
    rows = {
        who: [windows(clip, prompt, size.frames) for clip, prompt in zip(clips, prompts, strict=True)]
        for who, clips in parties.items()
    }
    _print(rows, asked.times)
    _draw(rows, asked.times, asked.out)


def _named(word: str) -> tuple[str, Student]:
    """``NAME=FOLDER``, or a folder, which is called by its own name."""
    name, separator, folder = word.partition("=")
    path = Path(folder if separator else word)
    return (name if separator else path.name), Student.from_pretrained(path)


def _print(rows: dict[str, list[list[dict[str, float]]]], times: int) -> None:
    shown = sorted({0, 1, 2, 4, 9, times - 1} & set(range(times)))
    print("| measure | who |" + "".join(f" window {window + 1} |" for window in shown))
    print("|---|---|" + "---|" * len(shown))
    for metric in METRICS:
        for who, clips in rows.items():
            cells = [_cell([clip[window][metric] for clip in clips]) for window in shown]
            print(f"| {metric} | {who} |" + "".join(f" {cell} |" for cell in cells))


def _cell(values: list[float]) -> str:
    """Mean and interval; nothing where no clip has the measure, as physics error where every body rests."""
    if np.isnan(values).all():
        return ""
    value = interval(values)
    return f"{value.mean:.3g} [{value.low:.3g}, {value.high:.3g}]"


def _draw(rows: dict[str, list[list[dict[str, float]]]], times: int, out: Path) -> None:
    figure, axes = plt.subplots(1, len(METRICS), figsize=(4 * len(METRICS), 3))
    for axis, metric in zip(axes, METRICS, strict=True):
        for who, clips in rows.items():
            values = [[clip[window][metric] for clip in clips] for window in range(times)]
            means = [float("nan") if np.isnan(each).all() else np.nanmean(each) for each in values]
            axis.plot(range(1, times + 1), means, label=who)
        axis.set_title(metric)
        axis.set_xlabel("training lengths")
    axes[0].legend()
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
