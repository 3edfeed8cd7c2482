"""``quickstart``: the whole of AFD on a laptop. A black-box teacher with real physics, a base that never saw it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from streamstill.config import require_positive, write_json
from streamstill.media import side_by_side, write_clip, write_strip
from streamstill.recipes.base import ACTIONS, SMALL, world_prompts
from streamstill.recipes.run_folder import RunFolder
from streamstill.recipes.stages import averaged, collect_clips, settle, students_clips, train
from streamstill.report.comparison import Scores, as_json, as_table, judged
from streamstill.student.student import Student
from streamstill.teachers import WorldTeacher
from streamstill.training.batches import Examples, PromptGroup, encode_clips, example_batches, prompt_batches
from streamstill.training.devices import CPU
from streamstill.training.discriminators.augmentation import Augmentation
from streamstill.training.discriminators.blindfold import Blindfold
from streamstill.training.discriminators.build import DiscriminatorConfig, build_discriminator
from streamstill.training.discriminators.centroid import CentroidConfig
from streamstill.training.health import Checkup, HealthConfig
from streamstill.training.objectives.adversary import Adversary, AdversaryConfig
from streamstill.training.objectives.afd import AdversarialFlowDistillation, AfdConfig, advantages
from streamstill.training.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from streamstill.training.objectives.together import Together
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import TrainerConfig
from streamstill.types import Clip, ClipRequest, Geometry
from streamstill.worlds import World

HELD_OUT, WATCHED = 10_000, 20_000  # first seeds; taught clips have those below
SHOWN = 4  # clips in before_after.mp4
SEEN = AdversaryConfig(  # of the clips: the track of the moving body, which blur and contrast hardly change
    optim=OptimConfig(lr=3e-3, weight_decay=0.01),
    steps_per_turn=1,
    augmentation=Augmentation(blur=(0.5, 3.0), contrast=0.3),
    blindfold=Blindfold(blur=2, stride=2, noise=0.02),
)


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """Flow matching on the teacher's clips while the discriminator learns."""

    steps: int = 150
    batch: int = 8
    learn: FlowMatchingConfig = field(
        default_factory=lambda: FlowMatchingConfig(
            optim=OptimConfig(lr=1e-3, warmup_steps=10, decay="cosine", final_fraction=0.1),
            ema_decay=0.97,
        )
    )
    adversary: AdversaryConfig = field(default_factory=lambda: replace(SEEN, steps_per_turn=2, rollouts_per_prompt=2))
    adversary_every: int = 5  # steps
    adversary_turns: int = 30  # at the end; one that is right all along has margins of 20 in the end and learns no more
    prompts: int = 16  # that the discriminator compares in each of its turns

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch", "adversary_every", "adversary_turns", "prompts")


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Everything that fixes the run."""

    geometry: Geometry = SMALL
    actions: tuple[str, ...] = ACTIONS  # what the prompts ask for
    clips: int = 200
    clips_per_prompt: int = 2
    warm: Warmup = field(default_factory=Warmup)
    discriminator: DiscriminatorConfig = field(default_factory=CentroidConfig)
    afd: AfdConfig = field(
        default_factory=lambda: AfdConfig(
            optim=OptimConfig(lr=1e-3, warmup_steps=10, decay="cosine", final_fraction=0.1),
            adversary=replace(SEEN, rollouts_per_prompt=8, looks=3, ema_decay=0.9),
            beta=0.5,
            ema_decay=0.9,
            self_normalise=True,
        )
    )
    afd_updates: int = 40
    prompts_per_update: int = 4
    held_out_clips: int = 256
    watched_prompts: int = 16  # asked besides ``clips``; nobody learns from them, AFD's health is measured on them
    health: HealthConfig = field(default_factory=lambda: HealthConfig(every=10))
    base: str = ""  # folder of a base student; empty: the one that is shipped
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("clips_per_prompt", "afd_updates", "prompts_per_update", "held_out_clips", "watched_prompts")
        require_positive(self, *counts)
        if self.clips < self.clips_per_prompt:
            raise ValueError(f"clips must be at least clips_per_prompt={self.clips_per_prompt}, got {self.clips}")
        if max(self.clips, self.held_out_clips) > HELD_OUT:
            raise ValueError(
                f"clips and held_out_clips must be at most {HELD_OUT}, got {self.clips} and {self.held_out_clips}: "
                "those beyond could be asked twice, to teach and to judge"
            )


def shipped_base() -> Student:
    """The nano base student of the package; ``streamstill distill base`` reproduces it."""
    with as_file(files("streamstill.assets") / "nano_base") as folder:
        return Student.from_pretrained(folder)


@dataclass(frozen=True, eq=False)
class Warmed:
    """What AFD starts from."""

    student: Student  # after the warm-up; AFD goes on with it
    discriminator: nn.Module
    examples: Examples
    watched: PromptGroup  # the teacher's clips that nobody learns from


def base_of(config: Quickstart) -> Student:
    """The student that the run starts from, in the run's size."""
    return (Student.from_pretrained(config.base) if config.base else shipped_base()).resized(config.geometry)


