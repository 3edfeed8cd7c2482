"""LoRA by peft: small trainable products beside a network's own linear layers, several on one copy of the weights."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from streamstill.codec.pretrained import library
from streamstill.config import from_dict, require_positive, to_dict
from streamstill.student.ssa import WindowedSelfAttention
from streamstill.tensor_file import write_tensors

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The shape of an adapter: ``weight + alpha / rank * up @ down`` for every linear layer that it is beside.

    The first author's model card of AFD has rank 256 and alpha 256 for a network of 1.3 billion parameters and width
    1536. Ours are smaller, for networks of a few million.
    """

    rank: int = 16
    alpha: int = 16
    targets: str = (
        r"(.*\.)?blocks\.\d+\.(?!.*\bphi_).*"  # linear layers by full name: projections, text, MLPs of blocks
    )

    def __post_init__(self) -> None:
        require_positive(self, "rank", "alpha")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(
                f"targets is no regular expression ({error}), got {self.targets!r}; write one that matches full names"
            ) from error


class LoraLayers:
    """The adapters of one network, by name, put in beside its weights in place. The first is the one that is shown.

    No weight of the network is copied, and none requires a gradient any more; only the first adapter's factors do.
    All adapters start equal and at no change: ``up`` is zero. Factors of a half-precision network are float32.

    Layers whose weights the network reads without calling them cannot be adapted and are left out: the projection of
    the blocks with compressed keys.

    Args:
        seed: of the random factors ``down``; the same on every device.

    Raises:
        ModuleNotFoundError: peft is not installed.
        ValueError: the network has adapters already, or no linear layer has a name that ``targets`` match.
    """

    def __init__(self, network: nn.Module, lora: Lora, adapters: Sequence[str], *, seed: int = 0) -> None:
        self.network, self.lora, self.adapters = network, lora, tuple(adapters)
        self._learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.layers: dict[str, Any] = _inject(network, lora, self.adapters)
        self._factors = {adapter: self._collect(adapter) for adapter in self.adapters}
        self._start(torch.Generator().manual_seed(seed))
        self._shown: str | None = None
        self._switch(self.adapters[0])
        for adapter, factors in self._factors.items():
            factors.requires_grad_(adapter == self.adapters[0])

    def factors(self, adapter: str) -> nn.ParameterDict:
        """The adapter's own parameters, ``layer/down`` and ``layer/up``, with slashes for the dots of names."""
        return self._factors[adapter]

    @contextmanager
    def shown(self, adapter: str | None) -> Iterator[None]:
        """Inside the block the network is the one with this adapter; None: with none, the weights as they were.

        Raises:
            ValueError: the adapters were folded.
        """
        if not self.layers:
            raise ValueError("the adapters were folded into the weights; make new ones to go on training")
        before = self._shown
        try:
            self._switch(adapter)
            yield
        finally:
            self._switch(before)

    @torch.no_grad()
    def change(self, layer: str, adapter: str) -> Tensor:
        """What the adapter adds to the weight of one layer."""
        change: Tensor = self.layers[layer].get_delta_weight(adapter)
        return change

    @torch.no_grad()
    def fold(self, adapter: str) -> None:
        """Add the adapter to the weights and take all adapters out; what learnt before they came may learn again."""
        for name, layer in self.layers.items():
            plain = layer.get_base_layer()
            plain.weight.copy_(plain.weight + self.change(name, adapter))
            self.network.set_submodule(name, plain)
        self.layers = {}
        for parameter in self._learned:
            parameter.requires_grad_(True)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that differ where the weights under the adapters differ."""
        digest = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            if ".lora_" not in name:
                content = tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
                digest.update(name.replace(".base_layer.", ".").encode() + content)
        return digest.hexdigest()[:12]

    def save(self, adapter: str, path: Path) -> None:
        """Write one adapter alone, whole or not at all.

        Raises:
            OSError: it could not be written, for example to a full disk.
        """
        described = {"format": FORMAT, "lora": to_dict(self.lora), "base": self.fingerprint}
        tensors = {name: factor.detach().contiguous() for name, factor in self.factors(adapter).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {"adapter": json.dumps(described, sort_keys=True)})

    @torch.no_grad()
    def load(self, path: Path, adapters: Sequence[str]) -> None:
        """Give these adapters the factors of a saved one.

        Raises:
            ValueError: no adapter's file, damaged, or made for other weights or of another shape; nothing was changed.
        """
        lora, base, tensors = read_adapter(path)
        if lora != self.lora:
            raise ValueError(f"{path} is an adapter of {lora}, these are of {self.lora}; make them of its shape")
        if base != self.fingerprint:
            raise ValueError(
                f"{path} was trained beside the weights {base}, these are {self.fingerprint}; "
                "put it beside the student that it was trained with"
            )
        for adapter in adapters:
            for name, factor in self.factors(adapter).items():
                factor.copy_(tensors[name])

    def _collect(self, adapter: str) -> nn.ParameterDict:
        factors = {
            f"{name.replace('.', '/')}/{which}": factor[adapter]
            for name, layer in self.layers.items()
            for which, factor in (("down", layer.lora_A), ("up", layer.lora_B))
        }
        for linear in factors.values():  # a small step of the optimiser would be lost in half precision
            linear.to(torch.promote_types(linear.weight.dtype, torch.float32))
        return nn.ParameterDict({name: linear.weight for name, linear in factors.items()})

    @torch.no_grad()
    def _start(self, generator: torch.Generator) -> None:
        """The usual start of LoRA: ``down`` like a linear layer's weight, ``up`` zero."""
        for name, factor in self._factors[self.adapters[0]].items():
            uniform = 2 * torch.rand(factor.shape, generator=generator) - 1
            start = uniform / factor.shape[1] ** 0.5 if name.endswith("/down") else torch.zeros_like(factor)
            for adapter in self.adapters:
                self._factors[adapter][name].copy_(start)

    def _switch(self, adapter: str | None) -> None:
        """Show an adapter. (Who requires a gradient is the trainer's to say: what peft makes of it is put back.)"""
        if adapter == self._shown:
            return
        flags = [(factor, factor.requires_grad) for factors in self._factors.values() for factor in factors.values()]
        for layer in self.layers.values():
            layer.enable_adapters(adapter is not None)
            if adapter is not None:
                layer.set_adapter(adapter)
        for factor, flag in flags:
            factor.requires_grad_(flag)
        self._shown = adapter


