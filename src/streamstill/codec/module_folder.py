"""A codec's module as a folder: ``model.safetensors`` and ``config.json``, each written whole, the config last."""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from streamstill.config import from_dict, to_dict, write_json
from streamstill.tensor_file import write_tensors

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
ConfigT = TypeVar("ConfigT")


def save_module(module: nn.Module, folder: str | Path, *, kind: str, config: Any) -> None:
    """Write the weights and the config of a module of this kind, for example ``learned_codec``.

    Raises:
        OSError: they could not be written, for example to a full disk.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / WEIGHTS, {name: tensor.contiguous() for name, tensor in module.state_dict().items()})
    write_json(path / CONFIG, {"format": FORMAT, kind: to_dict(config)})


def holds(folder: str | Path, kind: str) -> bool:
    """Whether the folder's config is one of this kind."""
    path = Path(folder) / CONFIG
    return path.is_file() and kind in _values(path)


def read_module_config(folder: str | Path, *, kind: str, config: type[ConfigT]) -> ConfigT:
    """The config that ``save_module`` wrote.

    Raises:
        ValueError: not a folder of this kind, another format version, or a damaged file.
    """
    path, name = Path(folder) / CONFIG, kind.replace("_", " ")
    if not path.is_file():
        raise ValueError(f"{path.parent} is no {name}: it has no {CONFIG}; give the folder that a run wrote")
    values = _values(path)
    described = values.get(kind)
    if not isinstance(described, dict):
        raise ValueError(f"{path} describes no {name}; give the folder that a run wrote")
    if values.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {values.get('format')!r}, this version of streamstill reads format {FORMAT}; "
            f"make the {name} again with this version, or install the version that wrote it"
        )
    return from_dict(config, described, where=str(path))


def read_weights(module: nn.Module, folder: str | Path) -> None:
    """Give the module the folder's weights, widened to float32 from half precision.

    Raises:
        ValueError: there are none, they are damaged, or they belong to another config.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{path} is missing; {path.parent} was not saved whole")
    try:
        module.load_state_dict({name: _widened(tensor) for name, tensor in load_file(path).items()})
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); copy or write it again") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path} does not belong to {path.with_name(CONFIG)}: {reason}") from error


def _values(path: Path) -> dict[str, Any]:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path} is damaged ({error}); write it again") from error
    return values if isinstance(values, dict) else {}


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
