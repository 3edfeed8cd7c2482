"""The one loop that makes a video chunk by chunk: training, sessions, evaluation and exports all call it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from streamstill.flow.samplers import VelocityFn, euler
from streamstill.flow.times import Sampling
from streamstill.streaming.model import StreamingModel
from streamstill.streaming.opening import frames_to_make, opening_chunks, placed_opening

CLIPS_AT_ONCE = 64  # that are rolled out together where more are wanted

SamplerFn = Callable[[VelocityFn, Tensor, Tensor, torch.Generator | None], Tensor]


def stream_chunks(
    model: StreamingModel[Any],
    texts: Iterable[Tensor],
    *,
    latent_shape: tuple[int, int, int],
    sampling: Sampling,
    generator: torch.Generator,
    sampler: SamplerFn = euler,
    opening_BFCHW: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield clean chunks of shape (B, chunk_frames, C, H, W), one for each text, for ever if texts go on for ever.

    Gradients flow if they are enabled around the call. Noise is drawn on the CPU by a generator of the CPU, one
    tensor per chunk, so a longer rollout begins with the shorter one.

    Args:
        texts: ``text_BLD`` for each chunk; the prompt may change from chunk to chunk.
        latent_shape: C, H, W of a latent frame.
        opening_BFCHW: clean latent frames that the video begins with, any number; the model remembers them with the
            first text before it makes the first chunk. They are not yielded.

    Raises:
        ValueError: the opening has another batch or size than the video; raised when the first chunk is asked for.
    """
    asked = ((text_BLD, model.chunk_frames) for text_BLD in texts)
    return _chunks(
        model,
        asked,
        latent_shape=latent_shape,
        sampling=sampling,
        generator=generator,
        sampler=sampler,
        opening_BFCHW=opening_BFCHW,
    )


def rollout(
    model: StreamingModel[Any],
    text_BLD: Tensor,
    *,
    frames: int,
    latent_shape: tuple[int, int, int],
    sampling: Sampling,
    generator: torch.Generator,
    sampler: SamplerFn = euler,
    opening_BFCHW: Tensor | None = None,
) -> Tensor:
    """Whole clips of the student: clean latents of shape (B, frames, C, H, W).

    The last chunk is short where ``frames`` ask for it; its noise is the beginning of a whole chunk's. An opening
    counts among ``frames`` and is returned as it was given, before what is made.

    Raises:
        ValueError: there is no frame to make, or the opening has another batch or size than the clips.
    """
    opening = placed_opening(opening_BFCHW, text_BLD, latent_shape=latent_shape)
    to_make, most = frames_to_make(frames, opening), model.chunk_frames
    made = _chunks(
        model,
        [(text_BLD, min(most, to_make - start)) for start in range(0, to_make, most)],
        latent_shape=latent_shape,
        sampling=sampling,
        generator=generator,
        sampler=sampler,
        opening_BFCHW=opening_BFCHW,
    )
    return torch.cat([opening, *made], dim=1)


def _chunks(
    model: StreamingModel[Any],
    asked: Iterable[tuple[Tensor, int]],
    *,
    latent_shape: tuple[int, int, int],
    sampling: Sampling,
    generator: torch.Generator,
    sampler: SamplerFn,
    opening_BFCHW: Tensor | None,
) -> Iterator[Tensor]:
    """One chunk for each text and number of latent frames."""
    times = sampling.times()
    state: Any = None
    shown: tuple[list[Tensor], Tensor] | None = None
    for text_BLD, frames in asked:
        batch = text_BLD.shape[0]
        noise = torch.randn(batch, model.chunk_frames, *latent_shape, generator=generator)[:, :frames]
        noise = noise.to(text_BLD.device, text_BLD.dtype)
        if shown is None:
            state = model.initial_state(batch, *latent_shape[1:], like=noise)
            opening = placed_opening(opening_BFCHW, text_BLD, latent_shape=latent_shape)
            shown = opening_chunks(opening, chunk_frames=model.chunk_frames), text_BLD
        for clean in shown[0]:  # only now: nobody reads the state after the last chunk, and no chunk waits for its own
            state = model.remember(clean, shown[1], state)
        before = state

        def velocity(x_t: Tensor, t: Tensor, text_BLD: Tensor = text_BLD, before: Any = before) -> Tensor:
            return model.velocity(x_t, t.expand(x_t.shape[0]).to(x_t.device), text_BLD, before)

        clean = sampler(velocity, noise, times, generator)
        shown = [clean], text_BLD
        yield clean
