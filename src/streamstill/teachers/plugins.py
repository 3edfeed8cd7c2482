"""Teachers by name: those that come with the package, and those that any installed package offers.

A package offers a teacher with an entry point in the group ``streamstill.teachers``: a class or function that is called
with the user's options and gives a ``Teacher`` or a ``JobTeacher``, or such an object itself.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeAlias, cast

from streamstill.config import from_dict, require_one_of
from streamstill.teachers.api.fal import FalConfig, FalTeacher
from streamstill.teachers.api.jobs import JobTeacher
from streamstill.teachers.api.replicate import ReplicateConfig, ReplicateTeacher
from streamstill.teachers.api.veo import VeoConfig, VeoTeacher
from streamstill.teachers.gym import GymConfig, GymTeacher
from streamstill.teachers.pipelines.config import PipelineConfig
from streamstill.teachers.teacher import Teacher

GROUP = "streamstill.teachers"

Found: TypeAlias = Teacher | JobTeacher
Options: TypeAlias = Mapping[str, Any]

_JOBS = ("submit", "poll", "download", "close", "price")


def _pipeline(options: Options) -> Found:
    from streamstill.teachers.pipelines.opened import pipeline_teacher  # which loads torch

    return pipeline_teacher(from_dict(PipelineConfig, options, "pipeline"))


_WITH_THE_PACKAGE: Mapping[str, Callable[[Options], Found]] = {
    "fal": lambda options: FalTeacher(from_dict(FalConfig, options, "fal")),
    "gym": lambda options: GymTeacher.of(from_dict(GymConfig, options, "gym")),
    "pipeline": _pipeline,
    "replicate": lambda options: ReplicateTeacher(from_dict(ReplicateConfig, options, "replicate")),
    "veo": lambda options: VeoTeacher(from_dict(VeoConfig, options, "veo")),
}


def known_teachers() -> tuple[str, ...]:
    """The names that ``find_teacher`` knows, sorted. No package is imported for this."""
    return tuple(sorted({*_WITH_THE_PACKAGE, *(entry.name for entry in entry_points(group=GROUP))}))


def find_teacher(name: str, options: Options | None = None) -> Found:
    """The teacher of this name, made with these options; ``"asking.lengths"`` is a field of the table ``"asking"``.

    Raises:
        ValueError: nobody or more than one package offers the name, it cannot be loaded, it does not take the options,
            or what it gives is no teacher.
    """
    require_one_of(name, known_teachers(), "teacher")
    offers = [_offer(entry) for entry in entry_points(group=GROUP) if entry.name == name]
    if len(offers) + (name in _WITH_THE_PACKAGE) > 1:
        owners = sorted(offers + ["streamstill"] * (name in _WITH_THE_PACKAGE))
        raise ValueError(f"the teacher {name!r} is offered by {' and '.join(owners)}; keep one of these packages")
    if name in _WITH_THE_PACKAGE:
        return _WITH_THE_PACKAGE[name](_nested(options or {}))
    entry = next(entry for entry in entry_points(group=GROUP) if entry.name == name)
    return _as_teacher(_made(loaded(entry), entry, options or {}), entry)


def is_job_teacher(teacher: Found) -> bool:
    """Whether it is asked by jobs (``JobTeacher``) rather than by ``generate``."""
    return all(hasattr(teacher, member) for member in _JOBS)


def loaded(entry: EntryPoint) -> Any:
    """What an entry point names.

    Raises:
        ValueError: its package fails when it is imported.
    """
    try:
        return entry.load()
    except Exception as error:  # the code of somebody else: whatever it raises, its owner is named
        raise ValueError(
            f"{_named(entry)} cannot be loaded ({type(error).__name__}: {error}); mend or update that package"
        ) from error


def _made(offered: Any, entry: EntryPoint, options: Options) -> Any:
    if not callable(offered) or (_is_teacher(offered) and not inspect.isclass(offered)):
        if options:
            raise ValueError(f"{_named(entry)} takes no options, got {', '.join(sorted(options))}")
        return offered
    signature = inspect.signature(offered)
    try:
        signature.bind(**options)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "none"
        raise ValueError(f"{_named(entry)} does not take these options ({error}); its options are: {takes}") from error
    return offered(**options)


def _nested(options: Options) -> dict[str, Any]:
    """Dotted names as tables in tables; the later one counts."""
    nested: dict[str, Any] = {}
    for name, value in options.items():
        first, dot, rest = name.partition(".")
        table = nested.get(first)
        if dot and isinstance(table or {}, Mapping):
            nested[first] = _nested({**(table or {}), rest: value})
        else:
            nested[name] = value
    return nested


def _as_teacher(made: Any, entry: EntryPoint) -> Found:
    if not _is_teacher(made):
        raise ValueError(
            f"{_named(entry)} gives {type(made).__name__}, which is no teacher; a teacher has a name and generate, "
            f"one behind an API a name and {', '.join(_JOBS)}"
        )
    return cast(Found, made)


def _is_teacher(thing: Any) -> bool:
    return hasattr(thing, "name") and (callable(getattr(thing, "generate", None)) or is_job_teacher(thing))


def _named(entry: EntryPoint) -> str:
    return f"the teacher {entry.name!r} of {_offer(entry)}"


def _offer(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value
