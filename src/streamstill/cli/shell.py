"""Commands that can be typed again: their words, and the line that ends what another command said."""

import shlex
from pathlib import Path

from rich.console import Console
from rich.markup import escape

_SPECIAL = frozenset('"$`!\\')  # what a shell reads within double quotes


def say_next(console: Console, command: str) -> None:
    """The last line of a command: what to type next."""
    console.print(f"next: [bold]{escape(command)}[/bold]", soft_wrap=True)


def quoted(word: str | Path, *, always: bool = False) -> str:
    """The word as a shell takes it, in double quotes where they will do.

    Args:
        always: quote also what needs none: words of a sentence look better so.
    """
    text = str(word)
    if not always and shlex.quote(text) == text:
        return text
    return shlex.quote(text) if _SPECIAL & set(text) else f'"{text}"'
