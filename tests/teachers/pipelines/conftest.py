from pathlib import Path

import pytest

from tests.teachers.pipelines.asking import Saved


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folder of a tiny pipeline of this family, written by its own save_pretrained, once."""
    for name in ("diffusers", "transformers", "accelerate", "ftfy"):
        pytest.importorskip(name, reason='install the local extra: pip install "streamstill[local]"')
    from tests.teachers.pipelines.tiny import build

    folders: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp("pipelines") / family
            build(family).save_pretrained(folders[family])
        return folders[family]

    return folder
