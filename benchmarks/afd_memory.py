"""What AFD with adapters costs beside fine-tuning with the same adapters: prints two tables in Markdown.

    python benchmarks/afd_memory.py
    python benchmarks/afd_memory.py --width 768 --depth 16 --head-dim 128 --latent-height 36 --latent-width 64
    python benchmarks/afd_memory.py --device cuda --width 1536 --depth 30 --head-dim 128 --rank 256 --micro-batch 4

Peak memory: every row is a process of its own with one thread, the network is the ``small`` preset at the width and
depth that are asked for, and the micro batches of both methods have as many clips. On a CPU the peak is the process's,
with and without what it took to import everything; on a GPU that of torch's tensors. The student's side of AFD is
measured with a judge of brightness, which has no network; the row after it has ``MotionDiscriminator``.

Time: the whole AFD step of the student's side, beside its rollouts, three forward passes and one backward pass of the
same micro batches alone, in turns; on a CPU in time of its one thread, so that other processes do not count.
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from streamstill.codec.patch import PatchCodec
from streamstill.codec.text import WordEncoderConfig
from streamstill.codec.video import latent_shape
from streamstill.flow.times import Sampling
from streamstill.report.card import machine, peak_memory_mib
from streamstill.streaming.timing import Spread, Stopwatch, in_turns
from streamstill.student.presets import named_layout, preset
from streamstill.student.student import Student, StudentConfig, build_student
from streamstill.training.batches import Examples, PromptGroup
from streamstill.training.discriminators.motion import MotionDiscriminator
from streamstill.training.lora import Lora, LoraLayers
from streamstill.training.objectives.adversary import AdversaryConfig
from streamstill.training.objectives.afd import AdversarialFlowDistillation, AfdConfig, Verdict
from streamstill.training.objectives.flow_matching import FlowMatching, FlowMatchingConfig
from streamstill.training.objectives.objective import Objective
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import Trainer, TrainerConfig
from streamstill.types import Geometry

SFT, AFD, JUDGED = "SFT with adapters", "AFD, the student's side", "AFD with its discriminator"
WORKERS = {"sft": SFT, "afd": AFD, "judged": JUDGED}
MEMORY_TARGET, TIME_TARGET = 1.15, 1.1  # the most, AFD to each
CODEC = PatchCodec(frames=1, size=2)  # 12 channels, about those of Wan's autoencoder
OPTIM = OptimConfig(lr=1e-5)
CHUNKS, ANSWERS, TURNS = 2, 1, 2  # of a clip; of the teacher to a prompt; before memory is read


class Brightness(nn.Module):
    """A judge without a network: likes clips by their mean brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, pixels_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """``score_B`` of pixels."""
        return self.bias + pixels_BFCHW.mean((1, 2, 3, 4))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--width", type=int, default=384, help="of the network; the small preset has 768")
    parser.add_argument("--depth", type=int, default=8, help="blocks; the small preset has 16")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--latent-height", type=int, default=24)
    parser.add_argument("--latent-width", type=int, default=32)
    parser.add_argument("--rank", type=int, default=64, help="of the adapters; the default is a sixth of the width")
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--rollouts", type=int, default=2, help="for each prompt")
    parser.add_argument("--micro-batch", type=int, default=1, help="clips in one pass with gradients")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison of times")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--worker", choices=tuple(WORKERS), help="measure one row in this process and print it as JSON")
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda was asked for and torch sees no GPU; use --device cpu")
    return asked


def student_of(asked: argparse.Namespace) -> Student:
    """The small preset at the width and depth that were asked for."""
    text = WordEncoderConfig(width=64)
    network = replace(
        preset("small", latent_channels=CODEC.latent_channels, text_width=text.width),
        layout=named_layout("sandwich", asked.depth),
        width=asked.width,
        head_dim=asked.head_dim,
    )
    frames, step = CHUNKS * network.chunk_frames, CODEC.size
    size = Geometry(frames=frames, height=step * asked.latent_height, width=step * asked.latent_width, fps=8)
    config = StudentConfig(network=network, text=text, codec=CODEC, geometry=size, sampling=Sampling())
    return build_student(config, seed=0).to(asked.device)


def sft(student: Student, asked: argparse.Namespace) -> Objective[Any, Any, Any]:
    """Flow matching of one adapter; the text encoder rests, as it does in AFD."""
    LoraLayers(student.network, Lora(rank=asked.rank, alpha=asked.rank), ["student"])
    student.text.requires_grad_(False)
    return FlowMatching(student, FlowMatchingConfig(optim=OPTIM, micro_batch=asked.micro_batch))


def afd(student: Student, asked: argparse.Namespace, judge: nn.Module) -> AdversarialFlowDistillation:
    """AFD with the same adapters and a prior, so that all three views are asked for."""
    config = AfdConfig(
        optim=OPTIM,
        adversary=AdversaryConfig(rollouts_per_prompt=asked.rollouts, steps_per_turn=1),
        prior=1e-4,
        lora=Lora(rank=asked.rank, alpha=asked.rank),
        micro_batch=asked.micro_batch,
    )
    return AdversarialFlowDistillation(student, judge.to(asked.device), config)


def batches_of(asked: argparse.Namespace, student: Student) -> Callable[[int], Any]:
    """Noise in the place of the teacher's clips: as many in an SFT step as AFD has rollouts."""
    shape = latent_shape(CODEC, student.config.geometry)
    prompts = tuple(f"prompt {number}" for number in range(asked.prompts))

    def group(step: int) -> PromptGroup:
        generator = torch.Generator().manual_seed(step)
        clips = torch.randn(asked.prompts, ANSWERS, *shape, generator=generator).to(asked.device)
        return PromptGroup(clips, prompts)

    def examples(step: int) -> Examples:
        clips = group(step).latents_PMFCHW.flatten(0, 1).repeat(asked.rollouts, 1, 1, 1, 1)
        return Examples(clips, prompts * asked.rollouts)

    return examples if asked.worker == "sft" else group


