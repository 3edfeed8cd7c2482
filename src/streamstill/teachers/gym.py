"""Simulators as teachers: any Gymnasium environment that renders, with a policy that plays it."""

import hashlib
import importlib
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from string import Formatter
from typing import Any, Literal, TypeAlias

import numpy as np

from streamstill.config import require_one_of, to_dict
from streamstill.media import fit
from streamstill.types import Clip, ClipRequest, Frames

POLICIES = "streamstill.policies"  # entry points: name -> Policy
_MADE_WITH = {"render_mode": "rgb_array", "max_episode_steps": -1, "disable_env_checker": True}  # -1: no time limit
_DRAWN = 256  # prompts, where there is no end of them
_TIE = 1e-6  # of a step, as in ``media``: of two steps as near to a moment the earlier one is shown

Policy: TypeAlias = Callable[[Any, Mapping[str, Any], int], Callable[[Any], Any]]
"""Environment, parameters and seed to a function from observation to action, for one clip."""


@dataclass(frozen=True, kw_only=True)
class GymConfig:
    """An environment, what varies in it, and how that is said.

    Each parameter has a list of values, or ``{"low": ..., "high": ...}``, whose prompts hold any number between as its
    format spec writes it (``"{gravity:.1f}"``); the simulation takes the number that was written. A parameter is an
    argument of ``gymnasium.make`` unless ``places`` says otherwise: ``"policy"`` (the policy alone is told), or a
    dotted attribute of the bare environment, in which a number is an index (``"model.opt.gravity.2"``).
    """

    env: str  # the id, as gymnasium.make takes it
    prompt: str  # a template of the parameters
    parameters: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)  # further arguments of gymnasium.make
    policy: str = "random"
    settle: float = 0.0  # seconds that are played before the first frame
    steps_per_second: float | None = None  # of the environment; None: its own render_fps
    when_it_ends: Literal["refuse", "stay"] = "refuse"  # an episode shorter than the clip; stay: its last frame stays

    def __post_init__(self) -> None:
        said = {name for _, name, _, _ in Formatter().parse(self.prompt) if name is not None}
        if said != self.parameters.keys():
            raise ValueError(
                f"the prompt {self.prompt!r} must say every parameter and nothing else: it says {sorted(said)}, "
                f"the parameters are {sorted(self.parameters)}"
            )
        for name, values in self.parameters.items():
            _check_values(name, values)
        for what, names in (("places", self.places), ("inputs", self.inputs)):
            wrong = sorted(names.keys() - said if what == "places" else names.keys() & (said | _MADE_WITH.keys()))
            if wrong:
                raise ValueError(
                    f"{what} has {', '.join(wrong)}; places are for parameters, inputs for what is no parameter"
                )
        if self.settle < 0 or (self.steps_per_second is not None and self.steps_per_second <= 0):
            raise ValueError(f"settle must be 0 or more and steps_per_second positive, got {self}")


@dataclass(frozen=True)
class GymTeacher:
    """Answers a prompt of the template with an episode: same prompt and seed, same pixels."""

    config: GymConfig
    policy: Policy

    @classmethod
    def of(cls, config: GymConfig, policy: Policy | None = None) -> "GymTeacher":
        """The teacher, with the policy that the config names, or with your own.

        Raises:
            ValueError: no policy has the name, or your own is called ``"random"`` or like another.
        """
        if policy is None:
            return cls(config, _named_policy(config.policy))
        if config.policy in known_policies():
            raise ValueError(
                f"your policy is called {config.policy!r} like one that exists, and the cache knows teachers by names; "
                "give GymConfig.policy a name of its own"
            )
        return cls(config, policy)

    @property
    def name(self) -> str:
        """The environment and a fingerprint of everything in the config."""
        digest = hashlib.sha256(json.dumps(to_dict(self.config), sort_keys=True).encode()).hexdigest()
        return f"gym/{self.config.env}@{digest[:8]}"

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts, in the order of the lists; where a parameter has a range, 256 drawn ones, always the same."""
        grid = self.config.parameters
        if any(isinstance(values, Mapping) for values in grid.values()):
            generator = random.Random(0)
            return tuple(dict.fromkeys(self.sample_prompt(generator) for _ in range(_DRAWN)))
        rows = itertools.product(*grid.values())
        return tuple(dict.fromkeys(self.config.prompt.format(**dict(zip(grid, row, strict=True))) for row in rows))

    def sample_prompt(self, generator: random.Random) -> str:
        """A prompt with every parameter drawn evenly from its list or range."""
        drawn = {name: _drawn(values, generator) for name, values in self.config.parameters.items()}
        return self.config.prompt.format(**drawn)

    def generate(self, request: ClipRequest) -> Clip:
        """The episode of the seed, its frames at the times that were asked for.

        Raises:
            ValueError: the prompt is none of the template, or the environment cannot be made, does not render, or ends
                before the clip does.
        """
        parameters = _said(self.config, request.prompt)
        env = _made(self.config, parameters)
        try:
            frames_FCHW = _played(env, self.config, self.policy, parameters, request)
        finally:
            env.close()
        provenance = {"teacher": self.name, "prompt": request.prompt, "seed": str(request.seed)}
        return fit(Clip(frames_FCHW=frames_FCHW, fps=request.fps, provenance=provenance), request.geometry)


def random_policy(env: Any, _parameters: Mapping[str, Any], seed: int) -> Callable[[Any], Any]:
    """An action drawn from the action space at every step."""
    env.action_space.seed(seed)
    return lambda _: env.action_space.sample()


def known_policies() -> tuple[str, ...]:
    """The names that ``GymConfig.policy`` may have without a policy of your own."""
    return tuple(sorted({"random", *(entry.name for entry in entry_points(group=POLICIES))}))


def _named_policy(name: str) -> Policy:
    require_one_of(name, known_policies(), "policy")
    if name == "random":
        return random_policy
    entry = next(entry for entry in entry_points(group=POLICIES) if entry.name == name)
    policy: Policy = entry.load()
    return policy


def _check_values(name: str, values: Any) -> None:
    if isinstance(values, Mapping):
        low, high = values.get("low"), values.get("high")
        numbers = all(isinstance(number, (int, float)) for number in (low, high))
        if not numbers or values.keys() != {"low", "high"} or low > high:  # type: ignore[operator]  # both are numbers
            raise ValueError(f'the range of {name} is written {{"low": a, "high": b}} with a <= b, got {dict(values)}')
    elif not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f'{name} needs a list of values, or {{"low": a, "high": b}}, got {values!r}')


def _drawn(values: Any, generator: random.Random) -> Any:
    return generator.uniform(values["low"], values["high"]) if isinstance(values, Mapping) else generator.choice(values)


def _said(config: GymConfig, prompt: str) -> dict[str, Any]:
    """The values of the parameters in a prompt."""
    specs = {name: spec or "" for _, name, spec, _ in reversed(list(Formatter().parse(config.prompt))) if name}
    listed = {name: _listed(values, specs[name]) for name, values in config.parameters.items()}
    match = re.fullmatch(_pattern(config, listed), prompt) or re.fullmatch(_pattern(config, {}), prompt)
    if match is None:
        raise ValueError(f"the prompt {prompt!r} is not one of {config.prompt!r}; ask for one that fits it")
    return {name: _value(name, match[name], specs[name], values) for name, values in config.parameters.items()}


def _pattern(config: GymConfig, forms: Mapping[str, str]) -> str:
    """The prompts' regular expression, with a group for each parameter; without a form it may be anything."""
    pattern, seen = "", set()
    for text, name, _, _ in Formatter().parse(config.prompt):
        pattern += re.escape(text)
        if name is not None:
            pattern += f"(?P={name})" if name in seen else f"(?P<{name}>{forms.get(name, '.+?')})"
            seen.add(name)
    return pattern


