"""AFD, Adversarial Flow Distillation: a teacher that only shows finished clips teaches by comparison.

Teacher and student answer the same prompts; a discriminator tells them apart (Eq. 1); its score, compared within
a prompt's own rollouts (Eq. 2), says of each rollout whether to move towards or away from it, everywhere on the
path from noise to that rollout (Eqs. 3-4). Where the paper is silent the choices are in docs/papers.md.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from streamstill.config import require_positive
from streamstill.flow.path import clean_from_velocity, noised
from streamstill.flow.times import random_levels
from streamstill.student.network import Network
from streamstill.student.student import Student
from streamstill.training.batches import PromptGroup
from streamstill.training.objectives.adversary import Adversary, AdversaryConfig, Comparison, Round
from streamstill.training.objectives.objective import Loss, Player
from streamstill.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class AfdConfig:
    """Every number of AFD."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4))
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    warmup_turns: int = 0  # in which only the discriminator learns
    beta: float = 1.0  # how far the old velocity is pushed to either side (Eq. 4)
    advantage_clip: float = 5.0  # in global standard deviations
    reward_slope: float = 0.25  # reward = 1/2 + slope * advantage, kept within [0, 1]
    old_decay: float = 0.5  # old <- decay * old + (1 - decay) * student after every update
    prior: float = 0.0  # weight of |velocity - velocity of the start|^2 (Eq. 5)
    self_normalise: bool = False  # divide each error by its own size, as DiffusionNFT does
    micro_batch: int = 32

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be positive, got {self.beta}; the usual values are 0.1 and 1")
        if not 0 <= self.old_decay < 1:
            raise ValueError(f"old_decay must lie in [0, 1), got {self.old_decay}; 0 copies the student every time")
        require_positive(self, "micro_batch")


@dataclass(frozen=True, eq=False)
class Verdict:
    """Rollouts with the reward of each, noised once for every chunk."""

    rollouts_BFCHW: Tensor
    noise_BFCHW: Tensor
    t_BK: Tensor
    reward_B: Tensor
    prompts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Trial:
    """One turn of AFD: a round of rollouts, and whether the student rests."""

    round: Round
    warming_up: bool


def advantages(score_PK: Tensor) -> Tensor:
    """Scores relative to the mean of their own prompt, in units of one global standard deviation (AFD Eq. 2).

    The Bradley-Terry score has an unknown constant per prompt; the prompt's own mean removes it exactly.
    """
    centred_PK = score_PK - score_PK.mean(dim=1, keepdim=True)
    return centred_PK / (centred_PK.square().mean().sqrt() + 1e-4)


def rewards(advantage: Tensor, *, clip: float, slope: float) -> Tensor:
    """Advantages as rewards in [0, 1], with no advantage at 1/2."""
    return (0.5 + slope * advantage.clamp(-clip, clip)).clamp(0, 1)


def negative_aware_error(
    clean: Tensor, clean_old: Tensor, target: Tensor, reward_B: Tensor, *, beta: float, self_normalise: bool
) -> Tensor:
    """Per row: pulled towards a good rollout, pushed away from a bad one (AFD Eq. 4, in clean-latent space).

    Two regressions onto the same target share the weight. The first moves the old estimate by beta towards the
    new one, the second by beta the other way, so at reward 1/2 their gradients cancel at the old estimate.
    """
    good_B = _error((1 - beta) * clean_old + beta * clean, target, self_normalise)
    bad_B = _error((1 + beta) * clean_old - beta * clean, target, self_normalise)
    return (reward_B * good_B + (1 - reward_B) * bad_B) / beta


def _error(estimate: Tensor, target: Tensor, self_normalise: bool) -> Tensor:
    difference, axes = estimate - target, tuple(range(1, estimate.ndim))
    error_B = difference.square().mean(axes)
    if not self_normalise:
        return error_B
    return error_B / difference.detach().abs().mean(axes).clamp_min(1e-5)


