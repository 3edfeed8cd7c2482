from dataclasses import replace

import numpy as np
import pytest

from streamstill.types import Clip, ClipRequest
from streamstill.worlds import LooseWorld, World, parse, prompts, track
from streamstill.worlds.grammar import all_actions
from streamstill.worlds.palette import BACKGROUNDS, COLORS, background
from streamstill.worlds.tracker import color_masses, expected_mass


def film(prompt: str, seed: int = 0, *, size: tuple[int, int] = (32, 32)) -> Clip:
    return World().render(ClipRequest(prompt=prompt, seed=seed, frames=16, height=size[0], width=size[1], fps=8.0))


def blended(clip: Clip, ground: str, strength: float) -> Clip:
    """The clip with its bodies faded to a share of their strength."""
    _, _, height, width = clip.frames_FCHW.shape
    empty = background(ground, height, width).transpose(2, 0, 1).astype(float)
    faded = empty + strength * (clip.frames_FCHW - empty)
    return replace(clip, frames_FCHW=np.rint(faded).astype(np.uint8))


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("ground", BACKGROUNDS)
def test_every_colour_is_found_on_every_background(color: str, ground: str) -> None:
    prompt = f"a {color} ball is dropped against a {ground} background"
    seen = track(film(prompt), parse(prompt))
    assert seen.visible_F.all()
    np.testing.assert_allclose(seen.mass_F, 1.0, atol=0.05)


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("ground", BACKGROUNDS)
def test_a_colour_is_not_taken_for_another(color: str, ground: str) -> None:
    for event in ("is dropped", "moves down a ramp", "swings on a rod"):
        masses = color_masses(film(f"a {color} ball {event} on a {ground} background").frames_FCHW, ground)
        assert masses.pop(color) > 4 * max(masses.values())


@pytest.mark.parametrize("action", all_actions())
@pytest.mark.parametrize("size", [(32, 32), (48, 64), (40, 24)])
def test_the_first_body_is_followed_in_every_scene(action: str, size: tuple[int, int]) -> None:
    for seed, prompt in enumerate(prompts(6, 41, actions=(action,))):
        height, width = size
        request = ClipRequest(prompt=prompt, seed=seed, frames=16, height=height, width=width, fps=8.0)
        seen = track(World().render(request), parse(prompt))
        place = World().truth(request).position_FN2
        true = place.mean(axis=1) if action == "topple" else place[:, 0]
        assert np.median(np.linalg.norm(seen.centroid_F2 - true, axis=1)) * height < 0.15
        assert seen.aspect == width / height


def test_the_body_that_is_hit_is_not_taken_for_the_first() -> None:
    for seed, prompt in enumerate(prompts(30, 42, actions=("collision",))):
        seen = track(film(prompt, seed), parse(prompt))
        assert (np.abs(seen.mass_F - 1) < 0.15).all()


def test_a_body_that_fades_away_is_not_visible() -> None:
    prompt = "a red ball is dropped"
    clip = film(prompt)
    assert track(blended(clip, "dark", 0.6), parse(prompt)).visible_F.all()
    gone = track(blended(clip, "dark", 0.2), parse(prompt))
    assert not gone.visible_F.any()
    assert np.isnan(gone.centroid_F2).all()


def test_a_second_blob_does_not_pull_the_centroid() -> None:
    prompt = "a red ball is dropped"
    clip = film(prompt, 3)
    plain = track(clip, parse(prompt))
    spotted = clip.frames_FCHW.copy()
    column = 1 if plain.centroid_F2[0, 0] > 0.5 else 28
    spotted[:, :, 28:31, column : column + 3] = np.array(COLORS["red"])[:, None, None]
    free = plain.centroid_F2[:, 1] < 0.6
    seen = track(replace(clip, frames_FCHW=spotted), parse(prompt))
    np.testing.assert_allclose(seen.centroid_F2[free], plain.centroid_F2[free], atol=1e-9)


def test_haze_is_ignored() -> None:
    prompt = "a blue box is thrown to the left"
    clip = film(prompt, 1)
    toward = (np.array(COLORS["blue"]) - background("dark", 1, 1)[0, 0]) * 0.15
    hazy = np.clip(clip.frames_FCHW + toward[:, None, None], 0, 255).astype(np.uint8)
    plain, seen = track(clip, parse(prompt)), track(replace(clip, frames_FCHW=hazy), parse(prompt))
    assert np.abs(seen.centroid_F2 - plain.centroid_F2).max() * 32 < 0.3


def test_frames_are_seen_one_by_one() -> None:
    prompt = "a red ball is dropped"
    clip = film(prompt)
    forward = track(clip, parse(prompt))
    backward = track(replace(clip, frames_FCHW=clip.frames_FCHW[::-1].copy()), parse(prompt))
    np.testing.assert_allclose(backward.centroid_F2[::-1], forward.centroid_F2)
    np.testing.assert_allclose(backward.mass_F[::-1], forward.mass_F)


def test_expected_mass_counts_all_that_has_the_colour() -> None:
    one = expected_mass(parse("a red ball is dropped"), 1.0)
    assert expected_mass(parse("a red box is dropped"), 1.0) == one
    assert expected_mass(parse("a red ball hits a blue ball"), 1.0) == one
    assert expected_mass(parse("a stack of three red boxes topples"), 1.0) == pytest.approx(one * 3 * 0.75**2)
    assert expected_mass(parse("a red ball is dropped"), 0.5) == pytest.approx(one / 4)


def test_loose_clips_are_followed_too() -> None:
    for seed, prompt in enumerate(prompts(30, 43, actions=("drop", "throw left", "throw right"))):
        request = ClipRequest(prompt=prompt, seed=seed, frames=16, height=32, width=32, fps=8.0)
        seen = track(LooseWorld().render(request), parse(prompt))
        place = LooseWorld().truth(request).position_FN2[:, 0]
        assert np.abs(seen.centroid_F2 - place).max() * 32 < 0.15


@pytest.mark.parametrize(("side", "median", "most"), [(32, 0.01, 0.05), (64, 0.01, 0.05)])
def test_the_error_of_the_tracker_is_as_the_page_says(side: int, median: float, most: float) -> None:
    """In pixels, for the quickstart's corner of the world: medium balls on a dark stage, dropped or thrown."""
    corner = prompts(
        40,
        44,
        actions=("drop", "throw left", "throw right"),
        shapes=("ball",),
        sizes=("medium",),
        backgrounds=("dark",),
    )
    errors = []
    for seed, prompt in enumerate(corner):
        request = ClipRequest(prompt=prompt, seed=seed, frames=16, height=side, width=side, fps=8.0)
        seen = track(World().render(request), parse(prompt))
        errors.append(np.linalg.norm(seen.centroid_F2 - World().truth(request).position_FN2[:, 0], axis=1) * side)
    assert 0 < np.median(errors) < median
    assert np.max(errors) < most
