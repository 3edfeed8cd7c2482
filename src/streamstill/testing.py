"""Real parts at tiny size, for tests and examples: nothing here is a mock of the package itself."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from streamstill.codec.patch import PatchCodec
from streamstill.codec.text import WordEncoderConfig
from streamstill.student.presets import nano
from streamstill.student.student import Student, StudentConfig, build_student
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


def tiny_student(geometry: Geometry = TINY, *, seed: int = 0) -> Student:
    """A student of the real classes, so small that a training step takes milliseconds; fresh weights."""
    codec, text = PatchCodec(), WordEncoderConfig(width=16)
    network = nano(latent_channels=codec.latent_channels, text_width=text.width)
    config = StudentConfig(
        network=replace(network, layout="LSL", width=32, head_dim=16),
        text=text,
        codec=codec,
        geometry=geometry,
        sampling_steps=4,
        schedule_shift=8.0,
    )
    return build_student(config, seed=seed).eval()
