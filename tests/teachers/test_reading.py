"""Clips of many entries are read in their order, many at once, and never more than may lie in memory."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from rich.console import Console

from streamstill.codec.patch import PatchCodec
from streamstill.recipes.encoding import encode_once
from streamstill.recipes.stages import collect_clips
from streamstill.recipes.training import cached_examples
from streamstill.teachers import Answer, ClipStore, store
from streamstill.teachers.encoded import EncodedStore
from streamstill.testing import TINY, FakeTeacher, tiny_student
from streamstill.types import Clip, ClipRequest
from tests.teachers.fakes import noise, question, same
from tests.teachers.test_clip_store import answer, key

CLIPS = 70  # more than are read at once


@pytest.fixture
def full(tmp_path: Path) -> ClipStore:
    """The answers to the questions 0 to 69, of the size of the tiny student."""
    clips = ClipStore.open(tmp_path / "full")
    requests = [ClipRequest.of(replace(TINY, fps=8.0), prompt=f"{seed % 3}", seed=seed) for seed in range(CLIPS)]
    clips.add(Answer(teacher="noise", request=one, clip=noise(one)) for one in requests)
    return clips


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clips were read at once, each time."""
    counts: list[int] = []
    get_many = ClipStore.get_many

    def watched(self: ClipStore, keys: list[str]) -> list[Clip]:
        counts.append(len(keys))
        return get_many(self, keys)

    monkeypatch.setattr(ClipStore, "get_many", watched)
    return counts


def test_entries_come_in_their_order_each_with_its_own_clip(full: ClipStore, reads: list[int]) -> None:
    entries = full.find()[::-1]
    pairs = list(full.read(iter(entries)))
    assert tuple(entry for entry, _ in pairs) == entries
    assert all(same(clip, noise(entry.request)) for entry, clip in pairs)
    assert reads == [64, CLIPS - 64]
    assert list(full.read([])) == []


def test_what_is_not_yet_wanted_is_not_yet_read(full: ClipStore, reads: list[int]) -> None:
    assert len(list(islice(full.read(full.find()), 64))) == 64
    assert reads == [64]


def test_no_more_pixels_are_read_at_once_than_may_lie_in_memory(
    tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = ClipStore.open(tmp_path / "clips")
    clips.add([answer(seed, size=size) for seed, size in enumerate((8, 8, 16, 8, 8))])
    small = noise(question(0, size=8)).frames_FCHW.nbytes
    monkeypatch.setattr(store, "_READ_BYTES", 2 * small)
    assert [entry.request.seed for entry, _ in clips.read(clips.find())] == [0, 1, 2, 3, 4]
    assert reads == [2, 1, 2]  # a clip that is too large by itself is read alone


def test_a_clip_that_is_gone_is_named(full: ClipStore, tmp_path: Path) -> None:
    other = ClipStore.open(tmp_path / "other")
    other.add([answer(0)])
    with pytest.raises(KeyError, match=f"has no clip '{key(0)}'"):
        list(full.read(other.find()))


def test_encoding_and_training_read_many_at_once(full: ClipStore, reads: list[int], tmp_path: Path) -> None:
    examples = cached_examples(tmp_path / "full", tiny_student(), teacher="")
    assert reads == [64, 6]
    reads.clear()
    done: list[int] = []
    out = EncodedStore.open(tmp_path / "out")
    encode_once(full, out, PatchCodec(), dtype="float32", on_clip=lambda count, _: done.append(count))
    assert (reads, done) == ([64, 6], [16, 32, 48, 64, 70])
    stored = cached_examples(tmp_path / "out", tiny_student(), teacher="")
    assert stored.prompts == examples.prompts
    rows = [0, 15, 16, 63, 64, 69]
    assert torch.equal(stored[rows].latents_BFCHW, examples[rows].latents_BFCHW)


def test_collected_clips_come_back_in_the_order_of_the_requests(tmp_path: Path, reads: list[int]) -> None:
    requests = [question(seed) for seed in (2, 0, 1, 0)]
    pairs = collect_clips(FakeTeacher("fake", noise), requests, tmp_path / "cache", Console(quiet=True))
    assert [request for request, _ in pairs] == requests
    assert all(same(clip, noise(request)) for request, clip in pairs)
    assert reads == [4]


def test_counting_and_listing_look_up_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ClipStore.open(tmp_path / "clips").add([answer(seed) for seed in range(3)])

    def table(*given: object) -> dict[str, int]:
        raise AssertionError(f"a table by key was made: {given}")

    monkeypatch.setattr("streamstill.teachers.rows._numbered", table)
    store = ClipStore.open(tmp_path / "clips")
    assert (len(store), store.keys()) == (3, (key(0), key(1), key(2)))
    with pytest.raises(AssertionError, match="was made"):
        store.get(key(1))
