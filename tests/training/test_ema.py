import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from streamstill.training.ema import Ema, named_tensors


def weight(value: float) -> nn.Linear:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def test_the_first_updates_follow_the_warm_up() -> None:
    ema = Ema(weight(0.0), decay=0.999)
    ema.update(weight(1.0))  # keeps 1/10
    assert ema.averages["weight"].item() == pytest.approx(0.9)
    ema.update(weight(0.0))  # keeps 2/11
    assert ema.averages["weight"].item() == pytest.approx(0.9 * 2 / 11)


def test_decay_zero_is_the_module_itself() -> None:
    ema = Ema(weight(0.0), decay=0.0)
    ema.update(weight(3.0))
    assert ema.averages["weight"].item() == 3.0


@given(updates=st.integers(0, 10**6), decay=st.floats(0, 0.99999))
def test_the_kept_share_never_exceeds_the_decay(updates: int, decay: float) -> None:
    ema = Ema(weight(0.0), decay=decay)
    ema.updates = updates
    assert 0 <= ema.kept <= decay


def test_a_module_that_rests_is_its_own_average_bit_for_bit() -> None:
    module = nn.Linear(5, 5)
    ema = Ema(module, decay=0.9)
    for _ in range(20):
        ema.update(module)
    assert torch.equal(ema.averages["weight"], module.weight)


def test_buffers_are_averaged_and_counters_copied() -> None:
    module = nn.BatchNorm1d(2)
    ema = Ema(module, decay=0.5)
    module(torch.randn(8, 2))
    ema.update(module)
    mean, count = module.running_mean, module.num_batches_tracked
    assert mean is not None
    assert count is not None
    torch.testing.assert_close(ema.averages["running_mean"], 0.9 * mean)
    assert ema.averages["num_batches_tracked"] == count == 1


def test_half_precision_is_averaged_in_float32() -> None:
    ema = Ema(weight(1.0).bfloat16(), decay=0.9999)
    ema.updates = 10**6
    ema.update(weight(2.0).bfloat16())
    assert ema.averages["weight"].item() == pytest.approx(1.0001, abs=1e-6)


def test_swapped_gives_back_exactly_what_was_there_even_after_an_error() -> None:
    module = nn.Linear(3, 3)
    ema = Ema(module, decay=0.9)
    with torch.no_grad():
        module.weight.add_(1.0)
    before = module.weight.detach().clone()
    with ema.swapped(module):
        assert torch.equal(module.weight, ema.averages["weight"])
    assert torch.equal(module.weight, before)
    with pytest.raises(RuntimeError), ema.swapped(module):
        module(torch.zeros(1, 99))
    assert torch.equal(module.weight, before)


def test_a_loaded_state_goes_on_like_the_original() -> None:
    module, other = nn.Linear(3, 3), nn.Linear(3, 3)
    first, second = Ema(module, decay=0.9), Ema(other, decay=0.9)
    first.update(other)
    second.load_state_dict(first.state_dict())
    first.update(module)
    second.update(module)
    assert first.updates == second.updates == 2
    assert torch.equal(first.averages["weight"], second.averages["weight"])


def test_another_architecture_is_refused() -> None:
    ema = Ema(nn.Linear(3, 3), decay=0.9)
    with pytest.raises(ValueError, match="another architecture"):
        ema.copy_to(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="another architecture"):
        ema.load_state_dict(Ema(nn.Linear(3, 3, bias=False), decay=0.9).state_dict())


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Ema(weight(0.0), decay=1.0)


def test_tied_and_temporary_tensors_are_named_once_or_not_at_all() -> None:
    module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    module[1].weight = module[0].weight
    module.register_buffer("scratch", torch.zeros(3), persistent=False)
    assert sorted(named_tensors(module)) == ["0.bias", "0.weight", "1.bias"]
