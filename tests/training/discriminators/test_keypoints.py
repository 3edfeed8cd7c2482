"""A discriminator of points and their motion: where things are passes, how they look does not."""

import math

import pytest
import torch
from torch import Tensor

from streamstill.training.discriminators.keypoints import CHANGE, KeypointConfig, KeypointDiscriminator, motion_of
from streamstill.training.discriminators.losses import bradley_terry_loss
from streamstill.training.optim import OptimConfig, build_optimizer
from tests.training.discriminators.parts import OTHER, PROMPT, drifting, pixels


def keypoints(seed: int = 0, points: int = 3) -> KeypointDiscriminator:
    torch.manual_seed(seed)
    return KeypointDiscriminator(points, 16)


def bright_is_heavy(discriminator: KeypointDiscriminator) -> KeypointDiscriminator:
    """The maps become the brightness above black, by hand."""
    first, _, last = discriminator.maps
    assert isinstance(first, torch.nn.Conv2d)
    assert isinstance(last, torch.nn.Conv2d)
    with torch.no_grad():
        for convolution in (first, last):
            convolution.weight.zero_()
            assert convolution.bias is not None
            convolution.bias.zero_()
        first.weight[0, :, 1, 1] = 10.0  # SiLU is the identity far above zero, and nothing far below
        last.weight[:, 0, 1, 1] = 0.1
    return discriminator


def spot(x: float, y: float, brightness: float, width: float = 1.5) -> Tensor:
    """One frame of 16x16 with a soft spot around the point (x, y) of a picture from -1 to 1."""
    places = torch.linspace(-1, 1, 16) * 7.5
    shape = torch.exp(-0.5 * ((places - 7.5 * x) / width).square())
    other = torch.exp(-0.5 * ((places - 7.5 * y) / width).square())
    return (brightness * other[:, None] * shape).expand(1, 1, 3, 16, 16)


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (0.31, -0.2), (-0.44, 0.27)])
@pytest.mark.parametrize("brightness", [0.4, 1.0])
def test_a_point_is_where_the_spot_is_to_a_fraction_of_a_pixel_whatever_its_brightness(
    x: float, y: float, brightness: float
) -> None:
    points = bright_is_heavy(keypoints()).points(spot(x, y, brightness))[0, 0]
    torch.testing.assert_close(points[:3], torch.full((3,), x), atol=0.01, rtol=0)
    torch.testing.assert_close(points[3:], torch.full((3,), y), atol=0.01, rtol=0)


def test_a_spots_width_does_not_move_its_point() -> None:
    points = [bright_is_heavy(keypoints()).points(spot(0.1, -0.1, 1.0, width)) for width in (1.0, 2.0)]
    torch.testing.assert_close(points[0], points[1], atol=0.01, rtol=0)


def test_an_empty_picture_has_its_points_in_the_middle() -> None:
    points = bright_is_heavy(keypoints()).points(-torch.ones(1, 2, 3, 16, 16))
    torch.testing.assert_close(points, torch.zeros(1, 2, 6), atol=1e-6, rtol=0)


def test_a_parabola_has_one_acceleration() -> None:
    times = torch.arange(6.0)
    seen = motion_of((0.3 * times - 0.1 * times.square()).view(1, 6, 1))
    assert seen.shape == (1, 6, 6)
    place, velocity, acceleration = seen[0, :, :3].T
    torch.testing.assert_close(place, 0.3 * times - 0.1 * times.square())
    torch.testing.assert_close(velocity[1:], CHANGE * (place[1:] - place[:-1]))
    torch.testing.assert_close(acceleration[2:], torch.full((4,), -0.2 * CHANGE), atol=1e-4, rtol=0)
    assert velocity[0] == 0
    assert acceleration[:2].abs().max() == 0
    torch.testing.assert_close(seen[0, :, 3:], seen[0, :, :3].square())


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_shortest_clips_are_scored(frames: int) -> None:
    score_B = keypoints()(pixels(2, frames), [PROMPT, OTHER])
    assert score_B.shape == (2,)
    assert torch.isfinite(score_B).all()


def test_the_score_depends_on_the_prompt_and_is_the_mean_of_the_chunks() -> None:
    discriminator, clips = keypoints(), pixels(3)
    score_B = discriminator(clips, [PROMPT] * 3)
    assert not torch.allclose(score_B, discriminator(clips, [OTHER] * 3))
    score_BK = discriminator.chunk_scores(clips, [PROMPT] * 3, chunks=4)
    torch.testing.assert_close(score_BK.mean(1), score_B)
    assert len(set(score_BK[0].tolist())) == 4


def test_nothing_after_a_chunk_counts_for_it() -> None:
    discriminator, clips = keypoints(), pixels(2)
    other = torch.cat([clips[:, :4], pixels(2, 4, seed=1)], dim=1)
    before, after = (discriminator.chunk_scores(x, [PROMPT] * 2, chunks=2) for x in (clips, other))
    torch.testing.assert_close(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_it_learns_to_tell_two_motions_apart_on_clips_it_has_not_seen() -> None:
    discriminator = keypoints()
    optimizer = build_optimizer(discriminator, OptimConfig(lr=3e-3))
    prompts = [PROMPT, OTHER] * 8
    for seed in range(40):
        loss = bradley_terry_loss(
            discriminator(drifting(16, step=1, seed=seed), prompts),
            discriminator(drifting(16, step=3, seed=seed), prompts),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        unseen = [discriminator(drifting(16, step=step, seed=99), prompts) for step in (1, 3)]
    assert (unseen[0] > unseen[1]).float().mean() >= 0.9
    assert float(loss.detach()) < math.log(2) / 2


def test_every_parameter_learns() -> None:
    discriminator = keypoints()
    bradley_terry_loss(
        discriminator(drifting(2, step=2), [PROMPT, OTHER]), discriminator(drifting(2, step=0), [PROMPT, OTHER])
    ).backward()
    idle = [name for name, p in discriminator.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == ["head.score.bias"]  # the Bradley-Terry loss cannot see a constant


def test_clips_of_other_channels_and_uneven_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes clips of shape \(B, F, 3, H, W\)"):
        keypoints()(torch.zeros(1, 4, 5, 16, 16), [PROMPT])
    with pytest.raises(ValueError, match="8 frames cannot be cut into 3 equal chunks"):
        keypoints().chunk_scores(pixels(1), [PROMPT], chunks=3)


def test_numbers_that_make_no_network_are_refused() -> None:
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        KeypointConfig(points=0)
