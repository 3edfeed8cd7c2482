"""Which groups of blocks run at full resolution: a layout learnt on shared weights (S2DiT section 3.3, eqs. 2-6).

Every group has a full-resolution and a low-resolution version. A mask m says which of the two counts; it is drawn anew
for each training pass from logits that learn with the weights (Gumbel-Softmax, straight-through). The paper does not
say how the counts are kept. Here a drawn mask always has as many full groups as the given layout: the N highest
perturbed logits, a projection onto the count, so that no pass and no result can violate it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from streamstill.state import StreamState
from streamstill.student import costs
from streamstill.student.layout import BlockKind, parse_layout
from streamstill.student.mixer import RunMixer
from streamstill.student.resize import downsample, strided_mean, upsample
from streamstill.student.sandwich import SandwichConfig, SandwichDiT

START_TEMPERATURE, END_TEMPERATURE = 2.0, 0.2
LOGIT_SCALE = 10.0  # a logit moves at this many times the learning rate of the weights
_DRAWS = 10_000  # for the probabilities of a report
_DRAWS_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How decided a search is, group by group.

    Args:
        layout: the most likely one, a letter for each block.
        logits: of being at full resolution; only their differences matter.
        probabilities: of being among the full groups, over the noise; they sum to the number of full groups.
        entropies: of these, in bits: 0 is decided, 1 is open.
    """

    layout: str
    logits: tuple[float, ...]
    probabilities: tuple[float, ...]
    entropies: tuple[float, ...]


class Streams(NamedTuple):
    """What is carried from group to group: both streams, the buffer of the long skip, the mask of the last group."""

    full: Tensor  # y_L
    low: Tensor  # y_S
    skip: Tensor  # S
    mask: Tensor  # m, a number; 1 = full


Change = Callable[[Tensor], Tensor]


def carried(
    before: Streams, mask: Tensor, *, full_group: Change, low_group: Change, up: Change, down: Change
) -> Streams:
    """One group: eqs. (2)-(5), in the order and the letters of the paper.

    Args:
        mask: m_n, in [0, 1].
        full_group, low_group: the two versions f_L and f_S of the group.
    """
    y_l, y_s, s, m_before = before
    u, d = _switch(m_before, mask), _switch(mask, m_before)
    made_l = full_group((1 - u) * y_l + u * (up(y_s) + s))
    made_s = low_group((1 - d) * y_s + d * down(y_l))
    return Streams(
        full=mask * made_l + (1 - mask) * y_l,
        low=(1 - mask) * made_s + mask * y_s,
        skip=d * y_l + (1 - d) * s,
        mask=mask,
    )


def answer(last: Streams, *, up: Change) -> Tensor:
    """The stream after the last group, at full resolution: eq. (6)."""
    return last.mask * last.full + (1 - last.mask) * up(last.low)


def logistic_noise(count: int, generator: torch.Generator) -> Tensor:
    """Noise of shape (count,), float64: the difference of two Gumbels, as one of two choices needs it."""
    uniform = torch.rand(count, generator=generator, dtype=torch.float64).clamp_min(1e-12)
    return uniform.log() - torch.log1p(-uniform)


def top_mask(perturbed_G: Tensor, *, count: int, temperature: float) -> Tensor:
    """1 for exactly the ``count`` highest, 0 for the others; ties go to the earlier.

    Straight-through: the gradient is that of sigmoid((perturbed - threshold) / temperature), where the threshold lies
    halfway between the last one that is in and the first one that is out. It moves with them, so a shift of all
    logits, which changes no mask, has no gradient either.
    """
    order_G = perturbed_G.argsort(descending=True, stable=True)
    hard_G = torch.zeros_like(perturbed_G).index_fill(0, order_G[:count], 1)
    threshold = perturbed_G[order_G[count - 1 : count + 1]].mean()
    soft_G = torch.sigmoid((perturbed_G - threshold) / temperature)
    return hard_G + (soft_G - soft_G.detach())  # the bracket is exactly 0


