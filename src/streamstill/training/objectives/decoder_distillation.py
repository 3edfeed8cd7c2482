"""A light decoder learns what a full codec makes of the same latents (S2DiT has one, D.1; its text was not found)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from streamstill.codec.light_decoder import LightCodec, LightDecoder
from streamstill.codec.video import VideoCodec
from streamstill.config import require_positive
from streamstill.training.batches import Examples, pieces
from streamstill.training.objectives.objective import Loss, Player
from streamstill.training.objectives.reconstruction import Reconstruction, ReconstructionConfig
from streamstill.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class DecoderDistillationConfig:
    """How a light decoder learns; ``noise`` is the standard deviation of noise on what it decodes, not the codec."""

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, warmup_steps=30, decay="cosine", final_fraction=0.02)
    )
    ema_decay: float | None = 0.99
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    noise: float = 0.0
    micro_batch: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "micro_batch")
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, got {self.noise}")


@dataclass(frozen=True, eq=False)
class Demonstration:
    """Latents for the light decoder, and the full codec's pixels of them."""

    latents_BFCHW: Tensor
    pixels_BFCHW: Tensor
    prompts: tuple[str, ...]
    step: int


class DecoderDistillation:
    """Players ``decoder``, and before it ``discriminator`` where the reconstruction has a weight for one.

    The full codec is asked once for every batch and never learns.

    Raises:
        ValueError: the decoder was made for another codec's latents.
    """

    def __init__(
        self,
        decoder: LightDecoder,
        codec: VideoCodec,
        config: DecoderDistillationConfig,
        discriminator: nn.Module | None = None,
    ) -> None:
        LightCodec(codec, decoder)
        self.decoder, self.codec, self.config = decoder, codec, config
        self.reconstruction = Reconstruction(config.reconstruction, discriminator)

    @property
    def players(self) -> tuple[Player, ...]:
        """The discriminator moves first, so that the decoder is judged by the newest one."""
        config = self.config
        decoder = Player(name="decoder", module=self.decoder, optim=config.optim, ema_decay=config.ema_decay)
        return (*self.reconstruction.players, decoder)

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """Nothing but the players themselves must survive."""
        return {}

    @torch.no_grad()
    def begin(self, batch: Examples, step: int, generator: torch.Generator) -> Demonstration:
        """What the full codec makes of the latents."""
        latents = batch.latents_BFCHW
        pixels, _ = self.codec.decode(latents)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        return Demonstration(latents + self.config.noise * noise, pixels.clamp(-1, 1), batch.prompts, step)

    def micro_batches(self, player: str, turn: Demonstration, generator: torch.Generator) -> Sequence[Demonstration]:
        """The demonstration in parts."""
        return [
            Demonstration(turn.latents_BFCHW[rows], turn.pixels_BFCHW[rows], turn.prompts[rows], turn.step)
            for rows in pieces(len(turn.prompts), self.config.micro_batch)
        ]

    def loss(self, player: str, micro: Demonstration) -> Loss:
        """The reconstruction of the full codec's pixels; the discriminator's own."""
        if player == "discriminator":
            with torch.no_grad():
                made, _ = self.decoder.decode(micro.latents_BFCHW)
            return self.reconstruction.discriminator_loss(made, micro.pixels_BFCHW, micro.prompts)
        made, _ = self.decoder.decode(micro.latents_BFCHW)
        return self.reconstruction.loss(made, micro.pixels_BFCHW, micro.prompts, step=micro.step)

    def end(self, turn: Demonstration, step: int) -> Mapping[str, float]:
        """Nothing to do after a step."""
        return {}
