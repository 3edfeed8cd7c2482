"""``streamstill bench``: measure how fast a student or a preset streams, and write its benchmark card."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from streamstill.cli.devices import device_named
from streamstill.cli.shell import quoted, say_next
from streamstill.codec.light_decoder import LightCodec
from streamstill.codec.patch import PatchCodec
from streamstill.codec.video import VideoCodec
from streamstill.config import require_one_of
from streamstill.flow.times import Sampling
from streamstill.recipes.base import student_config
from streamstill.report.card import BenchmarkCard, Setting, Subject, write_card
from streamstill.streaming.compiled import compiled
from streamstill.streaming.timing import TimingConfig, time_streaming, torch_threads
from streamstill.student.network import Network
from streamstill.student.presets import PRESETS, Preset, preset
from streamstill.student.sandwich import SandwichDiT
from streamstill.student.student import Student, build_student
from streamstill.types import Geometry

DTYPES = ("float32", "bfloat16", "float16")
PROMPT = "A red ball is dropped."
WAN_FRAMES, WAN_CELL = 4, 8  # frames, rows and columns of video for one of Wan's latents, as student/presets.py has it
NO_CODEC = "not measured, no codec for these latents is installed"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asked for; ``height`` and ``width`` are pixels, None is the student's or the preset's own."""

    what: str
    layout: str | None
    height: int | None
    width: int | None
    steps: int | None
    ages: str
    rounds: int
    dtype: str
    device: str
    threads: int | None
    compiled: bool
    out: Path
    light_decoder: Path | None = None

    def __post_init__(self) -> None:
        require_one_of(self.dtype, DTYPES, "dtype")
        if self.what not in PRESETS and not Path(self.what).is_dir():
            require_one_of(self.what, tuple(PRESETS), "student folder or preset")
        if self.what not in PRESETS and self.layout is not None:
            raise ValueError(f"{self.what} is a student and has its layout; --layout belongs to a preset")
        if self.what in PRESETS and self.light_decoder is not None:
            raise ValueError(f"--light-decoder belongs to a student's codec, and {self.what} is a preset; leave it out")
        device_named(self.device)
        for name in ("height", "width", "threads"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise ValueError(f"--{name} must be at least 1, got {given}")
        if self.out.suffix != ".json":
            raise ValueError(f"--out must be the name of a json file, got {self.out}")
        if self.compiled and self.device == "cpu" and not _cpp_compiler():
            raise ValueError("--compile needs a C++ compiler and none was found; install g++, or leave out --compile")

    @property
    def policy(self) -> TimingConfig:
        """What is timed and how often."""
        parts = self.ages.split(",")
        if not all(part.strip().isdecimal() for part in parts):
            raise ValueError(f"cannot read the ages {self.ages!r}; write whole numbers with commas, like 5,100,1000")
        return TimingConfig(ages=tuple(int(part) for part in parts), rounds=self.rounds)

    @property
    def number_type(self) -> torch.dtype:
        """The dtype by its name."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]


class _Measured(NamedTuple):
    """A network on its device, how it gets its text, and what decodes it."""

    network: Network
    embed: Callable[[], Tensor]
    codec: VideoCodec | None
    sampling: Sampling
    subject: Subject


def measure(asked: Asked, console: Console) -> None:
    """Build or load, time, print the card and write it."""
    policy = asked.policy
    with torch_threads(asked.threads):
        measured = _measured(asked)
        subject = measured.subject
        console.print(f"  {subject.name}: {policy.ages[-1]} chunks to grow old, then {policy.rounds} rounds")
        timing = time_streaming(
            compiled(measured.network) if asked.compiled else measured.network,
            measured.embed,
            latent_shape=subject.latents[1:],
            sampling=measured.sampling,
            device=torch.device(asked.device),
            config=policy,
            codec=measured.codec,
        )
        setting = Setting(
            steps=measured.sampling.steps,
            dtype=asked.dtype,
            device=asked.device,
            threads=torch.get_num_threads(),
            compiled=asked.compiled,
        )
        card = BenchmarkCard.made_now(subject=subject, setting=setting, policy=policy, timing=timing)
    beside = write_card(card, asked.out)
    console.print(card.as_markdown(), markup=False, soft_wrap=True)
    console.print(f"  card -> {asked.out} and {beside}", soft_wrap=True)
    say_next(console, _next(asked))


def _measured(asked: Asked) -> _Measured:
    if asked.what not in PRESETS:
        student, weights = Student.from_pretrained(asked.what), "trained"
        own = student.config.geometry
        wanted = replace(own, height=asked.height or own.height, width=asked.width or own.width)
        return _of_student(student if wanted == own else student.resized(wanted), weights, asked)
    size = PRESETS[asked.what]
    codec = PatchCodec()
    if size.latent_channels != codec.latent_channels:
        return _of_wan_preset(size, asked)
    height, width = asked.height or size.latent_height * codec.size, asked.width or size.latent_width * codec.size
    frames = codec.frames * size.chunk_frames
    shape = student_config(
        Geometry(frames=frames, height=height, width=width, fps=8),
        sampling=Sampling(),
        size=asked.what,
        layout=asked.layout,
    )
    return _of_student(build_student(shape, seed=0), "random", asked)


def _of_student(student: Student, weights: str, asked: Asked) -> _Measured:
    codec, decoder = _decoding(student, asked)
    student = student.eval().to(asked.device, asked.number_type)
    geometry = student.config.geometry
    _, *latent = student.latent_shape
    tokens = student.encode_prompts([PROMPT]).shape[1]
    subject = _subject(
        student.network,
        asked,
        weights=weights,
        latent=(latent[0], latent[1], latent[2]),
        pixels=(geometry.height, geometry.width),
        text_tokens=tokens,
        frames_per_latent=codec.compression[0],
        decoder=decoder,
    )
    sampling = _sampling(student.config.sampling, asked)
    return _Measured(student.network, lambda: student.encode_prompts([PROMPT]), codec, sampling, subject)


def _decoding(student: Student, asked: Asked) -> tuple[VideoCodec, str]:
    """What decodes and its name on the card; the student is as it was saved, since half precision is other weights."""
    full, folder = student.codec, asked.light_decoder
    if folder is None:
        return full, type(full).__name__
    codec = LightCodec.from_pretrained(folder, full)
    codec.light.to(asked.device, asked.number_type)
    return codec, f"light decoder {folder} of {type(full).__name__}"


def _of_wan_preset(size: Preset, asked: Asked) -> _Measured:
    """A network of random weights, made in its number type on its device: it is never held twice."""
    pixels = (asked.height or size.latent_height * WAN_CELL, asked.width or size.latent_width * WAN_CELL)
    for name, given in zip(("height", "width"), pixels, strict=True):
        if given % WAN_CELL:
            raise ValueError(
                f"{name} {given} is not divisible by {WAN_CELL}, the pixels of one of Wan's latents; "
                f"use {given - given % WAN_CELL + WAN_CELL}"
            )
    config = preset(asked.what, layout=asked.layout)
    with _default_dtype(asked.number_type), torch.device(asked.device):
        network = SandwichDiT(config).eval()
        text_BLD = torch.randn(1, size.text_tokens, size.text_width)
    subject = _subject(
        network,
        asked,
        weights="random",
        latent=(size.latent_channels, pixels[0] // WAN_CELL, pixels[1] // WAN_CELL),
        pixels=pixels,
        text_tokens=size.text_tokens,
        frames_per_latent=WAN_FRAMES,
        decoder=NO_CODEC,
    )
    return _Measured(network, lambda: text_BLD, None, _sampling(Sampling(), asked), subject)


def _subject(
    network: Network,
    asked: Asked,
    *,
    weights: str,
    latent: tuple[int, int, int],
    pixels: tuple[int, int],
    text_tokens: int,
    frames_per_latent: int,
    decoder: str,
) -> Subject:
    ours = network if isinstance(network, SandwichDiT) else None
    return Subject(
        name=asked.what,
        weights=weights,
        layout="Wan's own blocks" if ours is None else ours.config.layout,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        flops=None if ours is None else ours.flops(*latent[1:], text_tokens=text_tokens),
        latents=(network.chunk_frames, *latent),
        pixels=pixels,
        frames_per_latent=frames_per_latent,
        decoder=decoder,
    )


def _sampling(own: Sampling, asked: Asked) -> Sampling:
    return own if asked.steps is None else replace(own, steps=asked.steps)


def _cpp_compiler() -> bool:
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    return any(shutil.which(name) for name in names if name)


def _next(asked: Asked) -> str:
    """The command that a reader of the card is likely to want."""
    if asked.what not in PRESETS:
        light = "" if asked.light_decoder is None else f" --light-decoder {quoted(asked.light_decoder)}"
        return f'streamstill stream {quoted(asked.what)} --prompt "{PROMPT}"{light}'
    other = "sandwich" if asked.layout == "full" else "full"
    out = asked.out.with_name(f"{asked.out.stem}-{other}.json")
    return f"streamstill bench {asked.what} --layout {other} --out {quoted(out)}"


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let new tensors have this dtype, for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
