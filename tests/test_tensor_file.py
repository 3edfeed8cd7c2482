from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

import streamstill.tensor_file
from streamstill.tensor_file import write_tensors

TENSORS = {"a": torch.arange(6).reshape(2, 3), "b": torch.zeros(0)}


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"step": "7"})
    read = load_file(path)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"step": "7"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [SafetensorError("No space left on device"), OSError(28, "No space left on device")])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    before = path.read_bytes()

    def fail(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr(streamstill.tensor_file, "save_file", fail)
    with pytest.raises(OSError, match=r"could not be written .*No space left.*free some space"):
        write_tensors(path, {"a": torch.ones(3)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
