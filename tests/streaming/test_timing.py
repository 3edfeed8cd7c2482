"""What is timed, how often and in which order, on a model that keeps a log; and on a real one."""

import time
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from streamstill.config import with_overrides
from streamstill.flow.times import Sampling
from streamstill.streaming.timing import Spread, Stopwatch, Timing, TimingConfig, in_turns, time_streaming
from streamstill.testing import tiny_student

CPU, SHAPE, STEPS = torch.device("cpu"), (3, 4, 4), 2
YOUNG, OLD = 40, 60  # older than the videos of the real loop become here


class Logged:
    """A model whose state is the number of chunks behind; it writes down every call and sleeps as it is told."""

    chunk_frames = 2

    def __init__(self, naps: dict[int, float] | None = None) -> None:
        self.log: list[tuple[str, int]] = []
        self.naps = naps or {}

    def initial_state(self, batch: int, height: int, width: int, like: Tensor) -> tuple[Tensor]:
        return (torch.zeros((), dtype=torch.int64),)

    def velocity(self, x_t_BFCHW: Tensor, t: Tensor, text_BLD: Tensor, state: tuple[Tensor]) -> Tensor:
        assert x_t_BFCHW.shape == (1, 2, *SHAPE)
        assert t.shape == (1,)
        self.log.append(("velocity", int(state[0])))
        time.sleep(self.naps.get(int(state[0]), 0.0))
        return torch.zeros_like(x_t_BFCHW)

    def remember(self, clean_BFCHW: Tensor, text_BLD: Tensor, state: tuple[Tensor]) -> tuple[Tensor]:
        self.log.append(("remember", int(state[0])))
        return (state[0] + 1,)


