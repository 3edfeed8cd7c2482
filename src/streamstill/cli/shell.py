"""Words of a command, as they can be typed again."""

import shlex
from pathlib import Path

_SPECIAL = frozenset('"$`!\\')  # what a shell reads within double quotes


def quoted(word: str | Path, *, always: bool = False) -> str:
    """The word as a shell takes it, in double quotes where they will do.

    Args:
        always: quote also what needs none: words of a sentence look better so.
    """
    text = str(word)
    if not always and shlex.quote(text) == text:
        return text
    return shlex.quote(text) if _SPECIAL & set(text) else f'"{text}"'
