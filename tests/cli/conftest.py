from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from streamstill.codec.light_decoder import LightDecoder, LightDecoderConfig
from streamstill.codec.patch import PatchCodec
from tests.recipes.tiny import saved_student, streamstill


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str

    def says(self, sentence: str) -> None:
        """One sentence on standard error, no traceback, a status that is not zero."""
        assert self.status != 0
        (line,) = self.err.strip().splitlines()
        assert line.startswith("streamstill: ")
        assert sentence in line


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The real entry point in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def once(*words: object) -> Ended:
        status = streamstill(monkeypatch, *words)
        return Ended(status, *capsys.readouterr())

    return once


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny student: 8 frames of 16x16 at 8 a second."""
    return saved_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def light_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a light decoder with fresh weights, for the codec of the tiny student."""
    return saved_light_decoder(tmp_path_factory.mktemp("light_decoder"), PatchCodec())


def saved_light_decoder(folder: Path, codec: PatchCodec) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LightDecoder(LightDecoderConfig.of(codec, width=8)).save_pretrained(folder)
    return folder
