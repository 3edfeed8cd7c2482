"""Networks that are timed to find out what their parts cost, and the fit that finds it.

A block that runs alone has its weights and its input in the cache and pays the Python around it in full, so times
of blocks that ran alone do not add up to the time of a network. So whole velocity passes are timed, of networks that
differ in how many blocks of each kind and how many switches of resolution they have; the parts' costs are what
explains the differences best: least squares of ``A c = y``, one row for each network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamstill.state import StreamState
from streamstill.student.costs import Workload
from streamstill.student.layout import BlockKind, parse_layout, ways_down
from streamstill.student.sandwich import SandwichConfig, SandwichDiT

Floats: TypeAlias = NDArray[np.float64]
Inputs: TypeAlias = tuple[Tensor, Tensor, Tensor, StreamState]
"""x_t_BFCHW, t_B, text_BLD, state: what a velocity pass is given."""

DEPTHS = 4, 8  # blocks of the longest probe: as many as the network has, but within these


def probe_layouts(kinds: Sequence[BlockKind], depth: int) -> tuple[str, ...]:
    """Layouts that tell apart the costs of these kinds, of a switch of resolution and of the ends.

    Each kind alone, twice as long as another time, tells the kind from the ends. Each pair of a full and a low kind,
    once with a switch at every block and once with a single long run, tells the switch.

    Args:
        kinds: at least one of full resolution, or every layout would have exactly one switch.
        depth: of the network that the costs are for.
    """
    half = min(max(depth, DEPTHS[0]), DEPTHS[1]) // 2
    alone = [kind.letter * blocks for kind in kinds for blocks in (half, 2 * half)]
    pairs = [(full.letter, low.letter) for full in kinds for low in kinds if low.low and not full.low]
    mixed = [layout for f, s in pairs for layout in ((f + s) * half, f + s * (2 * half - 2) + f)]
    return tuple(dict.fromkeys(alone + mixed))


def switches(layout: str) -> int:
    """How many times a network of this layout goes down to low resolution; it goes up as often."""
    return len(ways_down(parse_layout(layout)))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Milliseconds of each part, in the order ends, switch (down and up), kinds.

    Args:
        ms: that explain the medians best; none is negative.
        low, high: 10th and 90th percentile of what each round by itself would have said.
        worst: the largest relative error among the probes themselves.
    """

    ms: Floats
    low: Floats
    high: Floats
    worst: float

    def part(self, place: int, *, share: float = 1) -> dict[str, float]:
        """``ms``, ``low`` and ``high`` of one part, or of a share of it."""
        return {name: float(share * getattr(self, name)[place]) for name in ("ms", "low", "high")}


def fit(layouts: Sequence[str], kinds: Sequence[BlockKind], taken_LR: Floats) -> Fit:
    """The parts' costs from the times of probes, milliseconds of shape (layouts, rounds).

    Errors count relative to a layout's time, so the slow ones do not drown the fast ones.
    """
    medians = np.median(taken_LR, axis=1)
    counts = [[1, switches(layout), *(layout.count(kind.letter) for kind in kinds)] for layout in layouts]
    relative = np.array(counts, dtype=np.float64) / medians[:, None]
    ms = _not_negative(relative, np.ones(len(layouts)))
    by_round = np.linalg.lstsq(relative, taken_LR / medians[:, None], rcond=None)[0]
    by_round[~relative.any(axis=0)] = 0  # no probe has the part: least squares says nothing but rounding
    low, high = (np.percentile(by_round, at, axis=1) for at in (10, 90))
    return Fit(
        ms=ms,
        low=np.clip(np.minimum(low, ms), 0, None),
        high=np.maximum(high, ms),
        worst=float(np.abs(relative @ ms - 1).max()),
    )


def _not_negative(a: Floats, y: Floats) -> Floats:
    """Least squares in which what would be negative is nothing: noise can make a small part look cheaper than that."""
    used: NDArray[np.bool_] = np.asarray(a.any(axis=0))
    while True:
        solution = np.zeros(a.shape[1])
        solution[used] = np.linalg.lstsq(a[:, used], y, rcond=None)[0]
        if solution.min() >= 0:
            return solution
        used[solution.argmin()] = False


class ProbePool:
    """Blocks of every kind with a past, out of which networks of any layout are put together.

    Probes share them, so all probes together need no more memory than their longest runs. A block of a network has
    weights and a state of its own, as in a network that was built alone.
    """

    def __init__(
        self,
        config: SandwichConfig,
        workload: Workload,
        layouts: Sequence[str],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config = config
        most = {kind: max(layout.count(kind.letter) for layout in layouts) for kind in BlockKind}
        everything = "".join(kind.letter * count for kind, count in most.items())
        generator = torch.Generator().manual_seed(0)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        with torch.random.fork_rng(devices=[]), torch.device(device):
            self.parts = SandwichDiT(replace(config, layout=everything)).to(dtype).eval()
        self.x_t_BFCHW = noise(workload.batch, workload.frames, config.latent_channels, workload.height, workload.width)
        self.text_BLD = noise(workload.batch, workload.text_tokens, config.text_width)
        self.t_B = torch.full((workload.batch,), 0.5, device=device, dtype=dtype)
        self.state = self.parts.initial_state(workload.batch, workload.height, workload.width, self.x_t_BFCHW)
        longest = max(self.config.window(kind).slots for kind in self.parts.kinds)
        for _ in range(-(-longest // workload.frames)):  # until every window is full
            self.state = self.parts.remember(noise(*self.x_t_BFCHW.shape), self.text_BLD, self.state)

    def network(self, layout: str) -> tuple[SandwichDiT, Inputs]:
        """A network of this layout, of the pool's parts, and what to give it."""
        with torch.device("meta"):  # its own weights are never used
            network = SandwichDiT(replace(self.config, layout=layout)).eval()
        places = self._places(network.kinds)
        for name, part in self.parts.named_children():
            if name not in ("blocks", "down"):
                setattr(network, name, part)
        network.blocks = nn.ModuleList(self.parts.blocks[place] for place in places)
        network.down = nn.ModuleDict({before: next(iter(self.parts.down.values())) for before in network.down})
        state = StreamState(tuple(self.state.blocks[place] for place in places))
        return network, (self.x_t_BFCHW, self.t_B, self.text_BLD, state)

    def _places(self, kinds: Sequence[BlockKind]) -> list[int]:
        """Which of the pool's blocks each of these is: the first of its kind that is not taken."""
        free = {kind: [place for place, own in enumerate(self.parts.kinds) if own is kind] for kind in set(kinds)}
        return [free[kind].pop(0) for kind in kinds]
