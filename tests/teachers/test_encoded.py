from dataclasses import replace
from pathlib import Path

import lance
import pytest
import torch
from torch import Tensor

from streamstill.codec.patch import PatchCodec
from streamstill.teachers.encoded import Encoded, EncodedStore, encoded_key
from streamstill.teachers.store import request_key
from tests.teachers.fakes import question

CODEC, OTHER = PatchCodec(), PatchCodec(size=2)


def latents(seed: int, shape: tuple[int, ...] = (2, 6, 3, 4)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half().float()  # as float16 can keep it


def encoded(seed: int, *, teacher: str = "one", prompt: str = "a red ball") -> Encoded:
    return Encoded(teacher=teacher, request=question(seed, prompt=prompt), latents_FCHW=latents(seed))


def key(clip: Encoded) -> str:
    return encoded_key(CODEC, clip.teacher, clip.request)


@pytest.fixture
def store(tmp_path: Path) -> EncodedStore:
    return EncodedStore.open(tmp_path / "encoded")


def test_what_was_added_comes_back_in_the_order_of_the_keys(store: EncodedStore) -> None:
    clips = [encoded(seed) for seed in range(3)]
    assert store.add(clips, codec=CODEC) == 3
    back = EncodedStore.open(store.path).get([key(clips[2]), key(clips[0])])
    assert [clip.request.seed for clip in back] == [2, 0]
    assert torch.equal(back[0].latents_FCHW, clips[2].latents_FCHW)
    assert back[0].latents_FCHW.dtype == torch.float32
    assert (back[1].teacher, back[1].request) == ("one", clips[0].request)


def test_float32_loses_nothing_and_float16_a_thousandth(store: EncodedStore) -> None:
    exact = torch.linspace(-3, 3, 24).reshape(1, 2, 3, 4)
    for dtype, seed in (("float32", 1), ("float16", 2)):
        clip = replace(encoded(seed), latents_FCHW=exact)
        store.add([clip], codec=CODEC, dtype=dtype)  # type: ignore[arg-type]
        (back,) = store.get([key(clip)])
        assert torch.equal(back.latents_FCHW, exact) == (dtype == "float32")
        torch.testing.assert_close(back.latents_FCHW, exact, rtol=1e-3, atol=1e-3)


def test_nothing_is_kept_twice_and_the_first_answer_counts(store: EncodedStore) -> None:
    first, again = encoded(1), replace(encoded(1), latents_FCHW=latents(7))
    assert store.add([first], codec=CODEC) == 1
    assert store.add([again, encoded(2)], codec=CODEC) == 1
    assert len(store) == 2
    (back,) = store.get([key(first)])
    assert torch.equal(back.latents_FCHW, first.latents_FCHW)


def test_codecs_share_a_store_and_are_told_apart(store: EncodedStore) -> None:
    store.add([encoded(1), encoded(2, teacher="two")], codec=CODEC)
    store.add([encoded(1)], codec=OTHER)
    assert len(store) == len(store.find()) == 3
    assert [entry.request.seed for entry in store.find(codec=CODEC)] == [1, 2]
    assert [entry.teacher for entry in store.find(codec=CODEC, teacher="two")] == ["two"]
    (entry,) = store.find(codec=OTHER)
    assert entry.key == encoded_key(OTHER, "one", question(1))
    assert entry.key in store
    assert store.find(codec=PatchCodec(frames=1)) == ()


def test_a_key_is_that_of_the_clip_and_the_codec() -> None:
    assert encoded_key(CODEC, "one", question(1)).startswith(request_key("one", question(1)))
    keys = {
        encoded_key(CODEC, "one", question(1)),
        encoded_key(OTHER, "one", question(1)),
        encoded_key(CODEC, "two", question(1)),
        encoded_key(CODEC, "one", question(2)),
    }
    assert len(keys) == 4


def test_two_writers_and_a_reader_see_each_other(store: EncodedStore) -> None:
    other = EncodedStore.open(store.path)
    store.add([encoded(1)], codec=CODEC)
    other.add([encoded(2)], codec=CODEC)
    assert len(store) == len(other) == 2
    assert key(encoded(2)) in store


def test_a_folder_is_known_by_its_latents(store: EncodedStore, tmp_path: Path) -> None:
    assert not EncodedStore.is_at(store.path)
    assert len(store) == 0
    store.add([encoded(1)], codec=CODEC)
    assert EncodedStore.is_at(store.path)
    assert not EncodedStore.is_at(tmp_path)
    assert store.text_folder.parent == store.path


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e6])
def test_what_float16_cannot_hold_is_refused_and_nothing_is_written(store: EncodedStore, bad: float) -> None:
    broken = replace(encoded(1), latents_FCHW=torch.full((1, 1, 2, 2), bad))
    with pytest.raises(ValueError, match="are not finite in float16; encode with --dtype float32"):
        store.add([encoded(2), broken], codec=CODEC)
    assert len(store) == 0


def test_an_unknown_key_is_named(store: EncodedStore) -> None:
    store.add([encoded(1)], codec=CODEC)
    with pytest.raises(KeyError, match="has no clip 'nothing'"):
        store.get(["nothing"])


def test_another_format_is_refused(store: EncodedStore) -> None:
    store.add([encoded(1)], codec=CODEC)
    path = store.path / "latents"
    table = lance.dataset(str(path)).to_table().replace_schema_metadata({b"streamstill.encoded_version": b"99"})
    lance.write_dataset(table, str(path), mode="overwrite")
    with pytest.raises(ValueError, match="has format version 99 and this streamstill reads version 1"):
        EncodedStore.open(store.path)


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is no encoded store, it holds 'notes\.txt'"):
        EncodedStore.open(tmp_path)
