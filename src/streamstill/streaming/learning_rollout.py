"""A rollout that learns: in every chunk one denoising step, drawn at random, is the last, and it alone has a gradient.

This is self-forcing's stochastic truncation (Huang et al. 2025, arXiv 2506.08009). Its published loop can draw one last
step for all chunks of a rollout, or one for each; both are here, and the last of all steps, where a stream ends. How
many steps of a chunk learn, and which chunks, is ours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from streamstill.flow.samplers import VelocityFn, euler
from streamstill.flow.times import Sampling
from streamstill.streaming.model import StreamingModel
from streamstill.streaming.rollout import SamplerFn, rollout

Ends: TypeAlias = Literal["each", "shared", "final"]
StateT = TypeVar("StateT")


@dataclass(frozen=True, kw_only=True)
class RolloutPlan:
    """Everything random about a learning rollout: the same plan makes the same clips, with and without gradients.

    Raises:
        ValueError: there is no chunk, or a chunk learns that is not made.
    """

    last_steps: tuple[int, ...]  # of each chunk, counted from 0
    learns: range  # the chunks that have a gradient
    seed: int  # of the noise
    depth: int = 1  # how many of a chunk's steps have a gradient, the last of them first

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"at least one step of a chunk must learn, got depth={self.depth}")
        if not self.last_steps:
            raise ValueError("a rollout needs at least one chunk; last_steps is empty")
        if not self.learns or self.learns[0] < 0 or self.learns[-1] >= len(self.last_steps):
            raise ValueError(f"the chunks that learn must lie among 0..{len(self.last_steps) - 1}, got {self.learns}")


def draw_plan(
    *, chunks: int, window: int, steps: int, generator: torch.Generator, ends: Ends = "each", depth: int = 1
) -> RolloutPlan:
    """A plan for a random window of ``window`` chunks out of a video of ``chunks``.

    Chunks before the window are made with all their steps, as a stream makes them; chunks after it are not made.

    Args:
        ends: at which step the chunks of the window end: ``each`` at one of its own, all at a ``shared`` one, or at the
            ``final`` one, as a stream does.
        depth: how many of a chunk's steps have a gradient, the last of them first.

    Raises:
        ValueError: the window is longer than the video, or empty.
    """
    if not 1 <= window <= chunks:
        raise ValueError(f"a window of {window} chunks does not fit into {chunks}; it needs 1 to {chunks}")
    start = _drawn(chunks - window + 1, generator)
    before = (steps - 1,) * start
    if ends == "each":
        last_steps = tuple(_drawn(steps, generator) for _ in range(window))
    else:
        last_steps = (steps - 1 if ends == "final" else _drawn(steps, generator),) * window
    return RolloutPlan(
        last_steps=before + last_steps,
        learns=range(start, start + window),
        seed=_drawn(2**62, generator),
        depth=depth,
    )


def learning_rollout(
    model: StreamingModel[Any],
    text_BLD: Tensor,
    plan: RolloutPlan,
    *,
    latent_shape: tuple[int, int, int],
    sampling: Sampling,
    sampler: SamplerFn = euler,
    through_memory: bool = False,
) -> Tensor:
    """Clean latents of all of the plan's chunks, of shape (B, frames, C, H, W); it is ``rollout`` with shorter times.

    A chunk whose last step is ``n`` is the clean estimate of step ``n``: the sampler's times go from t_n to 0. Where
    every last step is the sampler's own, the values are those of ``rollout``.

    Args:
        latent_shape: C, H, W of a latent frame.
        through_memory: let gradients flow through what is remembered, from a chunk to those before it.

    Raises:
        ValueError: a last step that the sampling does not have.
    """
    beyond = [last for last in plan.last_steps if not 0 <= last < sampling.steps]
    if beyond:
        raise ValueError(f"the last steps of {sampling.steps} are 0..{sampling.steps - 1}, got {beyond[0]}")
    return rollout(
        model if through_memory else _Forgetful(model),
        text_BLD,
        frames=len(plan.last_steps) * model.chunk_frames,
        latent_shape=latent_shape,
        sampling=sampling,
        generator=torch.Generator().manual_seed(plan.seed),
        sampler=_truncated(sampler, plan),
    )


def _truncated(sampler: SamplerFn, plan: RolloutPlan) -> SamplerFn:
    """The sampler with other times for each chunk; it is called once for each, in order."""
    chunks: Iterator[tuple[int, int]] = enumerate(plan.last_steps)

    def sample(velocity_fn: VelocityFn, noise: Tensor, times: Tensor, generator: torch.Generator | None) -> Tensor:
        chunk, last = next(chunks)
        learns = torch.is_grad_enabled() and chunk in plan.learns
        first = times[max(0, last + 1 - plan.depth)]

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            with torch.set_grad_enabled(learns and bool(t <= first)):
                return velocity_fn(x_t, t)

        return sampler(velocity, noise, torch.cat([times[: last + 1], times[-1:]]), generator)

    return sample


class _Forgetful(Generic[StateT]):
    """A model through whose memory no gradient flows."""

    def __init__(self, model: StreamingModel[StateT]) -> None:
        self.model = model

    @property
    def chunk_frames(self) -> int:
        return self.model.chunk_frames

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> StateT:
        return self.model.initial_state(batch, height, width, like)

    def velocity(self, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor, state: StateT) -> Tensor:
        return self.model.velocity(x_t_BFCHW, t, text_BLD, state)

    @torch.no_grad()
    def remember(self, clean_BFCHW: Tensor, text_BLD: Tensor, state: StateT) -> StateT:
        return self.model.remember(clean_BFCHW, text_BLD, state)


def _drawn(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))
