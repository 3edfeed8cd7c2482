"""Scores of whole clips: what distribution matching asks of a real and of a fake one, and one fitted to clips."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from streamstill.config import require_positive
from streamstill.flow.guidance import guided
from streamstill.flow.path import noised
from streamstill.flow.times import training_times
from streamstill.student.student import Student
from streamstill.training.batches import Examples
from streamstill.training.objectives.objective import Loss, Player
from streamstill.training.objectives.regression import (
    require_dropout,
    require_full_weight_from,
    shown_text,
    velocity_loss,
)
from streamstill.training.optim import OptimConfig


class RealScore(Protocol):
    """Whoever knows the velocity of a noised whole clip: a student that sees both ways, or an open teacher."""

    def velocity(self, x_t_BFCHW: Tensor, t_B: Tensor, prompts: Sequence[str]) -> Tensor:
        """The velocity of clips in the student's latents, at a time for each, given a prompt for each."""
        ...


class FakeScore(RealScore, Protocol):
    """A score that learns what the student makes."""

    @property
    def module(self) -> nn.Module:
        """What learns."""
        ...


class StudentScore:
    """A student's network that looks at whole clips at once, with its own text encoder; one fits both scores.

    Args:
        guidance: scale of classifier-free guidance; 1 is none. It needs a network that learnt without prompts too.
    """

    def __init__(self, student: Student, *, guidance: float = 1.0) -> None:
        self.student, self.guidance = student, guidance

    @property
    def module(self) -> nn.Module:
        """The network; the text encoder does not learn."""
        return self.student.network

    def velocity(self, x_t_BFCHW: Tensor, t_B: Tensor, prompts: Sequence[str]) -> Tensor:
        """The bidirectional velocity of the clips, guided.

        Raises:
            ValueError: the latents are not the network's, or guidance is no finite number.
        """
        if x_t_BFCHW.shape[2:] != self.student.latent_shape[1:]:
            raise ValueError(
                f"this score is of latents of {tuple(self.student.latent_shape[1:])}, "
                f"the clips have {tuple(x_t_BFCHW.shape[2:])}; use one codec and size for the student and its scores"
            )
        with torch.no_grad():
            text_BLD = self.student.encode_prompts(prompts)
            nothing_BLD = self.student.encode_nothing(len(prompts))

        def given(text: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
            return self.student.network.velocity_bidirectional(x_t, t, text)

        velocity_fn = guided(
            lambda x_t, t: given(text_BLD, x_t, t), lambda x_t, t: given(nothing_BLD, x_t, t), self.guidance
        )
        return velocity_fn(x_t_BFCHW, t_B)


def fake_score(student: Student) -> StudentScore:
    """A copy that can learn: of the student, or, as is usual, of the network behind the real score."""
    return StudentScore(deepcopy(student).requires_grad_(True))


@dataclass(frozen=True, eq=False)
class NoisedClips:
    """Clean whole clips with their noise, a time for each, and whose prompt is hidden."""

    clean_BFCHW: Tensor
    noise_BFCHW: Tensor
    t_B: Tensor
    prompts: tuple[str, ...]
    hidden_B: Tensor

    @property
    def x_t(self) -> Tensor:
        """The noised clips."""
        return noised(self.clean_BFCHW, self.noise_BFCHW, self.t_B)


def noised_clips(
    clean_BFCHW: Tensor, prompts: tuple[str, ...], *, shift: float, hidden: float, generator: torch.Generator
) -> NoisedClips:
    """Every clip at a time of its own, a share ``hidden`` of them without its prompt."""
    batch = len(prompts)
    return NoisedClips(
        clean_BFCHW=clean_BFCHW,
        noise_BFCHW=torch.randn(clean_BFCHW.shape, generator=generator).to(clean_BFCHW),
        t_B=training_times((batch,), shift=shift, generator=generator).to(clean_BFCHW),
        prompts=prompts,
        hidden_B=(torch.rand(batch, generator=generator) < hidden).to(clean_BFCHW.device),
    )


@dataclass(frozen=True, kw_only=True)
class ScoreFitConfig:
    """How a score learns the teacher's clips."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1.5e-3))
    ema_decay: float | None = None
    micro_batch: int = 8
    full_weight_from: float = 0.05  # below this time an error of the clean estimate weighs no more than at it
    prompt_dropout: float = 0.1  # share of clips whose prompt is hidden, so that the score can be guided

    def __post_init__(self) -> None:
        require_positive(self, "micro_batch")
        require_full_weight_from(self.full_weight_from)
        require_dropout(self.prompt_dropout)


class ScoreFit:
    """Flow matching of a bidirectional network on the teacher's clips; one player, ``score``.

    With a teacher that shows nothing but clips, this is where the real score of ``SelfForcing`` comes from: fit
    one, wrap it in ``StudentScore``. What the paper on AFD did for its DMD baseline was not found; this is ours.
    """

    def __init__(self, student: Student, config: ScoreFitConfig) -> None:
        self.student, self.config = student, config

    @property
    def players(self) -> tuple[Player, ...]:
        """The whole student that serves as score, text encoder included."""
        return (Player(name="score", module=self.student, optim=self.config.optim, ema_decay=self.config.ema_decay),)

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """Nothing but the player itself must survive."""
        return {}

    def begin(self, batch: Examples, step: int, generator: torch.Generator) -> Examples:
        """The batch as it is."""
        return batch

    def micro_batches(self, player: str, turn: Examples, generator: torch.Generator) -> Sequence[NoisedClips]:
        """The batch in parts, noised."""
        shift = self.student.config.sampling.shift
        return [
            noised_clips(
                part.latents_BFCHW, part.prompts, shift=shift, hidden=self.config.prompt_dropout, generator=generator
            )
            for part in turn.split(self.config.micro_batch)
        ]

    def loss(self, player: str, micro: NoisedClips) -> Loss:
        """Mean squared error of the velocity; also logs the error of the clean estimate."""
        text_BLD = shown_text(self.student, micro.prompts, micro.hidden_B)
        velocity = self.student.network.velocity_bidirectional(micro.x_t, micro.t_B, text_BLD)
        weight = self.config.full_weight_from
        return velocity_loss(velocity, micro.clean_BFCHW, micro.noise_BFCHW, micro.t_B, full_weight_from=weight)

    def end(self, turn: Examples, step: int) -> Mapping[str, float]:
        """Nothing to do after a step."""
        return {}
