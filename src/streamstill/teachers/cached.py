"""A teacher that is asked once."""

from dataclasses import dataclass

from streamstill.teachers.store import Answer, ClipStore, request_key
from streamstill.teachers.teacher import Teacher
from streamstill.types import Clip, ClipRequest


@dataclass(frozen=True)
class CachedTeacher:
    """Ask the teacher once per request; afterwards read what it said. It is itself a teacher."""

    teacher: Teacher
    store: ClipStore

    @property
    def name(self) -> str:
        """The name of the teacher behind the cache."""
        return self.teacher.name

    def key(self, request: ClipRequest) -> str:
        """Where the store keeps the answer to this request."""
        return request_key(self.name, request)

    def generate(self, request: ClipRequest) -> Clip:
        """The stored clip. If the teacher fails, its exception is raised and nothing is stored."""
        key = self.key(request)
        if key not in self.store:
            self.store.add([self.ask(request)])
        return self.store.get(key)

    def ask(self, request: ClipRequest) -> Answer:
        """What the teacher says now, not stored.

        Raises:
            ValueError: the clip has not the geometry that was asked for.
        """
        return Answer(teacher=self.name, request=request, clip=self.teacher.generate(request))
