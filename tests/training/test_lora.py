"""Adapters by themselves: what they share, which layers they are beside, and their files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from streamstill.student.layout import BlockKind
from streamstill.student.network import Network
from streamstill.student.sandwich import SandwichDiT
from streamstill.training.lora import Lora, LoraLayers, read_adapter
from streamstill.training.policies import Adapters
from tests.training.afd_parts import disturb, weights
from tests.training.lora_parts import LORA, disturbed, every_network, lesson_of, sandwich, wan


@pytest.mark.parametrize("make", [sandwich, wan], ids=["sandwich", "wan"])
def test_adapters_share_the_storage_of_the_weights(make: Callable[[], Network]) -> None:
    network = make()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in network.state_dict().items()}
    adapters = Adapters(network, LORA)
    held = {name.replace(".base_layer.", "."): tensor for name, tensor in network.state_dict().items()}
    assert before.keys() == {name for name in held if ".lora_" not in name}
    assert all(held[name].data_ptr() == place and torch.equal(held[name], was) for name, (place, was) in before.items())
    added = sum(tensor.numel() for name, tensor in held.items() if ".lora_" in name)
    sizes = [network.get_parameter(f"{name}.base_layer.weight").shape for name in adapters.layers.layers]
    assert added == 2 * sum(LORA.rank * (outputs + inputs) for outputs, inputs in sizes)
    for view in (adapters.student, adapters.old, adapters.start):
        with view() as shown:
            assert shown is network


@every_network
def test_every_adapted_layer_learns_and_nothing_else(make: Callable[[], Network]) -> None:
    """A layer whose weights were read without calling it would leave its adapter without a gradient."""
    adapters = disturbed(make)
    with adapters.student() as network:
        lesson_of(network).square().mean().backward()
    own = {id(factor) for factor in adapters.trained.parameters()}
    for name, parameter in network.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert has_gradient is (id(parameter) in own), name


@every_network
def test_the_projections_and_mlps_of_all_blocks_are_adapted(make: Callable[[], Network]) -> None:
    network = make()
    linear = {name for name, module in network.named_modules() if isinstance(module, nn.Linear) and "blocks." in name}
    left_out = linear - Adapters(network, LORA).layers.layers.keys()
    compressed = isinstance(network, SandwichDiT) and BlockKind.COMPRESSED in network.kinds
    assert {name.rpartition(".")[2] for name in left_out} <= ({"qkv"} if compressed else {"phi_query", "phi_key"})
    assert bool(left_out) is (compressed or any("linear" in name for name in linear))


def test_adapters_begin_the_same_from_the_same_seed_and_leave_the_global_dice_alone() -> None:
    torch.manual_seed(0)
    networks = [sandwich() for _ in range(3)]
    before = torch.get_rng_state()
    first, same, other = (Adapters(n, LORA, seed=seed) for n, seed in zip(networks, (1, 1, 2), strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights(first.trained), weights(same.trained))
    assert not torch.equal(weights(first.trained), weights(other.trained))
    down = first.layers.factors("student")["blocks/0/mlp/2/down"]
    assert 0.8 / down.shape[1] ** 0.5 < float(down.detach().abs().max()) <= 1 / down.shape[1] ** 0.5


def test_parameters_that_were_frozen_stay_frozen_after_the_fold() -> None:
    network = sandwich()
    frozen = next(network.parameters()).requires_grad_(False)
    Adapters(network, LORA).merged()
    assert [p for p in network.parameters() if not p.requires_grad] == [frozen]


@torch.no_grad()
def test_factors_of_a_half_precision_network_are_float32() -> None:
    adapters = Adapters(sandwich().to(torch.bfloat16), LORA)
    assert {factor.dtype for factor in adapters.trained.parameters()} == {torch.float32}
    disturb(adapters.trained, seed=0, scale=0.1)
    changed = adapters.layers.change("blocks.0.mlp.0", "student")
    merged = adapters.merged().get_parameter("blocks.0.mlp.0.weight")
    before = sandwich().get_parameter("blocks.0.mlp.0.weight").to(torch.bfloat16)
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, (before.float() + changed).to(torch.bfloat16))
    assert not torch.equal(merged, before)


def test_one_adapter_alone_is_enough_to_train() -> None:
    layers = LoraLayers(sandwich(), LORA, ["student"])
    trainable = [name for name, parameter in layers.network.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * len(layers.layers)
    assert all(".student." in name for name in trainable)


def saved(folder: Path, seed: int = 0, make: Callable[[], Network] = sandwich) -> Path:
    """The file of an adapter that has learnt something."""
    adapters = Adapters(make(), LORA)
    disturb(adapters.trained, seed, scale=0.1)
    adapters.save(folder / f"{seed}.safetensors")
    return folder / f"{seed}.safetensors"


def test_many_adapters_share_one_set_of_weights(tmp_path: Path) -> None:
    paths = [saved(tmp_path / "adapters", seed) for seed in range(3)]
    shared = Adapters.of_file(sandwich(), paths[0])
    for path in paths:
        alone = Adapters.of_file(sandwich(), path)
        shared.load(path)
        for view in (shared.student, shared.old):
            with view() as network, alone.student() as other:
                assert torch.equal(lesson_of(network), lesson_of(other))
    assert len({path.read_bytes() for path in paths}) == 3


def test_the_file_holds_the_factors_of_one_adapter_and_says_what_it_is(tmp_path: Path) -> None:
    adapters = disturbed(sandwich)
    adapters.save(tmp_path / "a.safetensors")
    lora, base, factors = read_adapter(tmp_path / "a.safetensors")
    assert (lora, base) == (LORA, adapters.layers.fingerprint)
    assert factors.keys() == adapters.trained.state_dict().keys() == load_file(tmp_path / "a.safetensors").keys()
    assert all(torch.equal(factors[name], own) for name, own in adapters.trained.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_fingerprint_is_that_of_the_weights_whatever_is_beside_them() -> None:
    prints = {Adapters(sandwich(), lora).layers.fingerprint for lora in (LORA, Lora(rank=1, targets=".*head"))}
    assert prints == {disturbed(sandwich).layers.fingerprint}
    other = sandwich()
    disturb(other, seed=1)
    assert Adapters(other, LORA).layers.fingerprint not in prints


def test_an_adapter_of_other_weights_is_refused_and_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    path, other = saved(tmp_path), sandwich()
    disturb(other, seed=9)
    before, names = weights(other), list(other.state_dict())
    with pytest.raises(ValueError, match=r"was trained beside the weights \w+, these are \w+; put it beside"):
        Adapters.of_file(other, path)
    assert torch.equal(weights(other), before)
    assert list(other.state_dict()) == names


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    adapters = Adapters(sandwich(), Lora(rank=2))
    before = weights(adapters.trained)
    with pytest.raises(ValueError, match=r"is an adapter of Lora\(rank=3, .*these are of Lora\(rank=2"):
        adapters.load(saved(tmp_path))
    assert torch.equal(weights(adapters.trained), before)


def rewritten(path: Path, described: Any) -> None:
    save_file({"x": torch.zeros(1)}, path, metadata={"adapter": json.dumps(described)})


def test_files_that_are_no_adapters_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=r"there is no adapter at .*a\.safetensors; give the file that a run wrote"):
        read_adapter(path)
    for described, version in ((None, "None"), ({"format": 99}, "99")):
        rewritten(path, described)
        with pytest.raises(ValueError, match=f"has adapter format {version}, this version of streamstill reads format"):
            read_adapter(path)
    whole = saved(tmp_path, seed=1).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged or cut short"):
        read_adapter(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0}, "alpha must be at least 1, got 0"),
        ({"targets": "("}, r"targets is no regular expression \(missing \)"),
    ],
)
def test_adapters_that_mean_nothing_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Lora(**changes)


def test_targets_choose_layers_by_their_full_names() -> None:
    assert list(Adapters(sandwich(), Lora(targets=r"blocks\.[02]\.mlp\.0")).layers.layers) == [
        "blocks.0.mlp.0",
        "blocks.2.mlp.0",
    ]
    network = sandwich()
    with pytest.raises(
        ValueError, match="no linear layer has a full name that 'mlp' matches; names are like embed, pl"
    ):
        Adapters(network, Lora(targets="mlp"))
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_without_peft_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'peft is not installed; run: pip install "streamstill\[lora\]"'):
        Adapters(sandwich(), LORA)
