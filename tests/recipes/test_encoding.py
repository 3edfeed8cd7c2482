"""Clips encoded once: the same latents, the same training, and neither autoencoder nor text encoder in memory."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from streamstill.codec.diffusers_vae import DiffusersCodec
from streamstill.codec.patch import PatchCodec
from streamstill.codec.text_cache import CachedText
from streamstill.recipes.encoding import EncodeReport, encode_once
from streamstill.recipes.training import Training, cached_examples, taught
from streamstill.student.student import Student
from streamstill.teachers import Answer, ClipStore
from streamstill.teachers.encoded import EncodedStore
from streamstill.testing import TINY, tiny_student
from streamstill.training.batches import Examples, encode_clips
from streamstill.training.trainer import Trainer, TrainerConfig
from streamstill.types import ClipRequest, Geometry
from tests.codec.tiny_models import PROMPTS
from tests.student.borrowed import SIZE, borrowing_student
from tests.teachers.fakes import noise


def filled(path: Path, geometry: Geometry, count: int = 4, *, teacher: str = "noise") -> ClipStore:
    store = ClipStore.open(path)
    requests = [ClipRequest.of(geometry, prompt=PROMPTS[n % 2], seed=n) for n in range(count)]
    store.add(Answer(teacher=teacher, request=one, clip=noise(one)) for one in requests)
    return store


class Failing(PatchCodec):
    """Stops after a number of clips, as a machine that goes down does."""

    left: ClassVar[int]

    def encode(self, pixels_BFCHW: Tensor) -> Tensor:
        if Failing.left == 0:
            raise KeyboardInterrupt
        Failing.left -= 1
        return super().encode(pixels_BFCHW)


def test_stored_examples_are_the_encoded_clips(tmp_path: Path) -> None:
    clips, out, student = filled(tmp_path / "cache", TINY), EncodedStore.open(tmp_path / "out"), tiny_student()
    report = encode_once(clips, out, student.codec, dtype="float32")
    assert (report.clips, report.known, report.prompts) == (4, 0, 0)
    stored = cached_examples(tmp_path / "out", student, teacher="")
    fresh = cached_examples(tmp_path / "cache", student, teacher="")
    assert isinstance(fresh, Examples)
    assert stored.prompts == fresh.prompts
    assert torch.equal(stored[[3, 0]].latents_BFCHW, fresh[[3, 0]].latents_BFCHW)


@pytest.mark.parametrize("objective", ["flow-matching", "afd"])
def test_batches_from_the_store_are_those_from_the_cache(objective: str, tmp_path: Path) -> None:
    clips, student = filled(tmp_path / "cache", TINY, 6), tiny_student()
    encode_once(clips, EncodedStore.open(tmp_path / "out"), student.codec, dtype="float32")
    config = Training(student="s", objective=objective, steps=12, batch=3)
    for step in range(3):
        one, other = (taught(config, student, tmp_path / name)[1](step) for name in ("cache", "out"))
        assert one.prompts == other.prompts
        field = "latents_BFCHW" if objective == "flow-matching" else "latents_PMFCHW"
        assert torch.equal(getattr(one, field), getattr(other, field))


def loaded(student: Student) -> tuple[bool, bool]:
    assert isinstance(student.codec, DiffusersCodec)
    assert isinstance(student.text, CachedText)
    return student.codec.loaded, student.text.encoder.loaded


def test_training_from_encoded_clips_loads_neither_autoencoder_nor_text_encoder(tmp_path: Path) -> None:
    student, out = borrowing_student(tmp_path / "models"), tmp_path / "out"
    assert isinstance(student.text, CachedText)
    report = encode_once(filled(tmp_path / "cache", SIZE), EncodedStore.open(out), student.codec, text=student.text)
    assert report.prompts == 2
    student.save_pretrained(tmp_path / "student")
    pupil = Student.from_pretrained(tmp_path / "student")
    config = Training(student="s", objective="flow-matching", steps=2, batch=2)
    before = pupil.fingerprint
    method, batches, _ = taught(config, pupil, out)
    Trainer(method, batches, TrainerConfig(steps=2), tmp_path / "run").run()
    assert pupil.fingerprint != before
    assert loaded(pupil) == (False, False)
    assert loaded(student) == (True, True)


def test_stored_latents_and_embeddings_equal_fresh_ones(tmp_path: Path) -> None:
    student, out = borrowing_student(tmp_path / "models"), EncodedStore.open(tmp_path / "out")
    assert isinstance(student.text, CachedText)
    clips = filled(tmp_path / "cache", SIZE, 2)
    encode_once(clips, out, student.codec, text=student.text, dtype="float32")
    fresh = encode_clips(((entry.request.prompt, clips.get(entry.key)) for entry in clips.find()), student.codec)
    stored = cached_examples(out.path, student, teacher="")
    assert torch.equal(stored[[0, 1]].latents_BFCHW, fresh.latents_BFCHW)
    torch.testing.assert_close(student.encode_prompts(PROMPTS), student.text.encoder.encode(PROMPTS))


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    clips, out = filled(tmp_path / "cache", TINY, 20), EncodedStore.open(tmp_path / "out")
    shown: list[tuple[int, int]] = []

    def run(left: int) -> EncodeReport:
        Failing.left = left
        return encode_once(clips, out, Failing(), on_clip=lambda done, total: shown.append((done, total)))

    with pytest.raises(KeyboardInterrupt):
        run(18)
    assert len(out) == 16
    report = run(4)  # as many as are missing, and not one more
    assert (report.clips, report.known) == (20, 16)
    assert shown == [(16, 20), (20, 20)]
    assert run(0).known == 20


def test_only_clips_of_the_size_and_the_teacher_are_encoded(tmp_path: Path) -> None:
    small = Geometry(frames=4, height=8, width=8, fps=8)
    filled(tmp_path / "cache", TINY, 3)
    filled(tmp_path / "cache", small, 2)
    clips, out = filled(tmp_path / "cache", TINY, 1, teacher="other"), EncodedStore.open(tmp_path / "out")
    assert encode_once(clips, out, PatchCodec(), geometry=TINY, teacher="noise").clips == 3
    assert encode_once(clips, out, PatchCodec()).clips == 6
    with pytest.raises(ValueError, match="has 6 clips and none of the teacher 'nobody' of the size that is asked for"):
        encode_once(clips, out, PatchCodec(), teacher="nobody")


def test_a_student_takes_only_what_its_own_codec_made(tmp_path: Path) -> None:
    clips, out, student = filled(tmp_path / "cache", TINY), tmp_path / "out", tiny_student()
    encode_once(clips, EncodedStore.open(out), PatchCodec(frames=1))
    with pytest.raises(
        ValueError, match=r"has 4 encoded clips and none in the student's size 8x16x16@8 by the student"
    ):
        cached_examples(out, student, teacher="")
    encode_once(clips, EncodedStore.open(out), student.codec)
    assert len(cached_examples(out, student, teacher="").prompts) == 4
    with pytest.raises(ValueError, match="none of the teacher 'nobody' in the student's size"):
        cached_examples(out, student, teacher="nobody")


def test_clips_of_several_teachers_ask_for_a_choice(tmp_path: Path) -> None:
    filled(tmp_path / "cache", TINY)
    clips, out = filled(tmp_path / "cache", TINY, 2, teacher="other"), EncodedStore.open(tmp_path / "out")
    encode_once(clips, out, PatchCodec())
    for place in (tmp_path / "cache", tmp_path / "out"):
        with pytest.raises(ValueError, match=r"has clips of the teachers \['noise', 'other'\]; choose one"):
            cached_examples(place, tiny_student(), teacher="")
        assert len(cached_examples(place, tiny_student(), teacher="other").prompts) == 2
