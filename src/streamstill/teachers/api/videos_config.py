"""How a service speaks the /v1/videos job shape: where it is, which fields and words it uses, what is allowed."""

import hashlib
import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from streamstill.config import from_dict, require_one_of, to_dict, with_overrides
from streamstill.teachers.api.asking import Asking, require_price_of_second
from streamstill.teachers.api.hosts import AllowedHosts
from streamstill.teachers.api.http import HttpLimits
from streamstill.teachers.api.jobs import JobState

_WORDS: dict[JobState, tuple[str, ...]] = {
    "queued": ("queued", "pending", "submitted", "created"),
    "running": ("in_progress", "processing", "running", "generating", "in_queue"),
    "done": ("completed", "complete", "succeeded", "success", "done", "finished"),
    "failed": ("failed", "failure", "error", "cancelled", "canceled", "expired", "deleted"),
    "refused": ("refused", "rejected", "moderated", "blocked"),
}


@dataclass(frozen=True, kw_only=True)
class AnswerFields:
    """Where an answer says what, as dotted paths (``data.id``, ``urls.0``), and which words mean which state."""

    id: str = "id"
    status: str = "status"
    reason: str = "error"
    progress: str = "progress"
    progress_of: float = 100.0  # the number that means finished
    url: str = ""  # where the video's address is; empty: it is downloaded from ``content_path``
    queued: tuple[str, ...] = _WORDS["queued"]
    running: tuple[str, ...] = _WORDS["running"]
    done: tuple[str, ...] = _WORDS["done"]
    failed: tuple[str, ...] = _WORDS["failed"]
    refused: tuple[str, ...] = _WORDS["refused"]

    def __post_init__(self) -> None:
        words = [word.lower() for state in _WORDS for word in getattr(self, state)]
        twice = sorted({word for word in words if words.count(word) > 1})
        if twice:
            raise ValueError(
                f"a status must mean one state, and {twice[0]!r} stands for more; remove it from all but one"
            )
        if not (self.id and self.status and self.progress_of > 0):
            raise ValueError("id and status need a place in the answer, and progress_of must be positive")

    def state(self, word: str) -> JobState | None:
        """What this status means; None where it is not listed."""
        return next((s for s in _WORDS if word.lower() in (known.lower() for known in getattr(self, s))), None)


def _videos_asking() -> Asking:
    names = ("prompt", "seconds", "size", "seed")
    return Asking(fields={name: f"{{{name}}}" for name in names})


@dataclass(frozen=True, kw_only=True)
class VideosApiConfig:
    """A model of a service that speaks the /v1/videos job shape. The key itself is never part of it.

    Args:
        base_url: what comes before ``/videos``, usually ending in ``/v1``.
        model: sent in ``model_field``; empty for servers that hold one model.
        key_variable: the environment variable that holds the key; None for servers without keys.
        asking: how prompt, seconds, size, frames, fps and seed are named, and what else is sent along.
        body: how they are sent, as JSON or as a multipart form.
        idempotency_header: sent with the request's key, so that a submission whose answer was lost can be repeated
            without paying twice, for instance ``Idempotency-Key``; empty unless the service says that it honours one.
        allowed_hosts: hosts besides the service's own that videos may come from; see ``hosts.AllowedHosts``.
        price: estimated money for one second of video, for budgets.
    """

    base_url: str
    model: str
    key_variable: str | None = None
    asking: Asking = field(default_factory=_videos_asking)
    answer: AnswerFields = AnswerFields()
    model_field: str = "model"
    body: Literal["json", "form"] = "json"
    create_path: str = "videos"
    poll_path: str = "videos/{id}"
    content_path: str = "videos/{id}/content"
    idempotency_header: str = ""
    allowed_hosts: tuple[str, ...] = ()
    limits: HttpLimits = field(default_factory=HttpLimits)
    price: float | None = None

    def __post_init__(self) -> None:
        AllowedHosts(self.base_url, self.allowed_hosts)
        require_price_of_second(self.price)
        for name in ("poll_path", "content_path"):
            if "{id}" not in getattr(self, name):
                raise ValueError(f"{name} must hold {{id}}, where the job's id goes, got {getattr(self, name)!r}")
        if self.model_field in self.asking.fields or self.model_field in self.asking.inputs:
            raise ValueError(f"the model is sent as {self.model_field!r}; do not name that field in asking as well")

    def fingerprint(self) -> str:
        """Eight characters that change with every setting that may change an answer."""
        asked = [self.base_url, self.model, self.create_path, to_dict(self.asking)]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


def _fields(*names: str, **renamed: str) -> dict[str, str]:
    return {name: f"{{{name}}}" for name in names} | {name: f"{{{word}}}" for name, word in renamed.items()}


_OPEN_SERVER = {"fields": _fields("prompt", "size", "fps", "seed", num_frames="frames")}
# What is known of services that speak this shape; docs/apis.md says how it is known.
SERVICES: Mapping[str, Mapping[str, Any]] = {
    "fastvideo": {"asking": _OPEN_SERVER},
    "sglang": {"asking": _OPEN_SERVER},
    "vllm-omni": {"asking": _OPEN_SERVER, "body": "form"},
    "openrouter": {
        "base_url": "https://openrouter.ai/api/v1",
        "key_variable": "OPENROUTER_API_KEY",
        "asking": {
            "fields": _fields("prompt", "seed", duration="seconds", aspect_ratio="aspect"),
            "aspects": ("16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9", "9:21"),
        },
    },
}


def read_videos_config(path: Path, overrides: Sequence[str] = ()) -> VideosApiConfig:
    """The config in a JSON or TOML file, with ``key=value`` overrides as of ``--set``.

    ``like = "openrouter"`` begins with what is known of a service (``SERVICES``); what else is in the file replaces it,
    table by table.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, a field is unknown, missing or wrong; the message names it.
    """
    values = dict(read_table(path))
    like = values.pop("like", None)
    if like is not None:
        require_one_of(str(like), tuple(SERVICES), "service to be like")
        values = _joined(SERVICES[str(like)], values)
    return with_overrides(from_dict(VideosApiConfig, values, where=path.name), list(overrides))


def _joined(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both; of a table that both have, ``above`` replaces the fields that it names."""
    merged = {**below, **above}
    for name in below.keys() & above.keys():
        if isinstance(below[name], Mapping) and isinstance(above[name], Mapping):
            merged[name] = {**below[name], **above[name]}
    return merged


def read_table(path: Path) -> Mapping[str, Any]:
    """The fields that a JSON or TOML file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds no table.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; check the name")
    try:
        text = path.read_text(encoding="utf-8")
        values = _toml(path, text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError and TOMLDecodeError are such
        raise ValueError(f"{path.name} cannot be read ({error})") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path.name} must hold a table of fields, got {type(values).__name__}")
    return values


def _toml(path: Path, text: str) -> Any:
    if importlib.util.find_spec("tomllib") is None:
        raise ValueError(f"TOML is read by Python 3.11 or newer; write {path.stem}.json instead")
    return importlib.import_module("tomllib").loads(text)
