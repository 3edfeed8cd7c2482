"""The closed forms: principal components and least squares, against what they are known to be."""

import numpy as np
import pytest
import torch
from torch import Tensor

from streamstill.codec.linear_start import moments, principal, regression, scales


def rows(count: int, width: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mixing + torch.arange(width)


def test_moments_do_not_depend_on_how_the_rows_are_dealt_out() -> None:
    x, y = rows(30, 4), rows(30, 3, seed=1)
    whole, parts = moments([(x, y)]), moments([(x[:7], y[:7]), (x[7:8], y[7:8]), (x[8:], y[8:])])
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(whole.xx, torch.from_numpy(np.cov(x.double().numpy(), rowvar=False, bias=True)))


def test_principal_directions_lose_the_least() -> None:
    """The error of k directions is the sum of the variances that are left out, and no other k lose less."""
    x = rows(200, 6).double()
    found = moments([(x, x)])
    directions, std = principal(found, 3)
    torch.testing.assert_close(directions.T @ directions, torch.eye(3, dtype=torch.float64))
    centred = x - x.mean(dim=0)
    torch.testing.assert_close((centred @ directions).std(dim=0, correction=0), std)
    error = (centred - centred @ directions @ directions.T).square().sum(dim=1).mean()
    torch.testing.assert_close(error, torch.linalg.eigvalsh(found.xx)[:3].sum())
    for seed in range(5):
        other, _ = torch.linalg.qr(rows(6, 3, seed=seed).double())
        assert (centred - centred @ other @ other.T).square().sum(dim=1).mean() >= error


def test_regression_finds_an_affine_map() -> None:
    x = rows(60, 5).double()
    weight, bias = rows(4, 5, seed=2).double(), torch.tensor([1.0, -2, 3, 0.5], dtype=torch.float64)
    found_weight, found_bias = regression(moments([(x, x @ weight.T + bias)]))
    torch.testing.assert_close(found_weight, weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found_bias, bias, rtol=1e-2, atol=1e-2)


def test_a_column_that_says_nothing_does_no_harm() -> None:
    x = rows(60, 5).double()
    x[:, 2] = 7
    y = x[:, :1] * 2
    weight, bias = regression(moments([(x, y)]))
    torch.testing.assert_close(x @ weight.T + bias, y, rtol=1e-3, atol=1e-2)
    _, std = principal(moments([(x, x)]), 5)
    assert std.min() > 0


def test_nothing_has_no_start() -> None:
    with pytest.raises(ValueError, match="none was given; give at least one"):
        moments([])


@pytest.mark.parametrize("whitening", [0.0, 0.3, 1.0])
def test_scaled_channels_have_variance_1_on_average_in_the_ratio_that_is_asked(whitening: float) -> None:
    std, reach = torch.tensor([4.0, 1.0, 0.5, 2.0]).double(), torch.tensor([1.0, 3.0, 2.0, 0.1]).double()
    found = std / scales(std, reach, whitening)
    torch.testing.assert_close(found.square().mean(), torch.tensor(1.0).double())
    torch.testing.assert_close(found / found[0], (std * reach / 4) ** (1 - whitening))


def test_a_channel_that_is_silent_or_not_heard_keeps_a_scale() -> None:
    std, reach = torch.tensor([1.0, 0.0, 1.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    for whitening in (0.0, 0.5, 1.0):
        found = scales(std, reach, whitening)
        assert bool(found.isfinite().all())
        assert found.min() > 0.1
    assert scales(torch.zeros(2), torch.ones(2), 0.0).tolist() == [1, 1]
