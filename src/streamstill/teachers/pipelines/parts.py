"""Codec and text encoder of a loaded pipeline, for a student that learns in its latents and reads as it does."""

from copy import deepcopy

from streamstill.codec.diffusers_vae import DiffusersCodec
from streamstill.codec.pretrained import fingerprint
from streamstill.codec.text_models import TextModel, TextModelConfig
from streamstill.teachers.pipelines.clips import PipelineTeacher
from streamstill.teachers.pipelines.families import parameters_of

_LENGTH = "max_sequence_length"  # of prompts, in tokens: an argument of most pipelines' call


def codec_of(teacher: PipelineTeacher) -> DiffusersCodec:
    """The pipeline's autoencoder as a codec: it is not loaded a second time.

    Raises:
        ValueError: the autoencoder is of no kind that is a codec here.
    """
    config = teacher.config
    return DiffusersCodec.of(teacher.pipe.vae, config.source, subfolder="vae", dtype=config.vae_dtype)


def text_of(teacher: PipelineTeacher, *, tokens: int | None = None) -> TextModel:
    """The pipeline's first text encoder.

    Without ``offload`` it is the pipeline's own, and goes wherever it is asked to work; with it, one is loaded when it
    is first needed.

    Args:
        tokens: length of the embeddings; the default is the pipeline's own, or that of the config's ``arguments``.

    Raises:
        ValueError: the text encoder is of no kind that is one here, or nothing says how many tokens it reads.
    """
    pipe, given = teacher.pipe, teacher.config
    length = tokens or given.arguments.get(_LENGTH) or parameters_of(pipe).get(_LENGTH)
    if not isinstance(length, int):
        raise ValueError(f"{type(pipe).__name__} does not say how many tokens of a prompt it reads; give tokens")
    encoder = pipe.text_encoder
    config = TextModelConfig(
        source=given.source,
        subfolder="text_encoder",
        tokenizer="tokenizer",
        family=encoder.config.model_type,
        width=encoder.config.hidden_size,
        tokens=length,
        fingerprint=fingerprint(encoder),
        dtype=given.dtype,
    )
    reader = deepcopy(pipe.tokenizer)
    reader.padding_side = "right"  # as TextModel reads
    return TextModel(config, (encoder, reader) if given.offload == "none" else None)
