"""Who is imitated: anything that answers a request with a finished clip."""

from typing import Protocol

from streamstill.types import Clip, ClipRequest


class Teacher(Protocol):
    """A teacher answers requests. Any class with these two members is one; it need not import this package."""

    @property
    def name(self) -> str:
        """Part of the key in the cache: give another name to whatever answers the same request differently."""
        ...

    def generate(self, request: ClipRequest) -> Clip:
        """A clip of exactly the geometry that was asked for, or an exception. It may take minutes."""
        ...
