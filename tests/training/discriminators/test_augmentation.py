"""Both sides take the same way: through a file, the codec, and a resampling in space and time."""

import pytest
import torch
from torch import Tensor

from streamstill.codec.patch import PatchCodec
from streamstill.training.discriminators.augmentation import NOTHING, Augmentation, File, stored
from tests.training.discriminators.parts import checkerboard, drifting, pixels

CODEC = PatchCodec()
FILES: tuple[File, ...] = ("8bit", "mjpeg", "h264")


class Halving(PatchCodec):
    """A codec that loses something: what it decodes is half as strong, and too bright."""

    def decode(self, latents_BFCHW: Tensor, state: object = None) -> tuple[Tensor, object]:
        return super().decode(latents_BFCHW)[0] / 2 + 0.75, state


def test_by_default_nothing_is_touched() -> None:
    assert Augmentation() == NOTHING
    assert torch.equal(NOTHING(pixels(), CODEC), pixels())


def test_the_codec_leaves_its_own_traces_and_nothing_that_no_screen_shows() -> None:
    seen = Augmentation(codec_round_trip=True)(pixels(), Halving())
    torch.testing.assert_close(seen, (pixels() / 2 + 0.75).clamp(-1, 1))
    assert torch.equal(Augmentation(codec_round_trip=True)(pixels(), CODEC), pixels())


def test_of_every_few_frames_the_first_is_seen() -> None:
    seen = Augmentation(every=3)(pixels(frames=8), CODEC)
    assert torch.equal(seen, pixels(frames=8)[:, [0, 3, 6]])


@pytest.mark.parametrize("size", [(16, 16), (15, 9)])
def test_shrunk_clips_have_their_size_and_no_fine_pattern(size: tuple[int, int]) -> None:
    shrink = Augmentation(shrink=2)
    seen = shrink(pixels(2, 4, *size), CODEC)
    assert seen.shape == (2, 4, 3, *size)
    assert seen.abs().max() <= 1
    assert shrink(checkerboard(), CODEC).abs().max() < 1e-6
    grey = torch.full((1, 2, 3, *size), 0.3)
    torch.testing.assert_close(shrink(grey, CODEC), grey)


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
    together = augmentation(clips, CODEC)
    for row in range(3):
        torch.testing.assert_close(augmentation(clips[row : row + 1], CODEC)[0], together[row])


def test_a_gradient_flows_through_all_but_a_file() -> None:
    clips = pixels().requires_grad_()
    Augmentation(codec_round_trip=True, shrink=2, every=2)(clips, CODEC).sum().backward()
    assert clips.grad is not None
    assert (clips.grad[:, ::2] > 0).all()
    with pytest.raises(ValueError, match="no gradient flows through a file, and file='8bit' was asked"):
        Augmentation(file="8bit")(clips, CODEC)
    with torch.no_grad():
        assert Augmentation(file="8bit")(clips, CODEC).shape == clips.shape


@pytest.mark.parametrize("field", ["shrink", "every"])
def test_a_resampling_by_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        Augmentation(**{field: 0})  # type: ignore[arg-type]