class SlowCodec:
    """Decodes to grey, slowly, and counts."""

    latent_channels, compression = 3, (1, 1, 1)

    def __init__(self, nap: float) -> None:
        self.nap, self.decoded = nap, 0

    def encode(self, pixels_BFCHW: Tensor) -> Tensor:
        return pixels_BFCHW

    def decode(self, latents_BFCHW: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        time.sleep(self.nap)
        self.decoded += 1
        return latents_BFCHW, state


def text() -> Tensor:
    return torch.zeros(1, 5, 6)


def timed(
    model: Logged, rounds: int = 3, codec: SlowCodec | None = None, ages: tuple[int, ...] = (YOUNG, OLD)
) -> Timing:
    return time_streaming(
        model,
        text,
        latent_shape=SHAPE,
        sampling=Sampling(steps=STEPS),
        device=CPU,
        config=TimingConfig(ages=ages, rounds=rounds, warmup_chunks=2),
        codec=codec,
    )


def test_a_timed_chunk_is_the_samplers_passes_and_one_to_remember_from_a_state_of_that_age() -> None:
    model = Logged()
    timed(model, rounds=3)
    calls = Counter(model.log)
    assert calls["velocity", OLD] == 3 * STEPS
    assert calls["remember", OLD] == 3
    assert calls["remember", YOUNG] == 1 + 3  # once on the way to OLD
    assert calls["velocity", YOUNG] == 3 * STEPS + 3  # the single pass is timed at the first age
    assert max(age for _, age in model.log) == OLD


def test_an_age_is_reached_by_remembering_every_chunk_once() -> None:
    model = Logged()
    timed(model, rounds=1, ages=(OLD,))
    between = [call for call in Counter(model.log) if call[0] == "remember" and 10 <= call[1] < OLD]
    assert len(between) == OLD - 10
    assert all(Counter(model.log)[call] == 1 for call in between)
    assert not [age for what, age in model.log if what == "velocity" and 10 <= age < OLD]


def test_every_round_times_every_age_and_every_second_goes_the_other_way() -> None:
    model = Logged()
    timed(model, rounds=4)
    visits = [age for what, age in model.log if what == "remember" and age in (YOUNG, OLD)]
    assert visits == [YOUNG, YOUNG, OLD, OLD, YOUNG, YOUNG, OLD, OLD, YOUNG]  # the first is the way to OLD


def test_turns_are_taken_in_rounds() -> None:
    order: list[str] = []

    def turn(name: str) -> int:
        order.append(name)
        return len(order)

    taken = in_turns({"a": lambda: turn("a"), "b": lambda: turn("b"), "c": lambda: turn("c")}, rounds=2)
    assert order == ["a", "b", "c", "c", "b", "a"]
    assert taken == {"a": [1, 6], "b": [2, 5], "c": [3, 4]}


def test_a_model_that_slows_down_is_found_out() -> None:
    timing = timed(Logged({YOUNG: 0.002, OLD: 0.02}))
    young, old = timing.at_age
    assert (young.age, old.age) == (YOUNG, OLD)
    assert young.chunk_ms.low >= STEPS * 2
    assert old.chunk_ms.low >= STEPS * 20
    assert timing.ratio == old.chunk_ms.median / young.chunk_ms.median
    assert timing.pass_ms.low >= 2
    assert young.chunk_ms.low <= young.chunk_ms.median <= young.chunk_ms.high


def test_decoding_counts_end_to_end_and_nowhere_else() -> None:
    codec = SlowCodec(nap=0.03)
    timing = timed(Logged(), rounds=3, codec=codec)
    assert timing.end_to_end_ms is not None
    assert timing.end_to_end_ms.low >= 30
    assert timing.first_frame_ms.low >= 30
    assert timing.first_frame_cold_ms >= 30
    assert timing.loop_ms.low < 30
    assert timing.at_age[0].chunk_ms.low < 30
    assert codec.decoded == 1 + 2 + 3 + 3  # cold, warm-up, the running video, the first frames


def test_without_a_codec_nothing_is_decoded_and_nothing_is_claimed() -> None:
    timing = timed(Logged())
    assert timing.end_to_end_ms is None
    assert timing.end_to_end_fps is None


def test_frames_a_second_are_latent_frames_by_the_median() -> None:
    spread = Spread(median=50.0, low=40.0, high=90.0)
    timing = timed(Logged(), rounds=1, ages=(1,))
    shown = Timing(**{**vars(timing), "loop_ms": spread, "end_to_end_ms": Spread(median=100.0, low=100.0, high=100.0)})
    assert (shown.loop_fps, shown.end_to_end_fps) == (40.0, 20.0)  # chunks of 2
    assert Spread.of([3.0, 1.0, 8.0]) == Spread(median=3.0, low=1.0, high=8.0)


def test_the_stopwatch_tells_milliseconds() -> None:
    assert 20 <= Stopwatch(CPU).of(lambda: time.sleep(0.02)) < 2000


@pytest.mark.parametrize("ages", [(), (0, 5), (5, 5), (9, 3)])
def test_ages_must_rise(ages: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"ages must rise and be at least 1, got .*; for example 5,100,1000"):
        TimingConfig(ages=ages)


@pytest.mark.parametrize("field", ["rounds", "warmup_chunks"])
def test_there_is_at_least_one_round_and_one_chunk_to_warm_up(field: str) -> None:
    with pytest.raises(ValueError, match=f"rounds and warmup_chunks must be at least 1, got .*{field}=0"):
        with_overrides(TimingConfig(), [f"{field}=0"])


def test_a_real_student_is_timed_and_its_state_does_not_grow() -> None:
    student = tiny_student()
    timing = time_streaming(
        student.network,
        lambda: student.encode_prompts(["A red ball is dropped."]),
        latent_shape=(96, 4, 4),
        sampling=Sampling(steps=1),
        device=CPU,
        config=TimingConfig(ages=(1, 8), rounds=2, warmup_chunks=1),
        codec=student.codec,
    )
    state = student.network.initial_state(1, 4, 4, like=torch.zeros(1))
    held = sum(tensor.nbytes for block in state.blocks for tensor in _flat(block))
    assert [at.state_bytes for at in timing.at_age] == [held, held]
    assert timing.end_to_end_ms is not None
    assert timing.loop_ms.median > 0
    assert timing.end_to_end_ms.median >= timing.loop_ms.median
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def _flat(tree: Any) -> list[Tensor]:
    return [tree] if isinstance(tree, Tensor) else [tensor for part in tree for tensor in _flat(part)]
