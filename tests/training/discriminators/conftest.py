from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.discriminators.parts import save_qwen2_vl, videomae, vjepa2


@pytest.fixture(scope="session")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason='install the encoders extra: pip install "streamstill[encoders]"')


@pytest.fixture(scope="session")
def encoders(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny V-JEPA 2 and a tiny VideoMAE, as a hub holds them."""
    folders = {}
    for make in (vjepa2, videomae):
        torch.manual_seed(0)
        folders[make.__name__] = tmp_path_factory.mktemp(make.__name__)
        make(transformers).save_pretrained(folders[make.__name__])
    return folders


@pytest.fixture(scope="session")
def qwen2_vl(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Qwen2-VL with its tokenizer."""
    folder = tmp_path_factory.mktemp("qwen2_vl")
    save_qwen2_vl(transformers, folder)
    return folder
