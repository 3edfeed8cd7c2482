"""Distil any video generator, even one behind an API, into a small model that streams.

Importing this package costs nothing: a public name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamstill.flow.times import Sampling
    from streamstill.streaming.session import Session
    from streamstill.student.student import Student
    from streamstill.teachers import CachedTeacher, ClipStore, FolderTeacher, Teacher, WorldTeacher, collect
    from streamstill.types import Clip, ClipRequest, Geometry

__version__ = "0.1.0.dev0"

_HOMES = {
    "CachedTeacher": "streamstill.teachers",
    "Clip": "streamstill.types",
    "ClipRequest": "streamstill.types",
    "ClipStore": "streamstill.teachers",
    "FolderTeacher": "streamstill.teachers",
    "Geometry": "streamstill.types",
    "Sampling": "streamstill.flow.times",
    "Session": "streamstill.streaming.session",
    "Student": "streamstill.student.student",
    "Teacher": "streamstill.teachers",
    "WorldTeacher": "streamstill.teachers",
    "collect": "streamstill.teachers",
}

__all__ = [
    "CachedTeacher",
    "Clip",
    "ClipRequest",
    "ClipStore",
    "FolderTeacher",
    "Geometry",
    "Sampling",
    "Session",
    "Student",
    "Teacher",
    "WorldTeacher",
    "collect",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'streamstill' has no attribute {name!r}; its names are {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
