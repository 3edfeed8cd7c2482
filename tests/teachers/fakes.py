"""Teachers for tests: one that answers with noise of the seed and writes down what it was asked."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from streamstill.types import Clip, ClipRequest


def question(seed: int = 0, *, prompt: str = "a red ball", frames: int = 3, size: int = 8) -> ClipRequest:
    return ClipRequest(prompt=prompt, seed=seed, frames=frames, height=size, width=size, fps=8.0)


def noise(request: ClipRequest) -> Clip:
    """The pixels that belong to this request and to no other."""
    start = int.from_bytes(hashlib.sha256(repr(request).encode()).digest()[:8], "big")
    shape = (request.frames, 3, request.height, request.width)
    pixels = np.random.default_rng(start).integers(0, 256, shape, dtype=np.uint8)
    return Clip(frames_FCHW=pixels, fps=request.fps, provenance={"made for": repr(request)})


def same(one: Clip, other: Clip) -> bool:
    return (
        np.array_equal(one.frames_FCHW, other.frames_FCHW)
        and one.fps == other.fps
        and dict(one.provenance) == dict(other.provenance)
    )


@dataclass(frozen=True)
class NoiseTeacher:
    name: str = "noise"
    asked: list[ClipRequest] = field(default_factory=list)

    def generate(self, request: ClipRequest) -> Clip:
        self.asked.append(request)
        return noise(request)


@dataclass(frozen=True)
class FailsAfter:
    """Answers so many requests, then raises."""

    answers: int
    error: BaseException
    name: str = "noise"
    asked: list[ClipRequest] = field(default_factory=list)

    def generate(self, request: ClipRequest) -> Clip:
        if len(self.asked) == self.answers:
            raise self.error
        self.asked.append(request)
        return noise(request)