def read_adapter(path: Path) -> tuple[Lora, str, Mapping[str, Tensor]]:
    """The shape of a saved adapter, the fingerprint of the weights it belongs to, and its factors.

    Raises:
        ValueError: missing, damaged, of another format version, or no adapter.
    """
    if not path.is_file():
        raise ValueError(f"there is no adapter at {path}; give the file that a run wrote")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            described: Any = json.loads((file.metadata() or {}).get("adapter", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); copy or write it again") from error
    version = described.get("format") if isinstance(described, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"{path} has adapter format {version!r}, this version of streamstill reads format {FORMAT}; "
            "save the adapter again with this version"
        )
    return from_dict(Lora, described["lora"], where=str(path)), described["base"], tensors


def _inject(network: nn.Module, lora: Lora, adapters: Sequence[str]) -> dict[str, Any]:
    """Peft's layers by the name of the linear layer whose place they took."""
    library("peft", "lora")
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in network.modules()):
        raise ValueError("this network has adapters already; fold them into its weights before adding others")
    names = _targets(network, lora)
    pattern = "|".join(re.escape(name) for name in names)
    with torch.random.fork_rng(devices=[]):  # peft draws weights, which are not used
        for adapter in adapters:
            config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=pattern, init_lora_weights=False)
            inject_adapter_in_model(config, network, adapter)
            del network.peft_config  # what peft left there; it would take a second adapter for a mistake
    return {name: network.get_submodule(name) for name in names}


def _targets(network: nn.Module, lora: Lora) -> list[str]:
    modules = dict(network.named_modules())
    uncalled = {
        f"{name}.qkv"
        for name, module in modules.items()
        if isinstance(module, WindowedSelfAttention) and module.compress is not None
    }
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear) and name not in uncalled]
    names = [name for name in linear if re.fullmatch(lora.targets, name)]
    if not names:
        raise ValueError(
            f"no linear layer has a full name that {lora.targets!r} matches; names are like {', '.join(linear[:3])}"
        )
    return names
