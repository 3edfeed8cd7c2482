"""Where knowledge comes from: an open teacher, and what a student must share with it to learn from its homework."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from streamstill.codec.build import CodecConfig, TextConfig
from streamstill.codec.text import WordEncoderConfig
from streamstill.codec.text_cache import CachedText
from streamstill.codec.text_models import TextModel
from streamstill.flow.times import Sampling
from streamstill.recipes.base import student_config
from streamstill.recipes.student_teacher import StudentTeacher
from streamstill.student.presets import preset
from streamstill.student.student import Student, build_student
from streamstill.teachers.pipelines.clips import PipelineTeacher
from streamstill.teachers.pipelines.config import PipelineConfig
from streamstill.teachers.pipelines.opened import OpenPipelineTeacher, pipeline_teacher
from streamstill.teachers.pipelines.parts import codec_of, text_of
from streamstill.teachers.teacher import OpenTeacher, require_open
from streamstill.types import Geometry


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What student and teacher have in common: the size of clips, and the codec; and what fresh students read with."""

    geometry: Geometry
    codec: CodecConfig
    text: TextConfig


@dataclass(frozen=True, eq=False)
class OpenSource:
    """An open teacher, which weights it has, and what its students share with it.

    Args:
        encoder: the text encoder that fresh students borrow; None: they have one of their own.
    """

    teacher: OpenTeacher
    weights: str
    shared: Shared
    encoder: TextModel | None = None

    @classmethod
    def of_student(cls, student: Student, *, steps: int, guidance: float) -> "OpenSource":
        """A student that teaches bidirectionally; fresh students read with words of their own."""
        known = student.config
        shared = Shared(geometry=known.geometry, codec=known.codec, text=WordEncoderConfig())
        return cls(StudentTeacher(student.eval(), steps=steps, guidance=guidance), student.fingerprint, shared)

    @classmethod
    def of_pipeline(cls, config: PipelineConfig) -> "OpenSource":
        """A pipeline of diffusers; fresh students work in its latents and read its text encoder's embeddings.

        Raises:
            ModuleNotFoundError, ValueError: see :func:`streamstill.teachers.pipelines.opened.pipeline_teacher`.
            ValueError: it shows finished clips and nothing else, the config has no geometry, or the pipeline's parts
                are of no known kind.
        """
        teacher = pipeline_teacher(config)
        try:
            opened = require_open(teacher, "homework")
        except TypeError as error:
            raise ValueError(str(error)) from error
        assert isinstance(opened, OpenPipelineTeacher)  # what else of a pipeline is open
        encoder = text_of(opened.clips)
        return cls(opened, opened.name, shared_with(opened.clips, encoder), encoder)

    def embed(self, prompts: Sequence[str], folder: Path) -> None:
        """Keep the borrowed encoder's embeddings of these prompts, and of none, so that training loads no encoder."""
        if self.encoder is None:
            return
        text = CachedText(self.encoder.config, self.encoder)
        text.keep_in(folder)
        text.encode_nothing(1)
        text.encode(list(prompts))


def shared_with(teacher: PipelineTeacher, encoder: TextModel | None = None) -> Shared:
    """What students share with a pipeline, be it open or not: size, autoencoder and text encoder.

    Args:
        encoder: the pipeline's, if it was taken out before.

    Raises:
        ValueError: the config has no geometry, or the pipeline's parts are of no known kind.
    """
    geometry = _size_of(teacher.config)
    return Shared(geometry=geometry, codec=codec_of(teacher).config, text=(encoder or text_of(teacher)).config)


def shared_by(config: PipelineConfig) -> Shared:
    """What students share with the pipeline of this config, which is loaded for it and let go.

    Raises:
        ModuleNotFoundError, ValueError: see :meth:`streamstill.teachers.pipelines.clips.PipelineTeacher.load`.
        ValueError: as for ``shared_with``.
    """
    _size_of(config)  # before anything is loaded
    return shared_with(PipelineTeacher.load(config))


def fresh_student(
    shared: Shared, *, size: str = "nano", layout: str | None = None, sampling: Sampling | None = None, seed: int = 0
) -> Student:
    """A student of a preset's size that has learnt nothing yet, for this codec and this text encoder.

    Raises:
        ValueError: an unknown preset, or clips that cannot be cut into its chunks and patches.
    """
    shape = student_config(shared.geometry, sampling=sampling or Sampling())
    network = preset(size, latent_channels=shared.codec.latent_channels, text_width=shared.text.width, layout=layout)
    return build_student(replace(shape, network=network, codec=shared.codec, text=shared.text), seed=seed)


def _size_of(config: PipelineConfig) -> Geometry:
    if config.geometry is None:
        raise ValueError("a student learns clips of one size; set the pipeline's geometry to that of the clips")
    return config.geometry
