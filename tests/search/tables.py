"""Small cost tables whose sums are exact: every cost is a multiple of 1/32 of a ms or of a MB."""

from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st

from streamstill.search.allocate import Budget
from streamstill.search.cost_table import BlockCost, CostTable, PartCost
from streamstill.student.costs import Workload
from streamstill.student.sandwich import SandwichConfig

NETWORK = SandwichConfig(
    layout="LSL",
    latent_channels=4,
    chunk_frames=1,
    patch=1,
    width=64,
    head_dim=32,
    mlp_ratio=2.0,
    text_width=16,
    window_chunks=2,
    full_window_chunks=2,
    sink_chunks=1,
    retention=0.9,
    theta=100.0,
)
WORKLOAD = Workload(height=8, width=8, frames=1, text_tokens=4)
ALL = "LSFKACRUH"


def part(ms: float, held: float = 0.0, passing: float = 0.0) -> PartCost:
    """ms, MB held (weights and state), MB passing."""
    weights = round(held * 1e6)
    return PartCost(
        ms=ms,
        ms_low=ms,
        ms_high=ms,
        weight_bytes=weights // 2,
        state_bytes=weights - weights // 2,
        activation_bytes=round(passing * 1e6),
    )


def table(
    blocks: Mapping[str, tuple[float, float, float]],
    *,
    switch: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ends: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> CostTable:
    """Costs of (ms, MB held, MB passing); the switch is one down, the up costs half of it."""
    return CostTable(
        source="given",
        target="cpu",
        device="paper and pencil",
        dtype="float32",
        versions="",
        note="made for a test",
        network=NETWORK,
        workload=WORKLOAD,
        blocks=tuple(BlockCost(letter=letter, cost=part(*cost)) for letter, cost in blocks.items()),
        down=part(*switch),
        up=part(*(cost / 2 for cost in switch)),
        ends=part(*ends),
    )


def realistic(kinds: int, *, seed: int) -> tuple[CostTable, dict[str, float]]:
    """Costs without any order, around 1.5 ms and 7 MB per block, and worths that grow with them, roughly."""
    random = np.random.default_rng(seed)
    ms, held = random.uniform(0.5, 2.5, kinds), random.uniform(2, 12, kinds)
    passing = random.uniform(5, 60, kinds)
    worths = ms * random.uniform(0.7, 1.3, kinds) + held * random.uniform(0.05, 0.15, kinds)
    letters = ALL[:kinds]
    costs = np.stack([ms, held, passing], axis=1).tolist()
    blocks = {letter: (cost[0], cost[1], cost[2]) for letter, cost in zip(letters, costs, strict=True)}
    made = table(blocks, switch=(0.6, 0.5, 8.0), ends=(2.0, 6.0, 10.0))
    return made, dict(zip(letters, worths.tolist(), strict=True))


def sixteenths(highest: float) -> st.SearchStrategy[float]:
    """Numbers whose sums float64 does not round."""
    return st.integers(0, round(highest * 16)).map(lambda number: number / 16)


def few(highest: int) -> st.SearchStrategy[float]:
    """Few different numbers, so that there are ties."""
    return st.integers(0, highest).map(float)


def budgets(highest: float) -> st.SearchStrategy[Budget]:
    """With two limits, one or none."""
    limit = st.one_of(st.none(), sixteenths(highest).map(lambda number: number + 1 / 16))
    return st.builds(Budget, ms=limit, mb=limit)


def more(budget: Budget, ms: float, mb: float) -> Budget:
    """A budget with so much more."""
    return Budget(ms=None if budget.ms is None else budget.ms + ms, mb=None if budget.mb is None else budget.mb + mb)


def keeps(budget: Budget, ms: float, mb: float) -> bool:
    """Whether these costs are within the budget, in plain numbers."""
    return (budget.ms is None or ms <= budget.ms) and (budget.mb is None or mb <= budget.mb)


@st.composite
def tables(draw: st.DrawFn, *, kinds: int = 4) -> CostTable:
    """Tables of one to so many kinds."""
    letters = draw(st.lists(st.sampled_from(ALL), min_size=1, max_size=kinds, unique=True))
    number = st.one_of(sixteenths(4.0), few(3))
    cost = st.tuples(number, number, number)
    return table({letter: draw(cost) for letter in letters}, switch=draw(cost), ends=draw(cost))
