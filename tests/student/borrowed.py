"""Tiny students that borrow an autoencoder, a text encoder, or both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from streamstill.codec.build import CodecConfig, TextConfig
from streamstill.codec.diffusers_vae import DiffusersCodec
from streamstill.codec.text_models import TextModel
from streamstill.student.sandwich import SandwichConfig
from streamstill.student.student import Student, build_student
from streamstill.testing import tiny_student
from streamstill.types import Geometry
from tests.codec.tiny_models import saved_text, saved_vae, t5, wan

SIZE = Geometry(frames=13, height=16, width=16, fps=8)  # 4 latent frames of Wan: 1 + 3 x 4
CHANNELS, WIDTH = 4, 16


def wan_codec(folder: Path) -> CodecConfig:
    return DiffusersCodec.from_pretrained(saved_vae(wan, folder / "vae")).config


def t5_text(folder: Path) -> TextConfig:
    return TextModel.from_pretrained(saved_text(t5, folder / "text"), tokens=8).config


def student_with(*, seed: int = 0, **parts: Any) -> Student:
    """A tiny student with another codec, text or geometry; the network fits them."""
    config = replace(tiny_student().config, **parts)
    assert isinstance(config.network, SandwichConfig)
    codec, text = config.codec, config.text
    network = replace(config.network, latent_channels=codec.latent_channels, text_width=text.width)
    return build_student(replace(config, network=network), seed=seed).eval()


def borrowing_student(folder: Path) -> Student:
    """Wan's latents, T5's embeddings; the models lie in the folder, and are not loaded."""
    return student_with(codec=wan_codec(folder), text=t5_text(folder), geometry=SIZE)
