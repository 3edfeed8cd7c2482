"""``streamstill student``: a student with fresh weights, for clips of one size in the latents of one codec."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from streamstill.cli.collect import parse_size
from streamstill.cli.shell import quoted, say_next
from streamstill.codec.build import CodecConfig
from streamstill.codec.learned import LearnedCodecConfig
from streamstill.codec.patch import PatchCodec
from streamstill.codec.text import WordEncoderConfig
from streamstill.config import from_dict, require_one_of
from streamstill.recipes.open_source import Shared, fresh_student, shared_by
from streamstill.student.presets import PRESETS
from streamstill.student.student import CONFIG
from streamstill.teachers.api.videos_config import read_table
from streamstill.teachers.pipelines.config import PipelineConfig


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The words of the command; ``pipeline`` is a file that describes one."""

    out: Path
    size: str | None
    preset: str
    layout: str | None
    codec: Path | None
    pipeline: Path | None
    seed: int

    def __post_init__(self) -> None:
        require_one_of(self.preset, tuple(PRESETS), "preset")
        if self.pipeline is not None and (self.size, self.codec) != (None, None):
            raise ValueError("--size and --codec are the pipeline's own; leave them out beside --pipeline")
        if self.pipeline is None and self.size is None:
            raise ValueError("give --size FRAMESxHEIGHTxWIDTH@FPS, that of the clips to learn from, or --pipeline FILE")
        if (self.out / CONFIG).exists():
            raise ValueError(f"{self.out} holds a {CONFIG} already, which is not written over; give another --out")

    @property
    def shared(self) -> Shared:
        """Size, codec and text encoder; a pipeline is loaded for it.

        Raises:
            FileNotFoundError, ModuleNotFoundError, ValueError: what was named cannot be read.
        """
        if self.pipeline is not None:
            return shared_by(from_dict(PipelineConfig, read_table(self.pipeline), where=self.pipeline.name))
        assert self.size is not None
        codec: CodecConfig = PatchCodec() if self.codec is None else LearnedCodecConfig.of(self.codec)
        return Shared(geometry=parse_size(self.size), codec=codec, text=WordEncoderConfig())


def make_student(asked: Asked, console: Console) -> None:
    """Write the student, and say what it is and what to type next."""
    made = fresh_student(asked.shared, size=asked.preset, layout=asked.layout, seed=asked.seed)
    made.save_pretrained(asked.out)
    size = made.config.geometry
    weights = sum(weight.numel() for weight in made.network.parameters())
    console.print(
        f"  {asked.preset}, untrained, {weights / 1e6:.1f} M weights, for clips of {size.words} -> {asked.out}",
        soft_wrap=True,
    )
    say_next(console, f"streamstill train {quoted(asked.out)} --cache CACHE")