def run_quickstart(config: Quickstart, out: Path, console: Console, *, device: torch.device = CPU) -> Scores:
    """Collect, warm up, distil, judge, show; returns the scores and leaves everything in ``out``."""
    base = base_of(config).to(device)  # what is wrong with it is said before anything is written
    run = RunFolder.open(out, recipe="quickstart", config=config, inputs={"base_weights": base.fingerprint})
    warmed = warm_up(config, base, run, console)
    warm, student = warmed.student.resized(config.geometry), warmed.student
    with run.stage("afd") as folder:
        console.rule("afd: the student answers, the discriminator compares", align="left")
        distil(warmed, config, folder, console)
    student.eval().save_pretrained(out / "student")
    with run.stage("evaluate"):
        console.rule("evaluate: held-out prompts, judges that no objective saw", align="left")
        requests = held_out(config)
        clips = _answers(requests, {"base": base, "warm": warm, "student": student}, seed=config.seed)
        scores = {who: judged(made, requests) for who, made in clips.items()}
    _show(clips, out)
    write_json(out / "report.json", as_json(scores, run.seconds, device))
    console.print(as_table(scores))
    console.print(f"  {out / 'before_after.mp4'}, {out / 'strip.png'}, {out / 'report.json'}, {out / 'student'}")
    return scores


def warm_up(config: Quickstart, base: Student, run: RunFolder, console: Console) -> Warmed:
    """The first two stages; what the folder has already is taken from there."""
    with run.stage("collect") as folder:
        console.rule("collect: the black-box teacher answers", align="left")
        requests = [*taught(config), *watched(config)]
        pairs = collect_clips(WorldTeacher(World()), requests, folder / "cache", console)
    clips = encode_clips(((request.prompt, clip) for request, clip in pairs), base.codec, device=base.device)
    examples, others = clips[: -config.watched_prompts], clips[-config.watched_prompts :]
    group = PromptGroup(others.latents_BFCHW[:, None], others.prompts)
    discriminator = build_discriminator(config.discriminator, codec=base.codec, seed=config.seed, words=base.words)
    warmed = Warmed(base.resized(config.geometry), discriminator, examples, group)
    with run.stage("warm") as folder:
        console.rule("warm: flow matching on the teacher's clips, the discriminator learns", align="left")
        _warm(warmed, config, folder, console)
    return warmed


def distil(
    warmed: Warmed,
    config: Quickstart,
    folder: Path,
    console: Console,
    *,
    compare: Callable[[Tensor], Tensor] = advantages,
) -> None:
    """AFD from the warm student, in place."""
    objective = AdversarialFlowDistillation(warmed.student, warmed.discriminator, config.afd, compare=compare)
    settings = TrainerConfig(steps=config.afd_updates, seed=config.seed + 1, checkpoint_every=1)
    health = Checkup.of(objective, warmed.watched, config.health)
    groups = _groups(warmed.examples, config, config.prompts_per_update)
    trainer = train(objective, groups, settings, folder, console, title="afd", health=health)
    settle(trainer, objective)


