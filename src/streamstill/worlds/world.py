"""Worlds that answer a request with a clip, at any size, length and frame rate."""

import math
import random
from dataclasses import dataclass

from streamstill.types import Clip, ClipRequest
from streamstill.worlds.drawing import draw
from streamstill.worlds.grammar import parse
from streamstill.worlds.physics import REAL_LAWS, Laws, States, simulate

_SMALLEST = 8  # pixels
_ASPECTS = (0.5, 4.0)
_FPS = (1.0, 120.0)

# Chosen so that bodies move about as fast as in the real world; docs/worlds.md has the measurement.
_LOOSE_GRAVITY = (1.0, 2.6)  # stage heights per second squared
_LOOSE_RESTITUTION = (0.6, 1.0)
_LOOSE_MASS_DRIFT = (-0.5, 0.5)  # per second


@dataclass(frozen=True, kw_only=True)
class World:
    """Rigid bodies that obey one set of laws."""

    laws: Laws = REAL_LAWS

    def render(self, request: ClipRequest) -> Clip:
        """The clip of a request. A paraphrase of its prompt gives the same clip.

        Raises:
            ValueError: the prompt is outside the grammar, or the size or fps is one the world cannot show.
        """
        return _filmed(request, self.truth(request), name="world")

    def truth(self, request: ClipRequest) -> States:
        """The exact motion behind a clip. For evaluation only: teachers, caches and training never see it."""
        return _played(request, self.laws)


@dataclass(frozen=True, kw_only=True)
class LooseWorld:
    """Looks like ``World`` but has other laws for every scene and seed.

    Gravity points anywhere and has any strength in a range, bounces give back any share, and masses drift. A body
    still begins as the prompt says: same colour, size, place and first velocity as in ``World`` for the same request.
    """

    def laws(self, request: ClipRequest) -> Laws:
        """The laws that hold in this request's clip."""
        rng = random.Random(f"laws {request.seed} {parse(request.prompt)}")
        direction, strength = rng.uniform(-math.pi, math.pi), rng.uniform(*_LOOSE_GRAVITY)
        return Laws(
            gravity=(strength * math.cos(direction), strength * math.sin(direction)),
            restitution=rng.uniform(*_LOOSE_RESTITUTION),
            mass_drift=rng.uniform(*_LOOSE_MASS_DRIFT),
        )

    def render(self, request: ClipRequest) -> Clip:
        """The clip of a request; raises ValueError as ``World.render`` does."""
        return _filmed(request, self.truth(request), name="loose world")

    def truth(self, request: ClipRequest) -> States:
        """The exact motion behind a clip. For evaluation only."""
        return _played(request, self.laws(request))


def _played(request: ClipRequest, laws: Laws) -> States:
    _check(request)
    aspect = request.width / request.height
    return simulate(
        parse(request.prompt), request.seed, frames=request.frames, fps=request.fps, aspect=aspect, laws=laws
    )


def _filmed(request: ClipRequest, states: States, *, name: str) -> Clip:
    provenance = {"source": name, "prompt": request.prompt, "seed": str(request.seed)}
    return Clip(frames_FCHW=draw(states, request.geometry), fps=request.fps, provenance=provenance)


def _check(request: ClipRequest) -> None:
    if request.frames < 1:
        raise ValueError(f"a clip needs at least one frame, got {request.frames}")
    if min(request.height, request.width) < _SMALLEST:
        raise ValueError(f"the world draws {_SMALLEST} pixels a side or more, got {request.height}x{request.width}")
    if not _ASPECTS[0] <= request.width / request.height <= _ASPECTS[1]:
        raise ValueError(
            f"width / height must be within {_ASPECTS}, got {request.width}/{request.height}; ask for another size"
        )
    if not _FPS[0] <= request.fps <= _FPS[1]:
        raise ValueError(f"fps must be within {_FPS}, got {request.fps}")
