"""Batches on the device of the student that learns from them."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

BatchT = TypeVar("BatchT")
CPU = torch.device("cpu")


def device_of(module: nn.Module) -> torch.device:
    """Where the module's weights are."""
    return next(module.parameters()).device


def moved(batch: BatchT, device: torch.device) -> BatchT:
    """The batch with all its tensors on the device: a tensor, or dataclasses, tuples, lists and mappings of them.

    What holds no tensor that has to move is given back as it is, so on one device nothing is copied.
    """
    return _moved(batch, device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {each.name: getattr(value, each.name) for each in fields(value) if each.init}
        changed = {name: there for name, part in parts.items() if (there := _moved(part, device)) is not part}
        return replace(value, **changed) if changed else value
    if isinstance(value, Mapping):
        there = {name: _moved(part, device) for name, part in value.items()}
        return there if any(there[name] is not part for name, part in value.items()) else value
    if isinstance(value, (tuple, list)):
        there_too = [_moved(part, device) for part in value]
        return type(value)(there_too) if any(a is not b for a, b in zip(there_too, value, strict=True)) else value
    return value
