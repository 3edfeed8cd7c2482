"""Calls are spaced and tried again as asked, by a clock that runs fast."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from streamstill.teachers.api.jobs import Refused, TryAgain
from streamstill.teachers.api.pace import Pace, Retries, again

QUICK = Retries(attempts=4, first_wait=0.0)


def failing(errors: list[Exception], begun: list[float]) -> Callable[[], Awaitable[str]]:
    """A call that fails so and so, then answers."""
    left: Iterator[Exception] = iter(errors)

    async def call() -> str:
        begun.append(time.monotonic())
        for error in left:
            raise error
        return "answer"

    return call


def tried(errors: list[Exception], retries: Retries = QUICK, **options: Callable[[TryAgain], bool]) -> tuple[str, int]:
    begun: list[float] = []

    async def asked() -> str:
        return await again(failing(errors, begun), retries, Pace(None), **options)

    try:
        return asyncio.run(asked()), len(begun)
    except (TryAgain, Refused) as error:
        return str(error), len(begun)


def test_what_may_succeed_later_is_tried_again() -> None:
    assert tried([]) == ("answer", 1)
    assert tried([TryAgain("500"), TryAgain("cut")]) == ("answer", 3)


def test_the_last_error_is_told_when_the_attempts_are_over() -> None:
    assert tried([TryAgain(f"number {n}") for n in range(9)]) == ("number 3", 4)


def test_a_refusal_is_final() -> None:
    assert tried([TryAgain("500"), Refused("no"), TryAgain("500")]) == ("no", 2)


def test_what_is_not_worth_it_is_final() -> None:
    lost = TryAgain("lost", maybe_accepted=True)
    assert tried([TryAgain("500"), lost], worth=lambda error: not error.maybe_accepted) == ("lost", 2)


def test_retry_after_is_waited_for_and_not_longer_than_patience() -> None:
    begun: list[float] = []

    async def asked() -> str:
        return await again(failing([TryAgain("429", after=0.2)], begun), QUICK, Pace(None))

    assert asyncio.run(asked()) == "answer"
    first, second = begun
    assert second - first >= 0.2
    assert tried([TryAgain("429", after=7200.0)]) == ("429", 1)


def test_waits_are_drawn_below_a_bound_that_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    for _ in range(20):
        tried([TryAgain("500")] * 9, Retries(attempts=6, first_wait=1.0, longest_wait=6.0))
    waits = [slept[first::5] for first in range(5)]
    for wait, most in zip(waits, (1, 2, 4, 6, 6), strict=True):
        assert len(wait) == 20
        assert 0 <= min(wait) < max(wait) <= most
    assert len(set(slept)) > 90  # jittered


def test_calls_are_never_nearer_than_the_rate_whatever_happens_between() -> None:
    begun: list[float] = []

    async def call(pace: Pace, number: int) -> None:
        await pace.turn()
        begun.append(time.monotonic())
        if number == 3:
            time.sleep(0.15)  # a stall: what waited meanwhile must not run at once

    async def all_at_once() -> float:
        started, pace = time.monotonic(), Pace(60 / 0.04)
        await asyncio.gather(*(call(pace, number) for number in range(8)))
        return started

    started = asyncio.run(all_at_once())
    assert begun[0] - started >= 0.04  # an earlier process may have called a moment ago
    assert all(later - sooner >= 0.0399 for sooner, later in itertools.pairwise(begun))


def test_impossible_waits_are_refused() -> None:
    with pytest.raises(ValueError, match="attempts must be at least 1, got 0"):
        Retries(attempts=0)
    for wrong in ({"first_wait": -1.0}, {"first_wait": 9.0, "longest_wait": 1.0}, {"patience": 0.0}):
        with pytest.raises(ValueError, match="waits are seconds, 0 <= first_wait <= longest_wait and 0 < patience"):
            Retries(**wrong)  # type: ignore[arg-type]
