"""How a request is said to a model that has inputs of its own: their names, and the lengths and shapes it can make."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from streamstill.config import require_one_of, to_dict
from streamstill.teachers.api.jobs import Refused
from streamstill.types import ClipRequest

WORDS = ("prompt", "seed", "frames", "height", "width", "fps", "seconds", "aspect", "size")


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Which inputs of a model hold what.

    A template that is one word, such as ``"{seconds}"``, keeps its type (a whole number for seed, frames, height,
    width and seconds); any other, such as ``"{seconds}s"``, is text. ``seconds`` covers the clip and ``aspect`` is
    like ``16:9``: the nearest one of ``lengths`` and ``aspects`` where the model is particular, else exact. A model
    that is not told the seed draws its own, so that seeds are takes that cannot be repeated.
    """

    fields: Mapping[str, str] = field(default_factory=lambda: {"prompt": "{prompt}"})
    inputs: Mapping[str, Any] = field(default_factory=dict)  # sent as they are
    lengths: tuple[int, ...] = ()  # seconds that the model can make
    aspects: tuple[str, ...] = ()  # width:height that the model can make

    def __post_init__(self) -> None:
        used = [word for name, template in self.fields.items() for word in _words(name, template)]
        if "prompt" not in used:
            raise ValueError(f"no field holds the prompt: give one the template {{prompt}}, got {dict(self.fields)}")
        twice = sorted(self.fields.keys() & self.inputs.keys())
        if twice:
            raise ValueError(f"{', '.join(twice)} cannot be a field and an input at once; drop one of the two")
        if any(length < 1 for length in self.lengths):
            raise ValueError(f"lengths are whole seconds from 1 up, got {list(self.lengths)}")
        for aspect in self.aspects:
            _ratio(aspect)

    def arguments(self, request: ClipRequest) -> dict[str, Any]:
        """The model's inputs for this request.

        Raises:
            Refused: the clip is longer than the longest that the model can make.
        """
        values = self._values(request)
        said = {name: _filled(template, values) for name, template in self.fields.items()}
        return {**self.inputs, **said}

    def ordered_seconds(self, request: ClipRequest) -> float:
        """Seconds of video that the model is asked for, which is what a service bills; 0 for a clip too long for it."""
        exact = request.frames / request.fps
        told = any("seconds" in _words(name, template) for name, template in self.fields.items())
        if not told and not self.lengths:  # it is told frames, or nothing
            return exact
        return 0.0 if self.lengths and exact > max(self.lengths) else self._seconds(request)

    def fingerprint(self) -> str:
        """Eight characters that change with every setting here; part of a teacher's name."""
        return hashlib.sha256(json.dumps(to_dict(self), sort_keys=True).encode()).hexdigest()[:8]

    def _values(self, request: ClipRequest) -> dict[str, Any]:
        asked = {name: getattr(request, name) for name in ("prompt", "seed", "frames", "height", "width", "fps")}
        size = f"{request.width}x{request.height}"
        return {**asked, "seconds": self._seconds(request), "aspect": self._aspect(request), "size": size}

    def _seconds(self, request: ClipRequest) -> int:
        exact = request.frames / request.fps
        enough = [length for length in self.lengths if length >= exact]
        if self.lengths and not enough:
            raise Refused(
                f"a clip of {exact:g} s was asked for and the model makes at most {max(self.lengths)} s; "
                "ask for fewer frames or a higher fps"
            )
        return min(enough) if enough else math.ceil(exact)

    def _aspect(self, request: ClipRequest) -> str:
        if not self.aspects:
            shared = math.gcd(request.width, request.height)
            return f"{request.width // shared}:{request.height // shared}"
        wanted = request.width / request.height
        return min(self.aspects, key=lambda aspect: abs(math.log(_ratio(aspect) / wanted)))


def require_price_of_second(price: float | None) -> None:
    """Refuse a price by which no budget could be kept; None is not known."""
    if price is not None and not 0 <= price < math.inf:
        raise ValueError(f"price must be 0 or more for a second of video, or left out, got {price}")


def _words(name: str, template: str) -> list[str]:
    try:
        words = [word for _, word, _, _ in Formatter().parse(template) if word is not None]
    except ValueError as error:
        raise ValueError(f"the template of {name} cannot be read ({error}): {template!r}") from error
    for word in words:
        require_one_of(word, WORDS, f"word in the template of {name}")
    return words


def _ratio(aspect: str) -> float:
    width, _, height = aspect.partition(":")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ValueError(f"an aspect is written width:height, for example 16:9, got {aspect!r}")
    return int(width) / int(height)


def _filled(template: str, values: Mapping[str, Any]) -> Any:
    word = template[1:-1]
    return values[word] if template == f"{{{word}}}" and word in values else template.format_map(values)
