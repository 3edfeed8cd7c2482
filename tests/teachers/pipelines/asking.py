"""What the tests ask tiny pipelines; imports none of the libraries of the extra."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from streamstill.teachers.pipelines.config import PipelineConfig
from streamstill.types import ClipRequest, Geometry

Saved = Callable[[str], Path]
PROMPT, OTHER = "a red ball bounces", "snow falls on a quiet town"
SIZE = Geometry(frames=9, height=32, width=32, fps=8)  # every family makes it as it is


def config_of(folder: Path, **changes: Any) -> PipelineConfig:
    plain: dict[str, Any] = {"geometry": SIZE, "steps": 3, "dtype": "float32", "arguments": {"max_sequence_length": 48}}
    return PipelineConfig(source=str(folder), **{**plain, **changes})


def request(seed: int = 0, prompt: str = PROMPT, size: Geometry = SIZE) -> ClipRequest:
    return ClipRequest.of(size, prompt=prompt, seed=seed)


def picture(path: Path, colour: int = 200) -> str:
    ramp = np.tile(np.linspace(0, colour, 32, dtype=np.uint8)[:, None, None], (1, 32, 3))
    Image.fromarray(ramp).save(path)
    return str(path)
