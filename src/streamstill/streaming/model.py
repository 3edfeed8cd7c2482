"""What a network must answer so that it can stream, be taught and be distilled. Nothing else is asked of it."""

from typing import Protocol, TypeVar

from torch import Tensor

StateT = TypeVar("StateT")


class StreamingModel(Protocol[StateT]):
    """A network that makes a video chunk by chunk; its memory is a value that is passed and returned.

    The networks of this package also have ``forward``, which gives both answers at once: the chunk step that is
    exported.
    """

    @property
    def chunk_frames(self) -> int:
        """Latent frames that are made together; a video's last chunk may have fewer."""
        ...

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> StateT:
        """The state before the first chunk, for latents of this height and width, device and dtype of ``like``."""
        ...

    def velocity(self, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor, state: StateT) -> Tensor:
        """Velocity of one noised chunk, at a time for each clip, shape (B,), or each latent frame, shape (B, F)."""
        ...

    def remember(self, clean_BFCHW: Tensor, text_BLD: Tensor, state: StateT) -> StateT:
        """The state after a clean chunk."""
        ...


class TeachableModel(StreamingModel[StateT], Protocol[StateT]):
    """A streaming model that can also look at all chunks of a clip in one pass."""

    def velocity_in_context(
        self, x_t_BFCHW: Tensor, t_BK: Tensor, text_BLD: Tensor, *, context_BFCHW: Tensor
    ) -> Tensor:
        """Velocity of every noised chunk, each given the clean context chunks before it; equal to streaming."""
        ...


class BidirectionalModel(Protocol):
    """A model that can also look at a whole clip at once, the future included."""

    def velocity_bidirectional(self, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor) -> Tensor:
        """Velocity of all latent frames, at a time for each clip, shape (B,), or each latent frame, shape (B, F)."""
        ...
