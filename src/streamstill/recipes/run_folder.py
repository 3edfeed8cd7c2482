"""The folder of a run: which recipe made it, which stages are done, how long each took."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamstill.config import to_dict, write_json

FORMAT = 1
RECIPE, SECONDS = "recipe.json", "seconds.json"


@dataclass(frozen=True)
class RunFolder:
    """A run's artefacts. The same command on the same folder goes on where it stopped."""

    path: Path

    @classmethod
    def open(
        cls, path: Path, *, recipe: str, config: Any, inputs: Mapping[str, str] | None = None, longer: str = ""
    ) -> "RunFolder":
        """Make the folder, or find it again. While nothing was learnt in it, it may be given other settings.

        Args:
            inputs: what the run reads besides its config, by name; another input is another run.
            longer: the field of the config that may grow, for a run that can be prolonged.

        Raises:
            ValueError: the folder holds a run of another recipe, with other settings or of other inputs.
        """
        wanted = json.loads(
            json.dumps({"format": FORMAT, "recipe": recipe, "inputs": dict(inputs or {}), "config": to_dict(config)})
        )
        written = path / RECIPE
        if written.exists() and any(path.glob("*/training/*.safetensors")):
            found = _read_json(written)
            if longer and _without(found, longer) == _without(wanted, longer):
                _require_no_less(path, longer, found["config"].get(longer, 0), wanted["config"][longer])
                write_json(written, wanted)
            elif found != wanted:
                raise ValueError(
                    f"{path} holds a run of {_differences(found, wanted)}; give another --out, or delete the folder"
                )
        else:
            path.mkdir(parents=True, exist_ok=True)
            write_json(written, wanted)
        return cls(path)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in each stage so far, over all attempts."""
        written = self.path / SECONDS
        return _read_json(written) if written.exists() else {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        """The stage's own folder; its time is counted even if it is interrupted."""
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        start = time.perf_counter()
        try:
            yield folder
        finally:
            spent = self.seconds
            spent[name] = round(spent.get(name, 0.0) + time.perf_counter() - start, 2)
            write_json(self.path / SECONDS, spent)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete the folder {path.parent} and run again") from error
    return dict(values)


def _without(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    return {**recipe, "config": {key: value for key, value in recipe.get("config", {}).items() if key != name}}


def _require_no_less(path: Path, name: str, before: int, now: int) -> None:
    if now < before:
        raise ValueError(
            f"{path} holds a run of {name}={before} and {now} were asked for; ask for as many or more (it then goes "
            "on), or give another --out"
        )


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    for name in ("format", "recipe"):
        if found.get(name) != wanted[name]:
            return f"the {name} {found.get(name)!r}, not {wanted[name]!r}"
    old, new = (_flat({**run.get("inputs", {}), **run.get("config", {})}) for run in (found, wanted))
    changed = [f"{k}={old.get(k)} (now {new.get(k)})" for k in sorted(old | new) if old.get(k) != new.get(k)]
    return "other settings: " + ", ".join(changed[:5])


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}.{key}" if prefix else key))
    return flat
