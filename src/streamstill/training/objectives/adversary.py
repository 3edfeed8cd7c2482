"""The discriminator's side of AFD: rollouts beside the teacher's clips for the same prompts, and who is who."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from streamstill.config import require_positive
from streamstill.streaming.rollout import CLIPS_AT_ONCE, rollout
from streamstill.student.network import Network
from streamstill.student.student import Student
from streamstill.training.batches import PromptGroup, pieces, repeated
from streamstill.training.devices import device_of
from streamstill.training.discriminators.augmentation import NOTHING, Augmentation
from streamstill.training.discriminators.average import Average
from streamstill.training.discriminators.blindfold import Blindfold
from streamstill.training.discriminators.discriminator import ChunkDiscriminator, require_fitting, sees
from streamstill.training.discriminators.losses import bradley_terry_loss, gan_loss, gradient_penalty, nearby
from streamstill.training.objectives.objective import Loss, Player
from streamstill.training.optim import OptimConfig
from streamstill.training.replay import ReplayBuffer

_LOSSES = {"bradley_terry": bradley_terry_loss, "gan": gan_loss}


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig:
    """How the discriminator learns and what it may see."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.01))
    steps_per_turn: int = 2
    rollouts_per_prompt: int = 16
    blindfold: Blindfold = field(default_factory=Blindfold)
    augmentation: Augmentation = field(default_factory=Augmentation)  # of the pixels, before the blindfold
    blinded: bool = True  # False leaves out both, to show what a discriminator reads that may
    loss: Literal["bradley_terry", "gan"] = "bradley_terry"
    r1: float = 0.0  # weight of the squared gradient of the score at the teacher's clips
    r2: float = 0.0  # and at the rollouts
    penalty_distance: float = 0.01  # of the finite differences, in the units of what is seen
    ema_decay: float | None = None  # set: rollouts are scored by averaged weights, which follow once a turn
    looks: int = 1  # a score is the mean over so many looks, each with a noise of its own
    replay: int = 0  # pairs of the last turns that the discriminator draws its own from; 0: this turn's alone
    micro_batch: int | None = None  # clips that are judged at once; None: all

    def __post_init__(self) -> None:
        if self.rollouts_per_prompt < 2:
            raise ValueError(
                f"rollouts_per_prompt is {self.rollouts_per_prompt}, it must be at least 2: "
                "a rollout is judged against the others of its prompt"
            )
        if self.loss not in _LOSSES:
            raise ValueError(f"loss must be one of {sorted(_LOSSES)}, got {self.loss!r}")
        if min(self.r1, self.r2) < 0 or not self.penalty_distance > 0:
            raise ValueError(
                f"r1 and r2 must not be negative and penalty_distance must be positive, "
                f"got r1={self.r1}, r2={self.r2} and penalty_distance={self.penalty_distance}"
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), or be None for no average, got {self.ema_decay}")
        if self.replay < 0:
            raise ValueError(f"replay is a number of pairs, got {self.replay}; 0 remembers none")
        require_positive(self, "steps_per_turn", "looks", *(() if self.micro_batch is None else ("micro_batch",)))


@dataclass(frozen=True, eq=False)
class Round:
    """One turn: the student's clean rollouts beside the teacher's clips, for the same prompts."""

    group: PromptGroup
    rollouts_PKFCHW: Tensor

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each rollout, in the order of the flattened rollouts."""
        return repeated(self.group.prompts, self.rollouts_PKFCHW.shape[1])

    def pairs(self, generator: torch.Generator) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Teacher, student, prompts: a pair for each rollout; a prompt's answers are dealt out evenly to its own."""
        teacher_BFCHW = self.group.dealt(self.rollouts_PKFCHW.shape[1], generator)
        return teacher_BFCHW, self.rollouts_PKFCHW.flatten(0, 1), self.prompts


@dataclass(frozen=True, eq=False)
class Comparison:
    """Pairs of blindfolded clips, teacher and student, one prompt each; ``nearby`` is what the penalties ask for."""

    teacher_BFCHW: Tensor
    student_BFCHW: Tensor
    prompts: tuple[str, ...]
    chunks: int = 1  # of each clip
    teacher_nearby_BFCHW: Tensor | None = None
    student_nearby_BFCHW: Tensor | None = None


