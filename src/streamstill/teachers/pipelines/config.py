"""Which local pipeline teaches, and how it is run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from streamstill.config import require_one_of, require_positive
from streamstill.types import Geometry

Offload: TypeAlias = Literal["none", "model", "sequential", "group"]
Dtype: TypeAlias = Literal["bfloat16", "float16", "float32"]

# Arguments of a pipeline's call that have a field or a method of their own here.
_OURS = {"prompt", "prompt_embeds", "negative_prompt", "image", "height", "width", "num_frames", "guidance_scale"}
_OURS |= {"num_inference_steps", "generator", "latents", "output_type", "return_dict", "num_videos_per_prompt"}


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """A pipeline by repo id or folder, how it samples, and where its parts live.

    ``geometry`` is what the pipeline makes, whatever is asked: clips are cut and resized from it. None makes the
    asked size, rounded up to what the pipeline can. Open teachers need one.
    """

    source: str
    revision: str | None = None  # of a repo id: a branch, a tag or a commit
    variant: str | None = None  # of the weight files, for instance fp16
    offline: bool = False  # use only what was downloaded before
    geometry: Geometry | None = None
    steps: int = 50
    guidance: float | None = None  # None: the pipeline's own
    negative_prompt: str | None = None
    image: str | None = None  # a file: the first frame of every clip, for image-to-video pipelines
    arguments: Mapping[str, Any] = field(default_factory=dict)  # further arguments of the pipeline's call
    device: str = "cpu"
    dtype: Dtype = "bfloat16"
    vae_dtype: Dtype = "float32"
    offload: Offload = "none"
    quantisation: Mapping[str, Any] | None = None  # arguments of diffusers' PipelineQuantizationConfig
    vae_tiling: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "steps")
        require_one_of(self.offload, get_args(Offload), "offload")
        for dtype in (self.dtype, self.vae_dtype):
            require_one_of(dtype, get_args(Dtype), "dtype")
        if not self.source:
            raise ValueError("source is empty; give a repo id such as owner/name, or the folder of a saved pipeline")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance}; leave it out for the pipeline's")
        if self.offload in ("model", "sequential") and self.device == "cpu":
            raise ValueError(
                f"offload {self.offload!r} moves parts between the CPU and an accelerator, and device is 'cpu'; "
                "set device to cuda, or offload to none"
            )
        taken = sorted(_OURS & set(self.arguments))
        if taken:
            raise ValueError(f"arguments may not hold {taken}: they are set by the request or by fields of the config")
