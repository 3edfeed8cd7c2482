"""AFD, Adversarial Flow Distillation: a teacher that only shows finished clips teaches by comparison.

Teacher and student answer the same prompts; a discriminator tells them apart (Eq. 1); its score, compared within
a prompt's own rollouts (Eq. 2), says of each rollout whether to move towards or away from it, everywhere on the
path from noise to that rollout (Eqs. 3-4). Where the paper is silent the choices are in docs/papers.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from streamstill.config import require_one_of, require_positive
from streamstill.flow.path import clean_from_velocity
from streamstill.student.network import Network
from streamstill.student.student import Student
from streamstill.training.batches import Examples, PromptGroup, repeated
from streamstill.training.lora import Lora
from streamstill.training.objectives.adversary import Adversary, AdversaryConfig, Comparison, Round
from streamstill.training.objectives.flow_matching import NoisedExamples, flow_loss, noised_examples
from streamstill.training.objectives.objective import Loss, Player, student_player
from streamstill.training.objectives.regression import require_full_weight_from
from streamstill.training.objectives.renoised import Renoised, renoised
from streamstill.training.optim import OptimConfig
from streamstill.training.policies import OldSchedule, Policies, build_policies

CREDITS = ("clip", "chunk")
ROLLOUTS = ("old", "start")
REWARD_MAPS = ("centred", "min_max")
CONTEXTS = ("clean", "noisy")
NORMALISERS = ("lagged", "own")


@dataclass(frozen=True, kw_only=True)
class AfdConfig:
    """Every number of AFD."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4))
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    warmup_turns: int = 0  # in which only the discriminator learns
    freeze_after: int | None = None  # turns after which the discriminator no longer learns; for comparison
    beta: float = 1.0  # how far the old velocity is pushed to either side (Eq. 4)
    advantage_clip: float = 5.0  # in global standard deviations
    reward_slope: float = 0.25  # reward = 1/2 + slope * advantage, kept within [0, 1] and at a mean of 1/2
    reward_map: Literal["centred", "min_max"] = "centred"  # min_max: over the turn, as in the transcription
    context: Literal["clean", "noisy"] = "clean"  # what a noised chunk sees of those before it; noisy for comparison
    old: OldSchedule = field(default_factory=OldSchedule)  # how the lagged student follows
    lora: Lora | None = None  # adapters that learn and lag; None: all weights learn, the others are copies
    credit: Literal["clip", "chunk"] = "clip"  # one reward for a rollout, or one for each of its chunks
    spare_first_chunk: bool = False  # reward 1/2 for it: without a past it can be many things, whose mean is a blur
    rollouts: Literal["old", "start"] = "old"  # who makes them; the start's are off-policy, for comparison
    prior: float = 0.0  # weight of |velocity - velocity of the start|^2 (Eq. 5)
    anchor: float = 0.0  # weight of flow matching on the teacher's clips of the turn; ours
    full_weight_from: float = 0.05  # of the anchor, as of flow matching
    ema_decay: float | None = None  # set: an average of the student's weights is kept, which is what a run returns
    self_normalise: bool = False  # divide each error by its size, so that all noise levels count alike
    normaliser: Literal["lagged", "own"] = "lagged"  # the lagged estimate's size for both sides, or each side's own
    micro_batch: int = 32

    def __post_init__(self) -> None:
        for name, usual in (("beta", "0.1 and 1"), ("advantage_clip", "5"), ("reward_slope", "0.1 and 0.25")):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}; usual: {usual}")
        if self.warmup_turns < 0:
            raise ValueError(f"warmup_turns is a number of turns, got {self.warmup_turns}; 0 begins at once")
        require_full_weight_from(self.full_weight_from)
        for name, weight in (("prior", self.prior), ("anchor", self.anchor)):
            if not weight >= 0:
                raise ValueError(f"{name} must not be negative, got {weight}; 0 leaves it out")
        if self.freeze_after is not None and self.freeze_after < 0:
            raise ValueError(f"freeze_after is a number of turns, got {self.freeze_after}; None never freezes")
        require_one_of(self.credit, CREDITS, "credit")
        require_one_of(self.rollouts, ROLLOUTS, "maker of rollouts")
        require_one_of(self.reward_map, REWARD_MAPS, "reward map")
        require_one_of(self.context, CONTEXTS, "context")
        require_one_of(self.normaliser, NORMALISERS, "normaliser")
        require_positive(self, "micro_batch")

    @property
    def needs_start(self) -> bool:
        """Whether anything is compared with, or made by, the student as it was given."""
        return self.prior > 0 or self.rollouts == "start"


