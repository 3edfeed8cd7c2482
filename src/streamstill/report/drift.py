"""What becomes of a stream far beyond the training length: each window of it measured by itself.

Causal students stream on their own past; what they were not taught there shows late and not in the first clip.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from streamstill.codec.counting import covering_latents
from streamstill.codec.video import to_frames
from streamstill.metrics import (
    Interval,
    background_flicker,
    brightness,
    colorfulness,
    flicker,
    interval_if_any,
    sharpness,
)
from streamstill.streaming.rollout import CLIPS_AT_ONCE, stream_chunks
from streamstill.student.student import Student
from streamstill.teachers import WorldTeacher
from streamstill.training.batches import pieces
from streamstill.types import Clip, ClipRequest, Geometry
from streamstill.worlds import World, dynamic_degree, parse, physics_error, track

Measure = Callable[[Clip, str], Mapping[str, float]]  # of a window and its prompt
OnWindow = Callable[[int, Clip], None]  # the number of the stream, and its next window
Windows = Sequence[Mapping[str, float]]  # of one stream, in order

_SHOWN = (1, 2, 5)  # windows in a table, counted from 1, and the last one


def looks(window: Clip, _prompt: str = "") -> dict[str, float]:
    """What can be said of any video; most failures of long streams are one of these running away."""
    return {
        "sharpness": sharpness(window),
        "brightness": brightness(window),
        "colorfulness": colorfulness(window),
        "flicker": flicker(window),
        "background_flicker": background_flicker(window),
    }


def world_looks(window: Clip, prompt: str) -> dict[str, float]:
    """The same, and the body of a scene of the embedded world: whether it is there, its area, how it moves."""
    seen = track(window, parse(prompt))
    mass = float(seen.mass_F[seen.visible_F].mean()) if seen.visible_F.any() else math.nan
    return {
        "in_sight": float(seen.visible_F.mean()),
        "size": mass,
        "dynamic_degree": dynamic_degree(seen),
        "physics_error": physics_error(seen),
        **looks(window),
    }


@dataclass(frozen=True, eq=False)
class Drift:
    """The measures of one party's streams, window by window."""

    streams: Sequence[Windows]

    def __post_init__(self) -> None:
        lengths = {len(windows) for windows in self.streams}
        if len(lengths) != 1 or min(lengths) < 2:
            raise ValueError(f"drift needs streams of one length of at least 2 windows, got {sorted(lengths)} windows")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the measures."""
        return tuple(self.streams[0][0])

    @property
    def length(self) -> int:
        """Windows of each stream."""
        return len(self.streams[0])

    def at(self, name: str, window: int) -> Interval:
        """A measure in a window, counted from 1, over the streams; ``n`` is 0 where no stream has it."""
        return interval_if_any([windows[window - 1][name] for windows in self.streams])

    def change(self, name: str) -> Interval:
        """Last window minus first, stream by stream, as a share of the first window's mean."""
        first = self.at(name, 1).mean
        pairs = ((windows[0][name], windows[-1][name]) for windows in self.streams)
        return interval_if_any([(last - before) / abs(first) if first else math.nan for before, last in pairs])

    def as_json(self) -> dict[str, Any]:
        """By measure: the intervals of all windows, and of the change."""
        windows = range(1, self.length + 1)
        return {
            name: {"windows": [self.at(name, w).as_json() for w in windows], "change": self.change(name).as_json()}
            for name in self.names
        }


