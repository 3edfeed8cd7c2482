"""``folder``: the same path on clips of your own. A handful of clips can only be learnt by heart, and it says so."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from streamstill.codec.build import build_codec
from streamstill.codec.learned import LearnedCodecConfig
from streamstill.codec.text import WordEncoderConfig
from streamstill.config import require_positive, write_json
from streamstill.flow.times import Sampling
from streamstill.media import write_clip, write_strip
from streamstill.metrics import psnr
from streamstill.recipes.base import student_config
from streamstill.recipes.codec_parts import every_clip
from streamstill.recipes.run_folder import RunFolder
from streamstill.recipes.stages import averaged, collect_clips, settle, students_clips, train
from streamstill.report.comparison import environment
from streamstill.student.sandwich import SandwichConfig
from streamstill.student.student import Student, build_student
from streamstill.teachers import FolderTeacher
from streamstill.training.batches import Examples, encode_clips, example_batches, prompt_batches
from streamstill.training.devices import CPU
from streamstill.training.discriminators.build import build_discriminator
from streamstill.training.discriminators.motion import MotionConfig
from streamstill.training.objectives.adversary import AdversaryConfig
from streamstill.training.objectives.afd import AdversarialFlowDistillation, AfdConfig
from streamstill.training.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import TrainerConfig
from streamstill.types import Clip, ClipRequest, Geometry

ROWS_SHOWN = 8
REAL = Geometry(frames=16, height=48, width=80, fps=8)


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Everything that fixes the run."""

    geometry: Geometry = REAL
    codec: str = ""  # folder of a learned codec; empty: the lossless patches of pixels
    patch: int = 2  # latents per token side: real clips are larger than the world's
    width: int = 128  # and have more in them
    warm_steps: int = 1800
    batch: int = 2
    learn: FlowMatchingConfig = field(
        default_factory=lambda: FlowMatchingConfig(
            optim=OptimConfig(lr=2e-3, warmup_steps=50, decay="cosine", final_fraction=0.05),
            ema_decay=0.99,
            full_weight_from=0.7,  # a token has more values than the network is wide
            micro_batch=4,
        )
    )
    afd: AfdConfig = field(
        default_factory=lambda: AfdConfig(
            optim=OptimConfig(lr=2e-5), adversary=AdversaryConfig(rollouts_per_prompt=4), micro_batch=8, warmup_turns=2
        )
    )
    afd_updates: int = 4
    sampling: Sampling = field(default_factory=lambda: Sampling(shift=16.0))  # more pixels outshine more noise
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "patch", "warm_steps", "batch", "afd_updates")


def run_folder(
    config: Folder, clips: Path, out: Path, console: Console, *, device: torch.device = CPU
) -> dict[str, Any]:
    """Collect the folder's clips, train on them, stream one; returns what ``report.json`` holds."""
    teacher = FolderTeacher.open(clips)
    student = _fresh_student(config).to(device)
    run = RunFolder.open(out, recipe="folder", config=config, inputs={"clips": teacher.name})
    requests = every_clip(teacher, config.geometry)
    with run.stage("collect") as folder:
        console.rule("collect: clips of the folder, at the student's size", align="left")
        pairs = collect_clips(teacher, requests, folder / "cache", console)
    examples = encode_clips(((request.prompt, clip) for request, clip in pairs), student.codec, device=device)
    with run.stage("warm") as folder:
        console.rule("warm: flow matching on the clips", align="left")
        settings = TrainerConfig(steps=config.warm_steps, seed=config.seed, checkpoint_every=100, log_every=5)
        batches = example_batches(examples, batch=config.batch, seed=config.seed)
        averaged(
            train(FlowMatching(student, config.learn), batches, settings, folder, console, title="warm"),
            "student",
            student,
        )
    with run.stage("afd") as folder:
        console.rule("afd: the student answers, the discriminator compares", align="left")
        _afd(student, examples, config, folder, console)
    student.eval().save_pretrained(out / "student")
    with run.stage("evaluate"):
        console.rule("evaluate: how well the clips are known by heart", align="left")
        report = _compare(student, pairs, config, out)
    report |= {"seconds": run.seconds, "environment": environment(device)}
    write_json(out / "report.json", report)
    known, grey = report["psnr_mean"], report["psnr_grey_mean"]
    console.print(f"  PSNR to the teacher's clip: {known:.1f} dB (a flat grey clip: {grey:.1f} dB)")
    console.print(f"  {out / 'clip.mp4'}, {out / 'strip.png'}, {out / 'report.json'}, {out / 'student'}")
    return report


def _fresh_student(config: Folder) -> Student:
    shape = student_config(config.geometry, sampling=config.sampling)
    assert isinstance(shape.network, SandwichConfig)
    codec = LearnedCodecConfig.of(config.codec) if config.codec else shape.codec
    network = replace(
        shape.network, patch=config.patch, width=config.width, latent_channels=build_codec(codec).latent_channels
    )
    return build_student(
        replace(shape, codec=codec, network=network, text=WordEncoderConfig(tokens=64)), seed=config.seed
    )


def _afd(student: Student, examples: Examples, config: Folder, folder: Path, console: Console) -> None:
    discriminator = build_discriminator(MotionConfig(), codec=student.codec, seed=config.seed, words=student.words)
    objective = AdversarialFlowDistillation(student, discriminator, config.afd)
    settings = TrainerConfig(steps=config.afd_updates, seed=config.seed + 1, checkpoint_every=1)
    groups = prompt_batches(examples, prompts=len(set(examples.prompts)), answers=2, seed=config.seed)
    trainer = train(objective, groups, settings, folder, console, title="afd")
    settle(trainer, objective)


def _compare(student: Student, pairs: list[tuple[ClipRequest, Clip]], config: Folder, out: Path) -> dict[str, Any]:
    """PSNR of each answer to the nearest of the teacher's clips for its prompt; writes a clip and a strip."""
    made = students_clips(student, [request for request, _ in pairs], seed=config.seed)
    rows: list[dict[str, Any]] = []
    for (request, clip), answer in zip(pairs, made, strict=True):
        taught = [other for asked, other in pairs if asked.prompt == request.prompt]
        grey = replace(clip, frames_FCHW=clip.frames_FCHW * 0 + 128)
        rows.append(
            {"prompt": request.prompt, "psnr": max(psnr(answer, one) for one in taught), "psnr_grey": psnr(grey, clip)}
        )
    write_clip(out / "clip.mp4", made[0])
    shown = [clip for pair in zip((clip for _, clip in pairs), made, strict=True) for clip in pair][:ROWS_SHOWN]
    labels = [label for _ in pairs for label in ("teacher", "student")][:ROWS_SHOWN]
    write_strip(out / "strip.png", shown, labels=labels, columns=8)
    means = {f"{key}_mean": float(np.mean([row[key] for row in rows])) for key in ("psnr", "psnr_grey")}
    return {"clips": rows, **means}