class Adversary:
    """A discriminator that learns to tell the student of now from the teacher; one player, ``discriminator``.

    An objective by itself (the discriminator's warm-up), and a part of AFD. The discriminator is moved to the student.

    Raises:
        ValueError: the discriminator does not take what the student's codec gives, or sees latents where the
            augmentation is one of pixels.
    """

    def __init__(self, student: Student, discriminator: nn.Module, config: AdversaryConfig) -> None:
        require_fitting(discriminator, student.codec)
        self.student, self.discriminator, self.config = student, discriminator.to(device_of(student)), config
        self.sampling = student.config.sampling
        self.sees = sees(discriminator)
        self.per_chunk = bool(getattr(discriminator, "per_chunk", False))
        self.average = None if config.ema_decay is None else Average(discriminator, config.ema_decay)
        self.replay = ReplayBuffer(config.replay, student.latent_shape) if config.replay else None
        self._remembered: Round | None = None  # the turn that was put into the buffer last
        if self.sees == "latents" and config.augmentation != NOTHING:
            raise ValueError(
                f"{type(discriminator).__name__} sees latents, and {config.augmentation} is for pixels; "
                "leave the augmentation out, or take a discriminator that sees pixels"
            )

    @property
    def judge(self) -> nn.Module:
        """Who scores rollouts: the discriminator, or its average where one is kept."""
        return self.discriminator if self.average is None else self.average.judge

    @property
    def players(self) -> tuple[Player, ...]:
        """The discriminator alone."""
        config = self.config
        return (
            Player(
                name="discriminator",
                module=self.discriminator,
                optim=config.optim,
                steps_per_turn=config.steps_per_turn,
            ),
        )

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """The averaged weights and the remembered pairs, where there are any."""
        kept = {"judge": self.average, "replay": self.replay}
        return {name: module for name, module in kept.items() if module is not None}

    def begin(self, batch: PromptGroup, step: int, generator: torch.Generator) -> Round:
        """Rollouts of the student as it is."""
        return self.roll_out(self.student.network, batch, generator)

    def micro_batches(self, player: str, turn: Round, generator: torch.Generator) -> Sequence[Comparison]:
        """As many pairs as rollouts, or as the replay buffer has by now."""
        teacher, student, prompts = self._pairs(turn, generator)
        return [
            self._compared(teacher[rows], student[rows], prompts[rows], generator)
            for rows in self._pieces(len(prompts))
        ]

    def loss(self, player: str, micro: Comparison) -> Loss:
        """Bradley-Terry over the pairs (AFD Eq. 1), or the logistic loss of a GAN, and the penalties with a weight.

        With penalties it is computed without autocast: they are differences of scores over a small distance.
        """
        if not (self.config.r1 or self.config.r2):
            return self._loss(micro)
        with torch.autocast(micro.student_BFCHW.device.type, enabled=False):
            return self._loss(micro)

    def _loss(self, micro: Comparison) -> Loss:
        teacher_BK = _scores(self.discriminator, micro.teacher_BFCHW, micro.prompts, micro.chunks)
        student_BK = _scores(self.discriminator, micro.student_BFCHW, micro.prompts, micro.chunks)
        margin_BK = (teacher_BK - student_BK).detach()
        value = _LOSSES[self.config.loss](teacher_BK, student_BK)
        metrics = {"pair_accuracy": (margin_BK > 0).float().mean(), "margin": margin_BK.mean()}
        sides = (
            ("r1", self.config.r1, teacher_BK, micro.teacher_nearby_BFCHW),
            ("r2", self.config.r2, student_BK, micro.student_nearby_BFCHW),
        )
        for name, weight, score_BK, moved in sides:
            if moved is not None:
                moved_BK = _scores(self.discriminator, moved, micro.prompts, micro.chunks)
                penalty = gradient_penalty(score_BK, moved_BK, distance=self.config.penalty_distance)
                value, metrics[name] = value + weight * penalty, penalty.detach()
        return Loss(value, metrics)

    def end(self, turn: Round, step: int) -> Mapping[str, float]:
        """Let the average follow."""
        if self.average is not None:
            self.average.follow(self.discriminator)
        return {}

    @torch.no_grad()
    def roll_out(self, network: Network, group: PromptGroup, generator: torch.Generator) -> Round:
        """Clean rollouts of ``network``, several for each of the group's prompts."""
        count = self.config.rollouts_per_prompt
        text_BLD = self.student.encode_prompts(group.prompts).repeat_interleave(count, dim=0)
        made = [
            rollout(
                network,
                text_BLD[rows],
                frames=group.latents_PMFCHW.shape[2],
                latent_shape=self.student.latent_shape[1:],
                sampling=self.sampling,
                generator=generator,
            )
            for rows in pieces(len(text_BLD), CLIPS_AT_ONCE)
        ]
        return Round(group, torch.cat(made).unflatten(0, (-1, count)))

    def scores(self, turn: Round, generator: torch.Generator) -> Tensor:
        """``score_PK`` of the rollouts: higher looks more like the teacher. With chunks, the mean of theirs."""
        return self._judged(turn.rollouts_PKFCHW, turn.group.prompts, generator).mean(dim=2)

    def clip_scores(self, latents_BFCHW: Tensor, prompts: tuple[str, ...], generator: torch.Generator) -> Tensor:
        """``score_B`` of clean latents, as ``scores`` judges rollouts, with a gradient where gradients are enabled."""
        return self._looked(latents_BFCHW, prompts, generator).mean(dim=1)

    def chunk_scores(self, turn: Round, generator: torch.Generator) -> Tensor:
        """``score_PKC`` of every chunk of the rollouts, each of the frames up to the chunk's end.

        Raises:
            ValueError: the discriminator gives one score per clip.
        """
        self.require_chunk_scores()
        return self._judged(turn.rollouts_PKFCHW, turn.group.prompts, generator)

    def require_chunk_scores(self) -> None:
        """Refuse a discriminator that gives one score per clip."""
        if not self.per_chunk:
            raise ValueError(
                f"{type(self.discriminator).__name__} gives one score per clip, and one per chunk was asked for; "
                "build the discriminator with MotionConfig(per_chunk=True)"
            )

    def margins(self, turn: Round, generator: torch.Generator) -> Tensor:
        """``margin_PMK``: the score of each of the teacher's answers minus that of each rollout of its prompt."""
        teacher_PM = self._judged(turn.group.latents_PMFCHW, turn.group.prompts, generator).mean(dim=2)
        return teacher_PM.unsqueeze(2) - self.scores(turn, generator).unsqueeze(1)

    def pair_accuracy(self, turn: Round, generator: torch.Generator) -> float:
        """The share of pairs in which the teacher's clip has the higher score, a tie counting half.

        Of a turn on prompts that the discriminator did not learn from it says whether the scores can be trusted.
        """
        margin_PMK = self.margins(turn, generator)
        return float((margin_PMK.sign().mean() + 1) / 2)

    def seen(self, latents_BFCHW: Tensor, generator: torch.Generator) -> Tensor:
        """What the discriminator sees of clean latents, the teacher's and the student's alike.

        Pixels: decoded, clipped as a screen would, augmented and blindfolded. Latents: with the blindfold's noise.
        """
        return self._blinded(self._shown(latents_BFCHW), generator)

    def _shown(self, latents_BFCHW: Tensor) -> Tensor:
        """What there is to be seen: the latents, or pixels as a screen shows them."""
        latents = latents_BFCHW.float()
        return latents if self.sees == "latents" else self.student.codec.decode(latents)[0].clamp(-1, 1)

    def _blinded(self, shown_BFCHW: Tensor, generator: torch.Generator) -> Tensor:
        """What is left of it under one look."""
        config = self.config
        if not config.blinded:
            return shown_BFCHW
        if self.sees == "latents":
            return config.blindfold.noised(shown_BFCHW, generator)
        return config.blindfold(config.augmentation(shown_BFCHW, self.student.codec, generator), generator)

    def _pairs(self, turn: Round, generator: torch.Generator) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """The turn's own pairs, or as many that are remembered."""
        if self.replay is None:
            return turn.pairs(generator)
        if turn is not self._remembered:
            self.replay.add(*turn.pairs(generator))
            self._remembered = turn
        teacher, student, prompts = self.replay.drawn(len(turn.prompts), generator)
        return teacher.to(turn.rollouts_PKFCHW), student.to(turn.rollouts_PKFCHW), prompts

    def _compared(
        self, teacher: Tensor, student: Tensor, prompts: tuple[str, ...], generator: torch.Generator
    ) -> Comparison:
        config = self.config
        sides = [self.seen(latents, generator).float() for latents in (teacher, student)]
        moved = [
            nearby(side, distance=config.penalty_distance, generator=generator) if weight else None
            for side, weight in zip(sides, (config.r1, config.r2), strict=True)
        ]
        return Comparison(sides[0], sides[1], prompts, self._chunks(teacher), moved[0], moved[1])

    @torch.no_grad()
    def _judged(self, latents_PNFCHW: Tensor, prompts: Sequence[str], generator: torch.Generator) -> Tensor:
        """``score_PNC`` of N clips for each prompt; C is 1 where the discriminator judges whole clips."""
        clips, whose = latents_PNFCHW.flatten(0, 1), repeated(prompts, latents_PNFCHW.shape[1])
        return self._looked(clips, whose, generator).unflatten(0, latents_PNFCHW.shape[:2])

    def _looked(self, clips: Tensor, whose: tuple[str, ...], generator: torch.Generator) -> Tensor:
        """``score_BC``: the mean of all looks at every clip, which is decoded once."""
        parts = []
        for rows in self._pieces(len(whose)):
            shown = self._shown(clips[rows])
            looks = [
                _scores(self.judge, self._blinded(shown, generator), whose[rows], self._chunks(clips))
                for _ in range(self.config.looks)
            ]
            parts.append(torch.stack(looks).float().mean(0))
        return torch.cat(parts)

    def _chunks(self, latents_BFCHW: Tensor) -> int:
        return latents_BFCHW.shape[1] // self.student.network.chunk_frames if self.per_chunk else 1

    def _pieces(self, count: int) -> list[slice]:
        return pieces(count, self.config.micro_batch or count)


def _scores(judge: nn.Module, clips_BFCHW: Tensor, prompts: Sequence[str], chunks: int) -> Tensor:
    """``score_BC``, with one column where the discriminator judges whole clips."""
    if getattr(judge, "per_chunk", False):
        return cast(ChunkDiscriminator, judge).chunk_scores(clips_BFCHW, prompts, chunks=chunks)
    return judge(clips_BFCHW, prompts).unsqueeze(1)
