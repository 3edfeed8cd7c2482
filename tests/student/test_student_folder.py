"""A student's folder: written whole, read back bit for bit, and refused with one sentence when it is not right."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from streamstill.codec.text import WordEncoder, WordEncoderConfig
from streamstill.flow.times import Sampling
from streamstill.student.presets import preset
from streamstill.student.sandwich import SandwichConfig
from streamstill.student.student import CONFIG, WEIGHTS, Student, StudentConfig, build_student
from streamstill.testing import TINY, tiny_student
from streamstill.types import Geometry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_student(seed=3).save_pretrained(tmp_path)
    return tmp_path


def same_weights(one: Student, other: Student) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == again and torch.equal(a, b) for (name, a), (again, b) in pairs)


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_student_comes_back_bit_for_bit_and_ready_to_be_used(folder: Path) -> None:
    student, back = tiny_student(seed=3), Student.from_pretrained(folder)
    assert back.config == student.config
    assert same_weights(back, student)
    assert not back.training
    assert torch.equal(back.encode_prompts(["a red ball"]), student.encode_prompts(["a red ball"]))


def test_a_folder_holds_weights_and_config_and_nothing_half_written(folder: Path) -> None:
    tiny_student(seed=4).save_pretrained(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert same_weights(Student.from_pretrained(str(folder)), tiny_student(seed=4))


def test_weights_that_cannot_be_written_leave_the_old_student(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(partial: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        tiny_student(seed=4).save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert same_weights(Student.from_pretrained(folder), tiny_student(seed=3))


def test_weights_alone_are_no_student_yet(folder: Path) -> None:
    """The config comes last, so a save that was killed half-way in a new folder is not mistaken for a student."""
    (folder / CONFIG).unlink()
    with pytest.raises(ValueError, match=r"is not a student: it has no config\.json; give the folder that a run wrote"):
        Student.from_pretrained(folder)


def test_half_precision_weights_are_widened(folder: Path) -> None:
    halves = {name: tensor.half() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(halves, folder / WEIGHTS)
    back = Student.from_pretrained(folder)
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    assert all(torch.equal(p, halves[name].float()) for name, p in back.named_parameters())


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing; the student was not saved whole"):
        Student.from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_weights_are_refused(folder: Path, kept: int) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut short .*; copy or write it again"):
        Student.from_pretrained(folder)


def test_weights_of_another_layout_are_refused(folder: Path, tmp_path: Path) -> None:
    config = tiny_student().config
    assert isinstance(config.network, SandwichConfig)
    other = build_student(replace(config, network=replace(config.network, layout="LLL")), seed=0)
    save_file(other.state_dict(), folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"model\.safetensors does not belong to .*config\.json: .*blocks\.1"):
        Student.from_pretrained(folder)


@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_another_format_version_says_what_to_do(folder: Path, version: object) -> None:
    edit_config(folder, format=version)
    said = f"has format {version!r}, this version of streamstill reads format 2; .* install the version that wrote it"
    with pytest.raises(ValueError, match=said):
        Student.from_pretrained(folder)


def test_a_misspelt_field_of_the_config_is_named_with_its_path(folder: Path) -> None:
    described = json.loads((folder / CONFIG).read_text())["student"]
    described["network"]["widht"] = described["network"].pop("width")
    edit_config(folder, student=described)
    with pytest.raises(ValueError, match=r"config\.json\.network has no field \['widht'\]"):
        Student.from_pretrained(folder)


@pytest.mark.parametrize("text", [b'{"format": 1, "stu', b"\xff\xfe\x00", b""])
def test_a_damaged_config_is_refused(folder: Path, text: bytes) -> None:
    (folder / CONFIG).write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.json is damaged .*; write the student again"):
        Student.from_pretrained(folder)


@pytest.mark.parametrize("student", [None, [], "a student"])
def test_a_config_without_a_student_is_refused(folder: Path, student: object) -> None:
    edit_config(folder, student=student)
    with pytest.raises(ValueError, match="describes no student"):
        Student.from_pretrained(folder)


def test_a_resized_student_has_the_same_weights_of_its_own(folder: Path) -> None:
    student, larger = tiny_student(), Geometry(frames=12, height=24, width=32, fps=10)
    copy = student.resized(larger)
    assert same_weights(copy, student)
    assert (copy.config.geometry, copy.latent_shape) == (larger, (6, 96, 6, 8))
    assert copy.config == replace(student.config, geometry=larger)
    with torch.no_grad():
        next(copy.parameters()).zero_()
    assert not same_weights(copy, student)


def test_only_the_number_of_steps_changes() -> None:
    student = tiny_student()
    other = student.with_steps(9)
    assert other.config == replace(student.config, sampling=replace(student.config.sampling, steps=9))
    assert same_weights(other, student)
    assert not {id(p) for p in other.parameters()} & {id(p) for p in student.parameters()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"height": 30}, "height 30 is not divisible by 8, .*; use 24 or 32"),
        ({"width": 4}, "width 4 is not divisible by 8, .*; use 8$"),
        ({"frames": 6}, "frames 6 is not divisible by 4, .*; use 4 or 8"),
    ],
)
def test_a_size_that_cannot_be_cut_into_patches_and_chunks_is_refused_at_once(
    change: dict[str, int], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        tiny_student().resized(replace(TINY, **change))
    with pytest.raises(ValueError, match=said):
        tiny_student(replace(TINY, **change))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    config = tiny_student().config
    assert same_weights(build_student(config, seed=5), build_student(config, seed=5))
    assert not same_weights(build_student(config, seed=5), build_student(config, seed=6))


def test_a_fingerprint_tells_weights_apart_and_nothing_else() -> None:
    student = tiny_student(seed=1)
    larger = student.resized(Geometry(frames=8, height=32, width=32, fps=8))
    assert student.fingerprint == tiny_student(seed=1).fingerprint == larger.fingerprint
    assert isinstance(larger.text, WordEncoder)
    with torch.no_grad():
        larger.text.positions[0, 0] += 1e-6
    assert len({student.fingerprint, larger.fingerprint, tiny_student(seed=2).fingerprint}) == 3


def test_building_a_student_leaves_the_global_randomness_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build_student(tiny_student().config, seed=5)
    assert torch.equal(torch.rand(3), expected)


def test_a_nano_student_has_at_most_a_million_parameters() -> None:
    config = tiny_student().config
    network = preset("nano", latent_channels=config.codec.latent_channels, text_width=64)
    full = StudentConfig(
        network=network,
        text=replace(config.text, width=64),
        codec=config.codec,
        geometry=config.geometry,
        sampling=Sampling(),
    )
    count = sum(parameter.numel() for parameter in build_student(full, seed=0).parameters())
    assert 300_000 < count <= 1_000_000


def test_another_size_and_other_steps_keep_place_dtype_mode_and_weights() -> None:
    student = tiny_student(seed=3).bfloat16().train()
    for other in (student.with_steps(2), student.resized(replace(student.config.geometry, frames=16))):
        assert other.training
        assert {p.dtype for p in other.parameters()} == {torch.bfloat16}
        assert other.fingerprint == student.fingerprint
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in student.parameters()}
    assert not student.eval().with_steps(2).training
    assert student.with_steps(2).config.sampling.steps == 2


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({"latent_channels": 16}, "latent_channels is 16 and the codec's latents have 96"),
        ({"text_width": 24}, "text_width is 24 and the text encoder's embeddings have"),
    ],
)
def test_parts_that_do_not_fit_are_refused(network: dict[str, Any], said: str) -> None:
    config = tiny_student().config
    with pytest.raises(ValueError, match=said):
        Student(replace(config, network=replace(config.network, **network)))


def test_a_text_encoder_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="width 64 cannot be divided among 5 heads"):
        WordEncoderConfig(heads=5)
    with pytest.raises(ValueError, match="tokens must be at least 1"):
        WordEncoderConfig(tokens=0)
