import io
import os
import signal
import threading

import pytest
from rich.console import Console

from streamstill.training.progress import (
    BarProgress,
    Interruption,
    LineProgress,
    Progress,
    SilentProgress,
    duration,
    losses_line,
    progress_on,
)


def shown(progress: Progress, console: Console, steps: int, first: int = 0) -> str:
    with progress.running(first, steps):
        for step in range(first, steps):
            progress.stepped(step, 0.5, {"student/loss": 0.25, "student/lr": 0.1})
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_pipe_gets_the_first_and_the_last_step_as_plain_lines() -> None:
    console = Console(file=io.StringIO())
    progress = progress_on(console, "base")
    assert isinstance(progress, LineProgress)
    assert shown(progress, console, 5) == (
        "base: 1/5, 0:02 left, student/loss 0.25\nbase: 5/5, 0:00 left, student/loss 0.25\n"
    )


def test_time_brings_more_lines() -> None:
    console = Console(file=io.StringIO())
    assert shown(LineProgress(console, every_seconds=0.0), console, 5).count("\n") == 5


def test_a_resumed_run_says_so() -> None:
    console = Console(file=io.StringIO())
    assert shown(LineProgress(console), console, 5, first=3).startswith("training: resuming after 3 of 5 steps\n")


def test_a_terminal_gets_a_bar_with_the_loss() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    progress = progress_on(console)
    assert isinstance(progress, BarProgress)
    text = shown(progress, console, 4)
    assert "4/4" in text
    assert "student/loss 0.25" in text


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = SilentProgress()
    with progress.running(0, 1):
        progress.stepped(0, 1.0, {})
        progress.say("hello")
    assert capsys.readouterr() == ("", "")


def test_every_number_is_shown_when_none_is_a_loss() -> None:
    assert losses_line({"a": 1.0, "b": 2.0}) == "a 1  b 2"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3723, "1:02:03")])
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_first_interrupt_is_a_request_the_second_stops() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_the_handler_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter() -> None:
        with Interruption() as interruption:
            seen.append((interruption.requested, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
