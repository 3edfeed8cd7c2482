"""What a network must answer so that it can stream, be taught and be distilled. Nothing else is asked of it."""

from typing import Protocol, TypeVar

from torch import Tensor

StateT = TypeVar("StateT")


class StreamingModel(Protocol[StateT]):
    """A network that makes a video chunk by chunk; its memory is a value that is passed and returned."""

    @property
    def chunk_frames(self) -> int:
        """Latent frames that are made together."""
        ...

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> StateT:
        """The state before the first chunk, for latents of this height and width, device and dtype of ``like``."""
        ...

    def __call__(self, x_t_BFCHW: Tensor, t_B: Tensor, text_BLD: Tensor, state: StateT) -> tuple[Tensor, StateT]:
        """Velocity of one noised chunk; with a clean chunk and t=0, the state after that chunk."""
        ...


class TeachableModel(StreamingModel[StateT], Protocol[StateT]):
    """A streaming model that can also look at all chunks of a clip in one pass."""

    def velocity_in_context(
        self, x_t_BFCHW: Tensor, t_BK: Tensor, text_BLD: Tensor, *, context_BFCHW: Tensor
    ) -> Tensor:
        """Velocity of every noised chunk, each given the clean context chunks before it; equal to streaming."""
        ...
