"""Cuts of clips and latents: pure functions of the step, really cut out, mirrored only where that is allowed."""

import numpy as np
import pytest
import torch

from streamstill.codec.video import to_frames
from streamstill.training.batches import Examples
from streamstill.training.crops import Crop, crop_batches, latent_crop_batches
from streamstill.types import Clip


def clip(seed: int, frames: int = 6, height: int = 10, width: int = 12) -> Clip:
    """Every pixel says where it is: red is the frame, green the row, blue the column; ``seed`` is added."""
    f, h, w = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    return Clip(frames_FCHW=np.stack([f, h, w], axis=1).astype(np.uint8) + np.uint8(100 * seed), fps=8)


CLIPS = [("zero", clip(0)), ("one", clip(1))]
CROP = Crop(frames=3, height=4, width=5)


def test_a_batch_is_a_function_of_the_step() -> None:
    first, second = (crop_batches(CLIPS, CROP, batch=4, seed=3) for _ in range(2))
    assert first(7).pixels_BFCHW.shape == (4, 3, 3, 4, 5)
    assert torch.equal(first(7).pixels_BFCHW, second(7).pixels_BFCHW)
    assert not torch.equal(first(7).pixels_BFCHW, first(8).pixels_BFCHW)
    assert not torch.equal(first(7).pixels_BFCHW, crop_batches(CLIPS, CROP, batch=4, seed=4)(7).pixels_BFCHW)


def test_cuts_are_cut_out_and_half_of_them_mirrored() -> None:
    """Frames and rows count up by one; columns up, or down where the cut is mirrored."""
    batches = crop_batches(CLIPS, CROP, batch=8, seed=0)
    mirrored, starts = 0, set()
    for step in range(20):
        made = batches(step)
        for pixels, prompt in zip(made.pixels_BFCHW, made.prompts, strict=True):
            where = to_frames(pixels).astype(int) - (100 if prompt == "one" else 0)
            assert (np.diff(where[:, 0], axis=0) == 1).all()
            assert (np.diff(where[:, 1], axis=1) == 1).all()
            (step_of_columns,) = set(np.diff(where[:, 2], axis=2).flatten().tolist())
            mirrored += step_of_columns == -1
            starts.add((prompt, where[0, 0].min(), where[0, 1].min(), where[0, 2].min()))
    assert 60 < mirrored < 100
    assert {start[1] for start in starts} == {0, 1, 2, 3}
    assert {start[2] for start in starts} == set(range(7))
    assert {start[3] for start in starts} == set(range(8))
    assert {start[0] for start in starts} == {"zero", "one"}


def test_nothing_is_mirrored_without_flip() -> None:
    batches = crop_batches(CLIPS[:1], Crop(frames=6, height=10, width=12, flip=False), batch=2, seed=0)
    for step in range(5):
        for pixels in batches(step).pixels_BFCHW:
            assert np.array_equal(to_frames(pixels), CLIPS[0][1].frames_FCHW)


def test_a_part_of_a_batch_keeps_its_prompts() -> None:
    made = crop_batches(CLIPS, CROP, batch=5, seed=0)(0)
    part = made[3:]
    assert part.prompts == made.prompts[3:]
    assert torch.equal(part.pixels_BFCHW, made.pixels_BFCHW[3:])


def test_latents_are_cut_in_the_same_way() -> None:
    f, h, w = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), torch.arange(6.0), indexing="ij")
    given = Examples(torch.stack([torch.stack([f, h, w], dim=1) + 10 * row for row in range(2)]), ("a", "b"))
    batches = latent_crop_batches(given, Crop(frames=2, height=3, width=3, flip=False), batch=3, seed=1)
    for step in range(10):
        made = batches(step)
        assert made.latents_BFCHW.shape == (3, 2, 3, 3, 3)
        for latents, prompt in zip(made.latents_BFCHW, made.prompts, strict=True):
            assert (latents.diff(dim=0)[:, 0] == 1).all()
            assert (latents[:, 2].diff(dim=2) == 1).all()
            assert (latents[:, 2] >= 10).all() == (prompt == "b")
    assert torch.equal(batches(4).latents_BFCHW, batches(4).latents_BFCHW)


def test_a_crop_shrinks_to_the_room_there_is() -> None:
    assert CROP.within(2, 100, 4) == Crop(frames=2, height=4, width=4)
    assert CROP.within(9, 9, 9) == CROP


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'zero' has frames, rows and columns \(6, 10, 12\), no room for a cut of"):
        crop_batches(CLIPS, Crop(frames=7, height=4, width=4), batch=1, seed=0)
    with pytest.raises(ValueError, match="need at least 1 clip"):
        crop_batches([], CROP, batch=1, seed=0)
    examples = Examples(torch.zeros(1, 2, 3, 4, 4), ("a",))
    with pytest.raises(ValueError, match="flip=False"):
        latent_crop_batches(examples, Crop(frames=1, height=1, width=1), batch=1, seed=0)
    with pytest.raises(ValueError, match="a clip's latents has"):
        latent_crop_batches(examples, Crop(frames=3, height=1, width=1, flip=False), batch=1, seed=0)
    with pytest.raises(ValueError, match="height must be at least 1, got 0"):
        Crop(frames=1, height=0, width=1)
