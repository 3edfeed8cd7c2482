"""Real parts at tiny size, for tests and examples: nothing here is a mock of the package itself."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from streamstill.codec.patch import PatchCodec
from streamstill.codec.text import WordEncoderConfig
from streamstill.flow.times import Sampling
from streamstill.student.network import NetworkConfig
from streamstill.student.presets import preset
from streamstill.student.student import Student, StudentConfig, build_student
from streamstill.student.wan import CausalWanConfig
from streamstill.types import Clip, ClipRequest, Geometry


@dataclass(frozen=True)
class FakeTeacher:
    """A teacher that is a function: for tests of whatever asks a teacher."""

    name: str
    answer: Callable[[ClipRequest], Clip]

    def generate(self, request: ClipRequest) -> Clip:
        """What the function says."""
        return self.answer(request)


TINY = Geometry(frames=8, height=16, width=16, fps=8)
CODEC, TEXT = PatchCodec(), WordEncoderConfig(width=16)  # of the tiny students


def tiny_student(geometry: Geometry = TINY, *, seed: int = 0) -> Student:
    """A student of the real classes, so small that a training step takes milliseconds; fresh weights."""
    network = preset("nano", latent_channels=CODEC.latent_channels, text_width=TEXT.width)
    return _student(replace(network, layout="LSL", width=32, head_dim=16), geometry, seed)


def tiny_wan_student(geometry: Geometry = TINY, *, seed: int = 0) -> Student:
    """The same with diffusers' Wan transformer as its network; fresh weights.

    Raises:
        ModuleNotFoundError: diffusers is not installed.
    """
    network = CausalWanConfig(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=CODEC.latent_channels,
        out_channels=CODEC.latent_channels,
        text_dim=TEXT.width,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=64,
        chunk_frames=2,
        window_chunks=2,
    )
    return _student(network, geometry, seed)


def _student(network: NetworkConfig, geometry: Geometry, seed: int) -> Student:
    config = StudentConfig(network=network, text=TEXT, codec=CODEC, geometry=geometry, sampling=Sampling())
    return build_student(config, seed=seed).eval()
