"""Any environment that renders is a teacher: prompts are its parameters, seeds repeat, frames are at their times."""

import ctypes.util
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamstill.config import from_dict
from streamstill.teachers import CachedTeacher, ClipStore, collect
from streamstill.teachers.gym import GymConfig, GymTeacher, known_policies, random_policy
from streamstill.types import Clip, ClipRequest, Geometry

gymnasium: Any = pytest.importorskip("gymnasium", reason='install the gym extra: pip install "streamstill[gym]"')

CLOCK = "StreamstillClock-v0"
CONFIG = GymConfig(env=CLOCK, prompt="a clock of shade {shade}", parameters={"shade": [10, 20, 30]})
PARTS = ("steps", "shade", "start", "action", "wind")  # what the rows of a frame show, from the top


class Parts:
    wind = 0


class Clock(gymnasium.Env[Any, Any]):  # type: ignore[misc]  # skipped where gymnasium is not
    """Shows what happened to it: each of its five rows has one number as its brightness. 10 steps are a second."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  # as Gymnasium wants it
    observation_space = gymnasium.spaces.Discrete(1000)
    action_space = gymnasium.spaces.Discrete(200)

    def __init__(self, render_mode: str, shade: int = 0, life: int = 1000, form: str = "rgb") -> None:
        self.render_mode, self.shade, self.life, self.form = render_mode, shade, life, form
        self.action_space, self.model, self.winds = gymnasium.spaces.Discrete(200), Parts(), [0, 0, 0]
        self.steps = self.action = self.start = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.start = int(self.np_random.integers(200))
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.steps, self.action = self.steps + 1, int(action)
        return self.steps, 0.0, self.steps >= self.life, False, {}

    def render(self) -> Any:
        if self.form != "rgb":
            return self.form
        rows = [self.steps, self.shade, self.start, self.action, self.winds[2] or self.model.wind]
        return np.broadcast_to(np.array(rows, np.uint8)[:, None, None], (5, 8, 3))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register(CLOCK, entry_point=Clock, max_episode_steps=3)
    yield
    del gymnasium.registry[CLOCK]


def asked(prompt: str = "a clock of shade 20", *, seed: int = 0, frames: int = 6, fps: float = 10) -> ClipRequest:
    return ClipRequest(prompt=prompt, seed=seed, frames=frames, height=5, width=8, fps=fps)


def shown(clip: Clip, part: str) -> list[int]:
    return [int(level) for level in clip.frames_FCHW[:, 0, PARTS.index(part), 0]]


def config(**values: Any) -> GymConfig:
    return from_dict(GymConfig, {"env": CLOCK, "prompt": "a clock", **values})


@pytest.mark.parametrize(
    ("fps", "steps"),
    [(10, [0, 1, 2, 3, 4, 5]), (5, [0, 2, 4, 6, 8, 10]), (20, [0, 0, 1, 1, 2, 2]), (30, [0, 0, 1, 1, 1, 2])],
)
def test_frames_are_the_nearest_steps_to_their_times(fps: float, steps: list[int]) -> None:
    assert shown(GymTeacher.of(CONFIG).generate(asked(fps=fps)), "steps") == steps


def test_time_before_the_first_frame_passes_unseen_and_the_rate_may_be_set() -> None:
    late = GymTeacher.of(config(settle=0.5))
    assert shown(late.generate(asked("a clock", frames=2)), "steps") == [5, 6]
    fast = GymTeacher.of(config(steps_per_second=30.0))
    assert shown(fast.generate(asked("a clock", frames=3)), "steps") == [0, 3, 6]


def test_the_prompt_says_the_parameter() -> None:
    teacher = GymTeacher.of(CONFIG)
    assert teacher.prompts == ("a clock of shade 10", "a clock of shade 20", "a clock of shade 30")
    for prompt, shade in zip(teacher.prompts, (10, 20, 30), strict=True):
        assert shown(teacher.generate(asked(prompt, frames=1)), "shade") == [shade]


def test_the_seed_decides_start_and_actions_and_nothing_else_does() -> None:
    teacher = GymTeacher.of(CONFIG)
    one, again, other = (teacher.generate(asked(seed=seed)) for seed in (3, 3, -4))
    assert np.array_equal(one.frames_FCHW, again.frames_FCHW)
    assert shown(one, "start") != shown(other, "start")
    assert shown(one, "action")[1:] != shown(other, "action")[1:]
    assert len(set(shown(one, "action"))) > 2


def test_clips_have_the_geometry_that_was_asked_for() -> None:
    geometry = Geometry(frames=3, height=20, width=24, fps=8)
    clip = GymTeacher.of(CONFIG).generate(ClipRequest.of(geometry, prompt="a clock of shade 10", seed=1))
    assert clip.geometry == geometry
    assert clip.provenance == {"teacher": GymTeacher.of(CONFIG).name, "prompt": "a clock of shade 10", "seed": "1"}


def test_it_is_collected_like_any_teacher(tmp_path: Path) -> None:
    teacher = GymTeacher.of(CONFIG)
    cached = CachedTeacher(teacher, ClipStore.open(tmp_path / "cache"))
    wanted = [asked(prompt, seed=seed, frames=2) for prompt in teacher.prompts for seed in (0, 1)]
    assert collect(cached, wanted).asked == 6
    assert collect(cached, wanted).asked == 0


def test_a_range_is_said_in_the_prompt_and_played_as_it_was_said() -> None:
    told: list[Mapping[str, Any]] = []

    def listening(env: Any, parameters: Mapping[str, Any], seed: int) -> Callable[[Any], Any]:
        told.append(parameters)
        return random_policy(env, parameters, seed)

    ranged = config(
        prompt="wind {wind:.1f} m/s",
        parameters={"wind": {"low": 0, "high": 9.96}},
        places={"wind": "policy"},
        policy="ear",
    )
    teacher = GymTeacher.of(ranged, listening)
    drawn = [teacher.sample_prompt(random.Random(seed)) for seed in range(200)]
    for prompt in ("wind 10.0 m/s", *drawn[:3]):
        teacher.generate(asked(prompt, frames=1))
        assert prompt == f"wind {told[-1]['wind']:.1f} m/s"
    assert len(set(drawn)) > 50
    assert len(teacher.prompts) > 50
    assert teacher.prompts == GymTeacher.of(ranged, listening).prompts
    with pytest.raises(ValueError, match=r"wind is '10.1' in the prompt; it may be from 0 to 9.96"):
        teacher.generate(asked("wind 10.1 m/s"))
    with pytest.raises(ValueError, match="wind is 'nan' in the prompt"):
        teacher.generate(asked("wind nan m/s"))


@pytest.mark.parametrize("place", ["model.wind", "winds.2"])
def test_a_parameter_may_be_an_attribute(place: str) -> None:
    windy = config(prompt="wind {wind}", parameters={"wind": [40, 50]}, places={"wind": place})
    assert shown(GymTeacher.of(windy).generate(asked("wind 50", frames=2)), "wind") == [50, 50]


@pytest.mark.parametrize("place", ["modle.wind", "model.wnid", "winds.7", "winds.x"])
def test_an_attribute_that_is_not_there_is_named(place: str) -> None:
    windy = config(prompt="wind {wind}", parameters={"wind": [40]}, places={"wind": place})
    with pytest.raises(ValueError, match=f"no place '{place}' for a parameter"):
        GymTeacher.of(windy).generate(asked("wind 40"))


def test_a_policy_of_your_own_plays_by_what_it_sees() -> None:
    def twice(env: Any, parameters: Mapping[str, Any], seed: int) -> Callable[[Any], Any]:
        return lambda observation: 2 * observation

    clip = GymTeacher.of(config(policy="twice"), twice).generate(asked("a clock"))
    assert shown(clip, "action") == [0, 0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match="your policy is called 'random' like one that exists"):
        GymTeacher.of(CONFIG, twice)
    with pytest.raises(ValueError, match=r"unknown policy 'radnom': choose one of random; did you mean 'random'\?"):
        GymTeacher.of(config(policy="radnom"))


def test_a_policy_may_come_from_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "toy_policies-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-policies\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[streamstill.policies]\nstill = streamstill.teachers.gym:random_policy\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert known_policies() == ("random", "still")
    assert GymTeacher.of(config(policy="still")).policy is random_policy


def test_an_episode_that_ends_too_soon_is_refused_or_stays() -> None:
    with pytest.raises(
        ValueError, match=r"the episode of seed 0 ended after 0\.4 s and the clip lasts longer; ask for"
    ):
        GymTeacher.of(config(inputs={"life": 4})).generate(asked("a clock"))
    clip = GymTeacher.of(config(inputs={"life": 4}, when_it_ends="stay")).generate(asked("a clock"))
    assert shown(clip, "steps") == [0, 1, 2, 3, 4, 4]
    assert shown(GymTeacher.of(config(inputs={"life": 5})).generate(asked("a clock")), "steps")[-1] == 5


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"inputs": {"form": "ascii"}}, "renders str, and uint8 frames of shape"),
        ({"env": "NoSuchThing-v0"}, "the environment NoSuchThing-v0 cannot be made .*; see its page at Gymnasium"),
        ({"inputs": {"shdae": 1}}, "cannot be made .*shdae"),
    ],
)
def test_an_environment_that_cannot_play_is_named(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        GymTeacher.of(config(**values)).generate(asked("a clock"))


def test_a_prompt_that_says_something_else_is_refused() -> None:
    teacher = GymTeacher.of(CONFIG)
    with pytest.raises(ValueError, match=r"the prompt 'a cat' is not one of 'a clock of shade \{shade\}'; ask for one"):
        teacher.generate(asked("a cat"))
    with pytest.raises(ValueError, match=r"shade is '40' in the prompt; it may be one of \[10, 20, 30\]"):
        teacher.generate(asked("a clock of shade 40"))


def test_a_value_may_have_several_words() -> None:
    told: list[tuple[str, str]] = []

    def listening(env: Any, parameters: Mapping[str, Any], seed: int) -> Callable[[Any], Any]:
        told.append((parameters["color"], parameters["thing"]))
        return random_policy(env, parameters, seed)

    colors, things = ["dark red", "red", "dark"], ["ball", "red ball"]
    many = config(
        prompt="a {color} {thing} falls",
        parameters={"color": colors, "thing": things},
        places={"color": "policy", "thing": "policy"},
        policy="ear",
    )
    for color in colors[:2]:
        GymTeacher.of(many, listening).generate(asked(f"a {color} ball falls", frames=1))
    assert told == [("dark red", "ball"), ("red", "ball")]


def test_words_that_look_like_patterns_are_words_and_a_parameter_may_be_said_twice() -> None:
    odd = config(prompt="{{a}} (b|c)? {shade}, so {shade}*", parameters={"shade": [7, 77]})
    teacher = GymTeacher.of(odd)
    assert teacher.prompts == ("{a} (b|c)? 7, so 7*", "{a} (b|c)? 77, so 77*")
    assert shown(teacher.generate(asked(teacher.prompts[1], frames=1)), "shade") == [77]
    with pytest.raises(ValueError, match="is not one of"):
        teacher.generate(asked("{a} (b|c)? 7, so 77*"))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"prompt": "wind {wind}"}, r"must say every parameter .*: it says \['wind'\], the parameters are \[\]"),
        ({"parameters": {"wind": [1]}}, r"it says \[\], the parameters are \['wind'\]"),
        ({"prompt": "{a}", "parameters": {"a": []}}, "a needs a list of values"),
        ({"prompt": "{a}", "parameters": {"a": 5}}, "a needs a list of values, .*, got 5"),
        ({"prompt": "{a}", "parameters": {"a": {"low": 2, "high": 1}}}, "the range of a is written"),
        ({"prompt": "{a}", "parameters": {"a": {"low": 2}}}, "the range of a is written"),
        ({"places": {"wind": "policy"}}, "places has wind; places are for parameters"),
        ({"prompt": "{a}", "parameters": {"a": [1]}, "inputs": {"a": 2}}, "inputs has a; places are for parameters"),
        ({"inputs": {"render_mode": "human"}}, "inputs has render_mode; "),
        ({"settle": -1.0}, "settle must be 0 or more"),
        ({"when_it_ends": "loop"}, "when_it_ends must be one of"),
    ],
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        config(**values)


def test_every_setting_changes_the_name() -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"settle": 1.0},
        {"inputs": {"life": 9}},
        {"policy": "mine"},
        {"steps_per_second": 20.0},
    ]
    names = {GymTeacher(config(**values), random_policy).name for values in settings}
    assert len(names) == len(settings)
    assert all(name.startswith(f"gym/{CLOCK}@") for name in names)


@pytest.mark.slow
def test_mujoco_is_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not ctypes.util.find_library("EGL"):
        pytest.skip("MuJoCo draws without a screen by EGL, which is not here")
    monkeypatch.setenv("MUJOCO_GL", "egl")  # read when mujoco is imported
    monkeypatch.chdir(tmp_path)  # where it puts its log
    pytest.importorskip("mujoco", reason='install it with: pip install "gymnasium[mujoco]"')
    file = tmp_path / "cheetah.json"
    values = {
        "env": "HalfCheetah-v5",
        "prompt": "a cheetah kicks under a gravity of {gravity} m/s2",
        "parameters": {"gravity": [-2.0, -9.8]},
        "places": {"gravity": "model.opt.gravity.2"},
        "inputs": {"width": 48, "height": 32},
    }
    file.write_text(json.dumps(values))
    teacher = GymTeacher.of(from_dict(GymConfig, json.loads(file.read_text())))
    geometry = Geometry(frames=6, height=32, width=48, fps=10)
    moon, earth = teacher.prompts
    clips = [teacher.generate(ClipRequest.of(geometry, prompt=prompt, seed=2)) for prompt in (moon, earth, earth)]
    assert np.array_equal(clips[1].frames_FCHW, clips[2].frames_FCHW)
    assert not np.array_equal(clips[0].frames_FCHW[-1], clips[1].frames_FCHW[-1])
    assert not np.array_equal(clips[1].frames_FCHW[0], clips[1].frames_FCHW[-1])
