"""One training stage by itself: a student, a teacher cache, an objective."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamstill.config import require_one_of
from streamstill.recipes.methods import Methods, build_method
from streamstill.recipes.stages import filled_cache, require_one_teacher
from streamstill.student.student import Student
from streamstill.teachers.encoded import EncodedStore
from streamstill.training.batches import ExampleRows, StoredExamples, encode_clips
from streamstill.training.discriminators.build import DiscriminatorConfig, build_discriminator
from streamstill.training.discriminators.motion import MotionConfig
from streamstill.training.objectives.adversary import AdversaryConfig
from streamstill.training.objectives.afd import AfdConfig
from streamstill.training.objectives.flow_matching import FlowMatchingConfig
from streamstill.training.objectives.objective import Objective
from streamstill.training.objectives.score import StudentScore
from streamstill.training.optim import OptimConfig
from streamstill.training.policies import OldSchedule
from streamstill.training.trainer import TrainerConfig
from streamstill.types import Geometry

_OWN_FIELDS = {  # of the methods -> the field here that holds it
    "batch": "batch",
    "prompts_per_update": "prompts_per_update",
    "answers": "answers",
    "sft": "flow_matching",
    "afd": "afd",
}
TAUGHT_BEFORE = AfdConfig(  # slow to follow: for a student that flow matching has taught already
    optim=OptimConfig(lr=3e-4, warmup_steps=10, decay="cosine", final_fraction=0.1),
    adversary=AdversaryConfig(rollouts_per_prompt=8, looks=3, ema_decay=0.9),
    warmup_turns=10,
    old=OldSchedule(decay=0.9),
    ema_decay=0.9,
    self_normalise=True,
)
OBJECTIVES = ("flow-matching", "afd", "gan", "dmd", "reward-weighted")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything that fixes the stage."""

    student: str
    objective: str
    steps: int
    teacher: str = ""  # whose clips of the cache; may be left out when the cache has one teacher's only
    batch: int = 8
    prompts_per_update: int = 16
    answers: int = 2
    flow_matching: FlowMatchingConfig = field(
        default_factory=lambda: FlowMatchingConfig(optim=OptimConfig(lr=3e-4, warmup_steps=10))
    )
    afd: AfdConfig = field(default_factory=lambda: TAUGHT_BEFORE)
    methods: Methods = field(default_factory=Methods)  # of gan, dmd and reward-weighted
    discriminator: DiscriminatorConfig = field(default_factory=MotionConfig)
    autocast: bool = False  # forward passes and losses in bfloat16
    score: str = ""  # folder of a student that sees whole clips, the real score of dmd
    seed: int = 0

    def __post_init__(self) -> None:
        usual = Methods()
        for name, here in _OWN_FIELDS.items():
            if getattr(self.methods, name) != getattr(usual, name):
                raise ValueError(f"methods.{name} is not read here; set {here} in its place")


def taught(
    config: Training, student: Student, cache: Path
) -> tuple[Objective[Any, Any, Any], Callable[[int], Any], TrainerConfig]:
    """The objective, its batches and the trainer's settings.

    Raises:
        ValueError: an unknown objective, a cache without clips of the student's size, or ``dmd`` without a score.
    """
    require_one_of(config.objective, OBJECTIVES, "objective")
    name = "sft" if config.objective == "flow-matching" else config.objective
    if name == "dmd" and not config.score:
        raise ValueError(
            "dmd matches the score of the teacher's clips; give --set score=FOLDER, a student that sees whole clips "
            "(`streamstill distill kd` makes one), or choose an objective that needs clips only"
        )
    resting_steps(config)
    examples = cached_examples(cache, student, teacher=config.teacher)
    every = 100 if name == "sft" else 1
    settings = TrainerConfig(steps=config.steps, seed=config.seed, checkpoint_every=every, autocast=config.autocast)
    discriminator = build_discriminator(
        config.discriminator, codec=student.codec, seed=config.seed, words=student.words
    )
    real = _real_score(config, student) if name == "dmd" else None
    method = build_method(name, student, discriminator, examples, _numbers(config), seed=config.seed, real=real)
    return method.objective, method.batches, settings


def resting_steps(config: Training) -> int:
    """Steps at the beginning in which the discriminator learns and the student rests.

    Raises:
        ValueError: they are all of the run.
    """
    numbers = _numbers(config)
    warming = {
        "afd": numbers.afd.warmup_turns,
        "gan": numbers.gan.warmup_turns,
        "dmd": numbers.dmd.warmup_turns,
        "reward-weighted": numbers.reward_weighted.warmup_turns,
    }
    resting = warming.get(config.objective, 0)
    if 0 < config.steps <= resting:
        raise ValueError(
            f"the first {resting} steps of {config.objective} teach the discriminator only, and {config.steps} were "
            "asked for: the student would not move; take more steps, or set warmup_turns lower"
        )
    return resting


def _real_score(config: Training, student: Student) -> StudentScore:
    """What ``dmd`` matches, beside the student."""
    return StudentScore(Student.from_pretrained(config.score).to(student.device).requires_grad_(False))


def _numbers(config: Training) -> Methods:
    """The methods' numbers with those that have a field of their own here."""
    return replace(config.methods, **{name: getattr(config, here) for name, here in _OWN_FIELDS.items()})


def cached_examples(cache: Path, student: Student, *, teacher: str) -> ExampleRows:
    """Every clip of the cache that the teacher made in the student's size, as latents.

    Args:
        cache: a teacher cache, on disk or at an ``s3://`` address, whose clips are encoded now; or a folder of clips
            that were encoded once: then neither the codec nor an external text encoder is loaded.

    Raises:
        ValueError: there is no such clip, or the clips have several teachers and none was chosen.
    """
    if EncodedStore.is_at(cache):
        return _encoded_examples(EncodedStore.open(cache), student, teacher=teacher)
    store, size = filled_cache(cache), _size(student)
    place = store.path
    entries = [entry for entry in store.find(teacher=teacher or None) if entry.request.geometry == size]
    if not entries:
        raise ValueError(
            f"{place} has {len(store)} clips and {_none(student, teacher)}; collect some with --size {size.words}"
        )
    require_one_teacher(place, {entry.teacher for entry in entries})
    clips = ((entry.request.prompt, clip) for entry, clip in store.read(entries))
    return encode_clips(clips, student.codec, device=student.device)


def _encoded_examples(store: EncodedStore, student: Student, *, teacher: str) -> StoredExamples:
    """The clips of the store that this student can learn from; its text encoder uses the store's embeddings."""
    of_codec = store.find(codec=student.codec, teacher=teacher or None)
    entries = [entry for entry in of_codec if entry.request.geometry == _size(student)]
    if not entries:
        raise ValueError(
            f"{store.path} has {len(store)} encoded clips and {_none(student, teacher)} by the student's codec; encode "
            f"some with `streamstill encode --cache CACHE --student STUDENT --out {store.path}`"
        )
    require_one_teacher(store.path, {entry.teacher for entry in entries})
    student.keep_text_in(store.text_folder)
    return StoredExamples(store, entries)


def _size(student: Student) -> Geometry:
    return student.config.geometry


def _none(student: Student, teacher: str) -> str:
    return f"none{f' of the teacher {teacher!r}' if teacher else ''} in the student's size {_size(student).words}"
