"""The clips of a local pipeline."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from inspect import Parameter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from streamstill.media import fit, read_image
from streamstill.teachers.pipelines.config import PipelineConfig
from streamstill.teachers.pipelines.families import native_size, parameters_of, rounded_up
from streamstill.teachers.pipelines.loading import load_pipeline
from streamstill.types import Clip, ClipRequest, Frames, Geometry

_ASKED = ("prompt", "height", "width", "num_frames", "num_inference_steps", "generator", "output_type")
_ELSEWHERE = ("source", "revision", "offline", "device", "offload", "image")  # said otherwise, or nothing to a clip


@dataclass(frozen=True, eq=False)
class PipelineTeacher:
    """Any text-to-video pipeline of diffusers: a clip is a function of prompt, seed and config.

    ``weights`` says which weights they are. One clip is made at a time, from a CPU generator with the request's seed.
    """

    pipe: Any
    config: PipelineConfig
    weights: str

    @classmethod
    def load(cls, config: PipelineConfig) -> "PipelineTeacher":
        """The pipeline of the config, loaded and checked.

        Raises:
            ModuleNotFoundError, ValueError: see :func:`streamstill.teachers.pipelines.loading.load_pipeline`.
            ValueError: it makes no video, has no such argument, or wants a first frame and gets none.
        """
        pipe, weights = load_pipeline(config)
        _require_arguments(pipe, config)
        return cls(pipe, config, weights)

    @cached_property
    def name(self) -> str:
        """Source, weights, and every setting that changes a clip; where parts live is not among them."""
        settings = {name: value for name, value in asdict(self.config).items() if name not in _ELSEWHERE}
        if self.config.geometry is not None:  # 16 in Python and 16.0 from a file are one speed, and one name
            settings["geometry"] = asdict(replace(self.config.geometry, fps=float(self.config.geometry.fps)))
        if self.config.guidance is not None:
            settings["guidance"] = float(self.config.guidance)
        if self.config.image is not None:
            settings["image"] = hashlib.sha256(Path(self.config.image).read_bytes()).hexdigest()
        text = json.dumps(settings, sort_keys=True, default=repr)
        label = Path(self.config.source).name if Path(self.config.source).is_dir() else self.config.source
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"pipeline/{label}@{self.weights}/steps={self.config.steps},settings={digest}"

    def size_for(self, asked: Geometry) -> Geometry:
        """What the pipeline makes when this is asked."""
        if self.config.geometry is not None:
            return rounded_up(self.pipe, self.config.geometry)
        return native_size(self.pipe, asked)

    def call(self, size: Geometry, **more: Any) -> Any:
        """What the pipeline answers in ``frames``, for clips of this size."""
        return self.pipe(**{**self._arguments(size), **more}).frames

    def generate(self, request: ClipRequest) -> Clip:
        """The clip, cut to what was asked.

        Raises:
            ValueError: the pipeline's clips are shorter than asked, or its pixels are not finite.
        """
        size, generator = self.size_for(request.geometry), torch.Generator().manual_seed(request.seed)
        frames_FHWC = self.call(size, prompt=request.prompt, generator=generator, output_type="np")[0]
        provenance = {"teacher": self.name, "prompt": request.prompt, "seed": str(request.seed)}
        clip = Clip(frames_FCHW=_pixels(np.asarray(frames_FHWC)), fps=size.fps, provenance=provenance)
        return fit(clip, request.geometry)

    def _arguments(self, size: Geometry) -> dict[str, Any]:
        """Of the pipeline's call: all that a request does not say."""
        config, takes = self.config, parameters_of(self.pipe)
        given: dict[str, Any] = {"height": size.height, "width": size.width, "num_frames": size.frames}
        given |= {"num_inference_steps": config.steps, "guidance_scale": config.guidance}
        given |= {"negative_prompt": config.negative_prompt}
        if "frame_rate" in takes:  # LTX wants to know how fast its frames are shown
            given["frame_rate"] = size.fps
        if config.image is not None:
            pixels_CHW = read_image(Path(config.image), height=size.height, width=size.width)
            given["image"] = Image.fromarray(pixels_CHW.transpose(1, 2, 0))
        return {name: value for name, value in given.items() if value is not None} | dict(config.arguments)


def _pixels(frames_FHWC: Any) -> Frames:
    if not np.isfinite(frames_FHWC).all():
        raise ValueError("the pipeline gave pixels that are not finite; set dtype and vae_dtype to bfloat16 or float32")
    frames_FCHW: Frames = (255 * frames_FHWC.clip(0, 1)).round().astype(np.uint8).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(frames_FCHW)


def _require_arguments(pipe: Any, config: PipelineConfig) -> None:
    takes, kind = parameters_of(pipe), type(pipe).__name__
    lacking = [name for name in _ASKED if name not in takes]
    if lacking:
        raise ValueError(f"{kind} makes no video from text (its call has no {', '.join(lacking)}); give one that does")
    fields = {"guidance_scale": config.guidance, "negative_prompt": config.negative_prompt, "image": config.image}
    given = {name for name, value in fields.items() if value is not None} | set(config.arguments)
    strange = sorted(given - takes.keys())
    if strange:
        raise ValueError(f"{kind} has no argument {strange}; its arguments are {sorted(takes.keys() - {'self'})}")
    if config.image is None and takes.get("image", None) is Parameter.empty:
        raise ValueError(f"{kind} begins with a picture; set image to the file of a first frame")
