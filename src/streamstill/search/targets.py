"""What a velocity pass can be measured on: torch on a CPU or a GPU, ONNX Runtime, or ExecuTorch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import torch

from streamstill.config import require_one_of
from streamstill.search.executorch_target import executorch_pass
from streamstill.search.given import COREML_TABLE, table_wanted
from streamstill.search.probes import Inputs
from streamstill.search.programs import FlatVelocity, quiet, require_packages, require_parity
from streamstill.state import map_tensors, tensors_of
from streamstill.student.sandwich import SandwichDiT

MEASURED_HERE = ("cpu", "cuda", "onnx", "executorch")
TARGETS = (*MEASURED_HERE, COREML_TABLE)
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
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
        ValueError: an unknown target, one that is only measured elsewhere, no GPU for ``cuda``, or a dtype that
            ``onnx`` or ``executorch`` cannot be fed with.
        ModuleNotFoundError: what ``onnx`` or ``executorch`` needs is not installed.
    """
    require_one_of(name, TARGETS, "target")
    if name == COREML_TABLE:
        raise ValueError(table_wanted())
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("the target cuda was asked for and torch sees no GPU; use the target cpu")
        return Target(device=torch.device("cuda"), ready=_torch_pass)
    return Target(device=torch.device("cpu"), ready=_torch_pass) if name == "cpu" else _exporting(name, dtype)


def _exporting(name: str, dtype: torch.dtype) -> Target:
    """A target that runs an exported program."""
    if dtype is not torch.float32:
        raise ValueError(f"the target {name} measures float32, got {str(dtype).removeprefix('torch.')}; use float32")
    if name == "onnx":
        require_packages(*ONNX_PACKAGES, extra="onnx")
        return Target(device=torch.device("cpu"), ready=onnx_pass, packages=("onnx", "onnxruntime"))
    require_packages("executorch", extra="executorch")
    return Target(device=torch.device("cpu"), ready=executorch_pass, packages=("executorch",))


def _torch_pass(network: SandwichDiT, inputs: Inputs) -> Pass:
    return lambda: network.velocity(*inputs)


def onnx_pass(network: SandwichDiT, inputs: Inputs) -> Pass:
    """The same pass as an ONNX program in ONNX Runtime on the CPU, with as many threads as torch has.

    A call answers with a list of one array, the velocity of shape (B, F, C, H, W).

    Raises:
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is not installed.
        RuntimeError: the program does not compute what the network computes.
    """
    require_packages(*ONNX_PACKAGES, extra="onnx")
    import onnxruntime

    # Clones, for an exporter cannot trace tensors that were made in inference mode.
    with torch.inference_mode(False), torch.no_grad(), quiet():
        clones = map_tensors(torch.clone, inputs)
        flat = FlatVelocity(network, clones).eval()
        program = torch.onnx.export(flat, tuple(tensors_of(clones)), dynamo=True, verbose=False)
    assert program is not None  # it is what dynamo=True answers
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:  # a file may hold more than the 2 GB that one message in memory can
        program.save(str(Path(folder, "pass.onnx")))
        session = onnxruntime.InferenceSession(Path(folder, "pass.onnx"), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    feeds = {name: tensor.detach().numpy() for name, tensor in zip(names, tensors_of(inputs), strict=True)}
    require_parity(torch.from_numpy(session.run(None, feeds)[0]), network, inputs, program="ONNX")
    return lambda: session.run(None, feeds)
