from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from streamstill.training.optim import Decay, OptimConfig, build_optimizer, lr_at


def schedule(decay: Decay, *, warmup: int = 0, total: int = 100, final: float = 0.0) -> OptimConfig:
    return OptimConfig(lr=0.5, decay=decay, warmup_steps=warmup, total_steps=total, final_fraction=final)


@given(decay=st.sampled_from(["cosine", "linear"]), warmup=st.integers(0, 50), final=st.floats(0, 1))
def test_a_decay_rises_once_then_only_falls_to_its_final_fraction(decay: Decay, warmup: int, final: float) -> None:
    config = schedule(decay, warmup=warmup, final=final)
    rates = [lr_at(config, step) for step in range(120)]
    assert rates[warmup] == max(rates) == pytest.approx(0.5)
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert all(a >= b for a, b in pairwise(rates[warmup:]))
    assert rates[100:] == pytest.approx([0.5 * final] * 20)


def test_schedules_with_known_answers() -> None:
    assert [lr_at(schedule("constant", warmup=4), step) for step in range(6)] == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert lr_at(schedule("linear"), 25) == pytest.approx(0.375)
    assert lr_at(schedule("cosine"), 50) == pytest.approx(0.25)
    assert lr_at(OptimConfig(lr=0.5), 10**9) == 0.5


def test_only_matrices_and_kernels_are_decayed() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv1d(4, 2, 3))
    optimizer = build_optimizer(module, OptimConfig(lr=0.1, weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in module.named_parameters()} == {
        "0.weight": 0.3,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": 0.3,
        "2.bias": 0.0,
    }


def test_frozen_parameters_are_not_optimised() -> None:
    module = nn.Linear(3, 4)
    module.weight.requires_grad_(False)
    (group,) = build_optimizer(module, OptimConfig(lr=0.1)).param_groups
    assert group["params"] == [module.bias]


def test_a_fully_frozen_module_is_refused() -> None:
    with pytest.raises(ValueError, match="requires_grad_"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig(lr=0.1))


def test_fused_kernels_are_used_only_on_plainly_laid_out_parameters() -> None:
    plain, turned = nn.Linear(3, 4), nn.Linear(3, 4)
    turned.weight = nn.Parameter(torch.randn(3, 4).T)
    assert build_optimizer(plain, OptimConfig(lr=0.1)).defaults["fused"] is True
    assert build_optimizer(turned, OptimConfig(lr=0.1)).defaults["fused"] is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lr": 0.0}, "lr and eps must be positive"),
        ({"warmup_steps": -1}, "not negative"),
        ({"betas": (0.9, 1.0)}, "betas must lie"),
        ({"max_grad_norm": 0.0}, "None turns clipping off"),
        ({"final_fraction": 2.0}, "fraction of lr"),
        ({"decay": "cosin"}, "decay must be one of"),
        ({"decay": "linear", "warmup_steps": 9, "total_steps": 9}, "must exceed warmup_steps=9"),
    ],
)
def test_a_bad_config_says_what_is_allowed(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OptimConfig(**{"lr": 0.1, **fields})  # type: ignore[arg-type]


def test_a_decay_without_an_end_ends_with_the_run() -> None:
    open_ended = OptimConfig(lr=1.0, decay="cosine", warmup_steps=2)
    with pytest.raises(ValueError, match=r"call over\(steps\)"):
        lr_at(open_ended, 2)
    assert lr_at(open_ended.over(10), 10) == pytest.approx(0.0)
    assert replace(open_ended, total_steps=5).over(10).total_steps == 5
    assert OptimConfig(lr=1.0).over(10) == OptimConfig(lr=1.0)
