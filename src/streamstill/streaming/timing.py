"""How fast a model streams, and whether it slows down as a video grows old."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, repeat
from typing import Any, TypeVar

import torch
from torch import Tensor

from streamstill.codec.video import VideoCodec, to_frames
from streamstill.flow.samplers import euler
from streamstill.flow.times import Sampling
from streamstill.state import state_bytes
from streamstill.streaming.model import StreamingModel
from streamstill.streaming.rollout import stream_chunks

T = TypeVar("T")


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads, for a while; None leaves its own setting."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class TimingConfig:
    """What is measured and how often.

    Args:
        ages: how many chunks of video lie behind a timed chunk; rising.
        rounds: how often each thing is timed.
        warmup_chunks: chunks that are made and thrown away before the first round, after the cold one.
    """

    ages: tuple[int, ...] = (5, 100, 1000)
    rounds: int = 10
    warmup_chunks: int = 3

    def __post_init__(self) -> None:
        if not self.ages or self.ages[0] < 1 or any(later <= age for age, later in pairwise(self.ages)):
            raise ValueError(f"ages must rise and be at least 1, got {list(self.ages)}; for example 5,100,1000")
        if min(self.rounds, self.warmup_chunks) < 1:
            raise ValueError(
                f"rounds and warmup_chunks must be at least 1, got rounds={self.rounds} "
                f"warmup_chunks={self.warmup_chunks}"
            )


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Milliseconds of the same thing over all rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> "Spread":
        """Median, least and most."""
        return cls(median=statistics.median(milliseconds), low=min(milliseconds), high=max(milliseconds))


@dataclass(frozen=True, kw_only=True)
class AtAge:
    """One chunk of the network alone, when ``age`` chunks of video lie behind it, and the state that they left."""

    age: int
    chunk_ms: Spread
    state_bytes: int


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What ``time_streaming`` found; times in milliseconds.

    Args:
        chunk_frames: latent frames of a chunk.
        pass_ms: one velocity pass, at the first age.
        loop_ms: one chunk of the real loop, latents only.
        end_to_end_ms: the same chunk, decoded to uint8 frames; None without a codec.
        first_frame_ms: the first chunk of a new video, prompt embedded and decoded (if there is a codec).
        first_frame_cold_ms: the same, the first time in this process; a compiled network compiles here.
    """

    chunk_frames: int
    pass_ms: Spread
    loop_ms: Spread
    end_to_end_ms: Spread | None
    first_frame_ms: Spread
    first_frame_cold_ms: float
    at_age: tuple[AtAge, ...]

    @property
    def ratio(self) -> float:
        """Time of a chunk at the last age by that at the first; 1 is a stream that does not slow down."""
        return self.at_age[-1].chunk_ms.median / self.at_age[0].chunk_ms.median

    @property
    def loop_fps(self) -> float:
        """Latent frames a second of the network alone."""
        return 1000 * self.chunk_frames / self.loop_ms.median

    @property
    def end_to_end_fps(self) -> float | None:
        """Latent frames a second, decode included; None without a codec."""
        return None if self.end_to_end_ms is None else 1000 * self.chunk_frames / self.end_to_end_ms.median

    @property
    def decode_share(self) -> float | None:
        """Of the time of a chunk from noise to frames, what decoding takes, by medians; None without a codec."""
        return None if self.end_to_end_ms is None else 1 - self.loop_ms.median / self.end_to_end_ms.median


@torch.inference_mode()
def time_streaming(
    model: StreamingModel[Any],
    embed: Callable[[], Tensor],
    *,
    latent_shape: tuple[int, int, int],
    sampling: Sampling,
    device: torch.device,
    config: TimingConfig,
    codec: VideoCodec | None = None,
) -> Timing:
    """Time a model that is ready on its device.

    A timed chunk is the ``steps`` velocity passes of the sampler and one ``remember``. An age is reached by
    remembering chunks of noise: the state is the same kind and size as after chunks that were sampled, for one pass
    each instead of ``steps + 1``. The real loop, ``stream_chunks``, gives the figures of the loop and of the first
    frame.

    Args:
        embed: makes ``text_BLD`` of one clip on the device; timed with the first frame.
        latent_shape: C, H, W of a latent frame.
        codec: decodes every chunk of the real loop; without one nothing is decoded.
    """
    bench = _Bench(model, embed, latent_shape=latent_shape, sampling=sampling, device=device, codec=codec)
    cold, video = bench.first_frame(), bench.video()
    for _ in range(config.warmup_chunks):
        next(video)
    states = bench.states_at(config.ages)
    turns: dict[str, Callable[[], Any]] = {
        str(age): partial(bench.chunk, state) for age, state in zip(config.ages, states, strict=True)
    }
    turns |= {"pass": partial(bench.velocity_pass, states[0]), "first frame": bench.first_frame}
    turns["video"] = partial(next, video)
    taken = in_turns(turns, rounds=config.rounds)
    loop, decoded = zip(*taken["video"], strict=True)
    return Timing(
        chunk_frames=model.chunk_frames,
        pass_ms=Spread.of(taken["pass"]),
        loop_ms=Spread.of(loop),
        end_to_end_ms=None if codec is None else Spread.of(decoded),
        first_frame_ms=Spread.of(taken["first frame"]),
        first_frame_cold_ms=cold,
        at_age=tuple(
            AtAge(age=age, chunk_ms=Spread.of(taken[str(age)]), state_bytes=state_bytes(state))
            for age, state in zip(config.ages, states, strict=True)
        ),
    )