@dataclass(frozen=True, eq=False)
class Verdict(Renoised):
    """Noised rollouts whose worth is their reward, and what holds the student to the teacher's clips."""

    anchor: NoisedExamples | None = None  # some of the teacher's clips
    anchor_share: float = 1.0  # how many they are, beside the turn's clips dealt out evenly to all micro batches


@dataclass(frozen=True, eq=False)
class Trial:
    """One turn of AFD: a round of rollouts, and who rests."""

    round: Round
    warming_up: bool  # the student rests
    frozen: bool = False  # the discriminator rests


def advantages(score: Tensor) -> Tensor:
    """Scores relative to the mean of their own prompt, in units of one global standard deviation (AFD Eq. 2).

    The Bradley-Terry score has an unknown constant per prompt; the prompt's own mean removes it exactly.

    Args:
        score: shape (prompts, rollouts), or (prompts, rollouts, chunks): then a chunk is compared with the same chunk
            of the prompt's other rollouts.
    """
    return _within_prompts(score) / (spread_within_prompts(score) + 1e-4)


def spread_within_prompts(score: Tensor) -> Tensor:
    """The one global standard deviation of scores about the means of their prompts."""
    return _within_prompts(score).square().mean().sqrt()


def _within_prompts(score: Tensor) -> Tensor:
    return score - score.mean(dim=1, keepdim=True)


def rewards(advantage: Tensor, *, clip: float, slope: float) -> Tensor:
    """Advantages as rewards in [0, 1] whose mean is 1/2.

    What clipping takes from one side more than from the other is given back to all: a mean beside 1/2 adds a drift
    along, or against, plain flow matching on own rollouts, which blurs a few-step student.
    """
    limit = min(clip, 0.5 / slope)
    clipped = advantage.clamp(-limit, limit)
    centred = slope * (clipped - clipped.mean())
    return 0.5 + centred / (2 * centred.abs().max()).clamp_min(1)


def min_max_rewards(advantage: Tensor, *, clip: float) -> Tensor:
    """Clipped advantages stretched to [0, 1] over the whole turn; 1/2 where all are equal.

    So the transcription of the paper has it. The mean reward is not 1/2, which adds a drift along, or against, plain
    flow matching on own rollouts.
    """
    clipped = advantage.clamp(-clip, clip)
    low, high = clipped.min(), clipped.max()
    return torch.where(high > low, (clipped - low) / (high - low).clamp_min(1e-12), torch.full_like(clipped, 0.5))


def negative_aware_error(
    clean: Tensor, clean_old: Tensor, target: Tensor, reward: Tensor, *, beta: float, normaliser: str | None = None
) -> Tensor:
    """Per reward: pulled towards a good rollout, pushed away from a bad one (AFD Eq. 4, in clean-latent space).

    Two regressions onto the same target share the weight. The first moves the old estimate by beta towards the
    new one, the second by beta the other way, so at reward 1/2 their gradients cancel at the old estimate, and the
    least is at old + (2 reward - 1) / beta * (target - old).

    Args:
        reward: for the leading axes of the estimates; errors are means over the others.
        normaliser: ``lagged`` divides both errors by the mean distance of the old estimate to the target, which
            leaves the least where it is; ``own`` divides each by its own, as DiffusionNFT does: then nothing holds the
            estimate back along target - old, and the least is at 1 / beta either way, however small the reward.
    """
    axes = tuple(range(reward.ndim, target.ndim))
    toward = (1 - beta) * clean_old + beta * clean - target
    away = (1 + beta) * clean_old - beta * clean - target
    good, bad = (difference.square().mean(axes) for difference in (toward, away))
    if normaliser is not None:
        sizes = (toward, away) if normaliser == "own" else (clean_old - target,) * 2
        good, bad = (error / _size(one, axes) for error, one in zip((good, bad), sizes, strict=True))
    return (reward * good + (1 - reward) * bad) / beta


def _size(difference: Tensor, axes: tuple[int, ...]) -> Tensor:
    return difference.detach().abs().mean(axes).clamp_min(1e-5)


