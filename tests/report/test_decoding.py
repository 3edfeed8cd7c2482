"""Likeness and shares of time: known numbers, real streams, and decoders that are slow on purpose."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streamstill.codec.video import to_frames
from streamstill.report.decoding import MOST_DB, decoded, likeness, time_decoders
from streamstill.testing import tiny_student
from streamstill.types import Clip
from tests.codec.parts import codec, pixels

PAUSE_MS = 20.0


class Slow:
    """A decoder that sleeps, and writes down what it was given."""

    def __init__(self, milliseconds: float) -> None:
        self.milliseconds = milliseconds
        self.seen: list[Any] = []

    def decode(self, latents_BFCHW: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        self.seen.append(state)
        time.sleep(self.milliseconds / 1000)
        return torch.zeros(1, 2, 3, 4, 4), len(self.seen)


def flat(grey: int) -> Clip:
    return Clip(frames_FCHW=np.full((2, 3, 12, 12), grey, dtype=np.uint8), fps=8)


def test_likeness_is_psnr_and_ssim_over_pairs() -> None:
    found = likeness([flat(100), flat(110)], [flat(105), flat(110)])
    known = 20 * np.log10(255 / 5)
    assert found["psnr"]["mean"] == pytest.approx((known + MOST_DB) / 2)
    assert found["psnr"]["n"] == found["ssim"]["n"] == 2
    assert found["psnr"]["low"] == pytest.approx(known)
    assert found["psnr"]["high"] == MOST_DB
    assert 0.99 < found["ssim"]["mean"] < 1


def test_decoded_clips_are_those_of_the_decoder() -> None:
    ours, given = codec(), pixels(2, 4, 12, 12)
    latents = ours.encode(given).detach()
    made = decoded(ours, latents, fps=6)
    assert [clip.fps for clip in made] == [6, 6]
    expected, _ = ours.decode(latents[1:])
    assert np.array_equal(made[1].frames_FCHW, to_frames(expected[0]))


def test_shares_are_of_the_time_that_was_really_spent() -> None:
    """A decoder that sleeps takes at least its sleep, and one that does not takes next to nothing."""
    student = tiny_student()
    decoders = {"slow": Slow(PAUSE_MS), "fast": Slow(0)}
    times = time_decoders(
        student.network,
        student.encode_prompts(["a ball"]).detach(),
        decoders,
        latent_shape=(96, 4, 4),
        sampling=student.config.sampling,
        rounds=5,
    )
    slow, fast = times["slow"], times["fast"]
    assert slow.network_ms == fast.network_ms
    assert slow.decode_ms.low >= PAUSE_MS
    assert fast.decode_ms.median < PAUSE_MS
    whole = slow.network_ms.median + slow.decode_ms.median
    assert slow.share == pytest.approx(slow.decode_ms.median / whole)
    assert 0 < fast.share < slow.share < 1
    assert slow.as_json()["share"] == slow.share


def test_every_decoder_goes_on_with_its_own_state() -> None:
    student, slow = tiny_student(), Slow(0)
    time_decoders(
        student.network,
        student.encode_prompts(["a ball"]).detach(),
        {"only": slow},
        latent_shape=(96, 4, 4),
        sampling=student.config.sampling,
        rounds=3,
    )
    assert slow.seen == [None, 1, 2, 3, 4]  # two to warm up, three that count