class AdversarialFlowDistillation:
    """AFD with two players, ``discriminator`` and then ``student``.

    Rollouts are made by the lagged copy ``old``, few steps, chunk by chunk, each on its own clean past. The update
    looks at all chunks of a rollout in one pass, each at one of the sampler's own noise levels, given the clean
    chunks before it.

    Args:
        compare: how scores of shape (prompts, rollouts) become advantages; controls of an experiment give another.
    """

    def __init__(
        self,
        student: Student,
        discriminator: nn.Module,
        config: AfdConfig,
        *,
        compare: Callable[[Tensor], Tensor] = advantages,
    ) -> None:
        self.student, self.config, self.compare = student, config, compare
        self.adversary = Adversary(student, discriminator, config.adversary)
        self.old = _frozen_copy(student.network)
        self.start = _frozen_copy(student.network)

    @property
    def players(self) -> tuple[Player, ...]:
        """The discriminator moves first, so that the student is judged by the newest one."""
        student = Player(name="student", module=self.student.network, optim=self.config.optim)
        return (*self.adversary.players, student)

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """The lagged copy and the frozen start."""
        return {"old": self.old, "start": self.start}

    def begin(self, batch: PromptGroup, step: int, generator: torch.Generator) -> Trial:
        """Roll out the lagged student on the teacher's prompts."""
        return Trial(self.adversary.roll_out(self.old, batch, generator), step < self.config.warmup_turns)

    def micro_batches(self, player: str, turn: Trial, generator: torch.Generator) -> Sequence[Comparison | Verdict]:
        """Pairs for the discriminator; judged and noised rollouts for the student."""
        if player == "discriminator":
            return self.adversary.micro_batches(player, turn.round, generator)
        return [] if turn.warming_up else self._verdicts(turn.round, generator)

    def loss(self, player: str, micro: Comparison | Verdict) -> Loss:
        """Bradley-Terry for the discriminator, the negative-aware flow loss for the student."""
        if isinstance(micro, Comparison):
            return self.adversary.loss(player, micro)
        return self._student_loss(micro)

    @torch.no_grad()
    def end(self, turn: Trial, step: int) -> Mapping[str, float]:
        """Let the lagged copy follow."""
        if turn.warming_up:
            return {}
        moved = 0.0
        for old, new in zip(self.old.parameters(), self.student.network.parameters(), strict=True):
            moved += float((new - old).square().sum())
            old.lerp_(new, 1 - self.config.old_decay)
        return {"distance_to_old": moved**0.5}

    def _verdicts(self, turn: Round, generator: torch.Generator) -> list[Verdict]:
        """Score, compare within the prompt, noise, cut into micro batches in random order."""
        advantage_PK = self.compare(self.adversary.scores(turn, generator))
        reward_PK = rewards(advantage_PK, clip=self.config.advantage_clip, slope=self.config.reward_slope)
        reward_B, rollouts, prompts = reward_PK.flatten(), turn.rollouts_PKFCHW.flatten(0, 1), turn.prompts
        noise = torch.randn(rollouts.shape, generator=generator).to(rollouts)
        sampling, chunks = self.adversary.sampling, rollouts.shape[1] // self.student.network.chunk_frames
        t_BK = random_levels(
            (len(prompts), chunks), steps=sampling.steps, shift=sampling.shift, generator=generator
        ).to(rollouts)
        parts = torch.randperm(len(prompts), generator=generator).split(self.config.micro_batch)
        return [
            Verdict(rollouts[rows], noise[rows], t_BK[rows], reward_B[rows], tuple(prompts[i] for i in rows.tolist()))
            for rows in parts
        ]

    def _student_loss(self, verdict: Verdict) -> Loss:
        target = verdict.rollouts_BFCHW
        t_BF = verdict.t_BK.repeat_interleave(self.student.network.chunk_frames, dim=1)
        x_t = noised(target, verdict.noise_BFCHW, t_BF)
        with torch.no_grad():
            text_BLD = self.student.encode_prompts(verdict.prompts)
            velocity_old = _velocity(self.old, x_t, verdict, text_BLD)
        velocity = _velocity(self.student.network, x_t, verdict, text_BLD)
        error_B = negative_aware_error(
            clean_from_velocity(x_t, velocity, t_BF),
            clean_from_velocity(x_t, velocity_old, t_BF),
            target,
            verdict.reward_B,
            beta=self.config.beta,
            self_normalise=self.config.self_normalise,
        )
        metrics = {"reward": verdict.reward_B.mean(), "reward_spread": verdict.reward_B.std(correction=0)}
        if self.config.prior == 0:
            return Loss(error_B.mean(), metrics)
        with torch.no_grad():
            velocity_start = _velocity(self.start, x_t, verdict, text_BLD)
        drift = (velocity - velocity_start).square().mean()
        return Loss(error_B.mean() + self.config.prior * drift, {**metrics, "drift_from_start": drift.detach()})


def _velocity(network: Network, x_t: Tensor, verdict: Verdict, text_BLD: Tensor) -> Tensor:
    return network.velocity_in_context(x_t, verdict.t_BK, text_BLD, context_BFCHW=verdict.rollouts_BFCHW).float()


def _frozen_copy(network: Network) -> Network:
    return deepcopy(network).requires_grad_(False)
