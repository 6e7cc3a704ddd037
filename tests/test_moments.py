"""Moments in one pass: against numpy, however the latents are cut."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from latentfit.errors import DataError
from latentfit.moments import measure


def nasty(n: int = 5000) -> Tensor:
    """A mean of a million and a deviation of a thousandth; a trend, so that pieces differ; correlated."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 1] += 0.8 * x[:, 0]
    x += torch.linspace(0, 3, n, dtype=torch.float64)[:, None]
    return 1e6 + 1e-3 * x


def exact(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance in 80-bit numbers, which hold the same latents with 11 bits to spare."""
    wide = x.numpy().astype(np.longdouble)
    mean = wide.mean(0)
    centred = wide - mean
    return mean.astype(np.float64), (centred.T @ centred / len(wide)).astype(np.float64)


CUTS = {
    "whole": [5000],
    "halves": [2500, 2500],
    "with empty ones": [0, 1, 0, 4999, 0],
    "uneven": [1, 2, 3, 994, 4000],
    "one by one": [1] * 200 + [4800],
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("covariance", [False, True])
def test_moments_are_numpys_however_the_latents_are_cut(cut: list[int], covariance: bool) -> None:
    x = nasty()
    mean, products = exact(x)
    got = measure(x.split(cut), covariance=covariance)
    assert got.n == 5000
    assert got.shape == (4,)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.mean, mean, rtol=1e-15)
    np.testing.assert_allclose(got.variance, np.diag(products), rtol=1e-11)
    np.testing.assert_array_equal(got.low, x.amin(0))
    np.testing.assert_array_equal(got.high, x.amax(0))
    if covariance:
        assert got.covariance is not None
        np.testing.assert_allclose(got.covariance, products, rtol=1e-11)
        assert torch.equal(got.covariance.diagonal(), got.variance)
    else:
        assert got.covariance is None


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_the_cut_does_not_matter(cut: list[int]) -> None:
    x = nasty()
    whole, parts = (measure(p, covariance=True) for p in ([x], x.split(cut)))
    for one, other in ((whole.mean, parts.mean), (whole.covariance, parts.covariance)):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_a_part_is_looked_at_in_pieces() -> None:
    x = torch.randn(3000, 700, generator=torch.Generator().manual_seed(0))  # several MB
    got = measure([x], covariance=True)
    mean, products = exact(x.double())
    np.testing.assert_allclose(got.mean, mean, atol=1e-12)
    np.testing.assert_allclose(got.covariance, products, atol=1e-12)


def test_an_outlier_in_the_first_row_costs_nothing() -> None:
    x = nasty() - 1e6
    x[0] = 1e9
    _, products = exact(x)
    np.testing.assert_allclose(
        measure(x.split(7), covariance=True).covariance, products, rtol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_latents_of_any_shape_are_summed_widely(dtype: torch.dtype) -> None:
    x = (torch.rand(4000, 2, 3, generator=torch.Generator().manual_seed(0)) + 50).to(dtype)
    got = measure(iter(x.split(999)), covariance=False)
    assert got.shape == (2, 3)
    assert got.dtype == dtype
    flat = x.double().flatten(1)
    torch.testing.assert_close(got.mean, flat.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(got.variance, flat.var(0, correction=0), rtol=1e-12, atol=0)


def test_the_latents_stay_as_they_are_and_get_no_gradient() -> None:
    x = nasty().requires_grad_()
    before = x.detach().clone()
    assert not measure([x], covariance=True).mean.requires_grad
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("parts", [[], [torch.zeros(0, 3)]])
def test_no_latents_are_refused(parts: list[Tensor]) -> None:
    with pytest.raises(DataError, match="Expected latents; got none"):
        measure(parts, covariance=False)


@pytest.mark.parametrize("covariance", [False, True])
def test_numbers_beyond_what_can_be_squared_are_refused(covariance: bool) -> None:
    with pytest.raises(DataError, match=r"squares are finite; got values from .*e\+206"):
        measure([nasty() * 1e200], covariance=covariance)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e5, 1e-20])
def test_equal_numbers_do_not_vary(value: float) -> None:
    got = measure(torch.full((1000, 2), value).split(3), covariance=True)
    assert not got.varies.any()
    assert torch.equal(got.center, torch.full((2,), value).double())
    assert math.sqrt(float(got.variance.max())) <= 1e-15 * abs(value)
