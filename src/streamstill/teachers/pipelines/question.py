"""The velocity of a pipeline at one time, asked through its own sampling loop."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class OneQuestion:
    """Stands in for a pipeline's scheduler: one step at time ``t``, which keeps what the loop hands it.

    The loop passes the output of the network after guidance, of the expert that this time belongs to, and with
    whatever conditions the pipeline has: all of it is diffusers' own code. Timestep ``1000 t`` is the same number as
    in flow-matching schedulers, where ``sigma`` is our ``t``.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Any, t: float) -> None:
        self.config = config
        self.sigmas = torch.tensor([t, t])
        self.timesteps = self.sigmas[:1] * config.num_train_timesteps
        self.answer: Tensor | None = None

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: float | None = None
    ) -> None:
        """The one time stays, whatever schedule the pipeline would follow."""
        self.timesteps = self.timesteps.to(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """There is only one step to begin with."""

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options: Any) -> tuple[Tensor]:
        """Keep the network's answer; the sample stays where it is."""
        self.answer = model_output.detach().float()
        return (sample,)


@contextmanager
def asking(pipe: Any, t: float) -> Iterator[OneQuestion]:
    """The pipeline with a question in the place of its scheduler, which comes back whatever happens."""
    own = pipe.scheduler
    question = OneQuestion(own.config, t)
    pipe.scheduler = question
    try:
        yield question
    finally:
        pipe.scheduler = own
