"""A discriminator of one track: where the moving part is passes, how it looks does not."""

import math

import pytest
import torch
from torch import Tensor

from streamstill.codec.video import to_pixels
from streamstill.teachers import WorldTeacher
from streamstill.training.discriminators.centroid import (
    CHANGE,
    SPANS,
    CentroidConfig,
    CentroidDiscriminator,
    background_of,
    motion_of,
)
from streamstill.training.discriminators.losses import bradley_terry_loss
from streamstill.training.optim import OptimConfig, build_optimizer
from streamstill.types import ClipRequest
from streamstill.worlds import World, parse, track
from tests.training.discriminators.parts import OTHER, PROMPT, drifting, pixels

PLACES = [(-0.5, -0.4), (-0.2, -0.3), (0.1, 0.0), (0.3, 0.35), (0.55, 0.5), (0.0, 0.2), (-0.4, 0.1)]


def centroids(seed: int = 0) -> CentroidDiscriminator:
    torch.manual_seed(seed)
    return CentroidDiscriminator(16)


def spots(*, color: tuple[float, float, float], background: Tensor | float = -1.0, width: float = 1.0) -> Tensor:
    """A clip of 16x16 with a soft spot that goes from place to place."""
    cells = torch.linspace(-7.5, 7.5, 16)
    frames = []
    for x, y in PLACES:
        across, down = (torch.exp(-0.5 * ((cells - 7.5 * place) / width).square()) for place in (x, y))
        shown = (down[:, None] * across).expand(3, 16, 16)
        frames.append((1 - shown) * background + shown * torch.tensor(color)[:, None, None])
    return torch.stack(frames)[None]


@pytest.mark.parametrize("color", [(1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (-0.2, 0.1, 0.0)])
@pytest.mark.parametrize("width", [0.8, 1.2])
def test_the_track_is_the_spots_places_whatever_its_color_and_size(
    color: tuple[float, float, float], width: float
) -> None:
    seen = centroids().track(spots(color=color, width=width))
    torch.testing.assert_close(seen[0], torch.tensor(PLACES), atol=0.03, rtol=0)  # a quarter of a pixel


def test_a_picture_behind_the_spot_does_not_count() -> None:
    picture = pixels(1, 1)[0, 0] * 0.3
    seen = centroids().track(spots(color=(1.0, 1.0, 1.0), background=picture))
    torch.testing.assert_close(seen[0], torch.tensor(PLACES), atol=0.06, rtol=0)


def test_where_nothing_moves_the_track_stays_in_the_middle() -> None:
    still = pixels(2, 1).expand(2, 6, 3, 16, 16)
    torch.testing.assert_close(centroids().track(still), torch.zeros(2, 6, 2), atol=1e-5, rtol=0)


def test_what_lies_still_for_most_of_the_time_is_not_the_background() -> None:
    moving = spots(color=(1.0, 1.0, 1.0))[0]
    resting = torch.cat([moving, moving[-1:].expand(12, -1, -1, -1)])[None]
    torch.testing.assert_close(background_of(resting)[0, 0], torch.full((3, 16, 16), -1.0), atol=0.05, rtol=0)
    seen = centroids().track(resting)[0, -1]
    torch.testing.assert_close(seen, torch.tensor(PLACES[-1]), atol=0.03, rtol=0)


def test_noise_below_the_threshold_moves_nothing() -> None:
    noisy = 0.02 * pixels(2, 6)  # the sum over colours of a difference is at most 0.12
    torch.testing.assert_close(centroids().track(noisy), torch.zeros(2, 6, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("prompt", ["A red ball is dropped.", "A blue ball is thrown to the left."])
def test_a_ball_of_the_world_is_followed_to_a_pixel(prompt: str) -> None:
    request = ClipRequest(prompt=prompt, seed=3, frames=16, height=32, width=32, fps=8)
    clip = WorldTeacher(World()).generate(request)
    seen = centroids().track(to_pixels(clip.frames_FCHW)[None])[0]
    known = 2 * torch.from_numpy(track(clip, parse(prompt)).centroid_F2).float() - 1
    miss_in_pixels = 16 * (seen * 31 / 32 - known).norm(dim=-1)  # cells' centres reach from -31/32 to 31/32
    assert float(miss_in_pixels.median()) < 0.5
    assert float(miss_in_pixels.max()) < 2.0


def test_a_parabola_has_one_acceleration_over_every_span() -> None:
    times = torch.arange(8.0)
    place = 0.3 * times - 0.1 * times.square()
    seen = motion_of(place.view(1, 8, 1))[0]
    assert seen.shape == (8, 2 * (1 + 2 * len(SPANS)))
    torch.testing.assert_close(seen[:, 0], place)
    for row, span in enumerate(SPANS):
        velocity, acceleration = seen[:, 1 + 2 * row], seen[:, 2 + 2 * row]
        torch.testing.assert_close(velocity[span:], CHANGE * (place[span:] - place[:-span]) / span)
        assert velocity[:span].abs().max() == 0
        later = acceleration[2 * span :]
        torch.testing.assert_close(later, torch.full_like(later, -0.2 * CHANGE * span), atol=1e-4, rtol=0)
        assert acceleration[: 2 * span].abs().max() == 0
    torch.testing.assert_close(seen[:, 5:], seen[:, :5].square())


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_the_shortest_clips_are_scored(frames: int) -> None:
    score_B = centroids()(pixels(2, frames), [PROMPT, OTHER])
    assert score_B.shape == (2,)
    assert torch.isfinite(score_B).all()


def test_the_score_depends_on_the_prompt_and_not_on_brightness() -> None:
    discriminator = centroids()
    bright, dark = spots(color=(1.0, 1.0, 1.0)), spots(color=(0.0, 0.0, 0.0))
    torch.testing.assert_close(discriminator(bright, [PROMPT]), discriminator(dark, [PROMPT]), atol=5e-3, rtol=0)
    assert not torch.allclose(discriminator(bright, [PROMPT]), discriminator(bright, [OTHER]), atol=5e-3)


def test_it_learns_to_tell_two_motions_apart_on_clips_it_has_not_seen() -> None:
    discriminator = centroids()
    optimizer = build_optimizer(discriminator, OptimConfig(lr=3e-3))
    prompts = [PROMPT, OTHER] * 8
    for seed in range(60):
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


def test_every_parameter_learns_and_a_gradient_reaches_the_pixels() -> None:
    discriminator, clips = centroids(), drifting(2, step=2).requires_grad_()
    bradley_terry_loss(discriminator(clips, [PROMPT, OTHER]), discriminator(pixels(2), [PROMPT, OTHER])).backward()
    idle = [name for name, p in discriminator.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == ["head.score.bias"]  # the Bradley-Terry loss cannot see a constant
    assert clips.grad is not None
    assert float(clips.grad.abs().sum()) > 0


def test_clips_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes clips of shape \(B, F, 3, H, W\)"):
        centroids()(torch.zeros(1, 4, 5, 16, 16), [PROMPT])


def test_numbers_that_make_no_discriminator_are_refused() -> None:
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        CentroidConfig(features=0)
    with pytest.raises(ValueError, match="threshold must not be negative, got -1"):
        CentroidConfig(threshold=-1)
