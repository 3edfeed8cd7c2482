"""Who is imitated: anything that answers a request with a finished clip, and those whose velocities can be asked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

from streamstill.types import Clip, ClipRequest

if TYPE_CHECKING:
    from torch import Tensor  # importing the room loads no torch


class Teacher(Protocol):
    """A teacher answers requests. Any class with these two members is one; it need not import this package."""

    @property
    def name(self) -> str:
        """Part of the key in the cache: give another name to whatever answers the same request differently."""
        ...

    def generate(self, request: ClipRequest) -> Clip:
        """A clip of exactly the geometry that was asked for, or an exception. It may take minutes."""
        ...


class OpenTeacher(Teacher, Protocol):
    """A teacher whose weights we hold: besides clips it gives latents and velocities, in the student's latent space.

    Its ``name`` must change with its weights and with how it is sampled (steps, guidance).
    """

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Latent frames, C, H, W of its clips."""
        ...

    def latents(self, requests: Sequence[ClipRequest]) -> "Tensor":
        """Clean ``latents_BFCHW`` of its clips for these requests; one request's do not depend on the others."""
        ...

    def velocity(self, x_t_BFCHW: "Tensor", t_B: "Tensor", prompts: Sequence[str]) -> "Tensor":
        """Velocity (noise - clean) of whole noised clips, without gradients; guidance, if any, is in it."""
        ...


class ReadingTeacher(OpenTeacher, Protocol):
    """An open teacher that also gives its own embeddings of prompts."""

    def encode_prompts(self, prompts: Sequence[str]) -> "Tensor":
        """``text_BLD`` of the prompts, without gradients."""
        ...


_OPEN = ("latent_shape", "latents", "velocity")


def require_open(teacher: Teacher, for_what: str) -> OpenTeacher:
    """The teacher, if it is an open one; call it before anything is begun.

    Raises:
        TypeError: the teacher shows finished clips and nothing else.
    """
    missing = [name for name in _OPEN if not hasattr(teacher, name)]
    if missing:
        raise TypeError(
            f"{for_what} needs an open teacher, and {teacher.name!r} shows finished clips only (it has no "
            f"{', '.join(missing)}); give a teacher whose weights you hold, or use afd, which needs clips only"
        )
    return cast(OpenTeacher, teacher)
