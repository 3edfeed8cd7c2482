"""A pipeline from a folder or the hub onto its devices, and which weights it is."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamstill.teachers.pipelines.config import PipelineConfig

_NEEDED = ("diffusers", "transformers", "accelerate", "ftfy")  # diffusers' Wan cleans prompts with ftfy
_BLOCK = 2**24  # bytes


def load_pipeline(config: PipelineConfig) -> tuple[Any, str]:
    """The pipeline, frozen and in its place, and twelve hexadecimal digits that say which weights it has.

    Of a repo id they are the commit, of a folder the content of its files.

    Raises:
        ModuleNotFoundError: the extra ``local`` is not installed.
        ValueError: there is no such pipeline, or it cannot be read.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"local teachers need {', '.join(missing)}; install it with: pip install 'streamstill[local]'"
        )
    import diffusers

    folder = _located(config)
    weights = _content(folder) if Path(config.source).is_dir() else folder.name[:12]
    dtypes = {"default": getattr(torch, config.dtype), "vae": getattr(torch, config.vae_dtype)}
    options = {"variant": config.variant, "quantization_config": _quantisation(config), "local_files_only": True}
    given = {name: option for name, option in options.items() if option is not None}
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(str(folder), dtype=dtypes, **given)
    except Exception as error:  # every part has a library and errors of its own
        raise ValueError(
            f"the pipeline {config.source} cannot be loaded ({_first_line(error)}); save it again"
        ) from error
    return _placed(pipe, config), weights


def _located(config: PipelineConfig) -> Path:
    """The pipeline's folder, downloaded if need be."""
    import diffusers

    folder = Path(config.source)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise ValueError(
                f"the folder {folder} holds no pipeline (it has no model_index.json); "
                "give a folder that save_pretrained of a pipeline wrote"
            )
        return folder
    try:
        return Path(
            diffusers.DiffusionPipeline.download(
                config.source, revision=config.revision, variant=config.variant, local_files_only=config.offline
            )
        )
    except Exception as error:  # the hub's client has many errors and most are no OSError
        raise ValueError(
            f"there is no folder {config.source} and no pipeline of that name could be had from the hub "
            f"({_first_line(error)}); give the folder of a saved pipeline or a repo id such as owner/name"
        ) from error


def _quantisation(config: PipelineConfig) -> Any:
    if config.quantisation is None:
        return None
    import diffusers

    try:
        return diffusers.PipelineQuantizationConfig(**config.quantisation)
    except Exception as error:
        raise ValueError(
            f"diffusers refuses the quantisation {dict(config.quantisation)!r} ({_first_line(error)}); "
            "give quant_backend, quant_kwargs and components_to_quantize of its PipelineQuantizationConfig"
        ) from error


def _placed(pipe: Any, config: PipelineConfig) -> Any:
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)  # a T5 that is not asked to drops out
    if config.vae_tiling:
        pipe.vae.enable_tiling()
    pipe.set_progress_bar_config(disable=True)
    if config.offload == "none":
        pipe.to(config.device)
    elif config.offload == "model":
        pipe.enable_model_cpu_offload(device=config.device)
    elif config.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=config.device)
    else:
        pipe.enable_group_offload(onload_device=torch.device(config.device), offload_type="leaf_level")
    return pipe


def _content(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        digest.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