class PlacementNet(SandwichDiT):
    """A SandwichDiT with both versions of every group; it is trained in the place of a student's network.

    ``blocks`` holds the full versions of all blocks, then the low ones; there is a way down before every group. The
    ends are shared. Until told otherwise by ``perturb`` or ``fix``, it runs the most likely layout.
    """

    def __init__(self, config: SandwichConfig, *, group_size: int = 1, logit_scale: float = LOGIT_SCALE) -> None:
        """``config.layout`` says the counts; its order is what is searched.

        Raises:
            ValueError: the layout does not have one full-resolution kind and S, or not in whole groups.
        """
        self.full_kind = _full_kind(config.layout)
        self.given = replace(config, layout=config.layout.replace(" ", ""))
        depth, full_blocks = len(config.kinds), config.kinds.count(self.full_kind)
        if group_size < 1 or depth % group_size or full_blocks % group_size:
            raise ValueError(
                f"groups of {group_size} do not divide the {depth} blocks of {config.layout!r}, {full_blocks} of them "
                f"{self.full_kind.letter}; choose a group size that divides both, 1 always does"
            )
        super().__init__(replace(config, layout=self.full_kind.letter * depth + BlockKind.SSA.letter * depth))
        self.group_size, self.groups, self.full_groups = group_size, depth // group_size, full_blocks // group_size
        starts = range(0, depth, group_size)
        self.down = nn.ModuleDict({str(start): strided_mean(config.width) for start in starts})
        self.logit_scale, self.temperature = logit_scale, START_TEMPERATURE
        self.raw_logits_G = nn.Parameter(torch.zeros(self.groups))
        self._noise_G: Tensor | None = None
        self._fixed_G: Tensor | None = None
        self._learns = False

    @property
    def logits_G(self) -> Tensor:
        """The logits of being at full resolution.

        They are ``logit_scale`` times what the optimiser sees. Adam moves every parameter by about the learning rate a
        step, which is right for weights and too slow for logits, so the scale is their learning rate of their own.
        """
        return self.logit_scale * self.raw_logits_G

    def anneal(self, fraction: float, *, start: float = START_TEMPERATURE, end: float = END_TEMPERATURE) -> None:
        """Set the temperature for a run of which this fraction is done: from start to end, geometrically.

        The mask is hard at any temperature; it says how far from the threshold a logit still gets a gradient.

        Raises:
            ValueError: a fraction outside [0, 1], or a temperature that is not positive.
        """
        if not (0 <= fraction <= 1 and min(start, end) > 0):
            raise ValueError(
                f"annealing needs a fraction in [0, 1] and positive temperatures, got {fraction}, {start} and {end}"
            )
        self.temperature = start * (end / start) ** fraction

    def noise(self, generator: torch.Generator) -> Tensor:
        """Noise for one mask, shape (groups,)."""
        return logistic_noise(self.groups, generator)

    def perturb(self, noise_G: Tensor, *, learns: bool = True) -> None:
        """From now on the mask is that of the logits plus this noise.

        Args:
            learns: whether the logits get a gradient from it.
        """
        self._noise_G, self._fixed_G, self._learns = noise_G, None, learns

    def fix(self, layout: str | None = None) -> None:
        """From now on run this layout, whatever its counts; None: the most likely one, as the logits have it.

        Raises:
            ValueError: a layout that this network does not contain.
        """
        self._noise_G, self._learns = None, False
        self._fixed_G = None if layout is None else torch.tensor(self.mask_of(layout))

    def mask(self) -> Tensor:
        """The mask of the next pass, shape (groups,): exactly ``full_groups`` ones, unless a layout was fixed."""
        logits_G = self.logits_G if self._learns else self.logits_G.detach()
        if self._fixed_G is not None:
            return self._fixed_G.to(logits_G)
        perturbed_G = logits_G if self._noise_G is None else logits_G + self._noise_G.to(logits_G)
        return top_mask(perturbed_G, count=self.full_groups, temperature=self.temperature)

    def mask_of(self, layout: str) -> tuple[float, ...]:
        """1 for every full group of a layout, 0 for every low one.

        Raises:
            ValueError: other letters, another depth, or a group of two kinds.
        """
        letters, size = layout.replace(" ", ""), self.group_size
        words = {self.full_kind.letter * size: 1.0, BlockKind.SSA.letter * size: 0.0}
        groups = [letters[start : start + size] for start in range(0, len(letters), size)]
        if len(groups) != self.groups or not words.keys() >= set(groups):
            raise ValueError(
                f"this search has {self.groups} groups, each {' or '.join(words)}, and does not contain {layout!r}"
            )
        return tuple(words[group] for group in groups)

    def layout_of(self, mask: Iterable[float]) -> str:
        """The letters of a mask, one for each block."""
        kinds = (self.full_kind if one > 0.5 else BlockKind.SSA for one in mask)
        return "".join(kind.letter * self.group_size for kind in kinds)

    def layout(self) -> str:
        """The most likely layout: the highest logits are at full resolution."""
        mask_G = top_mask(self.logits_G.detach(), count=self.full_groups, temperature=1.0)
        return self.layout_of(mask_G.tolist())

    def decided(self) -> Decision:
        """How decided each group is, by draws with a seed of their own: the same logits, the same answer."""
        generator = torch.Generator().manual_seed(_DRAWS_SEED)
        logits_G = self.logits_G.detach().double().cpu()
        noise_PG = logistic_noise(_DRAWS * self.groups, generator).view(_DRAWS, self.groups)
        chosen = (logits_G + noise_PG).topk(self.full_groups, dim=1).indices
        p_G = torch.bincount(chosen.flatten(), minlength=self.groups).double() / _DRAWS
        entropy_G = (torch.special.entr(p_G) + torch.special.entr(1 - p_G)) / torch.tensor(2.0).log()
        numbers = [tuple(values.tolist()) for values in (logits_G, p_G, entropy_G)]
        return Decision(layout=self.layout(), logits=numbers[0], probabilities=numbers[1], entropies=numbers[2])

    def extract(self, layout: str | None = None) -> SandwichDiT:
        """The network of one layout by itself, with copies of the weights; None: the most likely layout.

        Raises:
            ValueError: a layout that this network does not contain.
        """
        letters = self.layout() if layout is None else layout.replace(" ", "")
        self.mask_of(letters)
        with torch.device("meta"):  # nothing is drawn or computed: every weight is given below
            network = SandwichDiT(replace(self.given, layout=letters))
        mine = self.state_dict()
        weights = {name: mine[self._name_here(name, letters)].clone() for name in network.state_dict()}
        network.load_state_dict(weights, assign=True)
        return network.train(self.training)

    def through_blocks(
        self,
        x_RFHWD: Tensor,
        condition_RF6D: Tensor,
        text_BLD: Tensor,
        state: StreamState,
        run: RunMixer,
        *,
        memory_only: bool = False,
    ) -> tuple[Tensor, StreamState]:
        """All groups, joined by the mask: the output has the bits of the network that the mask stands for.

        A version that the mask takes away runs only to tell the logits what it would have been, and without a graph:
        its weights would get no gradient anyway. What it remembers is of no use to the next chunk.
        """
        depth, mask_G = len(self.given.kinds), self.mask()
        after = list(state.blocks)
        down = {first: partial(downsample, self.down[str(first)]) for first in range(0, depth, self.group_size)}

        def version(first: int, *, counts: bool) -> Change:
            def through(stream_RFHWD: Tensor) -> Tensor:
                if not counts and not mask_G.requires_grad:
                    return stream_RFHWD  # the mask takes it away, and nobody asks what it would have been
                with torch.set_grad_enabled(counts and torch.is_grad_enabled()):
                    for index in range(first, first + self.group_size):
                        block, past = self.blocks[index], state.blocks[index]
                        stream_RFHWD, after[index] = block(stream_RFHWD, condition_RF6D, text_BLD, past, run)
                return stream_RFHWD

            return through

        # The paper has no y_S before the first group. It only counts where it is what going down gives.
        streams = Streams(full=x_RFHWD, low=down[0](x_RFHWD), skip=x_RFHWD, mask=x_RFHWD.new_ones(()))
        for first, mask, full in zip(down, mask_G.unbind(), mask_G.tolist(), strict=True):
            full_group, low_group = version(first, counts=full == 1), version(depth + first, counts=full == 0)
            streams = carried(streams, mask, full_group=full_group, low_group=low_group, up=upsample, down=down[first])
        return answer(streams, up=upsample), StreamState(tuple(after))

    def parameter_count(self) -> int:
        """How many weights and biases both versions, the ends and the logits have."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops(self, height: int, width: int, *, text_tokens: int, batch: int = 1, frames: int | None = None) -> int:
        """Floating point operations of one velocity pass through both versions; see ``SandwichDiT.flops``."""
        blocks = super().flops(height, width, text_tokens=text_tokens, batch=batch, frames=frames)
        work = costs.Workload(
            height=height, width=width, frames=frames or self.chunk_frames, text_tokens=text_tokens, batch=batch
        )
        return blocks + self.groups * costs.switch_cost(self.config, work).flops  # one more before the first group

    def _name_here(self, name: str, layout: str) -> str:
        """Where this network keeps the weight that the network of a layout calls ``name``."""
        part, _, rest = name.partition(".")
        if part != "blocks":
            return name
        index, _, rest = rest.partition(".")
        low = layout[int(index)] == BlockKind.SSA.letter
        return f"blocks.{int(index) + low * len(layout)}.{rest}"


def _switch(source: Tensor, target: Tensor) -> Tensor:
    """Whether the mask rises from source to target: max(target - source, 0), eq. (2).

    Hard masks often sit on the kink of this maximum. There the derivative is taken towards the inside of [0, 1], where
    masks can move; it is that of ``target * (1 - source)``, which has the same value at hard masks.
    """
    inside = target * (1 - source)
    return inside + (torch.relu(target - source) - inside).detach()


def _full_kind(layout: str) -> BlockKind:
    kinds = set(parse_layout(layout))
    full = [kind for kind in kinds if not kind.low]
    if len(full) != 1 or len(kinds) != 2:
        raise ValueError(
            f"a search places blocks of one full-resolution kind among S blocks, got {layout!r}; "
            "give a layout of two letters such as LLSSSSSL, whose order does not matter"
        )
    return full[0]