def taught(config: Quickstart) -> list[ClipRequest]:
    """The teacher is asked each prompt a few times; no seed comes twice, for two wordings of one scene are one clip."""
    asked = world_prompts(config.clips // config.clips_per_prompt, seed=config.seed, actions=config.actions)
    repeated = [prompt for prompt in asked for _ in range(config.clips_per_prompt)]
    return [ClipRequest.of(config.geometry, prompt=p, seed=i) for i, p in enumerate(repeated)]


def held_out(config: Quickstart) -> list[ClipRequest]:
    """Wordings that the student was not taught on, with seeds that the teacher was not asked."""
    most = min(config.held_out_clips, 256)
    chosen = _other_prompts(config, {request.prompt for request in taught(config)}, most, seed=config.seed + 1)
    asked = (chosen[i % most] for i in range(config.held_out_clips))
    return [ClipRequest.of(config.geometry, prompt=p, seed=HELD_OUT + i) for i, p in enumerate(asked)]


def watched(config: Quickstart) -> list[ClipRequest]:
    """Wordings that the student is neither taught nor judged on, one clip each."""
    taken = {request.prompt for request in (*taught(config), *held_out(config))}
    chosen = _other_prompts(config, taken, config.watched_prompts, seed=config.seed + 2)
    return [ClipRequest.of(config.geometry, prompt=p, seed=WATCHED + i) for i, p in enumerate(chosen)]


def _other_prompts(config: Quickstart, taken: set[str], count: int, *, seed: int) -> list[str]:
    found = world_prompts(len(taken) + count, seed=seed, actions=config.actions)
    return [prompt for prompt in found if prompt not in taken][:count]


def _warm(warmed: Warmed, config: Quickstart, folder: Path, console: Console) -> None:
    warm, student = config.warm, warmed.student
    adversary = Adversary(student, warmed.discriminator, warm.adversary)
    begins = max(0, warm.steps - warm.adversary_turns * warm.adversary_every)
    objective = Together(FlowMatching(student, warm.learn), adversary, every=warm.adversary_every, begins=begins)
    clips = example_batches(warmed.examples, batch=warm.batch, seed=config.seed)
    groups = _groups(warmed.examples, config, warm.prompts)
    settings = TrainerConfig(steps=warm.steps, seed=config.seed, checkpoint_every=50)
    trainer = train(
        objective, lambda step: (clips(step), lambda: groups(step)), settings, folder, console, title="warm"
    )
    averaged(trainer, "student", student)


def _groups(examples: Examples, config: Quickstart, most: int) -> Callable[[int], PromptGroup]:
    prompts = min(most, len(set(examples.prompts)))
    return prompt_batches(examples, prompts=prompts, answers=config.clips_per_prompt, seed=config.seed)


def _answers(requests: list[ClipRequest], students: dict[str, Student], *, seed: int) -> dict[str, list[Clip]]:
    """Everybody's clips for the requests, the teacher's first; students share their noise."""
    teacher = WorldTeacher(World())
    clips = {"teacher": [teacher.generate(request) for request in requests]}
    return clips | {who: students_clips(student, requests, seed=seed) for who, student in students.items()}


def _show(clips: dict[str, list[Clip]], out: Path) -> None:
    """``before_after.mp4``: everybody side by side; ``strip.png``: their frames."""
    names = list(clips)
    count = min(SHOWN, len(clips["teacher"]))
    scale = max(1, 128 // clips["teacher"][0].geometry.height)
    shown = [side_by_side([clips[who][i] for who in names], labels=names, scale=scale) for i in range(count)]
    joined = torch.cat([torch.from_numpy(clip.frames_FCHW) for clip in shown]).numpy()
    write_clip(out / "before_after.mp4", replace(shown[0], frames_FCHW=joined))
    rows = [(who, clips[who][i]) for i in range(min(2, count)) for who in names]
    write_strip(out / "strip.png", [clip for _, clip in rows], labels=[who for who, _ in rows], columns=16)
