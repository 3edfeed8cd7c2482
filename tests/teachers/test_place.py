"""A store is where it is said to be, on disk or in an S3-compatible service; the service is moto's, on loopback."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from streamstill.teachers import ClipStore
from streamstill.teachers.place import Place
from tests.teachers.fakes import noise, question, same
from tests.teachers.test_clip_store import answer, key


def test_a_store_in_a_bucket_gives_back_what_it_was_given(bucket: str) -> None:
    store = ClipStore.open(bucket)
    assert (len(store), store.find(), key(0) in store) == (0, (), False)
    assert store.add([answer(seed) for seed in range(3)]) == 3
    assert store.add([answer(2), answer(3)]) == 1
    for reader in (store, ClipStore.open(bucket), pickle.loads(pickle.dumps(store))):
        assert reader.path == bucket
        assert reader.keys() == tuple(key(seed) for seed in range(4))
        assert all(same(reader.get(key(seed)), noise(question(seed))) for seed in range(4))
    assert [entry.request.seed for entry in store.find(teacher="noise")] == [0, 1, 2, 3]
    store.compact()
    assert same(ClipStore.open(bucket).get(key(3)), noise(question(3)))


def test_a_bucket_is_read_in_a_random_order_and_copied_to_a_folder(bucket: str, tmp_path: Path) -> None:
    store = ClipStore.open(bucket)
    store.add([answer(seed) for seed in range(10)])
    clips = dict(store.epoch(generator=torch.Generator().manual_seed(0), run=3, mixed=6))
    assert len(clips) == 10
    assert all(same(clips[key(seed)], noise(question(seed))) for seed in range(10))
    copy = ClipStore.open(tmp_path / "copy")
    assert (store.copy_to(copy, at_once=4), store.copy_to(copy)) == (10, 0)
    assert copy.keys() == store.keys()
    assert same(copy.get(key(9)), noise(question(9)))


def test_a_path_that_swallowed_a_slash_is_the_same_place(bucket: str) -> None:
    ClipStore.open(bucket).add([answer(0)])
    assert ClipStore.open(Path(bucket)).keys() == (key(0),)


WRITER = """
import sys
from streamstill.teachers import ClipStore
from tests.teachers.test_clip_store import answer
store = ClipStore.open(sys.argv[1])
for seed in range(int(sys.argv[2]), int(sys.argv[2]) + 4):
    store.add([answer(seed)])
"""


def test_writers_in_several_processes_share_a_bucket(bucket: str) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, bucket, str(first)]) for first in (0, 4)]
    assert [writer.wait() for writer in writers] == [0, 0]
    store = ClipStore.open(bucket)
    assert set(store.keys()) == {key(seed) for seed in range(8)}
    assert all(same(store.get(key(seed)), noise(question(seed))) for seed in range(8))


def test_a_bucket_that_is_not_there_is_one_sentence(bucket: str) -> None:
    with pytest.raises(
        ValueError, match=r"the clip store s3://nowhere/clips cannot be read .*; check the bucket, AWS_"
    ):
        ClipStore.open("s3://nowhere/clips")


def test_what_is_said_of_the_service_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    assert Place.of("s3://bucket/clips").options is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://here:1")
    assert Place.of("s3://bucket/clips").options == {"aws_endpoint": "http://here:1", "allow_http": "true"}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://there:1")
    assert Place.of("s3://bucket/clips").options == {"aws_endpoint": "https://there:1", "allow_http": "false"}
    assert Place.of(Path("clips")).options is None


@pytest.mark.parametrize(
    ("said", "uri", "remote"),
    [
        ("runs/cache", "runs/cache", False),
        (Path("runs/cache"), str(Path("runs/cache")), False),
        ("s3://bucket/a/b", "s3://bucket/a/b", True),
        (Path("s3://bucket/a/b"), "s3://bucket/a/b", True),
        ("s3", "s3", False),
    ],
)
def test_a_place_is_read_from_what_was_said(said: str | Path, uri: str, remote: bool) -> None:
    place = Place.of(said)
    assert (place.uri, place.remote) == (uri, remote)


def test_what_a_collection_keeps_beside_the_clips_is_no_stranger(tmp_path: Path) -> None:
    (tmp_path / "api").mkdir()
    (tmp_path / "quarantine").mkdir()
    store = ClipStore.open(tmp_path)
    store.add([answer(0)])
    store.compact()
    assert ClipStore.open(tmp_path).keys() == (key(0),)
    assert (tmp_path / "api").is_dir()
