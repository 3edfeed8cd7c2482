"""LCHA: linear attention + causal convolution + gate, at full resolution (S2DiT section 3.2, s2dit.md 1).

The gate's form is our choice (design.md). Its ablations (S2DiT Table 3) are the same class with a part left out.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from streamstill.state import LchaState
from streamstill.student.linear import LinearAttention, LinearChunk
from streamstill.student.local import CausalConv, LocalChunk


class LchaChunk(NamedTuple):
    """One chunk by itself, for each path; ``()`` for a path that is not there."""

    linear: LinearChunk | tuple[()]
    local: LocalChunk | tuple[()]


class LinearConvAttention(nn.Module):
    """Two parallel paths and their gate; a ``Mixer``.

    Args:
        linear: the linear path, or None for the local path alone.
        local: the local path, or None for the linear path alone.
        gated: whether the share of each path is learnt for every channel, or both count the same.
    """

    def __init__(
        self, width: int, *, linear: LinearAttention | None, local: CausalConv | None, gated: bool = True
    ) -> None:
        super().__init__()
        if linear is None and local is None:
            raise ValueError("an LCHA block has a linear path, a local path or both; neither was given")
        self.linear, self.local = linear, local
        both = linear is not None and local is not None
        self.gate = nn.Parameter(torch.zeros(width)) if gated and both else None  # sigmoid(0): both count the same
        self.out = nn.Linear(width, width)

    def empty(self, batch: int, height: int, width: int, like: Tensor) -> LchaState:
        """The state before the first chunk, for latent frames of this many rows and columns of tokens."""
        return LchaState(
            self.linear.empty(batch, like) if self.linear else (),
            self.local.empty(batch, height, width, like) if self.local else (),
        )

    def project(self, x_RFHWD: Tensor) -> LchaChunk:
        """What each path needs of the chunk."""
        return LchaChunk(
            self.linear.project(x_RFHWD) if self.linear else (), self.local.project(x_RFHWD) if self.local else ()
        )

    def mix(self, chunk: LchaChunk, past: LchaState) -> Tensor:
        """``out(a * linear + (1 - a) * local)`` with ``a = sigmoid(gate)``, or 1/2 without a gate."""
        linear_RFHWD = self.linear.mix(chunk.linear, past.linear) if self.linear else None  # type: ignore[arg-type]
        local_RFHWD = self.local.mix(chunk.local, past.local) if self.local else None  # type: ignore[arg-type]
        if linear_RFHWD is None or local_RFHWD is None:
            return self.out(local_RFHWD if linear_RFHWD is None else linear_RFHWD)
        share = 0.5 if self.gate is None else torch.sigmoid(self.gate).to(local_RFHWD.dtype)
        return self.out(torch.lerp(local_RFHWD, linear_RFHWD, share))

    def remember(self, chunk: LchaChunk, past: LchaState) -> LchaState:
        """What each path remembers."""
        return LchaState(
            self.linear.remember(chunk.linear, past.linear) if self.linear else (),  # type: ignore[arg-type]
            self.local.remember(chunk.local, past.local) if self.local else (),  # type: ignore[arg-type]
        )
