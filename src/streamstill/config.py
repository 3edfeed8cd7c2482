"""Configs are frozen dataclasses. They are written as JSON and read back strictly: a misspelt key is an error."""

import difflib
import json
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain JSON values."""
    return asdict(config)


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Build ``cls`` from plain values.

    Raises:
        ValueError: a key is unknown or missing, or a value has the wrong type; the message names the field.
    """
    hints = get_type_hints(cls)
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(values.keys() - names)
    if unknown:
        raise ValueError(f"{where} has no field {unknown}; its fields are {sorted(names)}")
    known = {name: _read(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return cls(**known)
    except TypeError as error:
        raise ValueError(f"{where} is incomplete: {error}") from error


def with_overrides(config: T, overrides: list[str]) -> T:
    """A copy of ``config`` in which dotted keys have new values: ``["afd.updates=4", "seed=1"]``.

    The ``kind`` of a field that can be one of several tables chooses another, with its defaults.

    Raises:
        ValueError: an override is not ``key=value``, names an unknown field, or has a value of the wrong type.
    """
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"cannot read the override {override!r}: write it as key=value, for example seed=1")
        config = _replace_at(config, path.split("."), _plain(text), where="")
    return config


def require_positive(config: Any, *names: str) -> None:
    """For the ``__post_init__`` of a config: these fields must be at least 1.

    Raises:
        ValueError: one is not; the message names it.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


def write_json(path: Path, values: Any) -> None:
    """Write plain values as JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write whole or not at all: to a partial name first, then renamed; whatever goes wrong, no partial file stays."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def require_one_of(given: str, allowed: tuple[str, ...], what: str) -> None:
    """Raise a ValueError that names what is allowed, and the nearest of it."""
    if given in allowed:
        return
    near = difflib.get_close_matches(given, allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {given!r}: choose one of {', '.join(allowed)}{hint}")


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _replace_at(config: Any, path: list[str], value: Any, where: str) -> Any:
    name, rest = path[0], path[1:]
    names = [f.name for f in fields(config)]
    if name not in names:
        raise ValueError(f"{where or 'this recipe'} has no field {name!r}; its fields are {names}")
    here = f"{where}.{name}" if where else name
    old, hint = getattr(config, name), get_type_hints(type(config))[name]
    kinds = _kinds(hint)
    if rest == ["kind"] and kinds:  # another table altogether
        if value not in kinds:
            raise ValueError(f"{here}.kind must be one of {kinds}, got {value!r}")
        rest, value = [], {"kind": value}
    if not rest:
        return replace(config, **{name: _read(hint, value, here)})
    if not is_dataclass(old):
        raise ValueError(f"{here} is a single value, it has no field {rest[0]!r}")
    return replace(config, **{name: _replace_at(old, rest, value, here)})


def _read(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _read_union(hint, value, where)
    if origin is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{where} must be one of {list(get_args(hint))}, got {value!r}")
        return value
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a table of fields, got {value!r}")
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        return _read_tuple(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"{where} must be {getattr(expected, '__name__', expected)}, got {value!r}")
    return value


def _read_union(hint: Any, value: Any, where: str) -> Any:
    if value is None and type(None) in get_args(hint):
        return None
    options = [option for option in get_args(hint) if option is not type(None)]
    tables = [option for option in options if is_dataclass(option)]
    if tables and isinstance(value, Mapping):
        return _read(max(tables, key=lambda table: _fit(table, value)), value, where)
    for option in options:
        try:
            return _read(option, value, where)
        except ValueError:
            continue
    raise ValueError(f"{where} must be one of {[getattr(o, '__name__', str(o)) for o in options]}, got {value!r}")


def _kinds(hint: Any) -> list[str]:
    """What the tables of a union call themselves; nothing where there is no choice between tables."""
    tables = [option for option in get_args(hint) if is_dataclass(option)]
    kinds = [field.default for table in tables for field in fields(table) if field.name == "kind"]
    return [kind for kind in kinds if isinstance(kind, str)] if len(tables) > 1 else []


def _fit(table: Any, given: Mapping[str, Any]) -> tuple[bool, int, int]:
    """How well a dataclass fits the fields that are given: of their ``kind``, with many of them, and few others."""
    defaults = {field.name: field.default for field in fields(table)}
    named = "kind" in given and defaults.get("kind") == given["kind"]
    return named, len(defaults.keys() & given.keys()), -len(defaults.keys() - given.keys())


def _read_tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} must be a list, got {value!r}")
    kinds = get_args(hint)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where} must have {len(kinds)} values, got {len(value)}")
    return tuple(_read(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))
