"""Small real MP4 files from the embedded world, for services on loopback to answer with."""

import random
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from streamstill.media import write_clip
from streamstill.types import ClipRequest
from streamstill.worlds import World, parse, sample_prompt


def film(body: Mapping[str, Any]) -> bytes:
    """The MP4 that answers a create: size, length and seed as asked; any prompt outside the world's grammar drops."""
    width, height = (int(part) for part in str(body.get("size", "64x64")).split("x"))
    fps = float(body.get("fps", 8))
    seconds = float(body.get("seconds", body.get("duration", 2)))
    frames = int(body.get("num_frames", round(seconds * fps)))
    return _filmed(str(body.get("prompt", "")), int(body.get("seed", 0)), frames, height, width, fps)


@lru_cache(maxsize=4096)
def _filmed(prompt: str, seed: int, frames: int, height: int, width: int, fps: float) -> bytes:
    try:
        parse(prompt)
    except ValueError:
        prompt = sample_prompt(random.Random(prompt), actions=["drop"])
    request = ClipRequest(prompt=prompt, seed=seed, frames=frames, height=height, width=width, fps=fps)
    with TemporaryDirectory() as folder:
        write_clip(Path(folder) / "film.mp4", World().render(request))
        return (Path(folder) / "film.mp4").read_bytes()
