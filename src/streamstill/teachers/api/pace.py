"""How often a service is called: a limit on the rate, and what is tried again and when."""

import asyncio
import importlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from streamstill.config import require_positive
from streamstill.teachers.api.jobs import TryAgain

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Retries:
    """When a call that failed for now is made again.

    Args:
        attempts: of one call in all.
        first_wait: seconds; the wait before attempt n is drawn from 0 to ``first_wait * 2**(n-1)``, and is never
            shorter than the service's Retry-After.
        longest_wait: seconds, of the drawn waits.
        patience: seconds; a service that asks to wait longer is not waited for, and a job that takes longer is left
            for the next run.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    patience: float = 3600.0

    def __post_init__(self) -> None:
        require_positive(self, "attempts")
        if not (0 <= self.first_wait <= self.longest_wait and self.patience > 0):
            raise ValueError(
                "waits are seconds, 0 <= first_wait <= longest_wait and 0 < patience, "
                f"got first_wait={self.first_wait}, longest_wait={self.longest_wait} and patience={self.patience}"
            )


class Pace:
    """A token bucket of one token: calls begin at least ``60 / rate`` seconds apart, also after a stall or a restart.

    Args:
        rate: calls a minute, of every kind together; None is no limit.
    """

    def __init__(self, rate: float | None) -> None:
        self._interval = 60.0 / rate if rate else 0.0
        self._next = time.monotonic() + self._interval  # an earlier process may have called a moment ago
        self._lock = asyncio.Lock()

    async def turn(self) -> None:
        """Wait until the next call may begin."""
        if not self._interval:
            return
        async with self._lock:
            while (wait := self._next - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            self._next = time.monotonic() + self._interval


async def again(
    call: Callable[[], Awaitable[T]],
    retries: Retries,
    pace: Pace,
    *,
    worth: Callable[[TryAgain], bool] | None = None,
) -> T:
    """What the call gives, tried again while it raises a TryAgain that is ``worth`` it; the last TryAgain is raised.

    Raises:
        ModuleNotFoundError: the extra ``api`` is not installed.
    """
    tenacity = _tenacity()
    backoff = tenacity.wait_random_exponential(multiplier=retries.first_wait, max=retries.longest_wait)

    def failed(state: Any) -> TryAgain | None:
        error = state.outcome.exception()
        return error if isinstance(error, TryAgain) else None

    def wanted(state: Any) -> bool:
        error = failed(state)
        return error is not None and (error.after or 0.0) <= retries.patience and (worth is None or worth(error))

    def wait(state: Any) -> float:
        error = failed(state)
        return max(float(backoff(state)), (error.after if error else None) or 0.0)

    trying = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(retries.attempts), retry=wanted, wait=wait, reraise=True
    )

    async def once() -> T:
        await pace.turn()
        return await call()

    answer: T = await trying(once)
    return answer


def _tenacity() -> Any:
    try:
        return importlib.import_module("tenacity")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('tenacity is not installed; run: pip install "streamstill[api]"') from error


async def unbroken(work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. A cancellation goes on when the work has ended, not before."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


async def together(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; after the first error or a cancellation the others end, too."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
