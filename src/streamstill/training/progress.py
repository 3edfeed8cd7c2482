"""What a person sees while a run is under way, and how a person stops it."""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import FrameType, TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

_SMOOTHING = 0.1  # weight of the newest step in the running mean of seconds per step


class Progress(Protocol):
    """Told what happens; shows it or not."""

    def running(self, first: int, steps: int) -> AbstractContextManager[object]:
        """Around the whole run: it has ``steps`` steps, of which ``first`` are done."""
        ...

    def stepped(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Step ``step``, counted from 0, is done."""
        ...

    def say(self, text: str) -> None:
        """One line worth reading."""
        ...


class SilentProgress:
    """Shows nothing."""

    def running(self, first: int, steps: int) -> AbstractContextManager[object]:
        """Do nothing."""
        return nullcontext()

    def stepped(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""


class BarProgress:
    """A moving bar with the time left and the current losses, for a terminal."""

    def __init__(self, console: Console, title: str = "training") -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=console,
        )
        self._task = self._bars.add_task(title, total=None, losses="")

    def running(self, first: int, steps: int) -> AbstractContextManager[object]:
        """Show the bar inside the block."""
        self._bars.reset(self._task, total=steps, completed=first)
        return self._bars

    def stepped(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Move the bar."""
        self._bars.update(self._task, completed=step + 1, losses=losses_line(metrics))

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bars.console.print(text, markup=False, highlight=False)


class LineProgress:
    """A plain line now and then, for log files and pipes: the first step, the last, and one per ``every_seconds``."""

    def __init__(self, console: Console, title: str = "training", every_seconds: float = 10.0) -> None:
        self.console = console
        self.title = title
        self.every_seconds = every_seconds
        self._steps = 0
        self._mean_seconds: float | None = None
        self._last_line = -float("inf")

    def running(self, first: int, steps: int) -> AbstractContextManager[object]:
        """Remember how long the run is."""
        self._steps = steps
        self._mean_seconds = None
        self._last_line = -float("inf")
        if first:
            self.say(f"{self.title}: resuming after {first} of {steps} steps")
        return nullcontext()

    def stepped(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Print a line if it is time for one."""
        mean = seconds if self._mean_seconds is None else self._mean_seconds
        self._mean_seconds = mean + _SMOOTHING * (seconds - mean)
        now = time.monotonic()
        if now - self._last_line < self.every_seconds and step + 1 < self._steps:
            return
        self._last_line = now
        left = (self._steps - step - 1) * self._mean_seconds
        self.say(f"{self.title}: {step + 1}/{self._steps}, {duration(left)} left, {losses_line(metrics)}")

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Interruption:
    """Turns the first Ctrl-C into a request that the loop honours after the running step; the second stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no signal handler
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        os.write(2, b"\nstopping after this step; the same command resumes\n")  # print is not safe in a handler


def progress_on(console: Console, title: str = "training") -> Progress:
    """A bar when the console is a terminal, plain lines when it is not."""
    return BarProgress(console, title) if console.is_terminal else LineProgress(console, title)


def losses_line(metrics: Mapping[str, float]) -> str:
    """The losses of the players, or every number when none is called a loss: ``student/loss 0.0213``."""
    losses = {name: value for name, value in metrics.items() if name.endswith("/loss")} or metrics
    return "  ".join(f"{name} {value:.4g}" for name, value in losses.items())


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: ``1:02:03``, or ``2:03`` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
