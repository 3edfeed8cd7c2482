"""The discriminator: a score that knows its prompt, and a blindfold that keeps it from judging by edges."""

import math

import pytest
import torch
from torch import Tensor

from streamstill.training.discriminator import Blindfold, MotionDiscriminator, bradley_terry_loss
from streamstill.training.optim import OptimConfig, build_optimizer

PROMPT, OTHER = "a red ball is dropped", "a blue box is thrown to the left"


def fresh(seed: int = 0, width: int = 16) -> MotionDiscriminator:
    torch.manual_seed(seed)
    return MotionDiscriminator(width)


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drifting(count: int, step: int) -> Tensor:
    """A bright square that moves ``step`` pixels a frame, from a random column."""
    pixels = -torch.ones(count, 8, 3, 16, 16)
    for row, start in enumerate(torch.randint(0, 16, (count,), generator=dice(step)).tolist()):
        for frame in range(8):
            columns = [(start + step * frame + i) % 16 for i in range(4)]
            pixels[row, frame, :, 6:10, columns] = 1
    return pixels


@pytest.mark.parametrize("score", [-3.0, 0.0, 40.0])
def test_bradley_terry_of_equal_scores_is_log_2(score: float) -> None:
    equal = torch.full((5,), score, dtype=torch.float64)
    assert float(bradley_terry_loss(equal, equal)) == pytest.approx(math.log(2), abs=1e-12)


def test_bradley_terry_is_minus_the_log_of_the_chance_that_the_teacher_wins() -> None:
    teacher, student = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 3.0]).double()
    expected = -(math.log(1 / (1 + math.exp(-1))) + math.log(1 / (1 + math.exp(3)))) / 2
    assert float(bradley_terry_loss(teacher, student)) == pytest.approx(expected, abs=1e-12)


def test_bradley_terry_sees_differences_alone() -> None:
    teacher, student = torch.randn(2, 6, dtype=torch.float64, generator=dice())
    constant = torch.randn(6, dtype=torch.float64, generator=dice(1))
    one, other = bradley_terry_loss(teacher, student), bradley_terry_loss(teacher + constant, student + constant)
    torch.testing.assert_close(one, other)


def test_bradley_terry_stays_finite_when_one_side_is_sure() -> None:
    far = torch.tensor([1000.0], requires_grad=True)
    loss = bradley_terry_loss(-far, far)
    loss.backward()
    assert loss.item() == pytest.approx(2000)
    assert torch.isfinite(far.grad if far.grad is not None else torch.tensor(math.nan)).all()


def test_the_score_depends_on_the_prompt_and_each_clip_has_its_own() -> None:
    discriminator, clips = fresh(), torch.rand(3, 8, 3, 16, 16, generator=dice()) * 2 - 1
    score_B = discriminator(clips, [PROMPT] * 3)
    assert score_B.shape == (3,)
    assert len(set(score_B.tolist())) == 3
    assert not torch.allclose(score_B, discriminator(clips, [OTHER] * 3))
    torch.testing.assert_close(discriminator(clips[1:2], [PROMPT]), score_B[1:2])


def test_the_score_depends_on_the_order_of_the_frames() -> None:
    discriminator, clips = fresh(), drifting(2, step=2)
    assert not torch.allclose(discriminator(clips, [PROMPT] * 2), discriminator(clips.flip(1), [PROMPT] * 2))


@pytest.mark.parametrize("shape", [(8, 16, 16), (16, 48, 80), (5, 9, 13), (1, 8, 8), (12, 64, 64)])
def test_clips_of_any_length_and_size_are_scored_after_the_blindfold(shape: tuple[int, int, int]) -> None:
    frames, height, width = shape
    pixels = torch.rand(2, frames, 3, height, width, generator=dice()) * 2 - 1
    score_B = fresh()(Blindfold()(pixels, dice()), [PROMPT, OTHER])
    assert score_B.shape == (2,)
    assert torch.isfinite(score_B).all()


def test_it_learns_to_tell_two_motions_apart_through_the_blindfold() -> None:
    discriminator, blindfold, generator = fresh(), Blindfold(), dice()
    optimizer = build_optimizer(discriminator, OptimConfig(lr=3e-3))
    still, moving = drifting(16, step=0), drifting(16, step=3)
    prompts = [PROMPT, OTHER] * 8

    def scores() -> tuple[Tensor, Tensor]:
        seen = [blindfold(clips, generator) for clips in (moving, still)]
        return discriminator(seen[0], prompts), discriminator(seen[1], prompts)

    for _ in range(25):
        loss = bradley_terry_loss(*scores())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        teacher_B, student_B = scores()
    assert (teacher_B > student_B).float().mean() >= 0.9
    assert float(loss.detach()) < math.log(2) / 2


def test_every_parameter_learns() -> None:
    discriminator = fresh()
    bradley_terry_loss(
        discriminator(drifting(2, step=2), [PROMPT, OTHER]), discriminator(drifting(2, step=0), [PROMPT, OTHER])
    ).backward()
    idle = {name for name, p in discriminator.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert idle == {"score.bias"}  # the Bradley-Terry loss cannot see a constant


def test_the_blindfold_makes_a_fine_checkerboard_invisible() -> None:
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    checkerboard = (((rows + columns) % 2) * 2.0 - 1).expand(1, 4, 3, 16, 16)
    assert checkerboard.abs().min() == 1
    assert Blindfold(noise=0)(checkerboard, dice()).abs().max() < 1e-6


def test_the_blindfold_lets_a_slow_wave_through() -> None:
    wave = torch.linspace(-1, 1, 16).expand(1, 4, 3, 16, 16)
    seen = Blindfold(noise=0)(wave, dice())
    assert seen.shape == (1, 4, 3, 9, 9)
    assert seen[..., 1:-1].std() > 0.7 * wave.std()


def test_the_noise_of_the_blindfold_is_the_generators_and_as_strong_as_it_says() -> None:
    grey = torch.zeros(2, 8, 3, 32, 32)
    one, same, other = (Blindfold(noise=0.3)(grey, dice(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.std()) == pytest.approx(0.3, rel=0.05)
