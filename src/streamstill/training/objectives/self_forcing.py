"""Self-forcing: the student learns on its own truncated rollouts, judged whole by two scores (DMD).

Huang et al. 2025 (arXiv 2506.08009), Yin et al. 2024 (DMD2, arXiv 2405.14867). S2DiT's second stage bears the name, its
losses were not found: everything here is ours in its detail.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from streamstill.config import require_positive
from streamstill.flow.path import clean_from_velocity, noised
from streamstill.flow.times import training_times
from streamstill.student.student import Student
from streamstill.training.batches import PromptGroup
from streamstill.training.objectives.adversary import Adversary, Comparison, Round
from streamstill.training.objectives.gan import adversarial_loss
from streamstill.training.objectives.objective import Loss, Player, student_player
from streamstill.training.objectives.regression import require_full_weight_from, velocity_error
from streamstill.training.objectives.rehearsal import Rehearsal, RehearsalConfig, Take
from streamstill.training.objectives.score import FakeScore, NoisedClips, RealScore, StudentScore, noised_clips
from streamstill.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class SelfForcingConfig:
    """Every number of self-forcing; how many steps a chunk has is the student's own (``config.sampling``)."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4))
    fake_optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4))
    ema_decay: float | None = None
    rehearsal: RehearsalConfig = field(default_factory=RehearsalConfig)
    rollouts_per_prompt: int = 1
    fake_steps_per_turn: int = 5
    warmup_turns: int = 0  # in which the student rests
    times: tuple[float, float] = (0.02, 0.98)  # between which the two scores are compared, as in DMD
    full_weight_from: float = 0.05  # of the fake score's flow matching
    adversarial: float = 0.0  # weight of the GAN term; it needs an adversary

    def __post_init__(self) -> None:
        require_positive(self, "rollouts_per_prompt", "fake_steps_per_turn")
        if not 0 < self.times[0] < self.times[1] <= 1:
            raise ValueError(f"times must be two rising times in (0, 1], got {self.times}; the default is (0.02, 0.98)")
        require_full_weight_from(self.full_weight_from)
        if not (self.warmup_turns >= 0 and self.adversarial >= 0):
            raise ValueError(f"warmup_turns and adversarial must not be negative, got {self}")


@dataclass(frozen=True, eq=False)
class ForcingTurn:
    """The prompts, with the teacher's answers where there are any, rollouts for the discriminator, and who rests."""

    group: PromptGroup
    round: Round | None
    warming_up: bool


def matching_direction(clean: Tensor, clean_real: Tensor, clean_fake: Tensor) -> Tensor:
    """The gradient of DMD for each clip: the fake score's clean estimate minus the real one's, over mean |x - x_real|.

    DMD2's normaliser, in clean latents. It is zero where the scores agree.
    """
    size_B = (clean - clean_real).abs().mean(tuple(range(1, clean.ndim)), keepdim=True)
    return (clean_fake - clean_real) / size_B.clamp_min(1e-5)


def matching_loss(clean: Tensor, clean_real: Tensor, clean_fake: Tensor) -> Tensor:
    """A squared error whose gradient by ``clean`` is ``matching_direction`` over the number of values."""
    with torch.no_grad():
        target = clean - matching_direction(clean, clean_real, clean_fake)
    return 0.5 * (clean - target).square().mean()