def _listed(values: Any, spec: str) -> str:
    """The regular expression of a list's values, which may be of several words; of a range's anything."""
    if isinstance(values, Mapping):
        return ".+?"
    return "|".join(re.escape(format(value, spec)) for value in values)


def _value(name: str, text: str, spec: str, values: Any) -> Any:
    if not isinstance(values, Mapping):
        fitting = [value for value in values if format(value, spec) == text]
        if not fitting:
            raise ValueError(f"{name} is {text!r} in the prompt; it may be one of {list(values)}")
        return fitting[0]
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    within = (
        float(format(values["low"], spec)) <= number <= float(format(values["high"], spec))
    )  # rounded as it is said
    if not within:
        raise ValueError(f"{name} is {text!r} in the prompt; it may be from {values['low']} to {values['high']}")
    return number


def _made(config: GymConfig, parameters: Mapping[str, Any]) -> Any:
    """The environment with its parameters, not yet reset."""
    try:
        gymnasium = importlib.import_module("gymnasium")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('gymnasium is not installed; run: pip install "streamstill[gym]"') from error
    given = {name: value for name, value in parameters.items() if name not in config.places}
    try:
        env = gymnasium.make(config.env, **_MADE_WITH, **config.inputs, **given)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        words = " ".join(str(error).split())
        raise ValueError(f"the environment {config.env} cannot be made ({words}); see its page at Gymnasium") from error
    for name, place in config.places.items():
        if place != "policy":
            _put(env.unwrapped, place, parameters[name])
    return env


def _put(thing: Any, place: str, value: Any) -> None:
    *way, last = place.split(".")
    try:
        for step in way:
            thing = thing[int(step)] if step.isdecimal() else getattr(thing, step)
        if last.isdecimal():
            thing[int(last)] = value
            return
        getattr(thing, last)  # a misspelt attribute would be set and do nothing
        setattr(thing, last, value)
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"the environment has no place {place!r} for a parameter ({error}); check its name") from error


def _played(env: Any, config: GymConfig, policy: Policy, parameters: Mapping[str, Any], request: ClipRequest) -> Frames:
    """The frames nearest to the moments that were asked for, in the size of the environment."""
    rate = config.steps_per_second or env.metadata.get("render_fps")
    if not rate:
        raise ValueError(f"{config.env} does not say how many steps are a second; set steps_per_second")
    seed = request.seed % 2**32  # Gymnasium takes no negative ones
    observation, _ = env.reset(seed=seed)
    act = policy(env, parameters, seed)
    frames, step, over = [], 0, False
    for frame in range(request.frames):
        until = math.ceil((config.settle + frame / request.fps) * rate - 0.5 - _TIE)
        while step < until and not over:
            observation, _, terminated, truncated, _ = env.step(act(observation))
            step, over = step + 1, bool(terminated or truncated)
        if over and step < until and config.when_it_ends == "refuse":
            raise ValueError(
                f"the episode of seed {request.seed} ended after {step / rate:g} s and the clip lasts longer; "
                'ask for a shorter clip, play with another policy, or set when_it_ends to "stay"'
            )
        frames.append(_pixels(env.render(), config.env))
    return np.stack(frames)


def _pixels(rendered: Any, env: str) -> Frames:
    if not isinstance(rendered, np.ndarray) or rendered.dtype != np.uint8 or rendered.shape[2:] != (3,):
        what = f"{rendered.dtype} {rendered.shape}" if isinstance(rendered, np.ndarray) else type(rendered).__name__
        raise ValueError(f"{env} renders {what}, and uint8 frames of shape (height, width, 3) are needed")
    return rendered.transpose(2, 0, 1).copy()
