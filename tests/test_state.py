"""States are nests of tuples: every tensor is found, the nest is kept, and nothing changes under anybody's hands."""

import torch

from streamstill.state import (
    ConvCache,
    KVCache,
    LchaState,
    LinearState,
    StreamState,
    map_tensors,
    state_bytes,
    tensors_of,
)


def state(value: float) -> StreamState:
    linear = LinearState(torch.full((1, 2, 3, 3), value), torch.full((1, 2, 3), value + 1))
    local = ConvCache(torch.full((1, 2, 2, 2, 6), value + 2, dtype=torch.float64))
    keys = torch.full((1, 2, 4, 2, 3), value + 3)
    cache = KVCache(keys, keys + 1, torch.tensor([2]))
    return StreamState((LchaState(linear, local), cache))


def test_every_tensor_of_a_nest_is_found_in_order() -> None:
    assert [float(tensor.flatten()[0]) for tensor in tensors_of(state(10.0))] == [10, 11, 12, 13, 14, 2]


def test_a_tensor_is_a_nest_of_one() -> None:
    assert [*tensors_of(torch.ones(1))] == [torch.ones(1)]
    assert torch.equal(map_tensors(torch.neg, torch.ones(1)), -torch.ones(1))


def test_a_map_keeps_the_kinds_of_the_nest() -> None:
    doubled = map_tensors(lambda tensor: 2 * tensor, state(1.0))
    assert isinstance(doubled, StreamState)
    assert isinstance(doubled.blocks, tuple)
    lcha, cache = doubled.blocks
    assert isinstance(lcha, LchaState)
    assert isinstance(lcha.local, ConvCache)
    assert isinstance(cache, KVCache)
    assert isinstance(lcha.linear, LinearState)
    assert float(lcha.linear.k_BNE[0, 0, 0]) == 4
    assert cache.seen_B.tolist() == [4]


def test_a_map_over_several_nests_joins_what_lies_at_the_same_place() -> None:
    joined = map_tensors(lambda *tensors: torch.cat(tensors), state(0.0), state(5.0), state(7.0))
    lcha, cache = joined.blocks
    assert isinstance(lcha, LchaState)
    assert isinstance(lcha.linear, LinearState)
    assert lcha.linear.k_BNE[:, 0, 0].tolist() == [1, 6, 8]
    assert isinstance(cache, KVCache)
    assert cache.seen_B.tolist() == [2, 2, 2]


def test_a_map_leaves_its_argument_alone() -> None:
    before = state(1.0)
    map_tensors(lambda tensor: tensor + 1, before)
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(before), tensors_of(state(1.0)), strict=True))


def test_bytes_are_counted_by_dtype() -> None:
    floats, doubles, longs = 18 + 6 + 48 + 48, 48, 1
    assert state_bytes(state(0.0)) == 4 * floats + 8 * doubles + 8 * longs
