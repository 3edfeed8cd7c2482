"""Tensors on disk, written whole or not at all."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file so that a crash at any moment leaves the old file or the new one, never a mixture.

    Raises:
        OSError: it could not be written, for example to a full disk; no partial file stays.
    """
    workshop = path.with_name(path.name + ".partial")  # a folder: safetensors leaves files of its own when it is killed
    shutil.rmtree(workshop, ignore_errors=True)
    partial = workshop / path.name
    try:
        workshop.mkdir()
        save_file(
            {name: tensor.cpu() for name, tensor in tensors.items()},
            partial,
            metadata=dict(metadata) if metadata else None,
        )
        _sync(partial)
        os.replace(partial, path)
    except (SafetensorError, OSError) as error:
        raise OSError(
            f"{path} could not be written ({error}); free some space and run the same command again"
        ) from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    if os.name == "posix":  # elsewhere a folder cannot be synced
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
