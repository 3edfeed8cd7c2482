"""The student of now, the one that lags behind it and the frozen start: as copies, or as adapters on one copy."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import nn

from streamstill.config import require_one_of
from streamstill.student.network import Network
from streamstill.training.lora import Lora, LoraLayers, read_adapter

SCHEDULES = ("constant", "type0", "type1", "type2")
STUDENT, OLD = "student", "old"


@dataclass(frozen=True, kw_only=True)
class OldSchedule:
    """How much of itself the lagged student keeps at an update; the types are those of DiffusionNFT's code.

    ``type0`` keeps nothing, so the rollouts are the newest student's. ``type1`` begins there and lags more and more, up
    to one half. ``type2`` begins to lag after 75 updates and ends almost frozen.
    """

    kind: Literal["constant", "type0", "type1", "type2"] = "constant"
    decay: float = 0.5  # of the constant kind: old <- decay * old + (1 - decay) * student

    def __post_init__(self) -> None:
        require_one_of(self.kind, SCHEDULES, "schedule of the lagged student")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}; 0 copies the student every time")

    def at(self, updates: int) -> float:
        """The share that is kept after so many optimiser steps of the student, at least 1."""
        if self.kind == "type1":
            return min(0.001 * updates, 0.5)
        if self.kind == "type2":
            return min(0.0075 * max(updates - 75, 0), 0.999)
        return 0.0 if self.kind == "type0" else self.decay


class Policies(Protocol):
    """Three networks that differ in their weights only, whichever way they share them.

    Outside of every block the network is the student of now.
    """

    @property
    def trained(self) -> nn.Module:
        """What the optimiser moves."""
        ...

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """What must survive a resume beside ``trained``."""
        ...

    def student(self) -> AbstractContextManager[Network]:
        """The student of now."""
        ...

    def old(self) -> AbstractContextManager[Network]:
        """The student that lags behind."""
        ...

    def start(self) -> AbstractContextManager[Network]:
        """The student as it was given."""
        ...

    def follow(self, decay: float) -> float:
        """Keep ``decay`` of the lagged student and take the rest of the student of now.

        Returns:
            How far apart the two were: the root of the sum of squares over all weights.
        """
        ...

    def merged(self) -> Network:
        """The trained network with ordinary weights and nothing beside them; training ends with it."""
        ...


class WeightCopies:
    """All weights learn, and the others are whole copies: for small students.

    Args:
        keep_start: whether the start will be asked for; it costs a copy.
    """

    def __init__(self, network: Network, *, keep_start: bool) -> None:
        self.trained: Network = network
        self._old = _frozen_copy(network)
        self._start = _frozen_copy(network) if keep_start else None

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """The copies."""
        return {"old": self._old} if self._start is None else {"old": self._old, "start": self._start}

    def student(self) -> AbstractContextManager[Network]:
        """The network itself."""
        return nullcontext(self.trained)

    def old(self) -> AbstractContextManager[Network]:
        """The lagged copy."""
        return nullcontext(self._old)

    def start(self) -> AbstractContextManager[Network]:
        """The frozen copy.

        Raises:
            ValueError: no such copy was kept.
        """
        if self._start is None:
            raise ValueError("the start was not kept; make the copies with keep_start=True")
        return nullcontext(self._start)

    @torch.no_grad()
    def follow(self, decay: float) -> float:
        """Move the lagged copy."""
        moved = 0.0
        for old, new in zip(self._old.parameters(), self.trained.parameters(), strict=True):
            moved += float((new - old).square().sum())
            old.lerp_(new, 1 - decay)
        return moved**0.5

    def merged(self) -> Network:
        """The network itself."""
        return self.trained


class Adapters:
    """Two LoRA adapters on the weights of the student's network: one learns, one lags. The start is neither.

    The lagged adapter follows factor by factor, as in DiffusionNFT's code: its product is not the mean of products.

    Raises:
        ModuleNotFoundError: peft is not installed.
        ValueError: the network has adapters already, or no layer that can be adapted.
    """

    def __init__(self, network: Network, lora: Lora, *, seed: int = 0) -> None:
        self._network = network
        self.layers = LoraLayers(network, lora, [STUDENT, OLD], seed=seed)

    @classmethod
    def of_file(cls, network: Network, path: Path) -> "Adapters":
        """Adapters of the shape and with the factors of a saved one.

        Raises:
            ValueError: no adapter's file, damaged, or one that was trained beside other weights.
        """
        adapters = cls(network, read_adapter(path)[0])
        try:
            adapters.load(path)
        except ValueError:
            adapters.layers.fold(OLD)  # no change yet: the network is given back as it came
            raise
        return adapters

    @property
    def trained(self) -> nn.Module:
        """The factors of the adapter that learns."""
        return self.layers.factors(STUDENT)

    @property
    def memory(self) -> Mapping[str, nn.Module]:
        """The factors of the adapter that lags."""
        return {"old": self.layers.factors(OLD)}

    def student(self) -> AbstractContextManager[Network]:
        """The network with the adapter that learns."""
        return self._showing(STUDENT)

    def old(self) -> AbstractContextManager[Network]:
        """The network with the adapter that lags."""
        return self._showing(OLD)

    def start(self) -> AbstractContextManager[Network]:
        """The network without adapters."""
        return self._showing(None)

    @torch.no_grad()
    def follow(self, decay: float) -> float:
        """Move the factors of the adapter that lags; the distance is one of weights, as for copies."""
        moved = 0.0
        for layer in self.layers.layers:
            difference = self.layers.change(layer, STUDENT) - self.layers.change(layer, OLD)
            moved += float(difference.square().sum())
        for name, old in self.layers.factors(OLD).items():
            old.lerp_(self.layers.factors(STUDENT)[name], 1 - decay)
        return moved**0.5

    def merged(self) -> Network:
        """Fold the student's adapter into the weights, in place: ``save_pretrained`` writes an ordinary student."""
        self.layers.fold(STUDENT)
        return self._network

    def save(self, path: Path) -> None:
        """Write the student's adapter alone, so that many students can share one set of weights.

        Raises:
            OSError: it could not be written, for example to a full disk.
        """
        self.layers.save(STUDENT, path)

    def load(self, path: Path) -> None:
        """Go on from a saved adapter: the student and the lagged one become it.

        Raises:
            ValueError: no adapter's file, damaged, or made for other weights or of another shape; nothing was changed.
        """
        self.layers.load(path, [STUDENT, OLD])

    @contextmanager
    def _showing(self, adapter: str | None) -> Iterator[Network]:
        with self.layers.shown(adapter):
            yield self._network


def build_policies(network: Network, lora: Lora | None, *, keep_start: bool) -> Policies:
    """Adapters of this shape, or copies of all weights where there is none."""
    return WeightCopies(network, keep_start=keep_start) if lora is None else Adapters(network, lora)


def _frozen_copy(network: Network) -> Network:
    return deepcopy(network).requires_grad_(False)
