"""A GAN through the rollout: the discriminator's gradient reaches the student by way of the decoded clip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.student.student import Student
from streamstill.training.batches import Examples, PromptGroup
from streamstill.training.objectives.adversary import Adversary, AdversaryConfig, Comparison, Round
from streamstill.training.objectives.flow_matching import flow_loss, noised_examples
from streamstill.training.objectives.objective import Loss, Player, student_player
from streamstill.training.objectives.regression import require_full_weight_from
from streamstill.training.objectives.rehearsal import Rehearsal, RehearsalConfig, Take
from streamstill.training.optim import OptimConfig

Kind: TypeAlias = Literal["bradley_terry", "gan"]


@dataclass(frozen=True, kw_only=True)
class RolloutGanConfig:
    """How a student learns from the discriminator's gradient."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4))
    ema_decay: float | None = None
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    rehearsal: RehearsalConfig = field(default_factory=RehearsalConfig)
    warmup_turns: int = 0  # in which only the discriminator learns
    anchor: float = 0.0  # weight of flow matching on the teacher's clips
    full_weight_from: float = 0.05  # of the anchor

    def __post_init__(self) -> None:
        if not (self.warmup_turns >= 0 and self.anchor >= 0):
            raise ValueError(f"warmup_turns and anchor must not be negative, got {self}")
        require_full_weight_from(self.full_weight_from)


@dataclass(frozen=True, eq=False)
class GanTurn:
    """The prompts with the teacher's answers, the rollouts that the discriminator learns from, and who rests."""

    group: PromptGroup
    round: Round
    warming_up: bool


def student_loss(student_score_B: Tensor, teacher_score_B: Tensor, kind: Kind) -> Tensor:
    """What the student minimises: paired, -log P(its clip is preferred to the teacher's); or -log P(it is real).

    The first is Bradley-Terry with the roles exchanged (the relativistic GAN), the second the non-saturating GAN.
    """
    return -F.logsigmoid(student_score_B - teacher_score_B if kind == "bradley_terry" else student_score_B).mean()


def adversarial_loss(adversary: Adversary, clean_BFCHW: Tensor, take: Take) -> Loss:
    """The student's loss of clips that have a gradient: decoded, blindfolded and judged beside the teacher's."""
    assert take.teacher_BFCHW is not None, "the discriminator has been shown the teacher's clips before"
    dice = take.dice
    student_B = adversary.clip_scores(clean_BFCHW, take.prompts, dice)
    with torch.no_grad():
        teacher_B = adversary.clip_scores(take.teacher_BFCHW, take.prompts, dice)
    loss = student_loss(student_B, teacher_B, adversary.config.loss)
    return Loss(loss, {"adversarial": loss.detach(), "fooled": (student_B > teacher_B).float().mean()})


class RolloutGan:
    """The direct GAN; players ``discriminator``, then ``student``.

    Both look at truncated rollouts, so the discriminator judges what the student is made to improve. How the paper on
    AFD adapted its GAN baseline was not found; the truncation, the anchor and the numbers are ours.
    """

    def __init__(self, student: Student, discriminator: nn.Module, config: RolloutGanConfig) -> None:
        self.student, self.config = student, config
        self.adversary = Adversary(student, discriminator, config.adversary)
        self.rehearsal = Rehearsal(student, config.rehearsal)

    @property
    def players(self) -> tuple[Player, ...]:
        """The discriminator moves first, so that the student is judged by the newest one."""
        return (*self.adversary.players, student_player(self.student.network, self.config))

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """What the adversary remembers."""
        return self.adversary.memory

    def begin(self, batch: PromptGroup, step: int, generator: torch.Generator) -> GanTurn:
        """Truncated rollouts of the student as it is, for the discriminator."""
        made = self.rehearsal.round(batch, self.config.adversary.rollouts_per_prompt, generator)
        return GanTurn(batch, made, step < self.config.warmup_turns)

    def micro_batches(self, player: str, turn: GanTurn, generator: torch.Generator) -> Sequence[Comparison | Take]:
        """Pairs for the discriminator; rollouts to be made for the student."""
        if player == "discriminator":
            return self.adversary.micro_batches(player, turn.round, generator)
        if turn.warming_up:
            return []
        return self.rehearsal.takes(turn.group, self.config.adversary.rollouts_per_prompt, generator)

    def loss(self, player: str, micro: Comparison | Take) -> Loss:
        """The discriminator's own; the student's by the rollout, and the anchor."""
        if isinstance(micro, Comparison):
            return self.adversary.loss(player, micro)
        fooling = adversarial_loss(self.adversary, self.rehearsal.perform(micro), micro)
        if self.config.anchor == 0:
            return fooling
        anchor = self._anchor(micro)
        return Loss(fooling.value + self.config.anchor * anchor, {**fooling.metrics, "anchor": anchor.detach()})

    def end(self, turn: GanTurn, step: int) -> Mapping[str, float]:
        """Let the adversary finish its turn."""
        return self.adversary.end(turn.round, step)

    def _anchor(self, take: Take) -> Tensor:
        """Causal flow matching on the teacher's clips of the take."""
        assert take.teacher_BFCHW is not None, "adversarial_loss has asked for it"
        micro = noised_examples(self.student, Examples(take.teacher_BFCHW, take.prompts), take.dice)
        return flow_loss(self.student, micro, full_weight_from=self.config.full_weight_from, text_learns=False).value