def in_turns(turns: Mapping[str, Callable[[], T]], *, rounds: int) -> dict[str, list[T]]:
    """What each of them returned in every round; all of them take a turn in a round, so all meet the same machine.

    Every second round goes the other way round: what follows what does not favour anybody.
    """
    taken: dict[str, list[T]] = {name: [] for name in turns}
    order = list(turns)
    for number in range(rounds):
        for name in order[::-1] if number % 2 else order:
            taken[name].append(turns[name]())
    return taken


class Stopwatch:
    """Milliseconds since some moment, after the device has finished what it was given."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self) -> float:
        """Wait for the device, then read the clock."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return 1000 * time.perf_counter()

    def of(self, work: Callable[[], object]) -> float:
        """Milliseconds that the work takes."""
        start = self()
        work()
        return self() - start


class _Bench:
    """What takes a turn: each method does a thing once and returns its milliseconds."""

    def __init__(
        self,
        model: StreamingModel[Any],
        embed: Callable[[], Tensor],
        *,
        latent_shape: tuple[int, int, int],
        sampling: Sampling,
        device: torch.device,
        codec: VideoCodec | None,
    ) -> None:
        self.model, self.embed, self.codec = model, embed, codec
        self.latent_shape, self.sampling = latent_shape, sampling
        self.now, self.generator = Stopwatch(device), torch.Generator().manual_seed(0)

    def video(self) -> Iterator[tuple[float, float]]:
        """Milliseconds of each chunk of one endless video: of the network alone, and with the decoder."""
        chunks = stream_chunks(
            self.model,
            repeat(self.embed()),
            latent_shape=self.latent_shape,
            sampling=self.sampling,
            generator=self.generator,
        )
        decoding: Any = None
        while True:
            start = self.now()
            latents_BFCHW = next(chunks)
            made = self.now()
            if self.codec is not None:
                pixels_BFCHW, decoding = self.codec.decode(latents_BFCHW, decoding)
                to_frames(pixels_BFCHW[0])
            yield made - start, self.now() - start

    def first_frame(self) -> float:
        """A new video, up to its first chunk."""
        return self.now.of(lambda: next(self.video()))

    def states_at(self, ages: Sequence[int]) -> list[Any]:
        """The states after so many chunks of noise."""
        text_BLD = self.embed()
        state = self.model.initial_state(1, *self.latent_shape[1:], like=text_BLD)
        states = []
        for behind in range(1, ages[-1] + 1):
            state = self.model.remember(self._noise(text_BLD), text_BLD, state)
            if behind in ages:
                states.append(state)
        return states

    def chunk(self, state: Any) -> float:
        """The sampler's passes and the clean one, from this state."""
        text_BLD, times = self.embed(), self.sampling.times()
        noise = self._noise(text_BLD)

        def step() -> None:
            clean = euler(lambda x_t, t: self._velocity(x_t, t, text_BLD, state), noise, times)
            self.model.remember(clean, text_BLD, state)

        return self.now.of(step)

    def velocity_pass(self, state: Any) -> float:
        """One pass of the network."""
        text_BLD = self.embed()
        noise = self._noise(text_BLD)
        return self.now.of(lambda: self._velocity(noise, torch.ones(()), text_BLD, state))

    def _velocity(self, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor, state: Any) -> Tensor:
        return self.model.velocity(x_t_BFCHW, t.expand(x_t_BFCHW.shape[0]).to(x_t_BFCHW.device), text_BLD, state)

    def _noise(self, text_BLD: Tensor) -> Tensor:
        noise_BFCHW = torch.randn(1, self.model.chunk_frames, *self.latent_shape, generator=self.generator)
        return noise_BFCHW.to(text_BLD.device, text_BLD.dtype)
