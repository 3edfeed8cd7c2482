"""``base``: a nano student that has only seen loose worlds; the one that is shipped with the package."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from streamstill.codec.patch import PatchCodec
from streamstill.codec.text import WordEncoderConfig
from streamstill.config import require_positive
from streamstill.flow.times import Sampling
from streamstill.recipes.run_folder import RunFolder
from streamstill.recipes.stages import averaged, train
from streamstill.student.presets import preset
from streamstill.student.student import Student, StudentConfig, build_student
from streamstill.teachers import WorldTeacher
from streamstill.training.batches import fresh_batches
from streamstill.training.devices import CPU
from streamstill.training.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import TrainerConfig
from streamstill.types import Geometry
from streamstill.worlds import LooseWorld, prompts

ACTIONS = ("drop", "throw left", "throw right")
OPEN = ("move",)  # any of them: what the prompt leaves open
SHAPES = ("ball",)
SIZES = ("medium",)
BACKGROUNDS = ("dark",)
SMALL = Geometry(frames=16, height=32, width=32, fps=8)


def world_prompts(count: int, *, seed: int, actions: tuple[str, ...] = ACTIONS) -> list[str]:
    """Prompts of the quickstart's corner of the world: balls of any colour, dropped or thrown."""
    return prompts(count, seed=seed, actions=actions, shapes=SHAPES, sizes=SIZES, backgrounds=BACKGROUNDS)


@dataclass(frozen=True, kw_only=True)
class Base:
    """Everything that fixes the run."""

    geometry: Geometry = SMALL
    steps: int = 6000
    batch: int = 8
    start: str = ""  # folder of a student to go on from; empty: fresh weights
    actions: tuple[str, ...] = ACTIONS
    prompts: int = 2000
    preset: str = "nano"
    layout: str | None = None  # None: the preset's own sandwich
    sampling: Sampling = field(default_factory=Sampling)
    learn: FlowMatchingConfig = field(
        default_factory=lambda: FlowMatchingConfig(
            optim=OptimConfig(
                lr=2e-3, warmup_steps=200, decay="cosine", total_steps=8000, final_fraction=0.02, weight_decay=0.01
            ),
            ema_decay=0.998,
        )
    )
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch", "prompts")
        if self.start and (self.preset, self.layout, self.sampling) != ("nano", None, Sampling()):
            raise ValueError(
                f"preset, layout and sampling are those of fresh weights, and this run starts from {self.start}; "
                "leave them out"
            )


def student_config(
    geometry: Geometry, *, sampling: Sampling, size: str = "nano", layout: str | None = None
) -> StudentConfig:
    """A student of a preset's size for clips of this geometry."""
    codec, text = PatchCodec(), WordEncoderConfig()
    return StudentConfig(
        network=preset(size, latent_channels=codec.latent_channels, text_width=text.width, layout=layout),
        text=text,
        codec=codec,
        geometry=geometry,
        sampling=sampling,
    )


def run_base(config: Base, out: Path, console: Console, *, device: torch.device = CPU) -> Student:
    """Train the base student on clips that are rendered on the spot; returns it and saves it in ``out/student``."""
    student = _begun(config).to(device)
    run = RunFolder.open(out, recipe="base", config=config, inputs={"start_weights": student.fingerprint})
    teacher = WorldTeacher(LooseWorld(), name="loose world")
    batches = fresh_batches(
        teacher,
        world_prompts(config.prompts, seed=config.seed, actions=config.actions),
        config.geometry,
        student.codec,
        batch=config.batch,
        seed=config.seed,
    )
    with run.stage("training") as folder:
        settings = TrainerConfig(steps=config.steps, seed=config.seed, checkpoint_every=500, log_every=10)
        trainer = train(FlowMatching(student, config.learn), batches, settings, folder, console, title="base")
    averaged(trainer, "student", student)
    student.eval().save_pretrained(out / "student")
    console.print(f"  base student -> {out / 'student'}")
    return student


def _begun(config: Base) -> Student:
    if config.start:
        return Student.from_pretrained(config.start).resized(config.geometry)
    shape = student_config(config.geometry, sampling=config.sampling, size=config.preset, layout=config.layout)
    return build_student(shape, seed=config.seed)
