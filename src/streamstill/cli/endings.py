"""How a command ends when it cannot go on."""

import sys

from rich.console import Console


def out_of_memory(error: MemoryError | RuntimeError) -> str:
    """What to do about it; any other RuntimeError is a bug and keeps its traceback."""
    if error.__cause__ is not None and isinstance(error, MemoryError):
        return str(error)  # the trainer's own advice
    from streamstill.training.trainer import is_out_of_memory

    if not is_out_of_memory(error):
        raise error
    return "out of memory; lower the size, the frames or the number of the clips, or close other programs"


def stop(sentence: str, *, status: int) -> None:
    """End the process with one sentence on standard error."""
    Console(stderr=True, highlight=False).print(f"streamstill: {sentence}", markup=False, soft_wrap=True)
    sys.exit(status)
