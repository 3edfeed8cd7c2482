from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from streamstill.types import ClipRequest
from streamstill.worlds import REAL_LAWS, Track, World, parse, prompts, track
from streamstill.worlds.flight import at_rate, bounces_of, clearances, flights_of
from streamstill.worlds.judge import FREE_ACTIONS
from streamstill.worlds.staging import bodies_of

Floats = NDArray[np.float64]
REACH = 0.095
GRAVITY = np.array(REAL_LAWS.gravity)


def seen_at(centroid_F2: Floats, fps: float = 8.0) -> Track:
    """A small ball's track through these places."""
    visible_F = ~np.isnan(centroid_F2[:, 0])
    body = bodies_of(parse("a small red ball is dropped"), 1.0)[0]
    return Track(centroid_F2=centroid_F2, mass_F=visible_F * 1.0, visible_F=visible_F, fps=fps, aspect=1.0, body=body)


def fall(frames: int, *, start: float, fps: float = 8.0, back: float = 0.75) -> Floats:
    """A small ball dropped from ``start`` that gives back a share of its speed at the floor, exactly."""
    time = np.arange(frames) / fps
    floor = 1 - REACH
    hit = float(np.sqrt(2 * (floor - start) / GRAVITY[1]))
    later = time - hit
    up = back * GRAVITY[1] * hit
    y = np.where(later < 0, start + GRAVITY[1] * time**2 / 2, floor - up * later + GRAVITY[1] * later**2 / 2)
    return np.stack([np.full(frames, 0.5), y], axis=1)


def test_a_free_flight_is_one_parabola() -> None:
    time = np.arange(7)[:, None] / 8
    place = np.array([0.3, 0.4]) + time * [0.4, -0.3] + time**2 / 2 * GRAVITY
    (flight,) = flights_of(seen_at(place), fewest=4)
    assert (flight.first, flight.last) == (0, 6)
    np.testing.assert_allclose(flight.start_2, [0.3, 0.4])
    np.testing.assert_allclose(flight.acceleration_2, GRAVITY, atol=1e-9)
    np.testing.assert_allclose(flight.velocity_at(0.5), [0.4, -0.3 + 0.5 * 1.6], atol=1e-9)


@pytest.mark.parametrize("back", [0.4, 0.75, 1.0])
@pytest.mark.parametrize("start", np.linspace(0.2, 0.3, 6).tolist())
def test_a_known_bounce_is_found_wherever_it_lies_between_frames(start: float, back: float) -> None:
    (bounce,) = bounces_of(seen_at(fall(12, start=start, back=back)))
    expected = np.sqrt(2 * GRAVITY[1] * (1 - REACH - start))
    assert bounce.approach == pytest.approx(expected, rel=1e-6)
    assert bounce.leave == pytest.approx(back * expected, rel=1e-6)
    np.testing.assert_array_equal(bounce.away_2, [0, -1])


@pytest.mark.parametrize(("turn", "side"), [(0, 3), (1, 0), (2, 2), (3, 1)])
def test_all_four_sides_are_sides(turn: int, side: int) -> None:
    """The same bounce with the stage turned by quarters: floor, left wall, ceiling, right wall."""
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    turned = (fall(12, start=0.25) - 0.5) @ np.linalg.matrix_power(quarter, turn).T + 0.5
    (bounce,) = bounces_of(seen_at(turned))
    assert bounce.leave / bounce.approach == pytest.approx(0.75)
    assert clearances(seen_at(turned))[7].argmin() == side


def test_a_body_that_stays_on_the_floor_does_not_leave_it() -> None:
    (bounce,) = bounces_of(seen_at(np.minimum(fall(14, start=0.25, back=0.0), [1.0, 1 - REACH])))
    assert bounce.approach > 1.0
    assert bounce.leave == 0


def test_what_turns_round_without_touching_does_not_bounce() -> None:
    time = np.arange(10) / 8
    y = 0.35 + (time - 0.6) ** 2 * 0.8 - 0.2  # its highest point is 0.055 below the ceiling
    assert bounces_of(seen_at(np.stack([0.3 + 0.3 * time, y], axis=1))) == []


def test_a_bounce_in_mid_air_is_none() -> None:
    high = fall(12, start=0.25) - [0.0, 0.3]
    assert bounces_of(seen_at(high)) == []


def test_hidden_frames_end_a_flight() -> None:
    place = fall(7, start=0.2)
    place[3] = np.nan
    assert [(flight.first, flight.last) for flight in flights_of(seen_at(place), fewest=3)] == [(0, 2), (4, 6)]
    assert flights_of(seen_at(np.full((9, 2), np.nan)), fewest=3) == []
    assert bounces_of(seen_at(np.full((9, 2), np.nan))) == []


def test_short_tracks_have_nothing_to_find() -> None:
    for frames in range(1, 4):
        assert bounces_of(seen_at(fall(frames, start=0.2))) == []


def test_lying_on_the_floor_is_no_flight() -> None:
    rolling = np.stack([0.2 + 0.05 * np.arange(8), np.full(8, 1 - REACH)], axis=1)
    assert flights_of(seen_at(rolling), fewest=3) == []


def test_a_faster_film_is_read_at_every_phase() -> None:
    parts = at_rate(seen_at(fall(36, start=0.25, fps=24.0), fps=24.0))
    assert [len(part.centroid_F2) for part in parts] == [12, 12, 12]
    assert {part.fps for part in parts} == {8.0}
    ratios = [bounce.leave / bounce.approach for part in parts for bounce in bounces_of(part)]
    assert ratios == pytest.approx([0.75] * 3)
    assert len(at_rate(seen_at(fall(2, start=0.2, fps=24.0), fps=24.0))) == 2


def test_mirrored_tracks_bounce_alike() -> None:
    for seed, prompt in enumerate(prompts(6, 61, actions=FREE_ACTIONS, shapes=("ball",))):
        request = ClipRequest(prompt=prompt, seed=seed, frames=16, height=32, width=32, fps=8.0)
        seen = track(World().render(request), parse(prompt))
        mirrored = replace(seen, centroid_F2=np.stack([1 - seen.centroid_F2[:, 0], seen.centroid_F2[:, 1]], axis=1))
        there = [(bounce.approach, bounce.leave) for bounce in bounces_of(seen)]
        back = [(bounce.approach, bounce.leave) for bounce in bounces_of(mirrored)]
        np.testing.assert_allclose(sorted(there), sorted(back), atol=1e-9)
