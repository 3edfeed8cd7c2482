"""The window of softmax attention: what is seen, where it is thought to lie, and the sink that never leaves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamstill.state import KVCache, state_bytes
from streamstill.student.window import Window, WindowChunk


def chunk(frames: list[int]) -> WindowChunk:
    """One token a frame, one head: key and value are the number of the frame (from 1)."""
    numbers = torch.tensor(frames, dtype=torch.float64)[None, :, None, None, None].expand(1, -1, 1, 1, 2)
    return WindowChunk(numbers[:, :, 0], numbers, numbers, numbers.new_zeros(1, len(frames), 1, 1, 0))


class Seen:
    """The keys that attention is given, by position, and which of them are masked."""

    def __init__(self, window: Window, now: WindowChunk, past: KVCache) -> None:
        self.keys = torch.cat([past.key_BWSNE, now.key_RFSNE], dim=1)[0, :, 0, 0, 0]
        mask = window._mask(now, past)
        filled = torch.ones(len(self.keys), dtype=torch.bool) if mask is None else mask.flatten()
        places = window.positions(now, past)
        self.frame_at = {p: int(k) for p, k, f in zip(places, self.keys.tolist(), filled.tolist(), strict=True) if f}


def history(window: Window, sizes: list[int]) -> tuple[KVCache, int]:
    """The cache after chunks of these sizes, and the number of frames shown."""
    cache, shown = window.empty(1, 1, 1, 2, torch.zeros(1, dtype=torch.float64)), 0
    for size in sizes:
        cache = window.append(chunk(list(range(shown + 1, shown + size + 1))), cache)
        shown += size
    return cache, shown


@settings(max_examples=80, deadline=None)
@given(
    frames=st.integers(0, 5),
    sink=st.integers(0, 3),
    sizes=st.lists(st.integers(1, 3), max_size=8),
    now=st.integers(1, 3),
)
def test_a_chunk_sees_itself_the_window_and_the_sink_and_nothing_twice(
    frames: int, sink: int, sizes: list[int], now: int
) -> None:
    window = Window(frames, sink)
    cache, shown = history(window, sizes)
    own = chunk(list(range(shown + 1, shown + now + 1)))
    seen = Seen(window, own, cache).frame_at
    recent = {-(shown + 1 - f): f for f in range(max(1, shown - frames + 1), shown + 1)}
    here = {i: shown + 1 + i for i in range(now)}
    kept = {-(frames + sink) + j: j + 1 for j in range(sink) if j + 1 <= shown - frames}
    assert seen == recent | here | kept


def test_positions_never_grow() -> None:
    window = Window(4, sink=2)
    early, late = history(window, [2] * 4)[0], history(window, [2] * 500)[0]
    assert window.positions(chunk([1]), early) == window.positions(chunk([1]), late) == range(-6, 1)
    assert state_bytes(early) == state_bytes(late)


def test_attention_is_the_softmax_over_what_is_seen() -> None:
    window = Window(2, sink=1)
    cache, shown = history(window, [1] * 6)
    own = chunk([shown + 1])
    seen = list(Seen(window, own, cache).frame_at.values())
    assert seen == [1, 5, 6, 7]
    numbers = torch.tensor(seen, dtype=torch.float64)
    weights = (numbers * 7 * 2 / 2**0.5).softmax(0)  # query . key / sqrt(head_dim)
    mixed: Tensor = window.attend(own, cache, lambda keys: keys)
    torch.testing.assert_close(mixed.flatten(), (weights * numbers).sum().expand(2))


def test_clips_of_one_batch_may_have_seen_different_pasts() -> None:
    """Teaching asks all chunks of a clip at once: each row has a cache of its own age."""
    window = Window(2, sink=1)
    ages = [history(window, [1] * age)[0] for age in (0, 1, 2, 5)]
    together = KVCache(*(torch.cat(parts) for parts in zip(*ages, strict=True)))
    own = chunk([9])
    rows = WindowChunk(*(tensor.expand(4, *tensor.shape[1:]) for tensor in own))
    expected = torch.cat([window.attend(own, cache, lambda keys: keys) for cache in ages])
    torch.testing.assert_close(window.attend(rows, together, lambda keys: keys), expected)
    after = [window.append(own, cache) for cache in ages]
    for one, other in zip(window.append(rows, together), zip(*after, strict=True), strict=True):
        assert torch.equal(one, torch.cat(other))


def test_a_negative_window_is_refused() -> None:
    with pytest.raises(ValueError, match="a window cannot be negative, got frames=-1 sink=0"):
        Window(-1)
