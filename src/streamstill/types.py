"""The vocabulary of the whole package.

Axes, one meaning everywhere (a tensor is called ``noun_AXES``):

    B clips in a batch      F frames (latent frames of latents, pixel frames of clips)
    C channels              H W height, width (latent or pixel, as the noun says)
    R rows: chunks folded into the batch, B outermost
    S tokens of one chunk   L text tokens           D model width
    N heads                 E features per head     K rollouts per prompt
    V velocities asked about a clip                 J points of an ODE path

``t`` is always diffusion time: t=0 clean, t=1 noise, ``velocity = noise - clean``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Frames: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Size of the clips a run works with: pixel frames, pixel height and width, frames per second."""

    frames: int
    height: int
    width: int
    fps: float

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1 or not 0 < self.fps < math.inf:
            raise ValueError(f"every field of a Geometry must be positive, got {self}")

    @property
    def words(self) -> str:
        """As commands take it: ``16x32x32@8``."""
        return f"{self.frames}x{self.height}x{self.width}@{self.fps:g}"


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """One question to a teacher. Equal requests to one teacher are one clip in the cache."""

    prompt: str
    seed: int
    frames: int
    height: int
    width: int
    fps: float

    @classmethod
    def of(cls, geometry: Geometry, *, prompt: str, seed: int) -> "ClipRequest":
        """The question for a clip of this geometry."""
        return cls(
            prompt=prompt,
            seed=seed,
            frames=geometry.frames,
            height=geometry.height,
            width=geometry.width,
            fps=geometry.fps,
        )

    @property
    def geometry(self) -> Geometry:
        """The size that was asked for."""
        return Geometry(frames=self.frames, height=self.height, width=self.width, fps=self.fps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A finished video: ``frames_FCHW`` is uint8 RGB of shape (frames, 3, height, width).

    ``provenance`` says where it came from (teacher name, prompt, seed, source file, ...); plain strings only.
    """

    frames_FCHW: Frames
    fps: float
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, dtype = self.frames_FCHW.shape, self.frames_FCHW.dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[1] != 3 or 0 in shape:
            raise ValueError(f"a Clip needs uint8 frames of shape (frames, 3, height, width), got {dtype} {shape}")
        if not self.fps > 0:
            raise ValueError(f"a Clip needs a positive fps, got {self.fps}")

    @property
    def geometry(self) -> Geometry:
        """Frames, height, width and fps of this clip."""
        frames, _, height, width = self.frames_FCHW.shape
        return Geometry(frames=frames, height=height, width=width, fps=self.fps)
