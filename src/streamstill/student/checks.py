"""What a chunk step refuses, each with one sentence."""

from typing import Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from streamstill.state import tensors_of

Described: TypeAlias = tuple[torch.dtype, torch.Size]
_EXPECTED: WeakKeyDictionary[Any, dict[Any, list[Described]]] = WeakKeyDictionary()


class Steps(Protocol):
    """What is asked of a network so that its chunk step can be checked."""

    @property
    def chunk_frames(self) -> int:
        """Latent frames that are made together."""
        ...

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> Any:
        """The state before the first chunk."""
        ...


def check_step(
    network: Steps,
    x_t_BFCHW: Tensor,
    t: Tensor,
    text_BLD: Tensor,
    state: Any,
    *,
    channels: int,
    text_width: int,
    weight: Tensor,
) -> None:
    """Raise a ``ValueError`` unless chunk, times, text and state fit the network and each other.

    Args:
        weight: the one that latents meet first; its dtype and device are the network's.
    """
    batch, frames, given_channels, height, width = _axes(x_t_BFCHW)
    if not 1 <= frames <= network.chunk_frames or given_channels != channels:
        raise ValueError(
            f"a chunk has {network.chunk_frames} latent frames (fewer for a video's last) of {channels} channels, "
            f"got {frames} of {given_channels}"
        )
    if tuple(t.shape) not in ((batch,), (batch, frames)):
        raise ValueError(
            f"t must have one time a clip, shape ({batch},), or one a latent frame, shape ({batch}, {frames}); "
            f"got shape {tuple(t.shape)}"
        )
    if text_BLD.ndim != 3 or text_BLD.shape[0] != batch or text_BLD.shape[2] != text_width:
        raise ValueError(
            f"text must have shape ({batch}, tokens, {text_width}) for {batch} clips, got {tuple(text_BLD.shape)}"
        )
    _check_places(weight, {"latents": x_t_BFCHW, "text": text_BLD, "times": t}, state)
    _check_state(_expected_state(network, batch, height, width, x_t_BFCHW.dtype), state)


def _axes(x_t_BFCHW: Tensor) -> tuple[int, ...]:
    if x_t_BFCHW.ndim != 5:
        raise ValueError(f"a chunk has the axes B, F, C, H, W; got shape {tuple(x_t_BFCHW.shape)}")
    return tuple(x_t_BFCHW.shape)


def _expected_state(network: Steps, *key: Any) -> list[Described]:
    """Dtypes and shapes of the network's states, found out once for each size of latents."""
    known = _EXPECTED.setdefault(network, {})
    if key not in known:
        batch, height, width, dtype = key
        like = torch.empty(0, dtype=dtype, device="meta")
        known[key] = _described(network.initial_state(batch, height, width, like))
    return known[key]


def _described(state: Any) -> list[Described]:
    return [(tensor.dtype, tensor.shape) for tensor in tensors_of(state)]


def _check_state(wanted: list[Described], state: Any) -> None:
    given = _described(state)
    if given == wanted:
        return
    first = next((f"{_said(g)} where {_said(w)} belongs" for g, w in zip(given, wanted, strict=False) if g != w), "")
    raise ValueError(
        "the state does not belong to this network, batch, dtype and size of latents: "
        + (first or f"it has {len(given)} tensors, {len(wanted)} belong")
        + "; begin with initial_state(...) of the same network, and never mix states of two presets or layouts"
    )


def _said(described: Described) -> str:
    return f"{str(described[0]).removeprefix('torch.')} {tuple(described[1])}"


def _check_places(weight: Tensor, given: dict[str, Tensor], state: Any) -> None:
    tensors = given | {"state": next(tensors_of(state), weight)}
    away = {name: tensor.device for name, tensor in tensors.items() if tensor.device != weight.device}
    if away:
        name, device = next(iter(away.items()))
        raise ValueError(f"the network is on {weight.device}, {name} on {device}; move one of them with .to(...)")
    if weight.device.type != "meta" and torch.is_autocast_enabled(weight.device.type):
        return
    for name in ("latents", "text"):
        if given[name].dtype != weight.dtype:
            raise ValueError(
                f"the network's weights are {weight.dtype}, {name} {given[name].dtype}; "
                "convert one of them with .to(...), or run under torch.autocast"
            )
