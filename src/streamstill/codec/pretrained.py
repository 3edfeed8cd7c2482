"""What codecs and text encoders share when they borrow a model from another library."""

import hashlib
import importlib
import importlib.util
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

DtypeName: TypeAlias = Literal["float32", "float16", "bfloat16"]
DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def library(name: str, extra: str, *also_needed: str) -> Any:
    """An optional library.

    Raises:
        ModuleNotFoundError: it is not installed, or one that it needs; the message says how to install them.
    """
    for module in (name, *also_needed):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f'{module} is not installed; run: pip install "streamstill[{extra}]"')
    return importlib.import_module(name)


def frozen(module: Any) -> Any:
    """The module, ready to be used and never to be trained."""
    return module.eval().requires_grad_(False)


def fingerprint(module: nn.Module) -> str:
    """Twelve hexadecimal digits that differ where a weight, or its dtype, differs."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def require_fingerprint(found: str, wanted: str, source: str) -> None:
    """Refuse other weights than those a config was made of.

    Raises:
        ValueError: the fingerprints differ.
    """
    if wanted and found != wanted:
        raise ValueError(
            f"{source} holds other weights ({found}) than those that were used before ({wanted}); give back the old "
            "ones, or encode the clips anew and train another student"
        )
