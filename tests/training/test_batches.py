"""Batches: fair, paired by prompt, and a function of the step alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from streamstill.codec.patch import PatchCodec
from streamstill.codec.video import to_frames
from streamstill.teachers.encoded import Encoded, EncodedStore
from streamstill.testing import TINY, FakeTeacher
from streamstill.training.batches import (
    Examples,
    StoredExamples,
    encode_clip,
    encode_clips,
    example_batches,
    fresh_batches,
    pieces,
    prompt_batches,
)
from streamstill.types import Clip, ClipRequest
from tests.training.clips import PROMPTS, examples, latents


def numbered(count: int) -> Examples:
    """Examples whose prompt and latents both say which row they are."""
    return Examples(torch.arange(count).float().view(count, 1, 1, 1, 1), tuple(str(row) for row in range(count)))


def painted(request: ClipRequest) -> Clip:
    """One grey per seed."""
    shape = (request.frames, 3, request.height, request.width)
    return Clip(frames_FCHW=np.full(shape, request.seed % 251, dtype=np.uint8), fps=request.fps)


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (10, 4), (3, 5), (1, 2)])
def test_every_example_comes_once_before_any_comes_again(count: int, batch: int) -> None:
    batches = example_batches(numbered(count), batch=batch, seed=0)
    seen = [prompt for step in range(4 * count) for prompt in batches(step).prompts]
    for epoch in range(len(seen) // count):
        assert sorted(seen[epoch * count : (epoch + 1) * count], key=int) == [str(row) for row in range(count)]


@pytest.mark.parametrize(
    ("count", "size", "sizes"), [(7, 3, [2, 2, 3]), (6, 3, [3, 3]), (33, 32, [16, 17]), (2, 5, [2]), (0, 3, [])]
)
def test_parts_are_all_of_it_in_order_and_none_is_a_small_rest(count: int, size: int, sizes: list[int]) -> None:
    rows = list(range(count))
    parts = [rows[piece] for piece in pieces(count, size)]
    assert [len(part) for part in parts] == sizes
    assert [row for part in parts for row in part] == rows
    split = numbered(count).split(size)
    assert [part.prompts for part in split] == [tuple(str(row) for row in part) for part in parts]
    assert all(part.latents_BFCHW.flatten().tolist() == rows for part, rows in zip(split, parts, strict=True))


def test_the_order_differs_between_epochs_and_between_seeds() -> None:
    orders = [
        example_batches(numbered(12), batch=12, seed=seed)(step).prompts for seed, step in ((0, 0), (0, 1), (1, 0))
    ]
    assert len(set(orders)) == 3


def test_a_batch_is_a_function_of_the_step_alone() -> None:
    one, other = (example_batches(numbered(10), batch=4, seed=2) for _ in range(2))
    forward = [one(step) for step in range(8)]
    backward = [other(step) for step in reversed(range(8))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert a.prompts == b.prompts
        assert torch.equal(a.latents_BFCHW, b.latents_BFCHW)


def test_latents_stay_beside_their_prompts() -> None:
    for batch in (example_batches(numbered(9), batch=4, seed=0)(3), numbered(9)[2:5], numbered(9)[[8, 0, 8]]):
        assert [str(int(value)) for value in batch.latents_BFCHW.flatten()] == list(batch.prompts)


def test_clips_without_a_prompt_each_are_refused() -> None:
    with pytest.raises(ValueError, match="6 clips have 5 prompts; give one each"):
        Examples(latents(6), ("a",) * 5)


def test_groups_hold_distinct_prompts_with_the_teachers_answers_to_them() -> None:
    given = examples(answers=3)
    answers_to = {
        prompt: [row for row, other in enumerate(given.prompts) if other == prompt] for prompt in given.prompts
    }
    groups = prompt_batches(given, prompts=2, answers=3, seed=0)
    for step in range(6):
        group = groups(step)
        assert len(set(group.prompts)) == 2
        for prompt, clips in zip(group.prompts, group.latents_PMFCHW, strict=True):
            found = {row for clip in clips for row in answers_to[prompt] if torch.equal(clip, given.latents_BFCHW[row])}
            assert found == set(answers_to[prompt])


def test_a_prompt_with_fewer_answers_shows_them_again_and_all_of_them() -> None:
    group = prompt_batches(examples(answers=2), prompts=3, answers=5, seed=0)(0)
    for clips in group.latents_PMFCHW:
        counts = Counter(clip.sum().item() for clip in clips)
        assert sorted(counts.values()) == [2, 3]


def test_every_prompt_and_every_answer_gets_its_turn() -> None:
    groups = prompt_batches(examples(answers=4), prompts=1, answers=2, seed=0)
    seen = [groups(step) for step in range(60)]
    assert {prompt for group in seen for prompt in group.prompts} == set(PROMPTS)
    assert len({clip.sum().item() for group in seen for clip in group.latents_PMFCHW[0]}) == 12


def test_no_prompt_comes_again_before_the_others_came() -> None:
    given = Examples(torch.zeros(70, 1, 1, 1, 1), tuple(f"prompt {number}" for number in range(70)))
    groups = prompt_batches(given, prompts=16, answers=1, seed=0)
    for epoch in range(3):
        asked = [prompt for step in range(4) for prompt in groups(4 * epoch + step).prompts]
        assert len(set(asked)) == 64
    assert len({prompt for step in range(24) for prompt in groups(step).prompts}) == 70


def test_a_group_is_a_function_of_the_step_alone() -> None:
    one, other = (prompt_batches(examples(), prompts=2, answers=2, seed=3) for _ in range(2))
    one(0)
    assert one(5).prompts == other(5).prompts
    assert torch.equal(one(5).latents_PMFCHW, other(5).latents_PMFCHW)
    different = prompt_batches(examples(), prompts=2, answers=2, seed=4)
    assert any(one(step).prompts != different(step).prompts for step in range(10))


def test_too_few_prompts_for_a_group_is_said_at_once() -> None:
    with pytest.raises(ValueError, match="a group needs 4 distinct prompts, the teacher's clips have 3; collect"):
        prompt_batches(examples(), prompts=4, answers=2, seed=0)


def test_fresh_clips_have_new_seeds_and_come_again_when_the_step_does() -> None:
    asked: list[ClipRequest] = []

    def answer(request: ClipRequest) -> Clip:
        asked.append(request)
        return painted(request)

    batches = fresh_batches(FakeTeacher("fake", answer), PROMPTS, TINY, PatchCodec(), batch=6, seed=0)
    first, _ = batches(0), batches(1)
    assert len({request.seed for request in asked}) == 12
    assert {request.geometry for request in asked} == {TINY}
    again = batches(0)
    assert asked[12:] == asked[:6]
    assert again.prompts == first.prompts == tuple(request.prompt for request in asked[:6])
    assert torch.equal(again.latents_BFCHW, first.latents_BFCHW)


def test_encoded_clips_decode_to_the_clips() -> None:
    codec, dice = PatchCodec(), np.random.default_rng(0)
    clips = [
        Clip(frames_FCHW=dice.integers(0, 256, (8, 3, 16, 16), dtype=np.uint8), fps=8, provenance={}) for _ in range(3)
    ]
    encoded = encode_clips(zip(PROMPTS, clips, strict=True), codec)
    assert encoded.prompts == PROMPTS
    for row, clip in enumerate(clips):
        assert torch.equal(encoded.latents_BFCHW[row], encode_clip(clip, codec))
        assert np.array_equal(to_frames(codec.decode(encoded.latents_BFCHW[row : row + 1])[0][0]), clip.frames_FCHW)


def stored(folder: Path, *frames: int) -> EncodedStore:
    """One clip for each number of frames, whose latents and prompt say which it is."""
    store = EncodedStore.open(folder)
    requests = [
        ClipRequest(prompt=str(seed), seed=seed, frames=n, height=4, width=4, fps=8) for seed, n in enumerate(frames)
    ]
    clips = [
        Encoded(teacher="t", request=one, latents_FCHW=torch.full((1, 1, 1, 1), float(one.seed))) for one in requests
    ]
    store.add(clips, codec=PatchCodec(frames=1))
    return store


def test_stored_examples_are_read_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    store = stored(tmp_path, 3, 3, 3)
    rows = StoredExamples(store, store.find())
    chosen = rows[[2, 0, 2]]
    assert rows.prompts == ("0", "1", "2")
    assert chosen.prompts == ("2", "0", "2")
    assert chosen.latents_BFCHW.flatten().tolist() == [2.0, 0.0, 2.0]


def test_stored_examples_of_several_sizes_make_no_batch(tmp_path: Path) -> None:
    store = stored(tmp_path, 3, 4)
    with pytest.raises(ValueError, match="the encoded clips have 2 sizes; choose those of one size"):
        StoredExamples(store, store.find())
    assert StoredExamples(store, store.find()[1:])[[0]].latents_BFCHW.item() == 1.0
