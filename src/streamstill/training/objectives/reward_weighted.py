"""Reward-weighted flow matching: the student learns its own rollouts, the better the more, and nothing is pushed away.

The positive half of AFD by itself, a baseline of ours; weights as in reward-weighted regression (Peters & Schaal 2007).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from streamstill.config import require_one_of, require_positive
from streamstill.student.student import Student
from streamstill.training.batches import PromptGroup
from streamstill.training.objectives.adversary import Adversary, AdversaryConfig, Comparison, Round
from streamstill.training.objectives.afd import Trial, advantages, rewards
from streamstill.training.objectives.objective import Loss, Player, student_player
from streamstill.training.objectives.regression import require_full_weight_from, velocity_error
from streamstill.training.objectives.renoised import Renoised, renoised
from streamstill.training.optim import OptimConfig

Weighting: TypeAlias = Literal["exponential", "reward"]


@dataclass(frozen=True, kw_only=True)
class RewardWeightedConfig:
    """How rollouts are weighted and learnt."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4))
    ema_decay: float | None = None
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    warmup_turns: int = 0  # in which only the discriminator learns
    weighting: Weighting = "exponential"  # exp(advantage / temperature), or the reward of AFD in [0, 1]
    temperature: float = 1.0  # in global standard deviations
    weight_clip: float = 10.0  # of the exponential, before weights are divided by their mean
    advantage_clip: float = 5.0
    reward_slope: float = 0.25
    full_weight_from: float = 0.05  # below this time an error of the clean estimate weighs no more than at it
    micro_batch: int = 32

    def __post_init__(self) -> None:
        require_positive(self, "micro_batch")
        require_one_of(self.weighting, get_args(Weighting), "weighting")
        if not min(self.temperature, self.weight_clip, self.advantage_clip, self.reward_slope) > 0:
            raise ValueError(f"temperature, weight_clip, advantage_clip and reward_slope must be positive, got {self}")
        require_full_weight_from(self.full_weight_from)


def rollout_weights(advantage: Tensor, config: RewardWeightedConfig) -> Tensor:
    """Weights of mean 1, never negative, that rise with the advantage."""
    if config.weighting == "reward":
        weight = rewards(advantage, clip=config.advantage_clip, slope=config.reward_slope)
    else:
        weight = (advantage / config.temperature).exp().clamp_max(config.weight_clip)
    return weight / weight.mean().clamp_min(1e-6)


class RewardWeighted:
    """Flow matching on weighted rollouts of the student as it is; players ``discriminator``, then ``student``.

    Levels of noise and context are AFD's. Besides the rule, rollouts are the newest student's where AFD's are the
    lagged one's, and errors are those of the velocity where AFD's are those of the clean estimate.

    Args:
        compare: scores to advantages; ``advantages`` unless an experiment needs another.
    """

    def __init__(
        self,
        student: Student,
        discriminator: nn.Module,
        config: RewardWeightedConfig,
        *,
        compare: Callable[[Tensor], Tensor] = advantages,
    ) -> None:
        self.student, self.config, self.compare = student, config, compare
        self.adversary = Adversary(student, discriminator, config.adversary)

    @property
    def players(self) -> tuple[Player, ...]:
        """The discriminator moves first, so that the student is judged by the newest one."""
        return (*self.adversary.players, student_player(self.student.network, self.config))

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """What the adversary remembers."""
        return self.adversary.memory

    def begin(self, batch: PromptGroup, step: int, generator: torch.Generator) -> Trial:
        """Rollouts of the student as it is."""
        return Trial(self.adversary.begin(batch, step, generator), step < self.config.warmup_turns)

    def micro_batches(self, player: str, turn: Trial, generator: torch.Generator) -> Sequence[Comparison | Renoised]:
        """Pairs for the discriminator; weighted and noised rollouts for the student."""
        if player == "discriminator":
            return self.adversary.micro_batches(player, turn.round, generator)
        return [] if turn.warming_up else self._weighted(turn.round, generator)

    def loss(self, player: str, micro: Comparison | Renoised) -> Loss:
        """The adversary's own for the discriminator, weighted flow matching for the student."""
        if isinstance(micro, Comparison):
            return self.adversary.loss(player, micro)
        clean, x_t, t_BF = micro.rollouts_BFCHW, micro.x_t, micro.t_BF
        with torch.no_grad():
            text_BLD = self.student.encode_prompts(micro.prompts)
        velocity = self.student.network.velocity_in_context(x_t, micro.t_BK, text_BLD, context_BFCHW=clean)
        weight_B, floor = micro.worth_BC[:, 0], self.config.full_weight_from
        error_B = velocity_error(velocity, clean, micro.noise_BFCHW, t_BF, full_weight_from=floor)
        metrics = {"flow": error_B.detach().mean(), "weight_spread": weight_B.std(correction=0)}
        return Loss((weight_B * error_B).mean(), metrics)

    def end(self, turn: Trial, step: int) -> Mapping[str, float]:
        """Let the adversary finish its turn."""
        return self.adversary.end(turn.round, step)

    def _weighted(self, turn: Round, generator: torch.Generator) -> list[Renoised]:
        """Score, weigh, noise, cut into micro batches in random order."""
        weight_PK = rollout_weights(self.compare(self.adversary.scores(turn, generator)), self.config)
        return renoised(
            turn,
            weight_PK.reshape(-1, 1),
            sampling=self.adversary.sampling,
            chunk_frames=self.student.network.chunk_frames,
            micro_batch=self.config.micro_batch,
            generator=generator,
        )
