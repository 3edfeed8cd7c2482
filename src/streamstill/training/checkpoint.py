"""The exact state of a training run in one file, replaced whole or not at all."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from streamstill.tensor_file import write_tensors

FORMAT = 1
_REMEDY = "delete the file to start anew, or put back a good copy"


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything that decides how a run goes on. ``step`` steps are done; tensors are named ``owner/part/name``."""

    step: int
    tensors: Mapping[str, Tensor]
    counters: Mapping[str, int]
    config: Mapping[str, Any]
    torch_version: str = torch.__version__


def write_state(path: Path, state: TrainingState) -> None:
    """Write ``path`` so that a crash at any moment leaves either the old file or the new one, never a mixture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    described = {
        "format": FORMAT,
        "step": state.step,
        "counters": dict(state.counters),
        "config": state.config,
        "torch_version": state.torch_version,
    }
    write_tensors(path, _storable(state.tensors), {"training_state": json.dumps(described, sort_keys=True)})


def read_state(path: Path) -> TrainingState:
    """Read what :func:`write_state` wrote; the tensors are on the CPU.

    Raises:
        ValueError: the file is missing, cut off, of another format version, or not a training state.
    """
    if not path.is_file():
        raise ValueError(f"there is no training state at {path}; give the folder of a run that saved one")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {}).get("training_state", "null"))
            _require_format(path, described)
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or was cut off ({error}); {_REMEDY}") from error
    return TrainingState(
        step=described["step"],
        tensors=tensors,
        counters=described["counters"],
        config=described["config"],
        torch_version=described["torch_version"],
    )


def require_same_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Pass when names, shapes and dtypes agree.

    Raises:
        ValueError: they differ; the message names the file and the first difference.
    """
    for name in sorted(expected.keys() | found.keys()):
        here = describe(expected[name]) if name in expected else "nothing"
        there = describe(found[name]) if name in found else "nothing"
        if here != there:
            raise ValueError(
                f"{path} belongs to another architecture: it holds {there} for {name!r} where this run needs {here}; "
                "resume with the config it was made with, or train in another folder"
            )


def optimizer_tensors(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as tensors named ``parameter/entry``; parameters that never moved have none."""
    return {
        f"{name}/{entry}": value
        for name, parameter in _optimized(module, optimizer)
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def expected_optimizer_tensors(
    module: nn.Module, optimizer: Optimizer, found: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the tensors in ``found`` must look like to belong to this optimiser: moments like their parameter."""
    parameters = dict(_optimized(module, optimizer))
    expected: dict[str, Tensor] = {}
    for key, value in found.items():
        name, _, entry = key.rpartition("/")
        if name in parameters:
            expected[key] = value if entry == "step" else parameters[name].detach()
    return expected


def load_optimizer(module: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimiser the state that :func:`optimizer_tensors` described; the parameters themselves stay."""
    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        entries.setdefault(name, {})[entry] = value
    optimizer.state.clear()
    for name, parameter in _optimized(module, optimizer):
        if name in entries:
            optimizer.state[parameter] = {
                entry: _like(parameter, value, on_device=bool(optimizer.defaults.get("fused")))
                for entry, value in entries[name].items()
            }


def describe(tensor: Tensor) -> str:
    """Dtype and shape: ``float32 (3, 4)``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _optimized(module: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return ((name, parameter) for name, parameter in module.named_parameters() if id(parameter) in optimized)


def _like(parameter: nn.Parameter, value: Tensor, *, on_device: bool) -> Tensor:
    if value.shape == parameter.shape and value.ndim:  # a moment has the parameter's layout, which fused kernels need
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    return value.to(parameter.device, copy=True) if on_device else value.clone()  # fused kernels count there


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    storable: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        kept = tensor.detach().cpu()
        storage = kept.untyped_storage().data_ptr()
        storable[name] = kept.clone() if storage in seen else kept.contiguous()
        seen.add(storage)
    return storable


def _require_format(path: Path, described: Any) -> None:
    if not isinstance(described, dict):
        raise ValueError(f"{path} holds tensors but no training state; {_REMEDY}")
    if described.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format version {described.get('format')}, this streamstill reads version {FORMAT}; "
            "resume with the version of streamstill that wrote it, or train in another folder"
        )
