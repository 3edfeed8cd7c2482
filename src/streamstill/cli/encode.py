"""``streamstill encode``: a clip cache as latents and embeddings."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from streamstill.cli.devices import device_named
from streamstill.cli.shell import quoted, say_next
from streamstill.codec.build import build_codec
from streamstill.codec.diffusers_vae import DiffusersCodec
from streamstill.codec.learned import KIND as LEARNED
from streamstill.codec.learned import LearnedCodecConfig, build_learned_codec
from streamstill.codec.module_folder import holds
from streamstill.codec.patch import PatchCodec
from streamstill.codec.pretrained import DtypeName
from streamstill.codec.text_cache import CachedText
from streamstill.codec.text_models import TextModel
from streamstill.codec.video import VideoCodec
from streamstill.recipes.encoding import EncodeReport, encode_once
from streamstill.recipes.stages import filled_cache
from streamstill.student.student import Student
from streamstill.teachers import ClipStore
from streamstill.teachers.encoded import LATENTS, TEXT, EncodedStore, KeptDtype
from streamstill.teachers.place import Place
from streamstill.types import Geometry


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The words of the command; ``cache`` may be the path of an ``s3://`` address."""

    cache: Path
    out: Path
    student: Path | None
    codec: str | None
    text: str | None
    tokens: int | None
    teacher: str | None
    tile: int | None
    weights: DtypeName
    dtype: KeptDtype
    device: str

    def __post_init__(self) -> None:
        device_named(self.device)
        if (self.student is None) == (self.codec is None):
            raise ValueError("give --student, whose codec and text encoder are used, or --codec, and not both")
        if self.student is not None and (self.text, self.tokens, self.tile) != (None, None, None):
            raise ValueError("--text, --tokens and --tile go with --codec; a student has its own")
        if Place.of(self.out).remote:
            raise ValueError(
                f"--out must be a folder on disk, got {Place.of(self.out).uri}; only --cache may be in a bucket"
            )
        others = {path.name for path in self.out.iterdir()} - {LATENTS, TEXT} if self.out.is_dir() else set()
        if others:
            raise ValueError(
                f"--out {self.out} holds other things than encoded clips ({min(others)}); give a folder of its own"
            )


def encode(asked: Asked, console: Console) -> None:
    """``streamstill encode``."""
    clips = filled_cache(asked.cache)
    codec, text, geometry = _encoders(asked)
    if isinstance(codec, torch.nn.Module):
        codec.to(asked.device)
    if text is not None:
        text.to(asked.device)
    report = _encode(asked, clips, codec, text, geometry, console)
    console.print(f"  {report.clips} clips, {report.clips - report.known} of them new -> {asked.out}", soft_wrap=True)
    if text is not None:
        console.print(f"  embeddings of prompts: {report.prompts} -> {asked.out}", soft_wrap=True)
    say_next(console, f"streamstill train {quoted(asked.student or 'STUDENT')} --cache {quoted(asked.out)}")


def _encode(
    asked: Asked,
    clips: ClipStore,
    codec: VideoCodec,
    text: CachedText | None,
    geometry: Geometry | None,
    console: Console,
) -> EncodeReport:
    columns = (TextColumn("  encoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        return encode_once(
            clips,
            EncodedStore.open(asked.out),
            codec,
            text=text,
            geometry=geometry,
            teacher=asked.teacher,
            dtype=asked.dtype,
            device=asked.device,
            on_clip=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _encoders(asked: Asked) -> tuple[VideoCodec, CachedText | None, Geometry | None]:
    """Codec, external text encoder if there is one, and the size of the clips if it is fixed."""
    if asked.student is not None:
        student = Student.from_pretrained(asked.student)
        text = student.text if isinstance(student.text, CachedText) else None
        return student.codec, text, student.config.geometry
    assert asked.codec is not None
    return _codec(asked.codec, asked), _text(asked), None


def _codec(given: str, asked: Asked) -> VideoCodec:
    if given == "patch":
        return PatchCodec()
    if holds(given, LEARNED):
        return build_learned_codec(LearnedCodecConfig.of(given))
    source, subfolder = _place(given, "vae")
    model = DiffusersCodec.from_pretrained(source, subfolder=subfolder, dtype=asked.weights)
    return model if asked.tile is None else build_codec(replace(model.config, tile=asked.tile))


def _text(asked: Asked) -> CachedText | None:
    if asked.text is None:
        return None
    source, subfolder = _place(asked.text, "text_encoder")
    tokenizer = "tokenizer" if subfolder == "text_encoder" else ""
    model = TextModel.from_pretrained(
        source, subfolder=subfolder, tokenizer=tokenizer, tokens=asked.tokens, dtype=asked.weights
    )
    return CachedText(model.config, model)


def _place(given: str, part: str) -> tuple[str, str]:
    """A folder or ORGANISATION/NAME, and its subfolder; this part of a pipeline's folder goes without saying."""
    if Path(given).is_dir():
        return given, part if (Path(given) / part).is_dir() else ""
    names = given.split("/")
    return "/".join(names[:2]), "/".join(names[2:])