@torch.inference_mode()
def streamed_windows(student: Student, prompts: Sequence[str], *, times: int, seed: int = 0) -> Iterator[list[Clip]]:
    """Yield one training length after the other of endless videos: a clip for each prompt, ``times`` times.

    Memory does not grow with ``times``. The same seed gives the same noise.
    """
    codec, geometry = student.codec, student.config.geometry
    text_BLD = student.encode_prompts(prompts)
    latents = covering_latents(codec, times * geometry.frames)
    chunks = stream_chunks(
        student.network,
        repeat(text_BLD, -(-latents // student.network.chunk_frames)),
        latent_shape=student.latent_shape[1:],
        sampling=student.config.sampling,
        generator=torch.Generator().manual_seed(seed),
    )
    state: Any = None
    waiting: list[Tensor] = []
    given = 0
    for latents_BFCHW in chunks:
        pixels_BFCHW, state = codec.decode(latents_BFCHW, state)
        waiting.append(pixels_BFCHW)
        while given < times and sum(part.shape[1] for part in waiting) >= geometry.frames:
            made = torch.cat(waiting, dim=1)
            waiting, given = [made[:, geometry.frames :]], given + 1
            yield [Clip(frames_FCHW=to_frames(one), fps=geometry.fps) for one in made[:, : geometry.frames]]


def drift_of(
    student: Student,
    prompts: Sequence[str],
    measure: Measure,
    *,
    times: int,
    seed: int = 0,
    at_once: int = CLIPS_AT_ONCE,
    on_window: OnWindow | None = None,
) -> Drift:
    """Stream every prompt for ``times`` training lengths and measure each window.

    Args:
        at_once: videos that are made together; each group has noise of its own.
        on_window: sees each window as it is made.

    Raises:
        ValueError: less than 2 lengths, no prompt, or none at once.
    """
    if times < 2 or at_once < 1 or not prompts:
        raise ValueError(
            f"drift is measured over at least 2 training lengths of at least 1 video, "
            f"got {times} lengths of {len(prompts)} videos, {at_once} at once"
        )
    streams: list[Windows] = []
    for part in pieces(len(prompts), at_once):
        group = prompts[part]
        rows: list[list[Mapping[str, float]]] = [[] for _ in group]
        for clips in streamed_windows(student, group, times=times, seed=seed + part.start):
            for number, (row, clip, prompt) in enumerate(zip(rows, clips, group, strict=True), part.start):
                row.append(measure(clip, prompt))
                if on_window is not None:
                    on_window(number, clip)
        streams += rows
    return Drift(streams)


def drift_of_clips(clips: Sequence[Clip], prompts: Sequence[str], measure: Measure, *, frames: int) -> Drift:
    """The same of long clips that are there already, in windows of ``frames``; what is left at the end is left out."""
    pairs = zip(clips, prompts, strict=True)
    return Drift([[measure(part, prompt) for part in windows_of(clip, frames)] for clip, prompt in pairs])


def world_streams(prompts: Sequence[str], size: Geometry, *, times: int) -> list[Clip]:
    """The real world's own videos of ``times`` clips of this size, one for each prompt."""
    teacher, long = WorldTeacher(World()), replace(size, frames=times * size.frames)
    return [teacher.generate(ClipRequest.of(long, prompt=prompt, seed=i)) for i, prompt in enumerate(prompts)]


def windows_of(clip: Clip, frames: int) -> list[Clip]:
    """The clip cut into windows of ``frames``; what is left at the end is left out."""
    starts = range(0, len(clip.frames_FCHW) - frames + 1, frames)
    return [replace(clip, frames_FCHW=clip.frames_FCHW[start : start + frames]) for start in starts]


def as_table(parties: Mapping[str, Drift]) -> Table:
    """Means window by window, a row for each measure and party, and how far the last is from the first.

    Raises:
        ValueError: the parties' streams differ in length.
    """
    lengths = {drift.length for drift in parties.values()}
    if len(lengths) != 1:
        raise ValueError(f"a table of drift needs streams of one length, got {sorted(lengths)} windows")
    windows = [window for window in _SHOWN if window < max(lengths)] + [*lengths]
    names = next(iter(parties.values())).names
    title = "means by training length; change from the first to the last [95 % interval]"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("", "", *map(str, windows), "change"):
        table.add_column(head, justify="right" if head else "left")
    for name in names:
        for number, (who, drift) in enumerate(parties.items()):
            means = (drift.at(name, window) for window in windows)
            cells = [f"{value.mean:.3g}" if value.n else "-" for value in means]
            table.add_row("" if number else name.replace("_", " "), who, *cells, _share(drift.change(name)))
    return table


def _share(value: Interval) -> str:
    return f"{value.mean:+.0%} [{value.low:+.0%}, {value.high:+.0%}]" if value.n else "-"
