"""What the codec's recipes start from: clips of a folder or a cache, a codec of any kind, a network to time beside."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console
from torch import Tensor

from streamstill.codec.diffusers_vae import DiffusersCodec
from streamstill.codec.learned import KIND as LEARNED
from streamstill.codec.learned import LearnedCodec
from streamstill.codec.module_folder import holds
from streamstill.codec.video import VideoCodec
from streamstill.config import require_one_of
from streamstill.flow.times import Sampling
from streamstill.recipes.stages import collect_clips, filled_cache, require_one_teacher
from streamstill.streaming.model import StreamingModel
from streamstill.student.presets import PRESETS, preset
from streamstill.student.sandwich import SandwichDiT
from streamstill.student.student import Student
from streamstill.teachers import ClipStore, FolderTeacher
from streamstill.teachers.place import Place
from streamstill.training.devices import CPU
from streamstill.types import Clip, ClipRequest, Geometry

Pairs: TypeAlias = list[tuple[str, Clip]]
PROMPT = "A red ball is dropped."


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """Where clips come from: a folder of videos with captions, or a teacher cache; one of the two.

    Args:
        cache: a folder, or the path of an ``s3://`` address.

    Raises:
        ValueError: both are given, or neither.
    """

    folder: Path | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.cache is None):
            raise ValueError("give --clips DIR, a folder of videos with captions, or --cache DIR, and not both")

    @property
    def named(self) -> dict[str, str]:
        """What a run reads, by name."""
        if self.folder is not None:
            return {"clips": str(self.folder)}
        assert self.cache is not None
        return {"cache": Place.of(self.cache).uri}

    def require(self) -> None:
        """Check that it is there.

        Raises:
            FileNotFoundError, ValueError: it is not.
        """
        if self.folder is not None:
            FolderTeacher.open(self.folder)
        elif self.cache is not None:
            filled_cache(self.cache)

    def clips(self, geometry: Geometry, teacher: str, workshop: Path, console: Console) -> Pairs:
        """(prompt, clip) pairs of this size: every clip of the folder, fitted to it, or what the cache has in it.

        Args:
            teacher: whose clips of the cache; "" where there is only one.
            workshop: folder in which the clips of a folder are kept at this size.

        Raises:
            ValueError: a video is shorter than asked, or the cache has no such clip or those of several teachers.
        """
        if self.folder is not None:
            who = FolderTeacher.open(self.folder)
            answers = collect_clips(who, every_clip(who, geometry), workshop / "cache", console)
            return [(request.prompt, clip) for request, clip in answers]
        assert self.cache is not None
        return _cached(self.cache, geometry, teacher)


def every_clip(teacher: FolderTeacher, geometry: Geometry) -> list[ClipRequest]:
    """Every clip of the folder once: the seed counts the clips of one caption."""
    counts = {prompt: sum(entry.prompt == prompt for entry in teacher.clips) for prompt in teacher.prompts}
    return [
        ClipRequest.of(geometry, prompt=prompt, seed=seed) for prompt, count in counts.items() for seed in range(count)
    ]


def open_codec(folder: str) -> VideoCodec:
    """The codec in a folder: a learned one, a student's, or an autoencoder of diffusers.

    Raises:
        ModuleNotFoundError: it is one of diffusers, which is not installed.
        ValueError: the folder holds none of them.
    """
    if holds(folder, LEARNED):
        return LearnedCodec.from_pretrained(folder).requires_grad_(False)
    if holds(folder, "student"):
        return Student.from_pretrained(folder).codec
    if holds(folder, "_class_name"):
        return DiffusersCodec.from_pretrained(folder)
    raise ValueError(
        f"{folder} holds no codec; give the folder of a learned codec (`streamstill codec train` makes one), of a "
        "student, or of an autoencoder of diffusers"
    )


def student_of(student: str, codec: str) -> str:
    """The folder of a student that a light decoder of this codec decodes for, as far as a run knows one; or STUDENT."""
    known = [folder for folder in (student, codec) if holds(folder, "student")]
    return known[0] if known else "STUDENT"


def pacemaker(
    name: str, codec: VideoCodec, geometry: Geometry, device: torch.device = CPU
) -> tuple[StreamingModel[Any], Tensor, Sampling]:
    """The network whose chunks decoding is timed beside, the text of one clip, both on the device; how it samples.

    A preset has random weights and the codec's latent channels: speed does not depend on weights.

    Raises:
        ValueError: there is no such student or preset, or the student's latents are not the codec's.
    """
    if not Path(name).is_dir():
        require_one_of(name, tuple(PRESETS), "student folder or preset")
        size = PRESETS[name]
        network = SandwichDiT(preset(name, latent_channels=codec.latent_channels, text_width=size.text_width))
        text_BLD = torch.randn(1, size.text_tokens, size.text_width, generator=torch.Generator().manual_seed(0))
        _require_whole(geometry, codec, network.latent_step)
        return network.eval().to(device), text_BLD.to(device), Sampling()
    student = Student.from_pretrained(name).to(device)
    own = student.codec
    if (own.latent_channels, tuple(own.compression)) != (codec.latent_channels, tuple(codec.compression)):
        raise ValueError(
            f"the student {name} has latents of {own.latent_channels} channels, compressed {own.compression}, the "
            f"codec has {codec.latent_channels} and {codec.compression}; give a student of this codec, or a preset"
        )
    _require_whole(geometry, codec, student.network.latent_step)
    with torch.no_grad():
        text_BLD = student.encode_prompts([PROMPT])
    return student.network, text_BLD, student.config.sampling


def _require_whole(geometry: Geometry, codec: VideoCodec, step: int) -> None:
    for name, pixels, each in zip(
        ("height", "width"), (geometry.height, geometry.width), codec.compression[1:], strict=True
    ):
        if pixels % (each * step):
            raise ValueError(
                f"{name} {pixels} is not divisible by {each * step}, the codec's {each} times the network's {step}; "
                "choose another --size"
            )


def _cached(cache: Path, geometry: Geometry, teacher: str) -> Pairs:
    store = ClipStore.open(cache)
    entries = [entry for entry in store.find(teacher=teacher or None) if entry.request.geometry == geometry]
    if not entries:
        raise ValueError(
            f"{store.path} has {len(store)} clips and none of the size {geometry.words}; "
            f"collect some with --size {geometry.words}"
        )
    require_one_teacher(store.path, {entry.teacher for entry in entries})
    return [(entry.request.prompt, clip) for entry, clip in store.read(entries)]
