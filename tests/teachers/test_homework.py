"""The homework store gives back what it was given, to any process, without the teacher."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from streamstill.flow.path import noised
from streamstill.flow.times import sampler_times
from streamstill.teachers import Answer, ClipStore
from streamstill.teachers.homework import Assignment, Homework, HomeworkStore, homework_key, seeded_noise
from streamstill.teachers.homework_collection import do_homework
from tests.teachers.fakes import noise, question
from tests.teachers.open_teachers import GaussianTeacher, Reader

PLAIN = Assignment(shift=4.0, dtype="float32")
FULL = Assignment(shift=4.0, velocities=3, path_levels=2, path_steps=4, text=True, dtype="float32")


def done(seed: int = 0, assignment: Assignment = PLAIN, **asked: Any) -> Homework:
    (homework,) = do_homework(Reader(), [question(seed, **asked)], assignment)
    return homework


def tensors(one: Homework) -> list[Tensor | None]:
    return [one.latents_FCHW, one.t_V, one.velocity_VFCHW, one.path_JFCHW, one.text_LD]


def require_same(one: Homework, other: Homework) -> None:
    for name in ("teacher", "request", "assignment", "noise_seeds", "noise_marks", "key"):
        assert getattr(one, name) == getattr(other, name)
    for here, there in zip(tensors(one), tensors(other), strict=True):
        assert (here is None) == (there is None)
        assert here is None or there is None or torch.equal(here, there)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("assignment", [PLAIN, FULL, replace(PLAIN, velocities=0)])
def test_what_is_added_is_read_bit_for_bit(tmp_path: Path, assignment: Assignment, dtype: Any) -> None:
    store = HomeworkStore.open(tmp_path / "homework")
    given = [done(seed, replace(assignment, dtype=dtype)) for seed in range(3)]
    assert store.add(given) == 3
    for reader in (store, HomeworkStore.open(tmp_path / "homework"), pickle.loads(pickle.dumps(store))):
        assert len(reader) == 3
        for one, back in zip(given[::-1], reader.get([one.key for one in given[::-1]]), strict=True):
            require_same(one, back)


def test_half_precision_takes_half_the_room(tmp_path: Path) -> None:
    shape = (8, 12, 8, 8)
    sizes = []
    for dtype in ("float32", "float16"):
        (one,) = do_homework(GaussianTeacher(latent_shape=shape), [question()], replace(PLAIN, dtype=dtype))
        HomeworkStore(tmp_path / dtype).add([one])
        sizes.append(sum(file.stat().st_size for file in (tmp_path / dtype).rglob("*.lance")))
    assert sizes[1] < 0.6 * sizes[0]


def test_a_key_that_is_there_is_not_written_twice(tmp_path: Path) -> None:
    one, other = HomeworkStore(tmp_path / "homework"), HomeworkStore(tmp_path / "homework")
    assert one.add([done(0), done(1), done(0)]) == 2
    assert other.add([done(1), done(2)]) == 1
    assert one.add([done(2)]) == 0
    assert lance.dataset(str(tmp_path / "homework")).count_rows() == len(one) == len(other) == 3


def test_of_two_writers_that_race_the_first_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    winner, loser = HomeworkStore(tmp_path / "homework"), HomeworkStore(tmp_path / "homework")
    late = replace(done(0), latents_FCHW=torch.zeros(4, 3, 2, 2))
    append = loser._rows.append

    def append_late(table: Any) -> None:
        winner.add([done(0)])
        append(table)

    monkeypatch.setattr(loser._rows, "append", append_late)
    loser.add([late, done(1)])
    assert lance.dataset(str(tmp_path / "homework")).count_rows() == 3
    for reader in (winner, loser, HomeworkStore.open(tmp_path / "homework")):
        assert reader.keys() == (done(0).key, done(1).key)
        require_same(reader.get([late.key])[0], done(0))


def test_keys_are_listed_by_teacher_and_assignment(tmp_path: Path) -> None:
    store = HomeworkStore(tmp_path / "homework")
    assert (store.keys(), len(store)) == ((), 0)
    rival = replace(done(0), teacher="rival")
    store.add([done(0), done(0, FULL), rival])
    assert store.keys() == (done(0).key, done(0, FULL).key, rival.key)
    assert store.keys(teacher="gaussian@1") == (done(0).key, done(0, FULL).key)
    assert store.keys(assignment=PLAIN) == (done(0).key, rival.key)
    assert store.keys(teacher="rival", assignment=FULL) == ()


def test_the_key_knows_the_teachers_weights_the_request_and_the_assignment() -> None:
    request = question()
    keys = {homework_key("t@1", request, PLAIN), homework_key("t@2", request, PLAIN)}
    keys |= {homework_key("t@1", question(1), PLAIN), homework_key("t@1", request, FULL)}
    keys |= {homework_key("t@1", request, replace(PLAIN, shift=5.0)), homework_key("t@1", replace(request), PLAIN)}
    assert len(keys) == 5


def test_a_noised_clip_is_made_again_from_its_seed() -> None:
    one = done(0, FULL)
    for index in range(3):
        noise_FCHW = seeded_noise(one.noise_seeds[index], (4, 3, 2, 2))
        assert torch.equal(one.noise_FCHW(index), noise_FCHW)
        assert torch.equal(one.x_t_FCHW(index), noised(one.latents_FCHW, noise_FCHW, one.t_V[index]))


def test_another_random_generator_is_noticed() -> None:
    one = done()
    other = replace(one, noise_marks=(one.noise_marks[0] + 0.1, one.noise_marks[1]))
    with pytest.raises(ValueError, match=r"done with another random generator .*; use the torch that wrote it, or"):
        other.noise_FCHW(0)
    assert torch.equal(other.noise_FCHW(1), one.noise_FCHW(1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shift": 0.0}, "shift must be positive, got 0.0; give the shift of the student's sampling"),
        ({"velocities": -1}, "velocities and path_levels must not be negative"),
        ({"path_steps": 0}, "path_steps at least 1"),
        ({"path_levels": 3, "path_steps": 16}, "path_steps=16 is no multiple of path_levels=3"),
        ({"dtype": "float8"}, "dtype must be one of"),
    ],
)
def test_an_assignment_that_cannot_be_done_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(PLAIN, **changes)


def test_the_kept_times_of_a_path_are_the_students_own() -> None:
    assert torch.equal(replace(FULL, path_levels=4).path_times_J, sampler_times(4, shift=4.0))


def test_homework_that_is_not_there(tmp_path: Path) -> None:
    store = HomeworkStore.open(tmp_path / "homework")
    assert store.get([]) == []
    with pytest.raises(KeyError, match=r"has no homework 'nothing'; keys\(\) lists what it has"):
        store.get(["nothing"])


def test_a_store_of_clips_is_no_store_of_homework(tmp_path: Path) -> None:
    ClipStore(tmp_path / "clips").add([Answer(teacher="t", request=question(), clip=noise(question()))])
    with pytest.raises(ValueError, match="is a Lance dataset but no homework store; give another path"):
        HomeworkStore.open(tmp_path / "clips")


def test_another_format_version_is_named(tmp_path: Path) -> None:
    table = pa.table({"key": ["a"]}).replace_schema_metadata({"streamstill.homework_version": "99"})
    lance.write_dataset(table, str(tmp_path / "homework"))
    with pytest.raises(ValueError, match="has format version 99 and this streamstill reads version 1; use the"):
        HomeworkStore.open(tmp_path / "homework")


def test_a_file_or_a_folder_of_something_else_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt is a file and no homework store"):
        HomeworkStore.open(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"is no homework store, it holds 'notes\.txt'; give another path"):
        HomeworkStore.open(tmp_path)


def test_a_folder_where_the_first_commit_was_killed_is_an_empty_store(tmp_path: Path) -> None:
    (tmp_path / "homework" / "data").mkdir(parents=True)
    (tmp_path / "homework" / "data" / "half.lance").write_bytes(b"half")
    store = HomeworkStore.open(tmp_path / "homework")
    assert store.add([done()]) == 1
    require_same(store.get([done().key])[0], done())


@pytest.mark.parametrize("part", ["_versions", "data"])
def test_a_damaged_store_says_so(tmp_path: Path, part: str) -> None:
    HomeworkStore(tmp_path / "homework").add([done()])
    for file in (tmp_path / "homework" / part).iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises((ValueError, OSError), match=r"cannot be read .*; .*put back a good copy"):
        HomeworkStore.open(tmp_path / "homework").get([done().key])


@pytest.mark.parametrize("there", [0, 2])
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError("LanceError(IO): No space left on device (os error 28), writer.rs:254:9")

    store = HomeworkStore(tmp_path / "homework")
    store.add([done(seed) for seed in range(there)])
    with monkeypatch.context() as patch:
        patch.setattr("lance.write_dataset" if there else "lance.fragment.write_fragments", full)
        with pytest.raises(OSError, match=r"^\[Errno 28\] 5 rows could not be .* homework store .*: the disk is full"):
            store.add([done(seed) for seed in range(there, 5 + there)])
    assert len(store) == there
    assert store.add([done(seed) for seed in range(4)]) == 4 - there
