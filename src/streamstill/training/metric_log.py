"""What a run measured: always a JSONL file, and one tracker if there is one."""

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Tracker(Protocol):
    """Somewhere else to send the numbers of a step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of one step; after a resume a step may come again."""
        ...


class MetricLog:
    """One JSON object per line: ``{"step": 7, "seconds": 0.31, "student/loss": 0.02, ...}``.

    ``step`` counts from 0 and is the number that the objective saw. A number that is not finite is written as null.
    """

    def __init__(self, path: Path, tracker: Tracker | None = None) -> None:
        self.path = path
        self.tracker = tracker

    def record(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Append one line; it is in the file when this returns."""
        numbers = {"seconds": round(seconds, 4), **metrics}
        line = {"step": step, **{name: value if math.isfinite(value) else None for name, value in numbers.items()}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.tracker is not None:
            self.tracker.log(step, numbers)

    def rewind(self, step: int) -> None:
        """Drop the lines of ``step`` and of later steps, and a last line that was cut off.

        Raises:
            ValueError: a line before the last is not a JSON object with a step.
        """
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for number, line in enumerate(lines, 1) if self._belongs(line, number, len(lines), step)]
        if len(kept) < len(lines):
            partial = self.path.with_name(self.path.name + ".partial")
            partial.write_text("".join(kept), encoding="utf-8")
            partial.replace(self.path)

    def _belongs(self, line: str, number: int, last: int, step: int) -> bool:
        if number == last and not line.endswith("\n"):
            return False
        try:
            return int(json.loads(line)["step"]) < step
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"line {number} of {self.path} is not a line of a metric log; move the file away and run again"
            ) from error


class TensorBoardTracker:
    """Sends the numbers to TensorBoard event files in ``folder``. After a resume the repeated steps are purged."""

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ModuleNotFoundError('TensorBoard is not installed; run: pip install "streamstill[track]"')
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one scalar per number and flush."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file; the next log opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
