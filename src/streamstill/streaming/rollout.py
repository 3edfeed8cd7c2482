"""The one loop that makes a video chunk by chunk: training, sessions, evaluation and exports all call it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from streamstill.flow.samplers import VelocityFn, euler
from streamstill.flow.times import sampler_times
from streamstill.streaming.model import StreamingModel

SamplerFn = Callable[[VelocityFn, Tensor, Tensor, torch.Generator | None], Tensor]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a chunk is made from noise: number of steps and schedule shift, the same as in training."""

    steps: int = 4
    shift: float = 8.0

    def times(self) -> Tensor:
        """The sampler's times, from 1 down to 0."""
        return sampler_times(self.steps, shift=self.shift)


def stream_chunks(
    model: StreamingModel[Any],
    texts: Iterable[Tensor],
    *,
    latent_shape: tuple[int, int, int],
    sampling: Sampling,
    generator: torch.Generator,
    sampler: SamplerFn = euler,
) -> Iterator[Tensor]:
    """Yield clean chunks of shape (B, chunk_frames, C, H, W), one for each text, for ever if texts go on for ever.

    Gradients flow if they are enabled around the call. Noise is drawn on the generator's device, one tensor per
    chunk, so a longer rollout begins with the shorter one.

    Args:
        texts: ``text_BLD`` for each chunk; the prompt may change from chunk to chunk.
        latent_shape: C, H, W of a latent frame.
    """
    times = sampling.times()
    state: Any = None
    shown: tuple[Tensor, Tensor] | None = None
    for text_BLD in texts:
        batch = text_BLD.shape[0]
        noise = torch.randn(batch, model.chunk_frames, *latent_shape, generator=generator)
        noise = noise.to(text_BLD.device, text_BLD.dtype)
        if shown is None:
            state = model.initial_state(batch, *latent_shape[1:], like=noise)
        else:  # only now: nobody reads the state after the last chunk, and the first chunk need not wait for its own
            clean, its_text_BLD = shown
            _, state = model(clean, clean.new_zeros(batch), its_text_BLD, state)
        before = state

        def velocity(x_t: Tensor, t: Tensor, text_BLD: Tensor = text_BLD, before: Any = before) -> Tensor:
            return model(x_t, t.expand(x_t.shape[0]).to(x_t.device), text_BLD, before)[0]

        clean = sampler(velocity, noise, times, generator)
        shown = clean, text_BLD
        yield clean


def rollout(
    model: StreamingModel[Any],
    text_BLD: Tensor,
    *,
    frames: int,
    latent_shape: tuple[int, int, int],
    sampling: Sampling,
    generator: torch.Generator,
    sampler: SamplerFn = euler,
) -> Tensor:
    """Whole clips of the student: clean latents of shape (B, frames, C, H, W).

    Raises:
        ValueError: ``frames`` latent frames are not a whole number of chunks.
    """
    chunks, rest = divmod(frames, model.chunk_frames)
    if rest or chunks < 1:
        raise ValueError(f"{frames} latent frames are not a whole number of chunks of {model.chunk_frames}")
    made = stream_chunks(
        model,
        repeat(text_BLD, chunks),
        latent_shape=latent_shape,
        sampling=sampling,
        generator=generator,
        sampler=sampler,
    )
    return torch.cat(list(made), dim=1)
