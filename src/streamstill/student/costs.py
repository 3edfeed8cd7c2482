"""Counted costs of a network: parameters, operations of one velocity pass and bytes of state, part by part.

They are formulas of the config, so a search can weigh thousands of layouts without building one. What they promise
is that torch's own counter finds the same numbers (tests/student/test_costs.py).
"""

from dataclasses import dataclass

import torch

from streamstill.student.block import MODULATIONS
from streamstill.student.layout import BlockKind, ways_down
from streamstill.student.local import KERNEL
from streamstill.student.positions import PLACE_FEATURES
from streamstill.student.resize import STRIDE
from streamstill.student.sandwich import TIME_FEATURES, SandwichConfig

SOFTMAX = (BlockKind.SSA, BlockKind.FULL, BlockKind.COMPRESSED)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One velocity pass: how many clips at once, the size of their chunk, and how the state is stored.

    Args:
        height, width: of the latents.
        frames: latent frames of the chunk; at most the network's ``chunk_frames``.
        text_tokens: of each prompt.
        value_bytes: bytes of one number; 4 for float32, 2 for bfloat16.
    """

    height: int
    width: int
    frames: int
    text_tokens: int
    batch: int = 1
    value_bytes: int = torch.float32.itemsize

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1:
            raise ValueError(f"every size of a workload must be at least 1, got {self}")


@dataclass(frozen=True)
class Cost:
    """What a part holds and does; costs of parts add up.

    Args:
        parameters: weights and biases, counted as numbers.
        flops: of one velocity pass, as ``torch.utils.flop_counter`` counts them: two for each multiply-add of matrix
            products, convolutions and attention; nothing for what works element by element.
        state_bytes: what is remembered between chunks.
    """

    parameters: int = 0
    flops: int = 0
    state_bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.parameters + other.parameters, self.flops + other.flops, self.state_bytes + other.state_bytes)


def network_cost(config: SandwichConfig, work: Workload) -> Cost:
    """The whole network: its blocks, its ways down and its ends.

    Raises:
        ValueError: a chunk that the network would refuse: too long, or not to be cut into its patches and strides.
    """
    blocks = (block_cost(kind, config, work) for kind in config.kinds)
    switches = (switch_cost(config, work) for _ in ways_down(config.kinds))
    return sum((*blocks, *switches), ends_cost(config, work))


def parameter_count(config: SandwichConfig) -> int:
    """Weights and biases of the whole network; the same for every workload."""
    cell = config.patch * STRIDE
    return network_cost(config, Workload(height=cell, width=cell, frames=1, text_tokens=1)).parameters


def block_cost(kind: BlockKind, config: SandwichConfig, work: Workload) -> Cost:
    """One block of this kind, with the whole of its window as past, filled or not.

    Raises:
        ValueError: a chunk that a network with such a block would refuse, or a block that cannot be built.
    """
    width, tokens = config.width, _tokens(config, work, low=kind.low)
    mixer = _softmax_attention(kind, config, work) if kind in SOFTMAX else _linear_conv_attention(kind, config, work)
    mlp = _linear(width, config.mlp_width, tokens) + _linear(config.mlp_width, width, tokens)
    return mixer + _text_attention(config, work, tokens) + mlp + Cost(parameters=MODULATIONS * width)


def switch_cost(config: SandwichConfig, work: Workload) -> Cost:
    """One way down to low resolution; the way up copies tokens and costs nothing."""
    return _depthwise(config.width, STRIDE**2, _tokens(config, work, low=True))


def ends_cost(config: SandwichConfig, work: Workload) -> Cost:
    """All that comes before the first block and after the last one."""
    return sum(ends_costs(config, work).values(), Cost())


def ends_costs(config: SandwichConfig, work: Workload) -> dict[str, Cost]:
    """Each part of the ends, by the name of its module; each chunk has one diffusion time."""
    width, clips, tokens = config.width, work.batch, _tokens(config, work)
    token_width = config.latent_channels * config.patch**2
    places = tokens // (clips * work.frames)  # a frame's places are the same in every frame of every clip
    return {
        "embed": _linear(token_width, width, tokens),
        "place": _linear(PLACE_FEATURES, width, places),
        "time": _linear(TIME_FEATURES, width, clips) + _linear(width, width, clips),
        "prompt": _linear(config.text_width, width, clips),
        "condition": _linear(width, MODULATIONS * width, clips),
        "final_condition": _linear(width, 2 * width, clips),
        "head": _linear(width, token_width, tokens),
    }


def _linear_conv_attention(kind: BlockKind, config: SandwichConfig, work: Workload) -> Cost:
    """LCHA, or what its ablations leave of it."""
    width, tokens = config.width, _tokens(config, work, low=kind.low)
    total = _linear(width, width, tokens)
    if kind is not BlockKind.LOCAL:
        total += _linear_path(kind, config, work, tokens)
    if kind is not BlockKind.LINEAR:
        total += _local_path(config, work, tokens)
    gated = kind not in (BlockKind.LOCAL, BlockKind.LINEAR, BlockKind.UNGATED)
    return total + Cost(parameters=width if gated else 0)


def _linear_path(kind: BlockKind, config: SandwichConfig, work: Workload, tokens: int) -> Cost:
    width, head_dim = config.width, config.head_dim * (2 if kind is BlockKind.WIDE_HEADS else 1)
    heads, rest = divmod(width, head_dim)
    if rest:
        raise ValueError(f"blocks of kind {kind.letter} have heads of {head_dim}; {width} is no multiple of it")
    sum_bytes = max(work.value_bytes, torch.float32.itemsize)  # sums are never kept in less than float32
    total = _linear(width, 3 * width, tokens) + Cost(state_bytes=sum_bytes * work.batch * width * (head_dim + 1))
    for _ in ("query", "key"):
        total += _layer_norm(head_dim) + _linear(head_dim, head_dim, tokens * heads)
    # phi(k) v^T: each feature with each of its head's values. (For a chunk of one token torch does this element by
    # element, and does not count it.)
    sums = 2 * tokens * width * head_dim
    normaliser = 2 * tokens * width
    return total + Cost(flops=sums + sums + normaliser)  # made once, read once


def _local_path(config: SandwichConfig, work: Workload, tokens: int) -> Cost:
    past_tokens = tokens // work.frames * (KERNEL - 1)
    return (
        _depthwise(config.width, KERNEL**3, tokens)
        + _linear(config.width, config.width, tokens)
        + Cost(state_bytes=work.value_bytes * past_tokens * config.width)
    )


def _softmax_attention(kind: BlockKind, config: SandwichConfig, work: Workload) -> Cost:
    """SSA, or the full-resolution attention it is compared with."""
    width, tokens = config.width, _tokens(config, work, low=kind.low)
    total = _linear(width, width, tokens) + _layer_norm(config.head_dim) + _layer_norm(config.head_dim)
    own_keys = tokens
    if kind is BlockKind.COMPRESSED:
        own_keys = _tokens(config, work, low=True)
        total += _depthwise(width, STRIDE**2, own_keys)
    total += _linear(width, width, tokens) + _linear(width, 2 * width, own_keys)
    slots, frame_keys = config.window(kind).slots, own_keys // work.frames
    remembered = 2 * work.value_bytes * slots * frame_keys * width + work.batch * torch.int64.itemsize
    keys_per_clip = (own_keys + slots * frame_keys) // work.batch
    return total + Cost(flops=_attention_flops(tokens, keys_per_clip, width), state_bytes=remembered)


def _text_attention(config: SandwichConfig, work: Workload, tokens: int) -> Cost:
    width = config.width
    return (
        _layer_norm(width)
        + _linear(width, width, tokens)
        + _linear(config.text_width, 2 * width, work.batch * work.text_tokens)
        + Cost(flops=_attention_flops(tokens, work.text_tokens, width))
        + _linear(width, width, tokens)
    )


def _attention_flops(queries: int, keys_per_query: int, width: int) -> int:
    """Scores, and their sum of values; whatever the number of heads."""
    return 2 * (2 * queries * keys_per_query * width)


def _linear(inputs: int, outputs: int, tokens: int) -> Cost:
    return Cost(parameters=(inputs + 1) * outputs, flops=2 * tokens * inputs * outputs)


def _depthwise(width: int, taps: int, tokens: int) -> Cost:
    """Every channel with a kernel of its own, of so many taps; ``tokens`` come out."""
    return Cost(parameters=(taps + 1) * width, flops=2 * tokens * taps * width)


def _layer_norm(width: int) -> Cost:
    return Cost(parameters=2 * width)


def _tokens(config: SandwichConfig, work: Workload, *, low: bool = False) -> int:
    """How many tokens a chunk of every clip has, at full or at low resolution."""
    step = config.patch * (STRIDE if low else 1)
    if work.height % step or work.width % step:
        raise ValueError(
            f"latents of {work.height}x{work.width} cannot be cut into cells of {step}; "
            f"latent height and width must be divisible by {step}"
        )
    if work.frames > config.chunk_frames:
        raise ValueError(f"a chunk has at most {config.chunk_frames} latent frames, got {work.frames}; take fewer")
    return work.batch * work.frames * (work.height // step) * (work.width // step)
