"""How near made pixels are to wanted ones, in ways that need no pretrained network, and a discriminator if wanted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamstill.training.discriminators.losses import bradley_terry_loss
from streamstill.training.objectives.gan import student_loss
from streamstill.training.objectives.objective import Loss, Player
from streamstill.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Weights of the terms.

    Args:
        pixel: of the error itself.
        pyramid: of the error of pictures shrunk by 2, 4, ..., ``levels`` times: soft errors weigh more.
        temporal: of the error of the change from frame to frame: what flickers weighs more.
        adversarial: of fooling a discriminator; 0 trains none.
        adversarial_from: the step at which it begins to count; the discriminator learns from the start.
    """

    pixel: float = 1.0
    pyramid: float = 1.0
    levels: int = 3
    temporal: float = 0.5
    adversarial: float = 0.0
    adversarial_from: int = 0
    discriminator: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-4, weight_decay=0.01))

    def __post_init__(self) -> None:
        weights = (self.pixel, self.pyramid, self.temporal, self.adversarial)
        if min(weights) < 0 or self.pixel + self.pyramid == 0:
            raise ValueError(f"weights must not be negative, and pixel or pyramid must be positive, got {self}")
        if min(self.levels, self.adversarial_from) < 0:
            raise ValueError(f"levels and adversarial_from must not be negative, got {self}")


def charbonnier(error: Tensor, *, soft: float = 0.01) -> Tensor:
    """Mean of ``sqrt(e^2 + soft^2) - soft``: the absolute error, rounded off below ``soft``; 0 for no error."""
    return ((error.square() + soft**2).sqrt() - soft).mean()


def reconstruction_terms(made_BFCHW: Tensor, wanted_BFCHW: Tensor, *, levels: int) -> dict[str, Tensor]:
    """The Charbonnier errors ``pixel``, ``pyramid`` (mean over levels) and ``temporal``; a still has no last one.

    Shrinking and differences are linear, so they are taken of the error. Levels for which a picture is too small are
    left out.
    """
    error_BFCHW = made_BFCHW.float() - wanted_BFCHW.float()
    terms = {"pixel": charbonnier(error_BFCHW)}
    shrunk, found = error_BFCHW.flatten(0, 1), []
    for _ in range(levels):
        if min(shrunk.shape[-2:]) < 2:
            break
        shrunk = F.avg_pool2d(shrunk, 2)
        found.append(charbonnier(shrunk))
    terms["pyramid"] = torch.stack(found).mean() if found else error_BFCHW.new_zeros(())
    still = error_BFCHW.shape[1] < 2
    terms["temporal"] = error_BFCHW.new_zeros(()) if still else charbonnier(error_BFCHW.diff(dim=1))
    return terms


class Reconstruction:
    """The loss of who makes pixels and that of the discriminator; a part of the objectives that train decoders.

    Raises:
        ValueError: there is a weight for a discriminator and none is given, or the other way round.
    """

    def __init__(self, config: ReconstructionConfig, discriminator: nn.Module | None = None) -> None:
        if (config.adversarial > 0) != (discriminator is not None):
            raise ValueError(
                f"adversarial is {config.adversarial} and "
                f"{'a' if discriminator is not None else 'no'} discriminator is given; give one with a weight, or none"
            )
        self.config, self.discriminator = config, discriminator

    @property
    def players(self) -> tuple[Player, ...]:
        """The discriminator, if there is one; it moves before who makes pixels."""
        if self.discriminator is None:
            return ()
        return (Player(name="discriminator", module=self.discriminator, optim=self.config.discriminator),)

    def loss(self, made_BFCHW: Tensor, wanted_BFCHW: Tensor, prompts: Sequence[str], *, step: int) -> Loss:
        """The weighted terms; also logs PSNR (dB, of all pixels of the batch, a peak of 2)."""
        config = self.config
        terms = reconstruction_terms(made_BFCHW, wanted_BFCHW, levels=config.levels)
        value = sum((getattr(config, name) * term for name, term in terms.items()), made_BFCHW.new_zeros(()))
        if self.discriminator is not None and step >= config.adversarial_from:
            terms["adversarial"] = self._fooling(made_BFCHW, wanted_BFCHW, prompts)
            value = value + config.adversarial * terms["adversarial"]
        metrics: dict[str, float | Tensor] = {name: term.detach() for name, term in terms.items()}
        return Loss(value, {**metrics, "psnr": _psnr(made_BFCHW.detach(), wanted_BFCHW)})

    def discriminator_loss(self, made_BFCHW: Tensor, wanted_BFCHW: Tensor, prompts: Sequence[str]) -> Loss:
        """Bradley-Terry between each wanted clip and what was made of it."""
        assert self.discriminator is not None, "only a player asks for its loss"
        wanted_B = self.discriminator(wanted_BFCHW, prompts).float()
        made_B = self.discriminator(made_BFCHW, prompts).float()
        return Loss(bradley_terry_loss(wanted_B, made_B), {"told_apart": (wanted_B > made_B).float().mean()})

    def _fooling(self, made_BFCHW: Tensor, wanted_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        assert self.discriminator is not None
        with torch.no_grad():
            wanted_B = self.discriminator(wanted_BFCHW, prompts).float()
        return student_loss(self.discriminator(made_BFCHW, prompts).float(), wanted_B, "bradley_terry")


def _psnr(made_BFCHW: Tensor, wanted_BFCHW: Tensor) -> Tensor:
    error = (made_BFCHW.clamp(-1, 1).float() - wanted_BFCHW).square().mean()
    return 10 * torch.log10(4 / error.clamp_min(1e-12))
