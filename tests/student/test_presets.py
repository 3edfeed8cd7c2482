"""Presets: how large they are, what they are for, and what they refuse."""

from itertools import pairwise

import pytest
import torch

from streamstill.student.costs import parameter_count
from streamstill.student.layout import hourglass, parse_layout, sandwich
from streamstill.student.presets import LAYOUTS, PRESETS, named_layout, preset, width_of
from streamstill.student.sandwich import SandwichConfig, SandwichDiT

NANO_PARAMETERS = 645_344
WAN_PIXELS = 8  # rows, and columns, of pixels that share a latent of Wan's autoencoder


def by_size() -> list[SandwichConfig]:
    return [preset(name) for name in sorted(PRESETS, key=lambda name: PRESETS[name].depth)]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_parameters_that_its_config_promises(name: str) -> None:
    with torch.device("meta"):
        network = SandwichDiT(preset(name))
    built = sum(parameter.numel() for parameter in network.parameters())
    assert built == network.parameter_count() == parameter_count(preset(name))


def test_nano_has_its_known_size() -> None:
    assert parameter_count(preset("nano")) == NANO_PARAMETERS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_phone_has_about_the_paper_s_size_in_every_layout(layout: str) -> None:
    assert 1.7e9 < parameter_count(preset("phone", layout=layout)) < 1.9e9


def test_a_deeper_preset_is_wider_and_larger() -> None:
    assert [config.layout for config in by_size()] == [preset(name).layout for name in PRESETS]
    for smaller, larger in pairwise(by_size()):
        assert len(smaller.kinds) < len(larger.kinds)
        assert smaller.width < larger.width
        assert parameter_count(smaller) < parameter_count(larger)


def test_every_depth_has_a_width_that_fits_its_heads_and_never_shrinks() -> None:
    sizes = [width_of(depth) for depth in range(1, 65)]
    assert all(width > 0 and width % head_dim == 0 and head_dim % 2 == 0 for width, head_dim in sizes)
    assert all(small <= large for one, other in pairwise(sizes) for small, large in zip(one, other, strict=True))


@pytest.mark.parametrize(("depth", "width", "head_dim"), [(4, 96, 32), (32, 2048, 128)])
def test_the_known_widths(depth: int, width: int, head_dim: int) -> None:
    assert width_of(depth) == (width, head_dim)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_an_equal_share_sandwich_of_its_depth_and_width(name: str) -> None:
    config, size = preset(name), PRESETS[name]
    assert config.layout == sandwich(size.depth)
    assert (config.width, config.head_dim) == width_of(size.depth)
    assert config.mlp_width == size.mlp_ratio * config.width


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_s_latents_can_be_cut_into_its_tokens(name: str, layout: str) -> None:
    with torch.device("meta"):
        step = SandwichDiT(preset(name, layout=layout)).latent_step
    assert PRESETS[name].latent_height % step == PRESETS[name].latent_width % step == 0


def test_phone_has_the_geometry_of_the_paper() -> None:
    size, config = PRESETS["phone"], preset("phone")
    assert (size.latent_width * WAN_PIXELS, size.latent_height * WAN_PIXELS) == (512, 288)
    assert size.chunk_frames == config.chunk_frames == 3
    assert (config.head_dim, config.window_chunks) == (128, 2)


def test_what_is_given_replaces_the_preset_s_own() -> None:
    changes = {"latent_channels": 6, "text_width": 10, "patch": 2}
    config = preset("nano", layout="FLSA", **changes)
    assert {name: getattr(config, name) for name in changes} == changes
    assert config.layout == "FLSA"
    assert vars(config) == vars(preset("nano")) | changes | {"layout": "FLSA"}


def test_the_named_layouts() -> None:
    named = {name: named_layout(name, 8) for name in LAYOUTS}
    one_kind = {"lcha-only": 8 * "L", "ssa-only": 8 * "S", "full": 8 * "F"}
    assert named == {"sandwich": sandwich(8), "hourglass": hourglass(8), **one_kind}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PRESETS)
def test_a_named_layout_has_the_preset_s_depth(name: str, layout: str) -> None:
    assert preset(name, layout=layout).kinds == parse_layout(named_layout(layout, PRESETS[name].depth))


def test_spaces_may_group_the_letters_of_a_layout() -> None:
    assert preset("nano", layout="LS SL") == preset("nano", layout="LSSL")


def test_an_unknown_preset_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'phoen': choose one of nano, .*did you mean 'phone'\?"):
        preset("phoen")


def test_an_unknown_layout_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown layout 'hourglas': .*did you mean 'hourglass'\?"):
        named_layout("hourglas", 4)


@pytest.mark.parametrize("layout", ["", "LSL", "LSSLL"])
def test_a_layout_of_another_length_is_refused(layout: str) -> None:
    said = f"the layout '{layout}' has {len(layout)} blocks, the preset nano has a budget of 4; write 4 letters, or one"
    with pytest.raises(ValueError, match=said):
        preset("nano", layout=layout)


def test_a_layout_with_an_unknown_letter_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown letters"):
        preset("nano", layout="LXSL")
