"""Density and coverage, against scikit-learn's neighbours and their own expectations."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from latentfit.errors import DataError, NonFiniteError
from latentfit.metrics import density_coverage


def normal(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("n, m", [(1500, 700), (300, 1300)])
def test_it_is_the_definition(n: int, m: int, k: int) -> None:
    real, fake = normal(n, 3, 0), normal(m, 3, 1) * 1.5
    radius = NearestNeighbors(n_neighbors=k + 1).fit(real).kneighbors(real)[0][:, -1]
    fakes = NearestNeighbors().fit(fake)
    inside = [
        len(fakes.radius_neighbors([row], reach, return_distance=False)[0])
        for row, reach in zip(real, radius, strict=True)
    ]
    expected = sum(inside) / (k * m), np.mean([count > 0 for count in inside])
    assert density_coverage(real, fake, k=k) == pytest.approx(expected)
    assert density_coverage(torch.tensor(real), torch.tensor(fake), k=k) == pytest.approx(expected)


def test_fakes_that_are_as_good_as_real_rows_have_a_density_of_one() -> None:
    density, coverage = density_coverage(normal(2000, 5, 0), normal(2000, 5, 1))
    assert density == pytest.approx(1, abs=0.05)
    # Each ball holds 5 of 2,000 real rows: a coverage of 1 - 1 / 2^5, as the paper's lemma has it.
    assert coverage == pytest.approx(1 - 2**-5, abs=0.02)


def test_a_mode_that_is_missing_shows_in_coverage_and_noise_in_density() -> None:
    real = normal(1000, 2, 0) + 20 * (np.arange(1000) % 2)[:, None]
    density, coverage = density_coverage(real, normal(1000, 2, 1))
    assert density == pytest.approx(1, abs=0.1)
    assert coverage == pytest.approx(0.5, abs=0.05)
    density, coverage = density_coverage(real, np.concatenate((real + 1e-9, real + 300)))
    assert density < 0.6
    assert coverage == 1


@pytest.mark.parametrize("k", [0, 30])
def test_k_is_checked(k: int) -> None:
    with pytest.raises(DataError, match=f"k as a whole number from 1 to 29; got {k}"):
        density_coverage(normal(30, 2, 0), normal(30, 2, 1), k=k)


def test_what_is_no_pair_of_features_is_refused() -> None:
    with pytest.raises(DataError, match="as many columns"):
        density_coverage(normal(30, 2, 0), normal(30, 3, 1))
    with pytest.raises(NonFiniteError):
        density_coverage(normal(30, 2, 0), np.full((30, 2), np.nan))