def worker(asked: argparse.Namespace) -> dict[str, Any]:
    """One row, measured in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    importlib.import_module("peft")  # before the first look: the adapters would import it
    before = 0.0 if asked.device == "cuda" else peak_memory_mib(asked.device) or 0.0
    student, judge = student_of(asked), MotionDiscriminator() if asked.worker == "judged" else Brightness()
    parameters = sum(parameter.numel() for parameter in student.network.parameters())
    objective = sft(student, asked) if asked.worker == "sft" else afd(student, asked, judge)
    with TemporaryDirectory() as folder:
        trainer = Trainer(objective, batches_of(asked, student), TrainerConfig(steps=TURNS), Path(folder))
        for step in range(TURNS):
            trainer.turn(step)
        row = {
            "before": before,
            "peak": peak_memory_mib(asked.device) or float("nan"),
            "parameters": parameters,
            "judge": sum(parameter.numel() for parameter in judge.parameters()),
        }
        if isinstance(objective, AdversarialFlowDistillation) and asked.worker == "afd":
            row |= times(trainer, objective, asked)
    return row


def times(
    trainer: Trainer[Any, Any, Any], objective: AdversarialFlowDistillation, asked: argparse.Namespace
) -> dict[str, Any]:
    """Milliseconds of the step and of its parts, in turns, after the turns that warmed up."""
    of = Stopwatch(torch.device("cuda")).of if asked.device == "cuda" else busy_ms
    group = trainer.batches(0)
    turn = objective.begin(group, 0, torch.Generator().manual_seed(0))
    verdicts = objective.micro_batches("student", turn, torch.Generator().manual_seed(1))

    def parts() -> None:
        with objective.policies.old() as network:
            objective.adversary.roll_out(network, group, torch.Generator().manual_seed(2))
        for verdict in verdicts:
            assert isinstance(verdict, Verdict)
            passes(objective, verdict)

    turns = {"step": lambda: of(lambda: trainer.turn(TURNS)), "parts": lambda: of(parts)}
    return in_turns(turns, rounds=asked.rounds)


def busy_ms(work: Callable[[], object]) -> float:
    """Milliseconds in which this process had a core."""
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def passes(objective: AdversarialFlowDistillation, verdict: Verdict) -> None:
    """Three forward passes and one backward pass."""
    student, policies, clean = objective.student, objective.policies, verdict.rollouts_BFCHW
    x_t = verdict.x_t
    with torch.no_grad():
        text_BLD = student.encode_prompts(verdict.prompts)
        for view in (policies.old, policies.start):
            with view() as network:
                network.velocity_in_context(x_t, verdict.t_BK, text_BLD, context_BFCHW=clean)
    with policies.student() as network:
        network.velocity_in_context(x_t, verdict.t_BK, text_BLD, context_BFCHW=clean).square().mean().backward()
    policies.trained.zero_grad(set_to_none=True)


def measured(arguments: Sequence[str], name: str) -> dict[str, Any]:
    """A row from a process of its own."""
    command = [sys.executable, __file__, *arguments, "--worker", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the row {WORKERS[name]!r} failed:\n{done.stderr}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def verdict_on(ratio: float, target: float) -> str:
    """The target, and whether it was met."""
    return f"<= {target}, {'met' if ratio <= target else 'missed'}"


def memory_table(rows: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """One row for each process; ratios to the first."""
    yield "| run | peak MiB | without imports | to SFT | without imports | target | judge's parameters |"
    yield "|---|---|---|---|---|---|---|"
    base = rows["sft"]
    for name, row in rows.items():
        own, base_own = row["peak"] - row["before"], base["peak"] - base["before"]
        target = verdict_on(own / base_own, MEMORY_TARGET) if name == "afd" else "-"
        judge = "-" if name == "sft" else f"{row['judge']:,}"
        yield (
            f"| {WORKERS[name]} | {row['peak']:,.1f} | {own:,.1f} | {row['peak'] / base['peak']:.3f} "
            f"| {own / base_own:.3f} | {target} | {judge} |"
        )


def time_table(row: Mapping[str, list[float]]) -> Iterator[str]:
    """The step beside its parts."""
    step, parts = Spread.of(row["step"]), Spread.of(row["parts"])
    rounds = [whole / part for whole, part in zip(row["step"], row["parts"], strict=True)]
    ratio = step.median / parts.median
    yield "| AFD step ms | rollout + 3 forwards + 1 backward ms | ratio of medians | by round, least .. most | target |"
    yield "|---|---|---|---|---|"
    yield (
        f"| {step.median:.4g} | {parts.median:.4g} | {ratio:.5f} | {min(rounds):.3f} .. {max(rounds):.3f} "
        f"| {verdict_on(ratio, TIME_TARGET)} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked = parse(given)
    if asked.worker:
        print(json.dumps(worker(asked)))
        return
    rows = {name: measured(given, name) for name in WORKERS}
    where = machine(asked.device)
    print(f"width {asked.width}, depth {asked.depth}, {rows['sft']['parameters']:,} parameters, rank {asked.rank}; ")
    print(f"clips of {CHUNKS} chunks of {asked.latent_height}x{asked.latent_width} latents, {asked.rollouts} rollouts ")
    print(f"for each of {asked.prompts} prompts, micro batches of {asked.micro_batch}, float32; ")
    print(f"{where['device_name']}, 1 thread, torch {where['torch']}, {where['system']}")
    print("", *memory_table(rows), "", *time_table(rows["afd"]), sep="\n")


if __name__ == "__main__":
    main()
