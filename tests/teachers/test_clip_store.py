"""The store gives back what it was given, to any process, and says clearly what is wrong with it."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamstill.teachers import Answer, ClipStore, request_key
from streamstill.types import Clip, ClipRequest
from tests.teachers.fakes import noise, question, same

requests = st.builds(
    ClipRequest,
    prompt=st.text(max_size=8),
    seed=st.integers(-(2**63), 2**63 - 1),
    frames=st.integers(1, 300),
    height=st.integers(1, 2000),
    width=st.integers(1, 2000),
    fps=st.floats(0.1, 240),
)


def answer(seed: int = 0, **asked: Any) -> Answer:
    request = question(seed, **asked)
    return Answer(teacher="noise", request=request, clip=noise(request))


def key(seed: int = 0, **asked: Any) -> str:
    return request_key("noise", question(seed, **asked))


@given(requests, requests, st.text(max_size=4), st.text(max_size=4))
def test_keys_are_equal_exactly_when_the_questions_are(
    one: ClipRequest, other: ClipRequest, teacher: str, rival: str
) -> None:
    assert request_key(teacher, one) == request_key(teacher, replace(one))
    assert (request_key(teacher, one) == request_key(rival, other)) == ((teacher, one) == (rival, other))


@given(requests, st.sampled_from(["prompt", "seed", "frames", "height", "width", "fps"]))
def test_every_field_of_a_request_is_in_the_key(request_: ClipRequest, name: str) -> None:
    value = getattr(request_, name)
    changed = replace(
        request_, **{name: value + ("x" if name == "prompt" else -1 if name == "seed" and value > 0 else 1)}
    )
    assert request_key("t", changed) != request_key("t", request_)


def test_equal_numbers_of_other_types_are_one_key() -> None:
    integers = ClipRequest(prompt="p", seed=np.int64(7), frames=np.int32(3), height=8, width=8, fps=8)
    assert request_key("t", integers) == request_key("t", question(7, prompt="p"))
    assert request_key("t", question(prompt="p")) != request_key("t", integers)


def test_what_is_added_is_read_bit_for_bit(tmp_path: Path) -> None:
    store = ClipStore.open(tmp_path / "clips")
    assert store.add([answer(seed, size=8 + seed) for seed in range(5)]) == 5
    for reader in (store, ClipStore.open(tmp_path / "clips"), pickle.loads(pickle.dumps(store))):
        assert len(reader) == 5
        for seed in (3, 0, 4, 1):
            clip = reader.get(key(seed, size=8 + seed))
            assert same(clip, noise(question(seed, size=8 + seed)))
            clip.frames_FCHW[:] = 0  # what a caller does to his clip is his own affair
            assert same(reader.get(key(seed, size=8 + seed)), noise(question(seed, size=8 + seed)))


def test_a_key_that_is_there_is_not_written_twice(tmp_path: Path) -> None:
    one, other = ClipStore.open(tmp_path / "clips"), ClipStore.open(tmp_path / "clips")
    assert one.add([answer(0), answer(1), answer(0)]) == 2
    assert other.add([answer(1), answer(2)]) == 1
    assert one.add([answer(2)]) == 0
    assert lance.dataset(str(tmp_path / "clips")).count_rows() == len(one) == 3


def test_of_two_writers_that_race_the_first_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    winner, loser = ClipStore.open(tmp_path / "clips"), ClipStore.open(tmp_path / "clips")
    late = Answer(teacher="noise", request=question(0), clip=replace(noise(question(0)), provenance={"late": "yes"}))
    append, made = loser._rows._appended, list[float]()

    def append_late(table: object) -> Any:
        winner.add([answer(0)])
        made.append(winner.find()[0].created)
        return append(table)

    monkeypatch.setattr(
        loser._rows, "_appended", append_late
    )  # the winner commits between the loser's look and his write
    loser.add([late, answer(1)])
    assert lance.dataset(str(tmp_path / "clips")).count_rows() == 3
    ClipStore.open(tmp_path / "clips").compact(older_than=timedelta(0))
    for reader in (winner, loser, ClipStore.open(tmp_path / "clips")):
        assert reader.keys() == (key(0), key(1))
        assert [entry.key for entry in reader.find(teacher="noise")] == [key(0), key(1)]
        assert reader.find()[0].created == made[0]
        assert same(reader.get(key(0)), noise(question(0)))


def test_entries_are_found_by_teacher_and_prompt_without_pixels(tmp_path: Path) -> None:
    store = ClipStore.open(tmp_path / "clips")
    assert (store.find(), store.keys()) == ((), ())
    red, blue, rival = answer(0), answer(0, prompt="blue 'ball'"), replace(answer(1), teacher="rival")
    store.add([red, blue, rival])
    assert [entry.request for entry in store.find(prompt="blue 'ball'")] == [blue.request]
    assert [entry.request for entry in store.find(teacher="noise")] == [red.request, blue.request]
    assert store.find(teacher="rival", prompt="none") == ()
    assert [entry.key for entry in store.find()] == list(store.keys())
    assert store.find()[0].created > 1.7e9


def test_listing_reads_no_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ClipStore.open(tmp_path / "clips").add([answer(seed) for seed in range(3)])
    listed: list[list[str]] = []
    to_table = lance.LanceDataset.to_table

    def watched(self: Any, columns: list[str], **options: Any) -> Any:
        listed.append(columns)
        return to_table(self, columns=columns, **options)

    monkeypatch.setattr(lance.LanceDataset, "to_table", watched)
    store = ClipStore.open(tmp_path / "clips")
    assert len(store) == len(store.keys()) == len(store.find()) == 3
    assert key(1) in store
    assert listed[0] == ["key"]
    assert len(listed) == 2
    assert "pixels" not in listed[1]


def test_many_are_read_at_once_in_the_order_that_was_asked(tmp_path: Path) -> None:
    store, reader = ClipStore.open(tmp_path / "clips"), ClipStore.open(tmp_path / "clips")
    store.add([answer(seed, size=8 + seed) for seed in range(5)])
    wanted = [3, 0, 3, 4]
    read = reader.get_many([key(seed, size=8 + seed) for seed in wanted])
    assert [same(clip, noise(question(seed, size=8 + seed))) for clip, seed in zip(read, wanted, strict=True)] == [
        True
    ] * 4
    assert reader.get_many([]) == []
    with pytest.raises(KeyError, match="has no clip"):
        reader.get_many([key(0, size=8), key(9)])
    store.compact(older_than=timedelta(0))
    (again,) = reader.get_many([key(4, size=12)])
    assert same(again, noise(question(4, size=12)))


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def forty(tmp_path: Path) -> ClipStore:
    """Clips 0 to 39 in files of 5, 7 and 28."""
    store = ClipStore.open(tmp_path / "forty")
    for first, last in ((0, 5), (5, 12), (12, 40)):
        store.add([answer(seed) for seed in range(first, last)])
    return store


@pytest.mark.parametrize(("run", "mixed"), [(1, 1), (1, 40), (4, 8), (4, 10), (16, 256)])
def test_an_epoch_gives_every_clip_once_and_its_own_key(forty: ClipStore, run: int, mixed: int) -> None:
    seen = dict(forty.epoch(generator=dice(), run=run, mixed=mixed))
    assert sorted(seen) == sorted(forty.keys())
    assert all(same(seen[key(seed)], noise(question(seed))) for seed in range(40))


def test_an_epochs_order_is_the_generators(forty: ClipStore) -> None:
    one, other, third = ([name for name, _ in forty.epoch(generator=dice(seed))] for seed in (1, 1, 2))
    assert one == other != third
    assert one != list(forty.keys())
    chosen = forty.keys()[3:30:2]
    assert {name for name, _ in forty.epoch(chosen, generator=dice())} == set(chosen)
    assert list(forty.epoch([], generator=dice())) == []


def test_an_epoch_mixes_runs_of_neighbours_and_no_more_clips_than_it_may_hold(
    forty: ClipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    place = {name: number for number, name in enumerate(forty.keys())}
    get_many = forty.get_many

    def watched(keys: list[str]) -> list[Clip]:
        asked.append([place[name] for name in keys])
        return get_many(keys)

    monkeypatch.setattr(forty, "get_many", watched)
    assert len(list(forty.epoch(generator=dice(), run=4, mixed=10))) == 40
    assert [len(part) for part in asked] == [8] * 5
    for part in asked:
        starts = {number // 4 for number in part}
        assert sorted(part) == sorted(4 * start + each for start in starts for each in range(4))
        assert part != sorted(part)


@pytest.mark.parametrize("run", [0, 9])
def test_a_run_must_fit_into_what_is_mixed(forty: ClipStore, run: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 clip and at most mixed=8, got {run}"):
        next(forty.epoch(generator=dice(), run=run, mixed=8))


def test_a_copy_has_the_same_answers_and_goes_on_where_it_stopped(forty: ClipStore, tmp_path: Path) -> None:
    copy = ClipStore.open(tmp_path / "copy")
    copy.add([answer(7)])
    assert forty.copy_to(copy, at_once=16) == 39
    assert sorted(copy.keys()) == sorted(forty.keys())
    assert all(same(copy.get(key(seed)), noise(question(seed))) for seed in range(40))
    forty.add([answer(40, prompt="new")])
    assert (forty.copy_to(copy), forty.copy_to(copy)) == (1, 0)
    assert copy.find(prompt="new")[0].request == question(40, prompt="new")


def test_what_is_wanted_may_hold_any_sign(tmp_path: Path) -> None:
    store, odd = ClipStore.open(tmp_path / "clips"), 'it\'s "50%" OR 1=1; --\n\u00e9'
    store.add([answer(0), answer(1, prompt=odd), replace(answer(2, prompt=odd), teacher=odd)])
    assert [entry.request.seed for entry in store.find(prompt=odd)] == [1, 2]
    assert [entry.request.seed for entry in store.find(prompt=odd, teacher=odd)] == [2]


def test_neighbours_are_read_in_one_piece_and_a_clip_twice_asked_once(
    forty: ClipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []
    take = lance.LanceDataset.take

    def watched(self: Any, places: list[int], **options: Any) -> Any:
        read.append(places)
        return take(self, places, **options)

    monkeypatch.setattr(lance.LanceDataset, "take", watched)
    clips = forty.get_many([key(seed) for seed in (9, 3, 9, 4)])
    assert [same(clip, noise(question(seed))) for clip, seed in zip(clips, (9, 3, 9, 4), strict=True)] == [True] * 4
    assert read == [[3, 4, 9]]
    clips[0].frames_FCHW[:] = 0
    assert same(clips[2], noise(question(9)))


def test_a_clip_that_is_not_there(tmp_path: Path) -> None:
    store = ClipStore.open(tmp_path / "clips")
    assert key(0) not in store
    with pytest.raises(KeyError, match=r"has no clip .*; keys\(\) lists what it has"):
        store.get(key(0))


def test_compacting_changes_no_answer_and_leaves_readers_alone(tmp_path: Path) -> None:
    store, reader, nobody = (ClipStore.open(tmp_path / "clips") for _ in range(3))
    nobody.compact()
    for seed in range(6):
        store.add([answer(seed)])
    before = reader.keys()
    store.compact(older_than=timedelta(0))
    assert store.keys() == reader.keys() == before
    assert len(list((tmp_path / "clips" / "data").iterdir())) == 1
    for seed in (2, 0, 5):
        assert same(reader.get(key(seed)), noise(question(seed)))
    store.add([answer(6)])
    assert reader.keys() == (*before, key(6))
    assert same(reader.get(key(6)), noise(question(6)))


def test_a_reader_whose_files_were_compacted_away_looks_again(tmp_path: Path) -> None:
    store = ClipStore.open(tmp_path / "clips")
    for seed in range(3):
        store.add([answer(seed)])
    reader, many = ClipStore.open(tmp_path / "clips"), ClipStore.open(tmp_path / "clips")
    store.compact(older_than=timedelta(0))
    assert same(reader.get(key(1)), noise(question(1)))
    assert same(many.get_many([key(2), key(0)])[1], noise(question(0)))


def test_another_format_version_is_named(tmp_path: Path) -> None:
    table = pa.table({"key": ["a"]}).replace_schema_metadata({"streamstill.cache_version": "99"})
    lance.write_dataset(table, str(tmp_path / "clips"))
    with pytest.raises(ValueError, match=r"has format version 99 and this streamstill reads version 1; use the"):
        ClipStore.open(tmp_path / "clips")


def test_another_lance_dataset_is_no_store(tmp_path: Path) -> None:
    lance.write_dataset(pa.table({"key": ["a"]}), str(tmp_path / "clips"))
    with pytest.raises(ValueError, match="is a Lance dataset but no clip store; give another path"):
        ClipStore.open(tmp_path / "clips")


def test_a_file_or_a_folder_of_something_else_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt is a file and no clip store"):
        ClipStore.open(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"is no clip store, it holds 'notes\.txt'; give another path"):
        ClipStore.open(tmp_path)


def test_a_folder_where_the_first_commit_was_killed_is_an_empty_store(tmp_path: Path) -> None:
    (tmp_path / "clips" / "data").mkdir(parents=True)
    (tmp_path / "clips" / "data" / "half.lance").write_bytes(b"half")
    store = ClipStore.open(tmp_path / "clips")
    assert len(store) == 0
    assert store.add([answer()]) == 1
    assert same(ClipStore.open(tmp_path / "clips").get(key()), noise(question()))


@pytest.mark.parametrize("part", ["_versions", "data"])
def test_a_damaged_store_says_so(tmp_path: Path, part: str) -> None:
    ClipStore.open(tmp_path / "clips").add([answer()])
    for file in (tmp_path / "clips" / part).iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises((ValueError, OSError), match=r"cannot be read .*; .*put back a good copy"):
        ClipStore.open(tmp_path / "clips").get(key())


def full_disk(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device")


def lance_full_disk(*args: object, **kwargs: object) -> None:
    raise OSError("LanceError(IO): No space left on device (os error 28), writer.rs:254:9")


@pytest.mark.parametrize("fail", [full_disk, lance_full_disk])
@pytest.mark.parametrize("there", [0, 3])
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[..., None], there: int
) -> None:
    store = ClipStore.open(tmp_path / "clips")
    store.add([answer(seed) for seed in range(there)])
    with monkeypatch.context() as patch:
        patch.setattr("lance.write_dataset", fail)
        patch.setattr("lance.fragment.write_fragments", fail)
        with pytest.raises(OSError, match="the disk is full; what was there before is safe: free some space") as raised:
            store.add([answer(seed) for seed in range(10)])
    assert raised.value.errno == 28
    assert [same(store.get(key(seed)), noise(question(seed))) for seed in range(there)] == [True] * there
    assert store.add([answer(seed) for seed in range(10)]) == 10 - there


LIMITED = """
import resource, signal, sys
from pathlib import Path
from streamstill.teachers import ClipStore
from tests.teachers.test_clip_store import answer
store = ClipStore.open(Path(sys.argv[1]))
store.add([answer(0)])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    store.add([answer(1), answer(2, size=128)])
except OSError as error:
    print(len(store), error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_write_that_the_system_refuses_halfway_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "clips")], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("1 ")
    assert "2 clips could not be written to the clip store" in run.stdout
    store = ClipStore.open(tmp_path / "clips")
    assert store.keys() == (key(0),)
    assert store.add([answer(1), answer(2, size=128)]) == 2


def test_compacting_on_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ClipStore.open(tmp_path / "clips")
    store.add([answer()])
    optimizer = type(lance.dataset(str(tmp_path / "clips")).optimize)
    monkeypatch.setattr(optimizer, "compact_files", lance_full_disk)
    with pytest.raises(OSError, match=r"could not be compacted .*; its clips are all there"):
        store.compact()
    assert same(store.get(key()), noise(question()))


def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    clip = noise(question())
    with pytest.raises(ValueError, match="provenance of a clip must be plain strings"):
        Answer(teacher="t", request=question(), clip=replace(clip, provenance={"seed": 1}))  # type: ignore[dict-item]
    huge = Answer(teacher="t", request=question(2**63), clip=clip)
    with pytest.raises(ValueError, match="a seed must fit in 64 bits"):
        ClipStore.open(tmp_path / "clips").add([huge])
    assert list(tmp_path.iterdir()) == []


def test_importing_the_room_loads_no_lance_and_prints_nothing() -> None:
    code = "import sys, streamstill.teachers; sys.exit('lance' in sys.modules or 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout + run.stderr == ""
