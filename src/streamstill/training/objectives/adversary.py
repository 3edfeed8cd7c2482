"""The discriminator's side of AFD: rollouts beside the teacher's clips for the same prompts, and who is who."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from streamstill.streaming.rollout import rollout
from streamstill.student.network import Network
from streamstill.student.student import Student
from streamstill.training.batches import PromptGroup
from streamstill.training.discriminator import Blindfold, bradley_terry_loss
from streamstill.training.objectives.objective import Loss, Player
from streamstill.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig:
    """How the discriminator learns and what it may see."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.01))
    steps_per_turn: int = 2
    rollouts_per_prompt: int = 16
    blindfold: Blindfold = field(default_factory=Blindfold)

    def __post_init__(self) -> None:
        if self.rollouts_per_prompt < 2:
            raise ValueError(
                f"rollouts_per_prompt is {self.rollouts_per_prompt}, it must be at least 2: "
                "a rollout is judged against the others of its prompt"
            )


@dataclass(frozen=True, eq=False)
class Round:
    """One turn: the student's clean rollouts beside the teacher's clips, for the same prompts."""

    group: PromptGroup
    rollouts_PKFCHW: Tensor

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each rollout, in the order of the flattened rollouts."""
        count = self.rollouts_PKFCHW.shape[1]
        return tuple(prompt for prompt in self.group.prompts for _ in range(count))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Pairs of blindfolded clips, teacher and student, one prompt each."""

    teacher_BFCHW: Tensor
    student_BFCHW: Tensor
    prompts: tuple[str, ...]


class Adversary:
    """A discriminator that learns to tell the student of now from the teacher; one player, ``discriminator``.

    An objective by itself (the discriminator's warm-up), and a part of AFD.
    """

    def __init__(self, student: Student, discriminator: nn.Module, config: AdversaryConfig) -> None:
        self.student, self.discriminator, self.config = student, discriminator, config
        self.sampling = student.config.sampling

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
        """Nothing but the player itself must survive."""
        return {}

    def begin(self, batch: PromptGroup, step: int, generator: torch.Generator) -> Round:
        """Rollouts of the student as it is."""
        return self.roll_out(self.student.network, batch, generator)

    def micro_batches(self, player: str, turn: Round, generator: torch.Generator) -> Sequence[Comparison]:
        """As many pairs as rollouts; the teacher's answers are dealt out evenly within their prompt."""
        count = turn.rollouts_PKFCHW.shape[1]
        answers = turn.group.latents_PMFCHW.shape[1]
        dealt = [clips[torch.randperm(count, generator=generator) % answers] for clips in turn.group.latents_PMFCHW]
        teacher = self.seen(torch.cat(dealt), generator)
        return [Comparison(teacher, self.seen(turn.rollouts_PKFCHW.flatten(0, 1), generator), turn.prompts)]

    def loss(self, player: str, micro: Comparison) -> Loss:
        """Bradley-Terry over the pairs (AFD Eq. 1)."""
        teacher_B = self.discriminator(micro.teacher_BFCHW, micro.prompts)
        student_B = self.discriminator(micro.student_BFCHW, micro.prompts)
        margin_B = (teacher_B - student_B).detach()
        metrics = {"pair_accuracy": (margin_B > 0).float().mean(), "margin": margin_B.mean()}
        return Loss(bradley_terry_loss(teacher_B, student_B), metrics)

    def end(self, turn: Round, step: int) -> Mapping[str, float]:
        """Nothing to do after a turn."""
        return {}

    @torch.no_grad()
    def roll_out(self, network: Network, group: PromptGroup, generator: torch.Generator) -> Round:
        """Clean rollouts of ``network``, several for each of the group's prompts."""
        count = self.config.rollouts_per_prompt
        text_PLD = self.student.encode_prompts(group.prompts)
        made = rollout(
            network,
            text_PLD.repeat_interleave(count, dim=0),
            frames=group.latents_PMFCHW.shape[2],
            latent_shape=self.student.latent_shape[1:],
            sampling=self.sampling,
            generator=generator,
        )
        return Round(group, made.unflatten(0, (-1, count)))

    @torch.no_grad()
    def scores(self, turn: Round, generator: torch.Generator) -> Tensor:
        """``score_PK`` of the rollouts: higher looks more like the teacher."""
        rollouts_BFCHW = turn.rollouts_PKFCHW.flatten(0, 1)
        score_B = self.discriminator(self.seen(rollouts_BFCHW, generator), turn.prompts)
        return score_B.detach().float().unflatten(0, turn.rollouts_PKFCHW.shape[:2])

    def seen(self, latents_BFCHW: Tensor, generator: torch.Generator) -> Tensor:
        """What the discriminator sees of clean latents: decoded pixels, clipped as a screen would, blindfolded."""
        pixels, _ = self.student.codec.decode(latents_BFCHW.float())
        return self.config.blindfold(pixels.clamp(-1, 1), generator)