class AdversarialFlowDistillation:
    """AFD with two players, ``discriminator`` and then ``student``.

    Rollouts are made by the lagged student, few steps, chunk by chunk, each on its own clean past. The update looks
    at all chunks of a rollout in one pass, each at one of the sampler's own noise levels, given the clean chunks
    before it. ``policies`` holds the student of now, the lagged one and the start; after training with adapters,
    ``policies.merged()`` makes the student an ordinary one again.

    Args:
        compare: how scores of shape (prompts, rollouts), or (prompts, rollouts, chunks) with a credit by chunk,
            become advantages of one of these shapes; controls of an experiment give another.

    Raises:
        ModuleNotFoundError: adapters were asked for, and peft is not installed.
        ValueError: adapters were asked for, and the network has some already or no layer that can be adapted; or the
            first chunk is spared and there is no other.
    """

    def __init__(
        self,
        student: Student,
        discriminator: nn.Module,
        config: AfdConfig,
        *,
        compare: Callable[[Tensor], Tensor] = advantages,
    ) -> None:
        if config.spare_first_chunk and student.latent_shape[0] <= student.network.chunk_frames:
            raise ValueError(
                f"clips of {student.latent_shape[0]} latent frames are one chunk, and spare_first_chunk would leave "
                "nothing to learn from; make longer clips, or leave it out"
            )
        self.student, self.config, self.compare = student, config, compare
        self.adversary = Adversary(student, discriminator, config.adversary)
        if config.credit == "chunk":
            self.adversary.require_chunk_scores()
        self._spread = 0.0  # of the turn's scores within their prompts, before they are compared
        self.policies: Policies = build_policies(student.network, config.lora, keep_start=config.needs_start)

    @property
    def players(self) -> tuple[Player, ...]:
        """The discriminator moves first, so that the student is judged by the newest one."""
        student = student_player(self.policies.trained, self.config)
        judges = (replace(judge, moves=lambda turn: not self._frozen(turn)) for judge in self.adversary.players)
        return (*judges, student)

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """The lagged student, the start where it is a copy, and what the discriminator's side remembers."""
        return {**self.adversary.memory, **self.policies.memory}

    def begin(self, batch: PromptGroup, step: int, generator: torch.Generator) -> Trial:
        """Roll out the lagged student on the teacher's prompts."""
        maker = self.policies.old if self.config.rollouts == "old" else self.policies.start
        with maker() as network:
            made = self.adversary.roll_out(network, batch, generator)
        return Trial(made, step < self.config.warmup_turns, self._frozen(step))

    def micro_batches(self, player: str, turn: Trial, generator: torch.Generator) -> Sequence[Comparison | Verdict]:
        """Pairs for the discriminator; judged and noised rollouts for the student."""
        if player == "discriminator":
            return [] if turn.frozen else self.adversary.micro_batches(player, turn.round, generator)
        return [] if turn.warming_up else self._verdicts(turn.round, generator)

    def loss(self, player: str, micro: Comparison | Verdict) -> Loss:
        """Bradley-Terry for the discriminator, the negative-aware flow loss for the student."""
        if isinstance(micro, Comparison):
            return self.adversary.loss(player, micro)
        return self._student_loss(micro)

    def end(self, turn: Trial, step: int) -> Mapping[str, float]:
        """Let the lagged student follow, and the discriminator's average where there is one."""
        metrics = {} if turn.frozen else dict(self.adversary.end(turn.round, step))
        if turn.warming_up:
            return metrics
        updates = step + 1 - self.config.warmup_turns
        metrics["score_spread"] = self._spread
        return {**metrics, "distance_to_old": self.policies.follow(self.config.old.at(updates))}

    def _verdicts(self, turn: Round, generator: torch.Generator) -> list[Verdict]:
        """Score, compare within the prompt, noise, cut into micro batches in random order."""
        parts = renoised(
            turn,
            self._rewards(turn, generator),
            sampling=self.adversary.sampling,
            chunk_frames=self.student.network.chunk_frames,
            micro_batch=self.config.micro_batch,
            generator=generator,
        )
        if self.config.anchor == 0:
            return [Verdict(**vars(part)) for part in parts]
        whose = repeated(turn.group.prompts, turn.group.latents_PMFCHW.shape[1])
        clips = Examples(turn.group.latents_PMFCHW.flatten(0, 1), whose)
        dealt = torch.randperm(len(whose), generator=generator).tensor_split(len(parts))
        return [
            self._anchored(part, clips[rows.tolist()], len(rows) * len(parts) / len(whose), generator)
            for part, rows in zip(parts, dealt, strict=True)
        ]

    def _anchored(self, part: Renoised, clips: Examples, share: float, generator: torch.Generator) -> Verdict:
        """Judged rollouts with some of the teacher's clips beside them, noised; there may be too few for every part."""
        anchor = noised_examples(self.student, clips, generator) if clips.prompts else None
        return Verdict(**vars(part), anchor=anchor, anchor_share=share)

    def _frozen(self, turn: int) -> bool:
        """Whether the discriminator rests."""
        return self.config.freeze_after is not None and turn >= self.config.freeze_after

    def _rewards(self, turn: Round, generator: torch.Generator) -> Tensor:
        """``reward_BK`` of the rollouts: one column for whole rollouts, or one for each chunk."""
        judge = self.adversary.chunk_scores if self.config.credit == "chunk" else self.adversary.scores
        score, rollouts = judge(turn, generator), tuple(turn.rollouts_PKFCHW.shape[:2])
        if self.config.spare_first_chunk and score.ndim == 3:
            score = score[:, :, 1:]  # so that the others' rewards have a mean of 1/2
        self._spread = float(spread_within_prompts(score))
        advantage, chunks = self.compare(score), score.shape[2] if score.ndim == 3 else self._chunks(turn)
        if tuple(advantage.shape) not in (rollouts, (*rollouts, chunks)):
            raise ValueError(
                f"compare gave advantages of shape {tuple(advantage.shape)}; it must give one for each rollout, "
                f"{rollouts}, or one for each of their {chunks} chunks"
            )
        clip = self.config.advantage_clip
        if self.config.reward_map == "min_max":
            reward = min_max_rewards(advantage, clip=clip)
        else:
            reward = rewards(advantage, clip=clip, slope=self.config.reward_slope)
        reward_BK = reward.reshape(len(turn.prompts), -1)
        return _first_spared(reward_BK, self._chunks(turn)) if self.config.spare_first_chunk else reward_BK

    def _chunks(self, turn: Round) -> int:
        return turn.rollouts_PKFCHW.shape[2] // self.student.network.chunk_frames

    def _student_loss(self, verdict: Verdict) -> Loss:
        x_t, t_BF = verdict.x_t, verdict.t_BF
        asked = (x_t, verdict.t_BK, x_t if self.config.context == "noisy" else verdict.rollouts_BFCHW)
        velocity_start = None
        with torch.no_grad():  # before the pass with a graph: its activations and theirs are never held together
            text_BLD = self.student.encode_prompts(verdict.prompts)
            with self.policies.old() as network:
                velocity_old = _velocity(network, text_BLD, *asked)
            if self.config.prior > 0:
                with self.policies.start() as network:
                    velocity_start = _velocity(network, text_BLD, *asked)
        with self.policies.student() as network:
            velocity = _velocity(network, text_BLD, *asked)
        estimates = (clean_from_velocity(x_t, velocity, t_BF), clean_from_velocity(x_t, velocity_old, t_BF))
        loss = self._errors(*estimates, verdict).mean()
        metrics = {"reward": verdict.worth_BC.mean(), "reward_spread": verdict.worth_BC.std(correction=0)}
        if velocity_start is not None:
            drift = (velocity - velocity_start).square().mean()
            loss, metrics["drift_from_start"] = loss + self.config.prior * drift, drift.detach()
        if verdict.anchor is not None:
            floor = self.config.full_weight_from
            with self.policies.student():
                taught = flow_loss(self.student, verdict.anchor, full_weight_from=floor, text_learns=False).value
            loss, metrics["anchor"] = loss + self.config.anchor * verdict.anchor_share * taught, taught.detach()
        return Loss(loss, metrics)

    def _errors(self, clean: Tensor, clean_old: Tensor, made: Renoised) -> Tensor:
        """One for each chunk of each rollout: chunks have noise levels, and so sizes, of their own."""
        chunks = clean.shape[1] // self.student.network.chunk_frames
        clean, clean_old, target = (clip.unflatten(1, (chunks, -1)) for clip in (clean, clean_old, made.rollouts_BFCHW))
        normaliser = self.config.normaliser if self.config.self_normalise else None
        reward_BK = made.worth_BC.expand(-1, chunks)
        return negative_aware_error(clean, clean_old, target, reward_BK, beta=self.config.beta, normaliser=normaliser)


def _first_spared(reward_BK: Tensor, chunks: int) -> Tensor:
    """A column for each chunk, 1/2 in the first: there the pull and the push cancel at the lagged student."""
    others_BK = reward_BK.expand(-1, chunks - 1) if reward_BK.shape[1] == 1 else reward_BK[:, 1 - chunks :]
    return torch.cat([torch.full_like(others_BK[:, :1], 0.5), others_BK], dim=1)


def _velocity(network: Network, text_BLD: Tensor, x_t: Tensor, t_BK: Tensor, context_BFCHW: Tensor) -> Tensor:
    return network.velocity_in_context(x_t, t_BK, text_BLD, context_BFCHW=context_BFCHW).float()
