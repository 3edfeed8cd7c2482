"""Who is imitated, and what they said."""

from streamstill.teachers.cached import CachedTeacher
from streamstill.teachers.captions import Captioned, read_captions
from streamstill.teachers.collection import CollectReport, collect
from streamstill.teachers.folder import FolderTeacher
from streamstill.teachers.store import Answer, ClipStore, Entry, request_key
from streamstill.teachers.teacher import OpenTeacher, ReadingTeacher, Teacher, require_open
from streamstill.teachers.world import Renderer, WorldTeacher

__all__ = [
    "Answer",
    "CachedTeacher",
    "Captioned",
    "ClipStore",
    "CollectReport",
    "Entry",
    "FolderTeacher",
    "OpenTeacher",
    "ReadingTeacher",
    "Renderer",
    "Teacher",
    "WorldTeacher",
    "collect",
    "read_captions",
    "request_key",
    "require_open",
]
