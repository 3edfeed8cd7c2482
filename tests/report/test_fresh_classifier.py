import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from streamstill.report.fresh_classifier import FEWEST, accuracy_on_motion, accuracy_on_pixels
from streamstill.types import Clip, ClipRequest
from streamstill.worlds import LooseWorld, World, parse, prompts, track
from streamstill.worlds.motion_features import motion_features

Floats = NDArray[np.float64]


def requests(count: int, *, seed: int = 0, frames: int = 16, size: int = 32) -> list[ClipRequest]:
    sentences = prompts(
        count, 81, actions=("drop", "throw left", "throw right"), shapes=("ball",), backgrounds=("dark",)
    )
    return [
        ClipRequest(prompt=prompt, seed=seed + number, frames=frames, height=size, width=size, fps=8.0)
        for number, prompt in enumerate(sentences)
    ]


def features(clips: list[Clip], asked: list[ClipRequest]) -> Floats:
    return np.stack([motion_features(track(c, parse(r.prompt))) for c, r in zip(clips, asked, strict=True)])


def small_clips(count: int, *, seed: int, blur: bool = False) -> list[Clip]:
    clips = [World().render(request) for request in requests(count, seed=seed, frames=8, size=16)]
    return [blurred(clip) for clip in clips] if blur else clips


def blurred(clip: Clip) -> Clip:
    frames = clip.frames_FCHW.astype(float)
    for axis in (2, 3):
        frames = (np.roll(frames, 1, axis) + 2 * frames + np.roll(frames, -1, axis)) / 4
    return replace(clip, frames_FCHW=np.rint(frames).astype(np.uint8))


def test_the_same_motion_cannot_be_told_apart() -> None:
    asked, again = requests(120), requests(120, seed=1000)
    ours, theirs = ([World().render(request) for request in batch] for batch in (again, asked))
    found = accuracy_on_motion(features(theirs, asked), features(ours, asked))
    assert found.low <= 0.5 <= found.high
    assert found.n == 120


def test_motion_by_other_laws_is_told_apart() -> None:
    asked = requests(120)
    real, loose = ([world.render(request) for request in asked] for world in (World(), LooseWorld()))
    assert accuracy_on_motion(features(real, asked), features(loose, asked)).mean > 0.9


def test_chance_is_one_half_on_average() -> None:
    """Random rows of one distribution: over many seeds the accuracy is 1/2, and the intervals hold it."""
    dice = np.random.default_rng(0)
    found = [accuracy_on_motion(dice.normal(size=(40, 6)), dice.normal(size=(40, 6)), seed=k) for k in range(12)]
    assert np.mean([one.mean for one in found]) == pytest.approx(0.5, abs=0.08)
    assert sum(one.low <= 0.5 <= one.high for one in found) >= 10


def test_a_known_shift_gives_the_accuracy_of_the_best_classifier() -> None:
    """Normals one dimension of which is 2 apart: nobody is right more often than Phi(1) = 0.841."""
    dice = np.random.default_rng(0)
    theirs, ours = dice.normal(size=(2, 1000, 3))
    ours[:, 0] += 2
    found = [accuracy_on_motion(theirs, ours, seed=seed).mean for seed in range(4)]
    assert np.mean(found) == pytest.approx(0.841, abs=0.02)


def test_hardly_any_spread_is_not_magnified() -> None:
    dice = np.random.default_rng(0)
    theirs, ours = dice.normal(scale=1e-4, size=(2, 64, 3))
    found = accuracy_on_motion(theirs, ours + 1e-5)
    assert found.low <= 0.5 <= found.high


def test_the_same_pictures_cannot_be_told_apart() -> None:
    found = accuracy_on_pixels(small_clips(60, seed=0), small_clips(60, seed=1000))
    assert found.low <= 0.5 <= found.high


def test_soft_edges_are_told_apart() -> None:
    assert accuracy_on_pixels(small_clips(100, seed=0), small_clips(100, seed=1000, blur=True)).mean > 0.9


def test_one_seed_gives_one_answer_and_leaves_torch_alone() -> None:
    theirs, ours = small_clips(12, seed=0), small_clips(12, seed=1000)
    before = torch.get_rng_state()
    assert accuracy_on_pixels(theirs, ours, seed=3) == accuracy_on_pixels(theirs, ours, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_full_report_takes_seconds() -> None:
    """A quarter of the work of 256 clips of 16x32x32, and not more than a quarter of 20 seconds of this process."""
    theirs, ours = ([World().render(r) for r in requests(64, seed=seed)] for seed in (0, 1000))
    began = time.process_time()
    accuracy_on_pixels(theirs, ours)
    assert time.process_time() - began < 5


def test_what_cannot_be_compared_is_refused() -> None:
    few = small_clips(FEWEST - 1, seed=0)
    with pytest.raises(ValueError, match=f"at least {FEWEST} of each"):
        accuracy_on_pixels(few, few)
    with pytest.raises(ValueError, match="equally many"):
        accuracy_on_motion(np.zeros((9, 4)), np.zeros((10, 4)))
    with pytest.raises(ValueError, match="at least"):
        accuracy_on_pixels([], [])
    larger = [World().render(request) for request in requests(9, size=24)]
    with pytest.raises(ValueError, match="clips of one size"):
        accuracy_on_pixels(small_clips(9, seed=0), larger)
