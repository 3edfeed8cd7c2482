"""Which device a command works on."""

import torch
from rich.console import Console

WORDS = "cpu, cuda, or cuda:N for one of several GPUs"


def device_named(word: str) -> torch.device:
    """The device of this name.

    Raises:
        ValueError: there is no such kind of device, or not here.
    """
    kind, _, number = word.partition(":")
    if kind not in ("cpu", "cuda") or (":" in word and not (kind == "cuda" and number.isdecimal())):
        raise ValueError(f"unknown device {word!r}; give {WORDS}")
    if kind == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not there:
            raise ValueError(f"--device {word} was asked for and torch sees no GPU; use --device cpu")
        if int(number or 0) >= there:
            raise ValueError(f"--device {word} was asked for and torch sees {there} GPU(s), counted from 0")
    return torch.device(word)


def device_to_train_on(word: str, console: Console) -> torch.device:
    """The same, and a word about a GPU that would stand idle."""
    device = device_named(word)
    if device.type == "cpu" and torch.cuda.is_available():
        console.print(f"  {torch.cuda.get_device_name()} is here and not used; --device cuda uses it", markup=False)
    return device
