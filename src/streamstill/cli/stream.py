"""``streamstill stream``: a video chunk by chunk, or a clip in one piece."""

import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from streamstill.cli.devices import device_named
from streamstill.codec.counting import covering_latents, pixel_frames
from streamstill.codec.light_decoder import LightCodec
from streamstill.codec.video import VideoCodec, to_frames
from streamstill.flow.times import Sampling
from streamstill.media import read_image, write_clip
from streamstill.streaming.session import Session, still_opening
from streamstill.streaming.whole import sample_whole
from streamstill.student.student import Student
from streamstill.types import Clip, Frames


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asked for; ``frames`` are pixel frames."""

    student: Path
    prompts: tuple[str, ...]
    frames: int
    out: Path
    seed: int
    steps: int | None
    first_frame: Path | None
    whole: bool
    guidance: float | None
    light_decoder: Path | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"--frames must be at least 1, got {self.frames}")
        if self.out.suffix != ".mp4":
            raise ValueError(f"--out must be the name of an mp4 file, got {self.out}")
        if self.whole and len(self.prompts) > 1:
            raise ValueError(f"--whole makes a clip of one prompt, got {len(self.prompts)}; leave it out to stream")
        if self.guidance is not None and not self.whole:
            raise ValueError("--guidance belongs to --whole; a stream is made in few steps and without guidance")

    def picture(self, maker: Student) -> Frames | None:
        """The first frame at the student's size, if one was given."""
        size = maker.config.geometry
        return None if self.first_frame is None else read_image(self.first_frame, height=size.height, width=size.width)

    def sampling(self, maker: Student) -> Sampling:
        """The student's own, or that with other steps."""
        own = maker.config.sampling
        return own if self.steps is None else replace(own, steps=self.steps)

    def codec(self, maker: Student) -> VideoCodec:
        """The student's, or that with a light decoder in it."""
        if self.light_decoder is None:
            return maker.codec
        codec = LightCodec.from_pretrained(self.light_decoder, maker.codec)
        codec.light.to(maker.device)
        return codec


def make_video(asked: Asked, console: Console) -> None:
    """Write the video and say how fast it was made."""
    maker = Student.from_pretrained(asked.student).to(device_named(asked.device))
    make = _made_whole if asked.whole else _streamed
    console.print(f"  {make(asked, maker)}, {torch.get_num_threads()} threads -> {asked.out}")


def _streamed(asked: Asked, maker: Student) -> str:
    """Frame by frame; several prompts share the frames."""
    frames, prompts = asked.frames, asked.prompts
    sampling, picture, codec = asked.sampling(maker), asked.picture(maker), asked.codec(maker)
    chunk = pixel_frames(maker.codec, maker.network.chunk_frames)
    if len(prompts) > 1 and frames < chunk * len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts need at least {chunk * len(prompts)} frames, for a prompt holds for a whole chunk "
            f"of {chunk}; got --frames {frames}"
        )
    session = Session(maker, prompts[0], sampling=sampling, seed=asked.seed, first_frame=picture, codec=codec)
    made: list[Frames] = []
    start = time.perf_counter()
    first = 0.0
    for number, frame in enumerate(islice(session.frames(), frames)):
        made.append(frame)
        first = first or time.perf_counter() - start
        prompt = prompts[min((number + 1) * len(prompts) // frames, len(prompts) - 1)]
        if prompt != session.prompt:
            session.prompt = prompt
    seconds = time.perf_counter() - start
    _write(asked, np.stack(made), maker)
    return (
        f"{frames} frames in {seconds:.2f} s: {frames / seconds:.0f} frames a second, "
        f"first frame after {1000 * first:.0f} ms"
    )


def _made_whole(asked: Asked, maker: Student) -> str:
    """One clip in one piece: whole latent frames, of which the first pixel frames are kept."""
    codec = asked.codec(maker)
    start = time.perf_counter()
    with torch.inference_mode():
        pixels_BFCHW, _ = codec.decode(_latents(asked, maker))
    made = to_frames(pixels_BFCHW[0, : asked.frames])
    seconds = time.perf_counter() - start
    _write(asked, made, maker)
    return f"{asked.frames} frames in one piece in {seconds:.2f} s"


def _latents(asked: Asked, maker: Student) -> Tensor:
    codec, picture = maker.codec, asked.picture(maker)
    opening = None if picture is None else still_opening(maker, picture, device=maker.device)
    given = 0 if opening is None else pixel_frames(codec, opening.shape[1])
    if asked.frames <= given:
        raise ValueError(f"--first-frame fills {given} frames; --frames must be more than that, got {asked.frames}")
    return sample_whole(
        maker.network,
        maker.encode_prompts(asked.prompts),
        frames=covering_latents(codec, asked.frames),
        latent_shape=maker.latent_shape[1:],
        sampling=asked.sampling(maker),
        generator=torch.Generator().manual_seed(asked.seed),
        guidance=1.0 if asked.guidance is None else asked.guidance,
        empty_text_BLD=maker.encode_nothing(1),
        opening_BFCHW=None if opening is None else opening.to(maker.device),
    )


def _write(asked: Asked, frames_FCHW: Frames, maker: Student) -> None:
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    provenance = {"student": str(asked.student), "prompts": " | ".join(asked.prompts), "seed": str(asked.seed)}
    if asked.first_frame is not None:
        provenance["first_frame"] = str(asked.first_frame)
    if asked.light_decoder is not None:
        provenance["light_decoder"] = str(asked.light_decoder)
    write_clip(asked.out, Clip(frames_FCHW=frames_FCHW, fps=maker.config.geometry.fps, provenance=provenance))
