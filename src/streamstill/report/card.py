"""The benchmark card: how fast one network streams, with all that is needed to measure it again."""

import json
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from streamstill.config import from_dict, to_dict, write_json, write_text
from streamstill.report.comparison import environment
from streamstill.streaming.timing import AtAge, Timing, TimingConfig

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was measured.

    Args:
        name: the student's folder or the preset's name.
        weights: "trained" or "random"; speed does not depend on them.
        layout: one letter per block.
        flops: operations of one velocity pass (``student/costs.py``), or None where nobody has counted them.
        latents: F of a chunk, C, H, W.
        pixels: height and width of the video.
        frames_per_latent: video frames that one latent frame stands for.
        decoder: what decoded, the codec or a light decoder in its place; or why nothing did.
    """

    name: str
    weights: str
    layout: str
    parameters: int
    flops: int | None
    latents: tuple[int, int, int, int]
    pixels: tuple[int, int]
    frames_per_latent: int
    decoder: str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How it was measured: sampling steps, number type, kind of device, threads of torch, torch.compile or not."""

    steps: int
    dtype: str
    device: str
    threads: int
    compiled: bool


@dataclass(frozen=True, kw_only=True)
class BenchmarkCard:
    """Everything on the card; ``made_now`` fills in the machine, the memory and the date.

    Args:
        machine: versions and hardware, as ``machine`` gives them.
        peak_memory_mib: of the process on a CPU (torch, weights and all); on a GPU, of what torch
            allocated there. None where the system does not tell.
        date: when it was made, in UTC.
    """

    subject: Subject
    setting: Setting
    policy: TimingConfig
    timing: Timing
    machine: Mapping[str, str]
    peak_memory_mib: float | None
    date: str

    @classmethod
    def made_now(cls, *, subject: Subject, setting: Setting, policy: TimingConfig, timing: Timing) -> "BenchmarkCard":
        """The card of a measurement that has just been made in this process."""
        return cls(
            subject=subject,
            setting=setting,
            policy=policy,
            timing=timing,
            machine=machine(setting.device),
            peak_memory_mib=peak_memory_mib(setting.device),
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    @property
    def gflops_per_second(self) -> float | None:
        """Counted operations of a velocity pass by its time, in 10^9 a second."""
        return None if self.subject.flops is None else self.subject.flops / self.timing.pass_ms.median / 1e6

    @property
    def loop_fps(self) -> float:
        """Video frames a second of the network alone."""
        return self.timing.loop_fps * self.subject.frames_per_latent

    @property
    def end_to_end_fps(self) -> float | None:
        """Video frames a second, decoded; None without a codec."""
        latent_fps = self.timing.end_to_end_fps
        return None if latent_fps is None else latent_fps * self.subject.frames_per_latent

    def as_json(self) -> dict[str, Any]:
        """What the JSON file holds: the measurement under ``card``, and what follows from it under ``derived``."""
        derived = {
            "loop_fps": self.loop_fps,
            "end_to_end_fps": self.end_to_end_fps,
            "decode_share": self.timing.decode_share,
            "last_by_first_age": self.timing.ratio,
            "gflops_per_second": self.gflops_per_second,
        }
        return {"format": FORMAT, "card": to_dict(self), "derived": derived}

    def as_markdown(self) -> str:
        """The card as two tables: what was measured and found, and the times by age."""
        rows = [f"| {what} | {found} |" for what, found in (*_facts(self), *_speeds(self))]
        policy = self.policy
        return "\n".join(
            [
                f"# {self.subject.name}: benchmark card",
                "",
                "| what | found |",
                "|---|---|",
                *rows,
                "",
                "| chunks behind | ms a chunk, median | least .. most | state bytes |",
                "|---|---|---|---|",
                *(_age_row(at) for at in self.timing.at_age),
                "",
                f"Last age by first: {self.timing.ratio:.3f}. Medians of {policy.rounds} rounds after a cold chunk and "
                f"{policy.warmup_chunks} to warm up; in a round everything takes one turn. A chunk is "
                f"{self.setting.steps} velocity passes and one to remember. An age was reached by remembering chunks "
                "of noise, one pass each; the state is of the same kind and size as after sampled ones.",
                "",
            ]
        )


def write_card(card: BenchmarkCard, path: Path) -> Path:
    """Write ``path`` (JSON) and the Markdown beside it, each whole or not at all, the JSON last; returns the latter."""
    beside = path.with_suffix(".md")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(beside, card.as_markdown())
    write_json(path, card.as_json())
    return beside


def read_card(path: Path) -> BenchmarkCard:
    """The card that ``write_card`` wrote.

    Raises:
        ValueError: no card, a damaged one, or one of another format.
    """
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path} is damaged ({error}); make the card again with `streamstill bench`") from error
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {version!r}, this version of streamstill reads format {FORMAT}; "
            "make the card again with `streamstill bench`"
        )
    if not isinstance(values.get("card"), dict):
        raise ValueError(f"{path} holds no card; make it again with `streamstill bench`")
    return from_dict(BenchmarkCard, values["card"], where=str(path))


