"""Both sides take the same way: through a file, the codec, and a resampling in space and time."""

import pytest
import torch
from torch import Tensor

from streamstill.codec.patch import PatchCodec
from streamstill.training.discriminators.augmentation import NOTHING, Augmentation, File, blurred, stored
from tests.training.discriminators.parts import checkerboard, dice, drifting, pixels

CODEC = PatchCodec()
FILES: tuple[File, ...] = ("8bit", "mjpeg", "h264")


class Halving(PatchCodec):
    """A codec that loses something: what it decodes is half as strong, and too bright."""

    def decode(self, latents_BFCHW: Tensor, state: object = None) -> tuple[Tensor, object]:
        return super().decode(latents_BFCHW)[0] / 2 + 0.75, state


def test_by_default_nothing_is_touched() -> None:
    assert Augmentation() == NOTHING
    assert torch.equal(NOTHING(pixels(), CODEC, dice()), pixels())


def test_the_codec_leaves_its_own_traces_and_nothing_that_no_screen_shows() -> None:
    seen = Augmentation(codec_round_trip=True)(pixels(), Halving(), dice())
    torch.testing.assert_close(seen, (pixels() / 2 + 0.75).clamp(-1, 1))
    assert torch.equal(Augmentation(codec_round_trip=True)(pixels(), CODEC, dice()), pixels())


def test_of_every_few_frames_the_first_is_seen() -> None:
    seen = Augmentation(every=3)(pixels(frames=8), CODEC, dice())
    assert torch.equal(seen, pixels(frames=8)[:, [0, 3, 6]])


@pytest.mark.parametrize("size", [(16, 16), (15, 9)])
def test_shrunk_clips_have_their_size_and_no_fine_pattern(size: tuple[int, int]) -> None:
    shrink = Augmentation(shrink=2)
    seen = shrink(pixels(2, 4, *size), CODEC, dice())
    assert seen.shape == (2, 4, 3, *size)
    assert seen.abs().max() <= 1
    assert shrink(checkerboard(), CODEC, dice()).abs().max() < 1e-6
    grey = torch.full((1, 2, 3, *size), 0.3)
    torch.testing.assert_close(shrink(grey, CODEC, dice()), grey)


def test_eight_bits_are_the_nearest_of_256_levels() -> None:
    seen = stored(pixels(), "8bit")
    assert (seen - pixels()).abs().max() <= 1 / 255 + 1e-6
    levels = (seen + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    torch.testing.assert_close(stored(seen, "8bit"), seen, atol=1e-6, rtol=0)


@pytest.mark.parametrize("file", ["mjpeg", "h264"])
def test_a_lossy_file_keeps_the_clip_and_not_its_bits(file: File) -> None:
    clips = drifting(2, step=2)
    seen = stored(clips, file)
    assert seen.shape == clips.shape
    assert not torch.equal(seen, stored(clips, "8bit"))
    assert (seen - clips).square().mean().sqrt() < 0.15
    assert torch.equal(stored(clips, file), seen)


@pytest.mark.parametrize("file", FILES)
def test_each_clip_has_a_file_of_its_own(file: File) -> None:
    clips = torch.cat([drifting(1, step=1), drifting(1, step=3)])
    torch.testing.assert_close(stored(clips, file)[1:], stored(clips[1:], file))


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(file=file, codec_round_trip=True, shrink=2, every=2) for file in ("none", *FILES)],
    ids=lambda augmentation: augmentation.file,
)
def test_which_side_a_clip_is_on_and_what_is_beside_it_does_not_matter(augmentation: Augmentation) -> None:
    clips = drifting(3, step=1)
    together = augmentation(clips, CODEC, dice())
    for row in range(3):
        torch.testing.assert_close(augmentation(clips[row : row + 1], CODEC, dice())[0], together[row])


def test_a_gradient_flows_through_all_but_a_file() -> None:
    clips = pixels().requires_grad_()
    Augmentation(codec_round_trip=True, shrink=2, every=2)(clips, CODEC, dice()).sum().backward()
    assert clips.grad is not None
    assert (clips.grad[:, ::2] > 0).all()
    with pytest.raises(ValueError, match="no gradient flows through a file, and file='8bit' was asked"):
        Augmentation(file="8bit")(clips, CODEC, dice())
    with torch.no_grad():
        assert Augmentation(file="8bit")(clips, CODEC, dice()).shape == clips.shape


@pytest.mark.parametrize("field", ["shrink", "every"])
def test_a_resampling_by_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        Augmentation(**{field: 0})  # type: ignore[arg-type]


def test_a_clip_is_blurred_by_its_own_width_and_nothing_is_lost() -> None:
    """The spread of a point of light is the width that was asked for, and its sum stays."""
    light = torch.zeros(2, 1, 1, 41, 41)
    light[:, :, :, 20, 20] = 1
    spread = blurred(light, torch.tensor([1.0, 3.0]))
    places = torch.arange(41.0) - 20
    for row, width in enumerate((1.0, 3.0)):
        over_columns = spread[row, 0, 0].sum(dim=0)
        assert float(over_columns.sum()) == pytest.approx(1, abs=1e-5)
        assert float((over_columns * places.square()).sum()) == pytest.approx(width**2, rel=0.04)
        torch.testing.assert_close(spread[row, 0, 0], spread[row, 0, 0].T)


def test_a_plain_picture_stays_plain_under_blur() -> None:
    plain = torch.full((1, 2, 3, 9, 7), 0.3)
    torch.testing.assert_close(blurred(plain, torch.tensor([2.0])), plain)


def test_blur_and_contrast_are_drawn_anew_for_each_clip_and_each_time_and_are_one_for_its_frames() -> None:
    clips = drifting(1, step=0).repeat(2, 1, 1, 1, 1)
    generator = dice()
    augmentation = Augmentation(blur=(0.5, 3.0), contrast=0.3)
    first, again = augmentation(clips, CODEC, generator), augmentation(clips, CODEC, generator)
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first, again)
    torch.testing.assert_close(first[:, :1].expand_as(first), first)
    torch.testing.assert_close(augmentation(clips, CODEC, dice()), first)


def test_random_blur_hides_which_side_is_the_sharper_one() -> None:
    """A side that is a little softer stays softer on average, and is the sharper one of a pair nearly half the time."""
    sharp = drifting(64, step=1)
    soft = blurred(sharp, torch.full((64,), 0.6))

    def edges(clips: Tensor) -> Tensor:
        return clips.diff(dim=-1).square().mean((1, 2, 3, 4))

    augmentation, generator = Augmentation(blur=(0.5, 3.0)), dice()
    seen = [edges(augmentation(clips, CODEC, generator)) for clips in (sharp, soft)]
    assert (edges(sharp) > edges(soft)).all()
    assert 0.4 < float((seen[0] > seen[1]).float().mean()) < 0.75


@pytest.mark.parametrize("blur", [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_widths_that_are_none_are_refused(blur: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="blur must be two widths in pixels, 0 < least <= largest"):
        Augmentation(blur=blur)


@pytest.mark.parametrize("contrast", [-0.1, 1.0])
def test_a_contrast_that_leaves_nothing_is_refused(contrast: float) -> None:
    with pytest.raises(ValueError, match=r"contrast must lie in \[0, 1\)"):
        Augmentation(contrast=contrast)
