"""The stages that recipes are made of. Each leaves its artefact in its folder and is skipped when it is there."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from streamstill.codec.video import to_frames
from streamstill.streaming.rollout import CLIPS_AT_ONCE, rollout
from streamstill.student.student import Student
from streamstill.teachers import CachedTeacher, ClipStore, Teacher, collect
from streamstill.teachers.store import request_key
from streamstill.training.batches import pieces
from streamstill.training.health import Checkup, HealthMonitor
from streamstill.training.metric_log import MetricLog, Tracker
from streamstill.training.objectives.afd import AdversarialFlowDistillation
from streamstill.training.objectives.objective import Objective
from streamstill.training.progress import progress_on
from streamstill.training.trainer import Trainer, TrainerConfig
from streamstill.types import Clip, ClipRequest


def collect_clips(
    teacher: Teacher, requests: Sequence[ClipRequest], cache: Path, console: Console
) -> list[tuple[ClipRequest, Clip]]:
    """The teacher's answers, in order; what the cache has is not asked again."""
    store = ask(teacher, requests, cache, console)
    entries = {entry.key: entry for entry in store.find(teacher=teacher.name)}
    wanted = [entries[request_key(teacher.name, request)] for request in requests]
    return [(request, clip) for request, (_, clip) in zip(requests, store.read(wanted), strict=True)]


def ask(teacher: Teacher, requests: Sequence[ClipRequest], cache: Path, console: Console) -> ClipStore:
    """The cache, on disk or in a bucket, once the teacher has answered what was not in it."""
    cached = CachedTeacher(teacher, ClipStore.open(cache))
    columns = (TextColumn("  collecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(requests))
        done = collect(cached, requests, on_clip=lambda done, _: bar.update(task, completed=done))
    console.print(f"  {done.requests} clips, {done.asked} of them new -> {cached.store.path}", soft_wrap=True)
    return cached.store


def filled_cache(cache: Path) -> ClipStore:
    """The teacher cache at this place, on disk or in a bucket.

    Raises:
        ValueError: there is none, or something else is there.
    """
    store = ClipStore.open(cache)
    if not len(store):
        raise ValueError(
            f"there is no teacher cache at {store.path}; make one with `streamstill collect --cache {store.path}`"
        )
    return store


def require_one_teacher(where: Path | str, teachers: set[str]) -> None:
    """Refuse clips of several teachers.

    Raises:
        ValueError: there are several.
    """
    if len(teachers) > 1:
        raise ValueError(f"{where} has clips of the teachers {sorted(teachers)}; choose one with --set teacher=NAME")


def train(
    objective: Objective[Any, Any, Any],
    batches: Callable[[int], Any],
    config: TrainerConfig,
    folder: Path,
    console: Console,
    *,
    title: str,
    tracker: Tracker | None = None,
    health: Checkup | None = None,
) -> Trainer[Any, Any, Any]:
    """Run an objective to its last step, from wherever the folder says that it stopped.

    Args:
        health: examined every few steps; its numbers go to ``health.jsonl`` and change nothing in the run.
    """
    log, progress = MetricLog(folder / "metrics.jsonl", tracker), progress_on(console, title)
    monitor = HealthMonitor(health, folder, progress) if health else None
    trainer = Trainer(objective, batches, config, folder, log=log, progress=progress, on_step=monitor)
    if monitor is None:
        trainer.run()
        return trainer
    monitor.begin(resumed=trainer.state_path.exists())
    trainer.run()
    console.print(f"  {monitor.verdict()}")
    return trainer


def students_clips(student: Student, requests: Sequence[ClipRequest], *, seed: int) -> list[Clip]:
    """The student's answers to the requests' prompts, in its own size; the same seed gives the same noise."""
    clips, generator = [], torch.Generator().manual_seed(seed)
    for rows in pieces(len(requests), CLIPS_AT_ONCE):
        prompts = [request.prompt for request in requests[rows]]
        clips += shown(student, students_latents(student, prompts, generator=generator), prompts)
    return clips


@torch.inference_mode()
def students_latents(student: Student, prompts: Sequence[str], *, generator: torch.Generator) -> torch.Tensor:
    """``clean_BFCHW``: the student's answers to the prompts before they are decoded."""
    return rollout(
        student.network,
        student.encode_prompts(prompts),
        frames=student.latent_shape[0],
        latent_shape=student.latent_shape[1:],
        sampling=student.config.sampling,
        generator=generator,
    )


@torch.inference_mode()
def shown(student: Student, clean_BFCHW: torch.Tensor, prompts: Sequence[str]) -> list[Clip]:
    """Latents of the student, one clip for each prompt, decoded."""
    pixels_BFCHW, _ = student.codec.decode(clean_BFCHW)
    fps = student.config.geometry.fps
    return [
        Clip(frames_FCHW=to_frames(one), fps=fps, provenance={"prompt": prompt})
        for one, prompt in zip(pixels_BFCHW, prompts, strict=True)
    ]


def settle(trainer: Trainer[Any, Any, Any], objective: AdversarialFlowDistillation) -> None:
    """Make AFD's student an ordinary one again: the average of its weights, if one was kept, without adapters."""
    averaged(trainer, "student", objective.policies.trained)
    objective.policies.merged()


def averaged(trainer: Trainer[Any, Any, Any], player: str, module: nn.Module) -> None:
    """Give the module the average of its player's weights, if one was kept."""
    average = trainer.ema(player)
    if average is not None:
        average.copy_to(module)
