"""A causal autoencoder learns to give back the clips it was shown; no pretrained network has a say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from streamstill.codec.learned import LearnedCodec
from streamstill.config import require_positive
from streamstill.training.batches import pieces
from streamstill.training.crops import PixelClips
from streamstill.training.objectives.objective import Loss, Player
from streamstill.training.objectives.reconstruction import Reconstruction, ReconstructionConfig
from streamstill.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class AutoencodingConfig:
    """How a codec learns.

    Args:
        noise: standard deviation of the noise that latents meet on their way to the decoder, which then forgives a
            student's small errors.
        latent_weight: of the mean squared latent, which keeps latents from growing out of the noise. The two are the
            KL term of a VAE whose posterior variance is fixed.
    """

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, warmup_steps=30, decay="cosine", final_fraction=0.02)
    )
    ema_decay: float | None = 0.99
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    noise: float = 0.02
    latent_weight: float = 1e-3
    micro_batch: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "micro_batch")
        if min(self.noise, self.latent_weight) < 0:
            raise ValueError(f"noise and latent_weight must not be negative, got {self.noise} and {self.latent_weight}")


@dataclass(frozen=True, eq=False)
class Shown:
    """Clips to give back, and the noise that their latents will meet."""

    clips: PixelClips
    noise_BFCHW: Tensor
    step: int


class Autoencoding:
    """Players ``codec``, and before it ``discriminator`` where the reconstruction has a weight for one."""

    def __init__(self, codec: LearnedCodec, config: AutoencodingConfig, discriminator: nn.Module | None = None) -> None:
        self.codec, self.config = codec, config
        self.reconstruction = Reconstruction(config.reconstruction, discriminator)

    @property
    def players(self) -> tuple[Player, ...]:
        """The discriminator moves first, so that the codec is judged by the newest one."""
        config = self.config
        codec = Player(name="codec", module=self.codec, optim=config.optim, ema_decay=config.ema_decay)
        return (*self.reconstruction.players, codec)

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """Nothing but the players themselves must survive."""
        return {}

    def begin(self, batch: PixelClips, step: int, generator: torch.Generator) -> tuple[PixelClips, int]:
        """The batch as it is, and which step it is of."""
        return batch, step

    def micro_batches(self, player: str, turn: tuple[PixelClips, int], generator: torch.Generator) -> Sequence[Shown]:
        """The batch in parts, each with its noise."""
        clips, step = turn
        rows = pieces(len(clips.prompts), self.config.micro_batch)
        return [self._shown(clips[some], step, generator) for some in rows]

    def loss(self, player: str, micro: Shown) -> Loss:
        """Of the codec: its reconstruction and the size of its latents; also logs their standard deviation."""
        wanted, prompts = micro.clips.pixels_BFCHW, micro.clips.prompts
        if player == "discriminator":
            with torch.no_grad():
                made, _ = self._given_back(micro)
            return self.reconstruction.discriminator_loss(made, wanted, prompts)
        made, latents = self._given_back(micro)
        found = self.reconstruction.loss(made, wanted, prompts, step=micro.step)
        value = found.value + self.config.latent_weight * latents.float().square().mean()
        return Loss(value, {**found.metrics, "latent_std": latents.detach().float().std()})

    def end(self, turn: tuple[PixelClips, int], step: int) -> Mapping[str, float]:
        """Nothing to do after a step."""
        return {}

    def _given_back(self, micro: Shown) -> tuple[Tensor, Tensor]:
        latents = self.codec.encode(micro.clips.pixels_BFCHW)
        made, _ = self.codec.decode(latents + self.config.noise * micro.noise_BFCHW)
        return made, latents

    def _shown(self, clips: PixelClips, step: int, generator: torch.Generator) -> Shown:
        batch, frames, _, height, width = clips.pixels_BFCHW.shape
        f, h, w = (n // per for n, per in zip((frames, height, width), self.codec.compression, strict=True))
        noise = torch.randn(batch, f, self.codec.latent_channels, h, w, generator=generator)
        return Shown(clips, noise.to(clips.pixels_BFCHW), step)
