"""What a velocity pass can be measured on: torch on a CPU or a GPU, or ONNX Runtime."""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import torch
from torch import Tensor, nn

from streamstill.config import require_one_of
from streamstill.search.probes import Inputs
from streamstill.state import StreamState, map_tensors, tensors_of
from streamstill.student.sandwich import SandwichDiT

TARGETS = ("cpu", "cuda", "onnx")
Pass: TypeAlias = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One way to run a network.

    Args:
        device: where torch's tensors are.
        ready: makes a network and its inputs into one velocity pass that can be called again and again.
        packages: whose versions matter, besides torch.
    """

    device: torch.device
    ready: Callable[[SandwichDiT, Inputs], Pass]
    packages: tuple[str, ...] = ()


def target_of(name: str, *, dtype: torch.dtype) -> Target:
    """The target of this name.

    Raises:
        ValueError: an unknown target, no GPU for ``cuda``, or a dtype that ``onnx`` cannot be fed with.
        ModuleNotFoundError: what ``onnx`` needs is not installed.
    """
    require_one_of(name, TARGETS, "target")
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("the target cuda was asked for and torch sees no GPU; use the target cpu")
        return Target(device=torch.device("cuda"), ready=_torch_pass)
    if name == "onnx":
        if dtype is not torch.float32:
            raise ValueError(f"the target onnx measures float32, got {str(dtype).removeprefix('torch.')}; use float32")
        _require_onnx()
        return Target(device=torch.device("cpu"), ready=onnx_pass, packages=("onnx", "onnxruntime"))
    return Target(device=torch.device("cpu"), ready=_torch_pass)


def _torch_pass(network: SandwichDiT, inputs: Inputs) -> Pass:
    return lambda: network.velocity(*inputs)


class _Velocity(nn.Module):
    """The velocity pass as the one call that an exporter knows."""

    def __init__(self, network: SandwichDiT) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t_BFCHW: Tensor, t_B: Tensor, text_BLD: Tensor, state: StreamState) -> Tensor:
        return self.network.velocity(x_t_BFCHW, t_B, text_BLD, state)


def onnx_pass(network: SandwichDiT, inputs: Inputs) -> Pass:
    """The same pass as an ONNX program in ONNX Runtime on the CPU, with as many threads as torch has.

    A call answers with a list of one array, the velocity of shape (B, F, C, H, W).

    Raises:
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is not installed.
    """
    _require_onnx()
    import onnxruntime

    # Clones, for an exporter cannot trace tensors that were made in inference mode.
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _Velocity(network).eval(), map_tensors(torch.clone, inputs), dynamo=True, verbose=False
        )
    assert program is not None  # it is what dynamo=True answers
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:  # a file may hold more than the 2 GB that one message in memory can
        program.save(str(Path(folder, "pass.onnx")))
        session = onnxruntime.InferenceSession(Path(folder, "pass.onnx"), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    feeds = {name: tensor.detach().numpy() for name, tensor in zip(names, tensors_of(inputs), strict=True)}
    return lambda: session.run(None, feeds)


def _require_onnx() -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f'{module} is not installed; run: pip install "streamstill[onnx]"')


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk about its own insides and about torchvision, which is not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
