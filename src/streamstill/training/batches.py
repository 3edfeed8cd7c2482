"""Clips to latents, latents to batches. A batch is a pure function of the step, so a run can stop and go on."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from streamstill.codec.video import VideoCodec, to_pixels
from streamstill.teachers.encoded import EncodedEntry, EncodedStore
from streamstill.teachers.teacher import Teacher
from streamstill.types import Clip, ClipRequest, Geometry


@dataclass(frozen=True, eq=False)
class Examples:
    """What a teacher said, encoded: clean latents of shape (B, F, C, H, W) and a prompt for each."""

    latents_BFCHW: Tensor
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.prompts) != self.latents_BFCHW.shape[0]:
            raise ValueError(f"{self.latents_BFCHW.shape[0]} clips have {len(self.prompts)} prompts; give one each")

    def __getitem__(self, rows: Sequence[int] | slice) -> "Examples":
        """Some of the examples."""
        chosen = range(len(self.prompts))[rows] if isinstance(rows, slice) else rows
        return Examples(self.latents_BFCHW[list(chosen)], tuple(self.prompts[row] for row in chosen))

    def split(self, size: int) -> list["Examples"]:
        """All examples in order, at most ``size`` in a part."""
        return [self[rows] for rows in pieces(len(self.prompts), size)]


class ExampleRows(Protocol):
    """Examples that are asked for by row: ``Examples``, which are in memory, or ``StoredExamples``, on disk."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of every example."""
        ...

    def __getitem__(self, rows: Sequence[int]) -> Examples:
        """Some of the examples."""
        ...


class StoredExamples:
    """Clips that were encoded once, read from the store as they are asked for.

    Raises:
        ValueError: the clips have several sizes.
    """

    def __init__(self, store: EncodedStore, entries: Sequence[EncodedEntry]) -> None:
        sizes = {entry.request.geometry for entry in entries}
        if len(sizes) > 1:
            raise ValueError(f"the encoded clips have {len(sizes)} sizes; choose those of one size")
        self._store, self._keys = store, [entry.key for entry in entries]
        self.prompts = tuple(entry.request.prompt for entry in entries)

    def __getitem__(self, rows: Sequence[int]) -> Examples:
        """Some of the examples."""
        latents = [clip.latents_FCHW for clip in self._store.get([self._keys[row] for row in rows])]
        return Examples(torch.stack(latents), tuple(self.prompts[row] for row in rows))


@dataclass(frozen=True, eq=False)
class PromptGroup:
    """A few prompts with the teacher's answers: latents of shape (prompts, answers, F, C, H, W)."""

    latents_PMFCHW: Tensor
    prompts: tuple[str, ...]

    def dealt(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` answers for each prompt, in the prompts' order, dealt out evenly; shape (P count, F, C, H, W)."""
        answers = self.latents_PMFCHW.shape[1]
        return torch.cat([clips[torch.randperm(count, generator=generator) % answers] for clips in self.latents_PMFCHW])


def repeated(prompts: Sequence[str], count: int) -> tuple[str, ...]:
    """Every prompt ``count`` times in a row, as the clips of a group lie when they are flattened."""
    return tuple(prompt for prompt in prompts for _ in range(count))


def pieces(count: int, size: int) -> list[slice]:
    """``count`` rows in order, at most ``size`` of them in a slice, and as evenly as that allows.

    Losses are means over a piece, and a step's gradient is the mean over its pieces: a small rest would weigh too much.
    """
    parts = -(-count // size)
    bounds = [count * part // parts for part in range(parts + 1)] if parts else []
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def encode_clip(clip: Clip, codec: VideoCodec, *, device: torch.device | str | None = None) -> Tensor:
    """Latents of one clip, shape (F, C, H, W), in ordinary memory.

    Args:
        device: where the codec works; None is where its own weights are, or the CPU where it has none.
    """
    if device is None:
        weights = codec.parameters() if isinstance(codec, nn.Module) else ()
        device = next((weight.device for weight in weights), "cpu")
    return codec.encode(to_pixels(clip.frames_FCHW)[None].to(device))[0].cpu()


def encode_clips(
    clips: Iterable[tuple[str, Clip]], codec: VideoCodec, *, device: torch.device | str | None = None
) -> Examples:
    """Latents of (prompt, clip) pairs of one size, in ordinary memory; ``device`` as for one clip."""
    pairs = [(prompt, encode_clip(clip, codec, device=device)) for prompt, clip in clips]
    return Examples(torch.stack([latents for _, latents in pairs]), tuple(prompt for prompt, _ in pairs))


def example_batches(examples: ExampleRows, *, batch: int, seed: int) -> Callable[[int], Examples]:
    """Batches in which every example comes once before any comes again."""
    rows_at = turns_of(len(examples.prompts), batch=batch, seed=seed)
    return lambda step: examples[rows_at(step)]


def turns_of(count: int, *, batch: int, seed: int) -> Callable[[int], list[int]]:
    """Which of ``count`` rows a step gets: each once, in random order, before any comes again."""
    _require_some(batch=batch)

    @lru_cache(maxsize=2)  # a batch may straddle two epochs
    def order(epoch: int) -> list[int]:
        return [int(row) for row in np.random.default_rng([seed, epoch]).permutation(count)]

    def row(position: int) -> int:
        epoch, place = divmod(position, count)
        return order(epoch)[place]

    return lambda step: [row(step * batch + place) for place in range(batch)]


def fresh_batches(
    teacher: Teacher, prompts: Sequence[str], geometry: Geometry, codec: VideoCodec, *, batch: int, seed: int
) -> Callable[[int], Examples]:
    """Batches of clips that the teacher makes on the spot, every one with a new seed."""
    _require_some(batch=batch)

    def batch_at(step: int) -> Examples:
        dice = np.random.default_rng([seed, step])
        chosen = [prompts[i] for i in dice.integers(len(prompts), size=batch)]
        seeds = (int(s) for s in dice.integers(2**31, size=batch))
        requests = [ClipRequest.of(geometry, prompt=p, seed=s) for p, s in zip(chosen, seeds, strict=True)]
        return encode_clips(((r.prompt, teacher.generate(r)) for r in requests), codec)

    return batch_at


def prompt_batches(examples: ExampleRows, *, prompts: int, answers: int, seed: int) -> Callable[[int], PromptGroup]:
    """Groups of prompts, each with ``answers`` of the teacher's clips for it (drawn again where it has fewer).

    No prompt comes again before all others came, but for those that do not fill a group.

    Raises:
        ValueError: there are fewer distinct prompts than a group needs.
    """
    _require_some(prompts=prompts, answers=answers)
    rows_of = defaultdict(list)
    for row, prompt in enumerate(examples.prompts):
        rows_of[prompt].append(row)
    names = sorted(rows_of)
    if len(names) < prompts:
        raise ValueError(
            f"a group needs {prompts} distinct prompts, the teacher's clips have {len(names)}; "
            "collect clips for more prompts or lower prompts_per_update"
        )

    whole = len(names) // prompts * prompts
    turns = turns_of(len(names), batch=len(names), seed=seed)

    def group_at(step: int) -> PromptGroup:
        dice = np.random.default_rng([seed, step])
        epoch, place = divmod(step * prompts, whole)
        chosen = [names[i] for i in turns(epoch)[place : place + prompts]]
        rows = [
            [rows_of[name][i % len(rows_of[name])] for i in dice.permutation(max(answers, len(rows_of[name])))]
            for name in chosen
        ]
        latents = torch.stack([examples[some[:answers]].latents_BFCHW for some in rows])
        return PromptGroup(latents, tuple(chosen))

    return group_at


def _require_some(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
