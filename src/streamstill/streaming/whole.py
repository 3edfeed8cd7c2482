"""A clip made in one piece, every latent frame seeing every other: for training's other mode, not for streaming."""

import torch
from torch import Tensor

from streamstill.flow.guidance import guided
from streamstill.flow.samplers import VelocityFn, euler
from streamstill.flow.times import Sampling
from streamstill.streaming.model import BidirectionalModel
from streamstill.streaming.opening import frames_to_make, placed_opening
from streamstill.streaming.rollout import SamplerFn


def sample_whole(
    model: BidirectionalModel,
    text_BLD: Tensor,
    *,
    frames: int,
    latent_shape: tuple[int, int, int],
    sampling: Sampling,
    generator: torch.Generator,
    sampler: SamplerFn = euler,
    guidance: float = 1.0,
    empty_text_BLD: Tensor | None = None,
    opening_BFCHW: Tensor | None = None,
) -> Tensor:
    """Whole clips at once: clean latents of shape (B, frames, C, H, W); time and memory grow with their length.

    Args:
        latent_shape: C, H, W of a latent frame.
        guidance: scale of classifier-free guidance; 1 is none. It is meant for many steps.
        empty_text_BLD: the text of no prompt; guidance other than 1 needs it.
        opening_BFCHW: clean latent frames that the clips begin with; they count among ``frames``, are seen at t=0 in
            every step and are returned as they were given.

    Raises:
        ValueError: there is no frame to make, the opening has another batch or size than the clips, or guidance is
            not a finite number or lacks its empty text.
    """
    opening = placed_opening(opening_BFCHW, text_BLD, latent_shape=latent_shape)
    to_make = frames_to_make(frames, opening)
    noise = torch.randn(text_BLD.shape[0], to_make, *latent_shape, generator=generator).to(text_BLD)
    velocity = _velocity_given(model, text_BLD, opening)
    if guidance != 1:
        velocity = guided(velocity, _velocity_given(model, _nothing(empty_text_BLD, text_BLD), opening), guidance)
    made = sampler(velocity, noise, sampling.times(), generator)
    return torch.cat([opening, made], dim=1)


def _velocity_given(model: BidirectionalModel, text_BLD: Tensor, opening_BFCHW: Tensor) -> VelocityFn:
    """The velocity of the frames after the opening."""
    batch, given = opening_BFCHW.shape[:2]

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        clip_BFCHW = torch.cat([opening_BFCHW, x_t], dim=1)
        t_BF = t.to(x_t.device).repeat(batch, clip_BFCHW.shape[1])
        t_BF[:, :given] = 0
        return model.velocity_bidirectional(clip_BFCHW, t_BF, text_BLD)[:, given:]

    return velocity


def _nothing(empty_text_BLD: Tensor | None, text_BLD: Tensor) -> Tensor:
    if empty_text_BLD is None:
        raise ValueError("guidance other than 1 needs empty_text_BLD, the text of no prompt: encode_nothing(batch)")
    if empty_text_BLD.shape != text_BLD.shape:
        raise ValueError(
            f"empty_text_BLD has the shape {tuple(empty_text_BLD.shape)} and the text {tuple(text_BLD.shape)}; "
            f"encode_nothing({text_BLD.shape[0]}) of the encoder that made the text fits it"
        )
    return empty_text_BLD
