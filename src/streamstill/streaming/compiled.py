"""The same model through torch.compile: fewer, fused kernels, and CUDA graphs where there is a GPU."""

from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from streamstill.state import map_tensors
from streamstill.streaming.model import StreamingModel

StateT = TypeVar("StateT")


class CompiledModel(Generic[StateT]):
    """A ``StreamingModel`` whose velocity and remember are compiled; weights are shared with the original.

    One program each for a shape of chunk; a video's short last chunk compiles once more. States stay values: under
    CUDA graphs the program writes into buffers of its own, and what is returned is a copy.
    """

    def __init__(self, model: StreamingModel[StateT], *, backend: str, mode: str | None, graphs: bool) -> None:
        self._model, self._graphs = model, graphs
        options: dict[str, Any] = {"backend": backend, "mode": mode, "fullgraph": True, "dynamic": False}
        self._velocity = torch.compile(model.velocity, **options)
        self._remember = torch.compile(model.remember, **options)

    @property
    def chunk_frames(self) -> int:
        """Latent frames that are made together."""
        return self._model.chunk_frames

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> StateT:
        """The state before the first chunk."""
        return self._model.initial_state(batch, height, width, like)

    def velocity(self, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor, state: StateT) -> Tensor:
        """Velocity of one noised chunk."""
        return self._own(self._velocity(x_t_BFCHW, t, text_BLD, state))

    def remember(self, clean_BFCHW: Tensor, text_BLD: Tensor, state: StateT) -> StateT:
        """The state after a clean chunk."""
        return self._own(self._remember(clean_BFCHW, text_BLD, state))

    def _own(self, answer: Any) -> Any:
        """A copy outside the graph's buffers, which the next run overwrites."""
        if not self._graphs:
            return answer
        kept = map_tensors(torch.clone, answer)
        torch.compiler.cudagraph_mark_step_begin()
        return kept


def compiled(network: nn.Module, *, mode: str | None = None, backend: str = "inductor") -> CompiledModel[Any]:
    """The network compiled for its device; the first chunk of each shape takes seconds to minutes.

    Args:
        mode: of ``torch.compile``; by default CUDA graphs ("reduce-overhead") on a GPU and torch's default elsewhere.
        backend: of ``torch.compile``; "inductor" needs a C++ compiler on a CPU.
    """
    on_gpu = next(network.parameters()).is_cuda
    if mode is None and on_gpu and backend == "inductor":
        mode = "reduce-overhead"
    graphs = on_gpu and mode in ("reduce-overhead", "max-autotune")
    model: Any = network
    return CompiledModel(model, backend=backend, mode=mode, graphs=graphs)
