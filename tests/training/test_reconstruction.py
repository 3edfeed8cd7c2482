"""The terms of a reconstruction have known values; the discriminator's part is Bradley-Terry both ways."""

import math

import pytest
import torch
from torch import Tensor, nn

from streamstill.training.objectives.reconstruction import (
    Reconstruction,
    ReconstructionConfig,
    charbonnier,
    reconstruction_terms,
)

PROMPTS = ("a ball", "a box")


def clips(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*(shape or (2, 4, 3, 8, 8)), generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Brightness(nn.Module):
    """A score that is the mean of the pixels, times a weight that can be learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, clips_BFCHW: Tensor, prompts: tuple[str, ...]) -> Tensor:
        return self.weight * clips_BFCHW.mean(dim=(1, 2, 3, 4))


def test_charbonnier_is_the_absolute_error_of_large_errors_and_quadratic_for_small_ones() -> None:
    assert charbonnier(torch.zeros(3)) == 0
    assert float(charbonnier(torch.tensor([5.0, -5.0]))) == pytest.approx(5 - 0.01, abs=1e-4)
    assert float(charbonnier(torch.tensor([1e-3]))) == pytest.approx(1e-6 / (2 * 0.01), rel=0.01)


def test_equal_clips_have_no_error() -> None:
    one = clips()
    assert all(float(term) == 0 for term in reconstruction_terms(one, one, levels=3).values())


def test_a_constant_shift_is_seen_by_all_but_the_temporal_term() -> None:
    terms = reconstruction_terms(clips() + 0.5, clips(), levels=2)
    assert float(terms["pixel"]) == pytest.approx(0.49, abs=1e-3)
    assert float(terms["pyramid"]) == pytest.approx(0.49, abs=1e-3)
    assert float(terms["temporal"]) == pytest.approx(0, abs=1e-6)


def test_checkers_are_invisible_to_the_pyramid_and_flicker_is_what_the_temporal_term_sees() -> None:
    board = torch.tensor([[1.0, -1], [-1, 1]]).repeat(4, 4)
    still = board.expand(1, 4, 3, 8, 8)
    terms = reconstruction_terms(still, torch.zeros_like(still), levels=3)
    assert float(terms["pixel"]) == pytest.approx(0.99, abs=1e-3)
    assert float(terms["pyramid"]) == pytest.approx(0, abs=1e-6)
    assert float(terms["temporal"]) == pytest.approx(0, abs=1e-6)
    signs = torch.tensor([1.0, -1, 1, -1])[None, :, None, None, None]
    assert float(reconstruction_terms(signs * still, 0 * still, levels=3)["temporal"]) == pytest.approx(1.99, abs=1e-3)


def test_levels_that_a_picture_is_too_small_for_are_left_out() -> None:
    one, other = clips(1, 2, 3, 4, 4), clips(1, 2, 3, 4, 4, seed=1)
    assert reconstruction_terms(one, other, levels=2) == reconstruction_terms(one, other, levels=9)
    assert float(reconstruction_terms(one, other, levels=0)["pyramid"]) == 0
    assert float(reconstruction_terms(one[:, :1], other[:, :1], levels=2)["temporal"]) == 0


def test_the_loss_is_the_weighted_sum() -> None:
    config = ReconstructionConfig(pixel=2.0, pyramid=0.25, temporal=3.0, levels=2)
    made, wanted = clips(), clips(seed=1)
    terms = reconstruction_terms(made, wanted, levels=2)
    loss = Reconstruction(config).loss(made, wanted, PROMPTS, step=0)
    torch.testing.assert_close(loss.value, 2 * terms["pixel"] + 0.25 * terms["pyramid"] + 3 * terms["temporal"])
    assert loss.metrics.keys() == {"pixel", "pyramid", "temporal", "psnr"}


def test_psnr_is_logged_for_a_peak_of_2() -> None:
    wanted = torch.zeros(1, 2, 3, 4, 4)
    loss = Reconstruction(ReconstructionConfig()).loss(wanted + 0.2, wanted, PROMPTS[:1], step=0)
    assert float(loss.metrics["psnr"]) == pytest.approx(20 * math.log10(2 / 0.2), rel=1e-4)


def test_fooling_begins_at_its_step_and_has_a_gradient_for_the_maker_alone() -> None:
    discriminator = Brightness()
    parts = Reconstruction(ReconstructionConfig(adversarial=2.0, adversarial_from=3), discriminator)
    made, wanted = clips().requires_grad_(True), clips(seed=1)
    early, late = (parts.loss(made, wanted, PROMPTS, step=step) for step in (2, 3))
    score = made.mean(dim=(1, 2, 3, 4)) - wanted.mean(dim=(1, 2, 3, 4))
    fooling = -torch.nn.functional.logsigmoid(score).mean()
    torch.testing.assert_close(late.value - early.value, 2 * fooling)
    assert "adversarial" not in early.metrics
    (gradient,) = torch.autograd.grad(late.value - early.value, made)
    assert (gradient < 0).all()  # brighter clips score higher


def test_the_discriminator_learns_to_prefer_the_wanted_clip() -> None:
    parts = Reconstruction(ReconstructionConfig(adversarial=1.0), Brightness())
    (player,) = parts.players
    assert player.name == "discriminator"
    dark, bright = clips() - 1, clips() + 1
    loss = parts.discriminator_loss(dark, bright, PROMPTS)
    assert float(loss.value.detach()) == pytest.approx(math.log1p(math.exp(-2)), rel=1e-4)
    assert float(loss.metrics["told_apart"]) == 1
    equal = parts.discriminator_loss(dark, dark, PROMPTS)
    assert float(equal.value.detach()) == pytest.approx(math.log(2), rel=1e-5)


def test_without_a_weight_there_is_no_second_player() -> None:
    assert Reconstruction(ReconstructionConfig()).players == ()
    with pytest.raises(ValueError, match="a discriminator is given"):
        Reconstruction(ReconstructionConfig(), Brightness())
    with pytest.raises(ValueError, match="no discriminator is given"):
        Reconstruction(ReconstructionConfig(adversarial=0.1))


@pytest.mark.parametrize("wrong", [{"pixel": -1.0}, {"pixel": 0.0, "pyramid": 0.0}, {"levels": -1}, {"temporal": -0.1}])
def test_weights_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        ReconstructionConfig(**wrong)  # type: ignore[arg-type]