def machine(device: str) -> dict[str, str]:
    """Versions and hardware, with the name of the device that was used."""
    found = {name: str(value) for name, value in environment().items() if name not in ("device", "threads")}
    on_gpu = device.startswith("cuda")
    return found | {"device_name": torch.cuda.get_device_name(device) if on_gpu else _cpu_name()}


def peak_memory_mib(device: str) -> float | None:
    """The most memory so far, in MiB: of this process, or on a GPU of torch's tensors there."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return None
    own = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()) if sys.platform == "linux" else None
    if own is not None:  # on Linux ru_maxrss begins with what the process that started this one had
        return int(own[1]) / 2**10
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def _facts(card: BenchmarkCard) -> Iterator[tuple[str, str]]:
    subject, setting = card.subject, card.setting
    frames, channels, height, width = subject.latents
    flops = "not counted" if subject.flops is None else f"{subject.flops / 1e9:,.4g} GFLOP a velocity pass"
    yield "network", f"{subject.name}, {subject.weights} weights, {subject.parameters:,} parameters, {flops}"
    yield "layout", subject.layout
    yield "video", f"{subject.pixels[0]}x{subject.pixels[1]} pixels, {subject.frames_per_latent} frames a latent frame"
    yield "chunk", f"{frames} latent frames of {channels}x{height}x{width}, {setting.steps} steps"
    compiled = "compiled" if setting.compiled else "not compiled"
    yield "setting", f"{setting.dtype}, {setting.device}, {setting.threads} threads, {compiled}"
    yield "machine", f"{card.machine['device_name']}, {card.machine['cores']} cores, {card.machine['system']}"
    yield "versions", ", ".join(f"{name} {card.machine[name]}" for name in ("streamstill", "torch", "python"))
    yield "date", card.date


def _speeds(card: BenchmarkCard) -> Iterator[tuple[str, str]]:
    timing = card.timing
    rate = card.gflops_per_second
    yield "frames a second, network alone", f"{card.loop_fps:.4g}"
    decoded = card.end_to_end_fps
    if decoded is not None:
        yield "frames a second, decoded", f"{decoded:.4g}"
    share = timing.decode_share
    yield "decode", card.subject.decoder + ("" if share is None else f", {share:.1%} of end to end")
    whole = "prompt to frames" if decoded is not None else "prompt to latents"
    yield f"first frame, {whole}", f"{_ms(timing.first_frame_ms.median)} ms, cold {_ms(timing.first_frame_cold_ms)} ms"
    yield "one velocity pass", f"{_ms(timing.pass_ms.median)} ms" + ("" if rate is None else f", {rate:,.4g} GFLOP/s")
    memory = "unknown" if card.peak_memory_mib is None else f"{card.peak_memory_mib:,.0f} MiB"
    yield "peak memory", memory + (" of the process" if card.setting.device == "cpu" else " allocated on the device")


def _age_row(at: AtAge) -> str:
    took = at.chunk_ms
    return f"| {at.age} | {_ms(took.median)} | {_ms(took.low)} .. {_ms(took.high)} | {at.state_bytes:,} |"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:,.0f}" if milliseconds >= 1000 else f"{milliseconds:.4g}"


def _cpu_name() -> str:
    """The processor by name where the system tells it, and its vector instructions as torch uses them."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = named[0] if named else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
