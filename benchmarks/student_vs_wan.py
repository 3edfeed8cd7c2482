"""What one chunk step costs, ours beside the usual networks: prints two tables in Markdown.

    python benchmarks/student_vs_wan.py [--all]
    python benchmarks/student_vs_wan.py --width 2048 --depth 32 --device cuda --dtype bfloat16

The sandwich, the hourglass, all-LCHA, all-SSA, all compressed keys ("K"), all full attention ("F"), and diffusers'
WanTransformer3DModel made causal: equal width, depth, heads, MLPs, tokens and text, random weights (speed does not
depend on them), caches filled, timed in turns. F and Wan see --window chunks of the past, 21 latent frames; S and K see
the presets' 2. --all adds LCHA's ablations: A linear path alone, C local path alone, R ReLU features, U no gate, H wide
heads.
"""

import argparse
import importlib.util
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from streamstill.report.card import machine, peak_memory_mib
from streamstill.state import state_bytes
from streamstill.streaming.timing import Spread, Stopwatch, in_turns
from streamstill.student.presets import named_layout, preset
from streamstill.student.sandwich import SandwichDiT
from streamstill.student.wan import CausalWan, CausalWanConfig

SANDWICH, WAN = "sandwich", "Wan (diffusers)"
NAMED = {"hourglass": "hourglass", "LCHA-only": "lcha-only", "SSA-only": "ssa-only", "F, full attention": "full"}
LETTERS = {"K, compressed keys": "K"}
ABLATIONS = {"A, linear path": "A", "C, local path": "C", "R, ReLU": "R", "U, no gate": "U", "H, wide heads": "H"}
TARGETS = {"F, full attention": 0.25, WAN: 0.25, "LCHA-only": 0.59, "SSA-only": 2.1}  # the most, sandwich to each
FRAMES_PER_LATENT = 4  # Wan's autoencoder
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MATRIX = 8192  # rows and columns of the product that measures a GPU's rate


@dataclass(frozen=True)
class Candidate:
    """A network with its caches filled, and what a step of it needs."""

    network: Any
    state: Any
    text_BLD: Tensor
    noise_BFCHW: Tensor
    flops: int

    def velocity(self) -> None:
        """One pass of the sampler."""
        self.network.velocity(self.noise_BFCHW, self.noise_BFCHW.new_ones(1), self.text_BLD, self.state)

    def remember(self) -> None:
        """The clean pass at the end of a chunk."""
        self.network.remember(self.noise_BFCHW, self.text_BLD, self.state)

    @property
    def parameters(self) -> int:
        """Of the whole network."""
        return sum(parameter.numel() for parameter in self.network.parameters())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--width", type=int, default=512, help="of the networks; the phone preset has 2048")
    parser.add_argument("--depth", type=int, default=8, help="blocks; the phone preset has 32")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--latent-height", type=int, default=36)
    parser.add_argument("--latent-width", type=int, default=64)
    parser.add_argument("--text-tokens", type=int, default=77)
    parser.add_argument("--text-width", type=int, default=768)
    parser.add_argument("--window", type=int, default=7, help="chunks of the past that F and Wan see")
    parser.add_argument("--steps", type=int, default=4, help="velocity passes of a chunk, for the frames a second")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--all", action="store_true", help="LCHA's ablations too")
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda was asked for and torch sees no GPU; use --device cpu")
    return asked


def layouts(asked: argparse.Namespace) -> dict[str, str]:
    """The letters of every SandwichDiT in the comparison."""
    named = {name: named_layout(layout, asked.depth) for name, layout in {SANDWICH: "sandwich", **NAMED}.items()}
    letters = {**LETTERS, **(ABLATIONS if asked.all else {})}
    return named | {name: letter * asked.depth for name, letter in letters.items()}


def ours(layout: str, asked: argparse.Namespace) -> SandwichDiT:
    """The phone preset at the width and depth that were asked for."""
    config = replace(
        preset("phone", text_width=asked.text_width),
        layout=layout,
        width=asked.width,
        head_dim=asked.head_dim,
        full_window_chunks=asked.window,
    )
    return SandwichDiT(config)


def wan(asked: argparse.Namespace) -> CausalWan:
    """Wan's transformer with the sizes of ours."""
    like = ours("L", asked).config
    config = CausalWanConfig(
        patch_size=(1, like.patch, like.patch),
        num_attention_heads=like.width // like.head_dim,
        attention_head_dim=like.head_dim,
        in_channels=like.latent_channels,
        out_channels=like.latent_channels,
        text_dim=like.text_width,
        ffn_dim=like.mlp_width,
        num_layers=asked.depth,
        chunk_frames=like.chunk_frames,
        window_chunks=asked.window,
    )
    return CausalWan(config)


def networks(asked: argparse.Namespace) -> Iterator[tuple[str, nn.Module]]:
    """Every network of the comparison, one after the other."""
    for name, layout in layouts(asked).items():
        yield name, ours(layout, asked)
    if importlib.util.find_spec("diffusers") is None:
        print(f'no row {WAN!r}: diffusers is not installed; pip install "streamstill[wan]"\n')
    else:
        yield WAN, wan(asked)