class SelfForcing:
    """Distribution matching on the student's own rollouts; players ``fake``, ``discriminator`` if any, ``student``.

    Args:
        student: its network learns.
        real: the score of the clips to be matched; a guided one sharpens. It is used, not trained and not saved.
        fake: learns the student's rollouts; ``fake_score`` makes one.
        adversary: adds a GAN term of weight ``config.adversarial``. Without it a batch needs prompts only.

    Raises:
        ValueError: two of the three share parameters, or the adversary and its weight disagree.
    """

    def __init__(
        self,
        student: Student,
        real: RealScore,
        fake: FakeScore,
        config: SelfForcingConfig,
        *,
        adversary: Adversary | None = None,
    ) -> None:
        self.student, self.real, self.fake, self.config, self.adversary = student, real, fake, config, adversary
        self.rehearsal = Rehearsal(student, config.rehearsal)
        learning = {id(p) for module in (fake.module, student) for p in module.parameters()}
        if len(learning) < sum(len(list(module.parameters())) for module in (fake.module, student)):
            raise ValueError("the fake score shares parameters with the student; give it a copy: fake_score(student)")
        if isinstance(real, StudentScore) and any(id(p) in learning for p in real.student.parameters()):
            raise ValueError("the real score shares parameters with one that learns; give the others copies of it")
        if (adversary is None) != (config.adversarial == 0):
            raise ValueError(
                f"adversarial is {config.adversarial} and the adversary {'missing' if adversary is None else 'given'}; "
                "give an adversary and a positive weight, or neither"
            )

    @property
    def players(self) -> tuple[Player, ...]:
        """Those who judge move first."""
        config = self.config
        fake = Player(
            name="fake",
            module=self.fake.module,
            optim=config.fake_optim,
            steps_per_turn=config.fake_steps_per_turn,
        )
        student = student_player(self.student.network, self.config)
        return (fake, *(self.adversary.players if self.adversary else ()), student)

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """What the adversary remembers; the real score is handed in anew."""
        return self.adversary.memory if self.adversary else {}

    def begin(self, batch: PromptGroup, step: int, generator: torch.Generator) -> ForcingTurn:
        """Rollouts for the discriminator; every move of the other players makes its own."""
        made = None
        if self.adversary is not None:
            made = self.rehearsal.round(batch, self.adversary.config.rollouts_per_prompt, generator)
        return ForcingTurn(batch, made, step < self.config.warmup_turns)

    def micro_batches(
        self, player: str, turn: ForcingTurn, generator: torch.Generator
    ) -> Sequence[NoisedClips | Comparison | Take]:
        """Noised rollouts for the fake score, pairs for the discriminator, rollouts to be made for the student."""
        if self.adversary is not None and turn.round is not None and player == "discriminator":
            return self.adversary.micro_batches(player, turn.round, generator)
        if player == "student" and turn.warming_up:
            return []
        takes = self.rehearsal.takes(turn.group, self.config.rollouts_per_prompt, generator)
        return takes if player == "student" else [self._noised(take, generator) for take in takes]

    def loss(self, player: str, micro: NoisedClips | Comparison | Take) -> Loss:
        """Flow matching for the fake score, the adversary's own for the discriminator, DMD for the student."""
        if isinstance(micro, NoisedClips):
            velocity = self.fake.velocity(micro.x_t, micro.t_B, micro.prompts)
            weight = self.config.full_weight_from
            error_B = velocity_error(velocity, micro.clean_BFCHW, micro.noise_BFCHW, micro.t_B, full_weight_from=weight)
            return Loss(error_B.mean())
        if isinstance(micro, Take):
            return self._student_loss(micro)
        assert self.adversary is not None, "only it makes comparisons"
        return self.adversary.loss(player, micro)

    def end(self, turn: ForcingTurn, step: int) -> Mapping[str, float]:
        """Let the adversary finish its turn."""
        return {} if self.adversary is None or turn.round is None else self.adversary.end(turn.round, step)

    def _noised(self, take: Take, generator: torch.Generator) -> NoisedClips:
        shift = self.student.config.sampling.shift
        return noised_clips(self.rehearsal.watched([take]), take.prompts, shift=shift, hidden=0.0, generator=generator)

    def _student_loss(self, take: Take) -> Loss:
        clean = self.rehearsal.perform(take)
        clean_real, clean_fake = self._estimates(clean.detach(), take)
        loss = matching_loss(clean, clean_real, clean_fake)
        metrics = {"matching": loss.detach(), "score_gap": (clean_fake - clean_real).abs().mean()}
        if self.adversary is None:
            return Loss(loss, metrics)
        fooling = adversarial_loss(self.adversary, clean, take)
        return Loss(loss + self.config.adversarial * fooling.value, {**metrics, **fooling.metrics})

    @torch.no_grad()
    def _estimates(self, clean: Tensor, take: Take) -> tuple[Tensor, Tensor]:
        """What the real and the fake score take the clean clips for, at one random time for each."""
        dice, (low, high) = take.dice, self.config.times
        noise = torch.randn(clean.shape, generator=dice).to(clean)
        shift = self.student.config.sampling.shift
        t_B = low + (high - low) * training_times((len(clean),), shift=shift, generator=dice).to(clean)
        x_t = noised(clean, noise, t_B)
        real, fake = (score.velocity(x_t, t_B, take.prompts).float() for score in (self.real, self.fake))
        if real.shape != x_t.shape:
            raise ValueError(
                f"the real score answered with the shape {tuple(real.shape)} to clips of {tuple(x_t.shape)}; "
                "it must give the velocity of every latent"
            )
        return clean_from_velocity(x_t, real, t_B), clean_from_velocity(x_t, fake, t_B)
