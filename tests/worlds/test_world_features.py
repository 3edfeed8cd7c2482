from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamstill.types import ClipRequest
from streamstill.worlds import Track, World, parse, prompts, track
from streamstill.worlds.motion_features import FEATURES, PLACES, SPANS, motion_features
from tests.worlds.test_world_flight import seen_at

Floats = NDArray[np.float64]


def parts(seen: Track) -> tuple[Floats, Floats, Floats, Floats]:
    """Places, velocities, changes of velocity, and the four numbers of the whole clip."""
    row = motion_features(seen)
    cuts = np.cumsum([2 * PLACES, 2 * SPANS, 2 * SPANS])
    places, velocity, change, whole = np.split(row, cuts)
    return places.reshape(-1, 2), velocity.reshape(-1, 2), change.reshape(-1, 2), whole


def moving(frames: int, fps: float = 8.0) -> Track:
    time = np.arange(frames)[:, None] / fps
    return seen_at(np.array([0.2, 0.3]) + time * [0.2, 0.1], fps)


def test_a_straight_way_has_one_velocity_and_no_change() -> None:
    places, velocity, change, whole = parts(moving(15))
    np.testing.assert_allclose(places, np.linspace([0.2, 0.3], [0.2 + 0.35, 0.3 + 0.175], PLACES))
    np.testing.assert_allclose(velocity, np.tile([0.2, 0.1], (SPANS, 1)))
    np.testing.assert_allclose(change, 0.0, atol=1e-12)
    np.testing.assert_allclose(whole, [np.hypot(0.2, 0.1), 1.0, 1.0, 0.0])


def test_spans_see_when_something_happens() -> None:
    x = np.array([0.2] * 11 + [0.2 + 0.02 * step for step in range(1, 11)])
    _, velocity, change, _ = parts(seen_at(np.stack([x, np.full(21, 0.5)], axis=1)))
    np.testing.assert_allclose(velocity[:, 0], [0, 0, 0.16 * 0.5, 0.16, 0.16])
    assert change[:, 0].argmax() == 2
    assert (velocity[:, 1] == 0).all()


def test_jitter_raises_the_changes_and_leaves_the_way() -> None:
    still = seen_at(np.full((16, 2), 0.5))
    shaken = seen_at(0.5 + 0.01 * (-1.0) ** np.arange(16)[:, None] * np.ones(2))
    assert np.abs(parts(shaken)[0] - parts(still)[0]).max() < 0.011
    assert (parts(shaken)[2] > 0.1).all()


def test_the_length_and_the_rate_of_a_film_matter_little() -> None:
    request = ClipRequest(prompt="a red ball is dropped", seed=2, frames=16, height=32, width=32, fps=8.0)
    slow = parts(track(World().render(request), parse(request.prompt)))
    fast = parts(track(World().render(replace(request, frames=46, fps=24.0)), parse(request.prompt)))
    np.testing.assert_allclose(fast[0], slow[0], atol=0.07)
    np.testing.assert_allclose(fast[1], slow[1], atol=0.25)


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_hidden_frames_leave_no_hole(hidden: list[bool]) -> None:
    place = moving(len(hidden)).centroid_F2.copy()
    place[hidden] = np.nan
    row = motion_features(seen_at(place))
    assert row.shape == (FEATURES,) == (40,)
    assert np.isfinite(row).all()
    assert row[-3] == pytest.approx(1 - np.mean(hidden))


def test_a_gap_is_crossed_in_a_straight_line() -> None:
    place = moving(15).centroid_F2.copy()
    place[4:9] = np.nan
    np.testing.assert_allclose(parts(seen_at(place))[0], parts(moving(15))[0])


def test_a_body_that_is_never_seen_stands_in_the_middle() -> None:
    places, velocity, _, whole = parts(seen_at(np.full((9, 2), np.nan)))
    assert (places == 0.5).all()
    assert (velocity == 0).all()
    assert whole.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_equal_clips_have_equal_features_and_others_do_not() -> None:
    rows = []
    for seed, prompt in enumerate(prompts(8, 71)):
        request = ClipRequest(prompt=prompt, seed=seed, frames=16, height=32, width=32, fps=8.0)
        rows.append(motion_features(track(World().render(request), parse(prompt))))
        np.testing.assert_array_equal(rows[-1], motion_features(track(World().render(request), parse(prompt))))
    assert len({row.tobytes() for row in rows}) == 8
