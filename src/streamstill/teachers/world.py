"""A simulated world as a teacher."""

from dataclasses import dataclass
from typing import Protocol

from streamstill.types import Clip, ClipRequest


class Renderer(Protocol):
    """What a world must do to be a teacher."""

    def render(self, request: ClipRequest) -> Clip:
        """The clip that answers the request."""
        ...


@dataclass(frozen=True)
class WorldTeacher:
    """Shows a world's clips and nothing else: what the world knows about its bodies stays in the world."""

    world: Renderer
    name: str = "world"

    def generate(self, request: ClipRequest) -> Clip:
        """The rendered pixels; the provenance holds the question only."""
        clip = self.world.render(request)
        provenance = {"teacher": self.name, "prompt": request.prompt, "seed": str(request.seed)}
        return Clip(frames_FCHW=clip.frames_FCHW, fps=clip.fps, provenance=provenance)
