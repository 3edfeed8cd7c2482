"""A student as it is trained, saved and streamed: network, text encoder, codec, sizes."""

import hashlib
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from streamstill.codec.build import CodecConfig, TextConfig, build_codec, build_text
from streamstill.codec.counting import clip_latents, first_frames
from streamstill.codec.learned import LearnedCodec, LearnedCodecConfig
from streamstill.codec.text import WordEncoder
from streamstill.codec.text_cache import CachedText
from streamstill.codec.video import VideoCodec
from streamstill.config import from_dict, to_dict, write_json
from streamstill.flow.times import Sampling
from streamstill.student.network import Network, NetworkConfig, build_network
from streamstill.student.wan import CausalWanConfig
from streamstill.tensor_file import write_tensors
from streamstill.types import Geometry

FORMAT = 2
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """What ``config.json`` holds: enough to rebuild the student, and how it wants to be sampled."""

    network: NetworkConfig
    text: TextConfig
    codec: CodecConfig
    geometry: Geometry
    sampling: Sampling


class Student(nn.Module):
    """Network, text encoder and codec under one roof; ``save_pretrained`` and ``from_pretrained`` as usual.

    A learned codec is small, and saved with the student. An autoencoder or text encoder of another library is not, and
    is loaded when it is first used. None of them is trained with the student.

    Raises:
        ValueError: clips of this geometry cannot be cut into the patches and chunks of the codec and the network.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.codec: VideoCodec = build_codec(config.codec)
        if isinstance(self.codec, LearnedCodec):
            config = replace(config, codec=self.codec.config)  # from here on its weights are the student's
        self.config = config
        self.network: Network = build_network(config.network)
        self.text: WordEncoder | CachedText = build_text(config.text)
        _require_fitting(config.network, self.codec, self.text)
        _require_whole_patches(config.geometry, self.codec, self.network)

    def keep_text_in(self, folder: Path) -> None:
        """Look embeddings of an external text encoder up in this folder, and add those that it does not have."""
        if isinstance(self.text, CachedText):
            self.text.keep_in(folder)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Latent frames, C, H, W of the clips the student was made for."""
        return clip_latents(self.codec, self.config.geometry)

    @property
    def words(self) -> int:
        """How many words of a prompt can count; those beyond are cut off."""
        return self.config.text.tokens

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """``text_BLD`` of the prompts, on the student's device."""
        return self.text.encode(prompts)

    def encode_nothing(self, batch: int) -> Tensor:
        """``text_BLD`` of no prompt, on the student's device, for guidance; ``batch`` equal rows."""
        return self.text.encode_nothing(batch)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that differ where the weights differ."""
        digest = hashlib.sha256()
        for name, tensor in self.state_dict().items():
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:12]

    def resized(self, geometry: Geometry) -> "Student":
        """The same weights for clips of another size."""
        return self._copied(replace(self.config, geometry=geometry))

    def with_steps(self, steps: int) -> "Student":
        """The same weights, made to answer in another number of steps; the shift stays."""
        return self._copied(replace(self.config, sampling=replace(self.config.sampling, steps=steps)))

    def _copied(self, config: StudentConfig) -> "Student":
        """A copy in the same place, dtype and mode; encoders of other libraries are shared, not loaded anew."""
        _require_whole_patches(config.geometry, self.codec, self.network)
        student = deepcopy(self)
        student.config = config
        return student

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json``, each whole or not at all; the config comes last.

        Raises:
            OSError: they could not be written, for example to a full disk.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        write_tensors(path / WEIGHTS, {name: tensor.contiguous() for name, tensor in self.state_dict().items()})
        write_json(path / CONFIG, {"format": FORMAT, "student": to_dict(self.config)})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Student":
        """Read what ``save_pretrained`` wrote; half-precision weights are widened to float32.

        Raises:
            ValueError: not a student's folder, another format version, or a damaged file.
        """
        path = Path(folder)
        student = cls(_read_config(path / CONFIG))
        weights = {name: tensor.float() for name, tensor in _read_weights(path / WEIGHTS).items()}
        try:
            student.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"{path / WEIGHTS} does not belong to {path / CONFIG}: {str(error).splitlines()[-1].strip()}"
            ) from error
        return student.eval()


def build_student(config: StudentConfig, *, seed: int) -> Student:
    """A student with fresh weights; the same seed gives the same weights.

    Raises:
        ValueError: it would begin with a learned codec that has not learnt anything.
    """
    if isinstance(config.codec, LearnedCodecConfig) and not config.codec.path:
        raise ValueError(
            "a student cannot begin with a learned codec of fresh weights; train the codec first, save it, and take "
            "LearnedCodecConfig.of(folder)"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Student(config)


def _require_fitting(network: NetworkConfig, codec: VideoCodec, text: WordEncoder | CachedText) -> None:
    wan = isinstance(network, CausalWanConfig)
    pairs = (
        ("in_channels" if wan else "latent_channels", "the codec's latents", codec.latent_channels),
        ("text_dim" if wan else "text_width", "the text encoder's embeddings", text.text_width),
    )
    for name, whose, has in pairs:
        if getattr(network, name) != has:
            raise ValueError(
                f"the network's {name} is {getattr(network, name)} and {whose} have {has}; build it with {name}={has}"
            )


def _require_whole_patches(size: Geometry, codec: VideoCodec, network: Network) -> None:
    frames, rows, columns = codec.compression
    rows, columns = rows * network.latent_step, columns * network.latent_step
    short = frames - first_frames(codec)  # pixel frames that the first latent frame does not make
    sizes = (("frames", size.frames, frames * network.chunk_frames, short), ("height", size.height, rows, 0))
    for name, given, step, less in (*sizes, ("width", size.width, columns, 0)):
        rest = (given + less) % step
        if rest:
            fitting = [str(fit) for fit in (given - rest, given - rest + step) if fit > 0]
            beside = f" plus {less}" if less else ""
            raise ValueError(
                f"{name} {given}{beside} is not divisible by {step}, as the chunks and patches of this student need; "
                f"use {' or '.join(fitting)}"
            )


def _read_config(path: Path) -> StudentConfig:
    if not path.is_file():
        raise ValueError(f"{path.parent} is not a student: it has no {CONFIG}; give the folder that a run wrote")
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path} is damaged ({error}); write the student again") from error
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {version!r}, this version of streamstill reads format {FORMAT}; "
            "save the student again with this version, or install the version that wrote it"
        )
    described = values.get("student")
    if not isinstance(described, dict):
        raise ValueError(f"{path} describes no student; write the student again")
    return from_dict(StudentConfig, described, where=str(path))


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; the student was not saved whole")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); copy or write it again") from error