def candidate(network: Any, asked: argparse.Namespace) -> Candidate:
    """Move it to the device and remember as many chunks as the longest window holds."""
    dtype, generator = DTYPES[asked.dtype], torch.Generator().manual_seed(0)
    size = (1, network.chunk_frames, 16, asked.latent_height, asked.latent_width)
    noise, text = (
        torch.randn(shape, generator=generator).to(asked.device, dtype)
        for shape in (size, (1, asked.text_tokens, asked.text_width))
    )
    network = network.eval().to(asked.device, dtype)
    state = network.initial_state(1, asked.latent_height, asked.latent_width, like=noise)
    for _ in range(asked.window):
        state = network.remember(noise, text, state)
    return Candidate(network, state, text, noise, counted(network, noise, text, state))


def counted(network: Any, noise: Tensor, text: Tensor, state: Any) -> int:
    """Operations of one velocity pass: from the formulas of ours, which count as torch's counter does, or from it."""
    if isinstance(network, SandwichDiT):
        return network.flops(*noise.shape[-2:], text_tokens=text.shape[1])
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # the counter does not know the fused attention of a CPU
        network.velocity(noise, noise.new_ones(1), text, state)
    return int(counter.get_total_flops())


def matrix_rate(watch: Stopwatch) -> float:
    """Operations a second of a large bfloat16 product: what this GPU can do, as opposed to its data sheet."""
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = [watch.of(lambda: torch.mm(a, b)) for _ in range(30)][10:]
    return 2e3 * MATRIX**3 / statistics.median(times)


def step_table(
    candidates: dict[str, Candidate], taken: dict[str, list[float]], *, steps: int, rate: float | None
) -> Iterator[str]:
    """One row for each network."""
    more = "" if rate is None else " of the matrix rate |"
    yield (
        f"| network | velocity ms | least .. most | remember ms | FPS at {steps} steps "
        f"| TFLOP | TFLOP/s |{more} parameters | state MB |"
    )
    yield "|---" * (9 + (rate is not None)) + "|"
    for name, one in candidates.items():
        velocity, remember = (Spread.of(taken[f"{name}: {what}"]) for what in ("velocity", "remember"))
        frames = one.noise_BFCHW.shape[1] * FRAMES_PER_LATENT
        fps = 1000 * frames / (steps * velocity.median + remember.median)
        speed = 1000 * one.flops / velocity.median
        share = "" if rate is None else f" {speed / rate:.1%} |"
        yield (
            f"| {name} | {velocity.median:.4g} | {velocity.low:.4g} .. {velocity.high:.4g} | {remember.median:.4g} "
            f"| {fps:.4g} | {one.flops / 1e12:.4g} | {speed / 1e12:.4g} |{share} {one.parameters:,} "
            f"| {state_bytes(one.state) / 1e6:.4g} |"
        )


def ratio_table(names: Sequence[str], taken: dict[str, list[float]]) -> Iterator[str]:
    """The sandwich's velocity pass by that of each other."""
    yield "| sandwich to | ratio of medians | by round, least .. most | target |"
    yield "|---|---|---|---|"
    own = taken[f"{SANDWICH}: velocity"]
    for name in names:
        other = taken[f"{name}: velocity"]
        rounds = [mine / its for mine, its in zip(own, other, strict=True)]
        ratio = statistics.median(own) / statistics.median(other)
        target = TARGETS.get(name)
        said = "-" if target is None else f"<= {target}, {'met' if ratio <= target else 'missed'}"
        yield f"| {name} | {ratio:.3f} | {min(rounds):.3f} .. {max(rounds):.3f} | {said} |"


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    asked = parse(arguments)
    torch.set_num_threads(asked.threads)
    watch = Stopwatch(torch.device(asked.device))
    candidates = {name: candidate(network, asked) for name, network in networks(asked)}
    turns = {
        f"{name}: {what}": partial(watch.of, getattr(one, what))
        for name, one in candidates.items()
        for what in ("velocity", "remember")
    }
    in_turns(turns, rounds=1)  # warm-up
    taken = in_turns(turns, rounds=asked.rounds)
    rate = matrix_rate(watch) if asked.device == "cuda" else None
    tokens = asked.latent_height * asked.latent_width // 4 * candidates[SANDWICH].noise_BFCHW.shape[1]
    where = machine(asked.device)
    print(f"width {asked.width}, depth {asked.depth}, heads of {asked.head_dim}, {tokens} tokens, {asked.dtype}; ")
    print(f"{where['device_name']}, {asked.threads} threads, torch {where['torch']}, {where['system']}; ")
    print(f"{asked.rounds} rounds after one to warm up; caches filled by {asked.window} chunks; ", end="")
    memory = peak_memory_mib(asked.device)
    print(f"peak memory {'unknown' if memory is None else f'{memory:,.0f} MiB'}, all networks together")
    if rate is not None:
        print(f"matrix rate, bfloat16, {MATRIX}x{MATRIX}: {rate / 1e12:.4g} TFLOP/s")
    print("", *step_table(candidates, taken, steps=asked.steps, rate=rate), sep="\n")
    print("", *ratio_table([name for name in candidates if name != SANDWICH], taken), sep="\n")


if __name__ == "__main__":
    main()
