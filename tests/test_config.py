"""Configs go to JSON and come back equal; what does not fit is refused with the path of the field."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from streamstill.codec.patch import PatchCodec
from streamstill.codec.text import WordEncoderConfig
from streamstill.config import from_dict, to_dict, with_overrides, write_json
from streamstill.flow.times import Sampling
from streamstill.recipes import Base, Folder, Quickstart
from streamstill.recipes.training import Training
from streamstill.student.presets import preset
from streamstill.student.student import StudentConfig
from streamstill.student.wan import CausalWanConfig
from streamstill.testing import tiny_student
from streamstill.training.discriminators.blindfold import Blindfold
from streamstill.training.objectives.adversary import AdversaryConfig
from streamstill.training.objectives.afd import AfdConfig
from streamstill.training.objectives.flow_matching import FlowMatchingConfig
from streamstill.training.optim import OptimConfig
from streamstill.training.trainer import TrainerConfig
from streamstill.types import ClipRequest, Geometry


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    kind: Literal["round", "square"] = "round"


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    on: bool = False
    count: int = 3
    limit: int | None = None
    pair: tuple[float, float] = (0.1, 0.2)
    many: tuple[Inner, ...] = ()
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True)
class Ball:
    radius: float
    colour: str = "red"
    bounces: bool = True


@dataclass(frozen=True, kw_only=True)
class Box:
    height: float
    width: float
    colour: str = "red"


@dataclass(frozen=True, kw_only=True)
class Scene:
    thing: Ball | Box | None = None
    size: Inner | float = 1.0


FULL = Outer(name="a", on=True, limit=4, pair=(1.0, 2.0), many=(Inner(), Inner(kind="square")), inner=Inner(rate=2))

CONFIGS = [
    AdversaryConfig(),
    AfdConfig(prior=0.5),
    Base(seed=3),
    Blindfold(blur=2),
    ClipRequest(prompt="a ball", seed=1, frames=2, height=3, width=4, fps=5.0),
    FlowMatchingConfig(ema_decay=0.9),
    Folder(),
    Geometry(frames=1, height=2, width=3, fps=4.5),
    OptimConfig(lr=1e-3, decay="cosine", total_steps=7, max_grad_norm=None),
    PatchCodec(size=2),
    Quickstart(base="somewhere"),
    Sampling(),
    Training(student="s", objective="afd", steps=3),
    TrainerConfig(steps=2),
    WordEncoderConfig(),
    CausalWanConfig(num_layers=2),
    preset("nano", latent_channels=96, text_width=64),
    tiny_student().config,
    replace(tiny_student().config, network=CausalWanConfig(window_chunks=2)),
    FULL,
    Outer(name="nothing else"),
    Scene(thing=Ball(radius=1.0)),
    Scene(thing=Box(height=1.0, width=2.0), size=Inner(rate=2.0)),
    Scene(),
]


def through_json(config: Any) -> Any:
    return from_dict(type(config), json.loads(json.dumps(to_dict(config))))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_config_comes_back_equal_from_json(config: Any) -> None:
    assert through_json(config) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "a", "cuont": 1}, r"config has no field \['cuont'\]; its fields are \['count', 'inner'"),
        ({"name": "a", "inner": {"rat": 1.0}}, r"config\.inner has no field \['rat'\]"),
        ({"name": "a", "many": [{}, {"kinds": 1}]}, r"config\.many\[1\] has no field \['kinds'\]"),
        ({"name": 3}, r"config\.name must be str, got 3"),
        ({"name": "a", "count": 1.5}, r"config\.count must be int, got 1.5"),
        ({"name": "a", "count": True}, r"config\.count must be int, got True"),
        ({"name": "a", "on": 1}, r"config\.on must be bool, got 1"),
        ({"name": "a", "limit": "four"}, r"config\.limit must be one of \['int'\], got 'four'"),
        ({"name": "a", "pair": [1.0]}, r"config\.pair must have 2 values, got 1"),
        ({"name": "a", "pair": [1.0, "two"]}, r"config\.pair\[1\] must be float, got 'two'"),
        ({"name": "a", "pair": 1.0}, r"config\.pair must be a list, got 1.0"),
        ({"name": "a", "inner": 2}, r"config\.inner must be a table of fields, got 2"),
        (
            {"name": "a", "inner": {"kind": "oval"}},
            r"config\.inner\.kind must be one of \['round', 'square'\], got 'oval'",
        ),
        ({}, r"config is incomplete: .*'name'"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_path_of_the_field(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_dict(Outer, values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"thing": {"radius": 1.0, "color": "blue"}},
            r"config\.thing has no field \['color'\]; .* \['bounces', 'colour'",
        ),
        ({"thing": {"height": 1.0, "widht": 2.0}}, r"config\.thing has no field \['widht'\]; .* \['colour', 'height'"),
        ({"thing": {"height": 1.0, "colour": "blue"}}, r"config\.thing is incomplete: .*'width'"),
        ({"thing": {"height": "tall", "width": 1.0}}, r"config\.thing\.height must be float, got 'tall'"),
        ({"thing": 3}, r"config\.thing must be one of \['Ball', 'Box'\], got 3"),
        ({"size": {"rat": 1.0}}, r"config\.size has no field \['rat'\]"),
        ({"size": "large"}, r"config\.size must be one of \['Inner', 'float'\], got 'large'"),
    ],
)
def test_of_several_tables_the_one_that_fits_best_says_what_is_wrong(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_dict(Scene, values)


@pytest.mark.parametrize("network", [tiny_student().config.network, CausalWanConfig()], ids=["sandwich", "wan"])
def test_a_misspelt_field_of_a_network_is_named_among_the_fields_of_its_own_family(network: Any) -> None:
    values = to_dict(replace(tiny_student().config, network=network))
    values["network"]["chunk_fraems"] = values["network"].pop("chunk_frames")
    with pytest.raises(ValueError, match=r"\.network has no field \['chunk_fraems'\]; its fields are") as refused:
        from_dict(StudentConfig, values)
    assert all(f"'{name}'" in str(refused.value) for name in vars(network))


def test_the_file_that_was_read_can_be_named() -> None:
    with pytest.raises(ValueError, match=r"^runs/config\.json\.inner has no field"):
        from_dict(Outer, {"name": "a", "inner": {"x": 1}}, where="runs/config.json")


def test_a_whole_number_is_good_enough_for_a_float() -> None:
    rate = from_dict(Inner, {"rate": 2}).rate
    assert (rate, type(rate)) == (2.0, float)


def test_a_value_that_the_config_itself_refuses_keeps_its_sentence() -> None:
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        from_dict(AfdConfig, {"beta": 0.0})


def test_overrides_reach_into_nested_configs_and_leave_the_rest() -> None:
    changed = with_overrides(FULL, ["inner.rate=3", "inner.kind=square", "limit=null", "on=false", "pair=[5, 6]"])
    assert changed == replace(FULL, inner=Inner(rate=3.0, kind="square"), limit=None, on=False, pair=(5.0, 6.0))
    assert FULL.inner == Inner(rate=2)
    assert with_overrides(FULL, []) == FULL


def test_an_override_may_hold_an_equals_sign_and_a_bare_word() -> None:
    assert with_overrides(FULL, ["name=a=b c"]).name == "a=b c"


def test_of_two_overrides_of_one_field_the_last_counts() -> None:
    assert with_overrides(FULL, ["count=1", "count=2"]).count == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("count", "cannot read the override 'count': write it as key=value, for example seed=1"),
        ("cuont=1", "this recipe has no field 'cuont'; its fields are"),
        ("inner.rat=1", r"inner has no field 'rat'; its fields are \['rate', 'kind'\]"),
        ("count.deep=1", "count is a single value, it has no field 'deep'"),
        ("inner.rate=fast", r"inner\.rate must be float, got 'fast'"),
        ("inner=3", "inner must be a table of fields, got 3"),
    ],
)
def test_an_override_that_does_not_fit_is_refused(override: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        with_overrides(FULL, [override])


def test_json_is_written_whole_and_over_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": [2, None]})
    assert json.loads(path.read_text()) == {"a": [2, None]}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "values.json"
    write_json(path, {"a": 1})

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@dataclass(frozen=True, kw_only=True)
class Circle:
    kind: str = "circle"
    radius: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Square:
    kind: str = "square"
    side: float = 1.0
    angle: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Drawing:
    shape: Circle | Square = field(default_factory=Circle)


@pytest.mark.parametrize("shape", [Circle(), Square(side=2.0)])
def test_a_table_of_a_union_is_the_one_of_its_kind(shape: Circle | Square) -> None:
    """Even where nothing but the kind is given."""
    assert from_dict(Drawing, {"shape": {"kind": shape.kind}}).shape.kind == shape.kind
    assert from_dict(Drawing, to_dict(Drawing(shape=shape))) == Drawing(shape=shape)


def test_another_kind_brings_its_own_fields() -> None:
    changed = with_overrides(Drawing(shape=Circle(radius=5.0)), ["shape.kind=square", "shape.side=3"])
    assert changed == Drawing(shape=Square(side=3.0))
    assert with_overrides(changed, ["shape.kind=circle"]) == Drawing(shape=Circle())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shape.kind=oval"], r"shape\.kind must be one of \['circle', 'square'\], got 'oval'"),
        (["shape.kind=[1]"], r"shape\.kind must be one of \['circle', 'square'\], got \[1\]"),
        (["shape.kind=square", "shape.radius=1"], r"shape has no field 'radius'"),
    ],
)
def test_a_kind_that_is_none_of_a_union_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_overrides(Drawing(), overrides)
