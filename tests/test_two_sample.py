"""Two-sample metrics: C2ST and the energy distance, against closed forms and definitions."""

from typing import Any

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch

from latentfit.errors import DataError, NonFiniteError
from latentfit.metrics import c2st, energy_distance


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0])
def test_the_two_sample_test_approaches_the_best_classifiers_area(shift: float) -> None:
    """Of N(0, I) and N(shift, I) the best area is Phi(|shift| / sqrt(2))."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4000, 3)), rng.normal(size=(5000, 3)) + np.eye(3)[0] * shift
    best = scipy.stats.norm.cdf(shift / np.sqrt(2))
    measured = c2st(x, y)
    assert best - 0.03 < measured < best + 0.02
    assert c2st(torch.from_numpy(x), torch.from_numpy(y)) == measured


def test_the_two_sample_test_sees_what_moments_do_not() -> None:
    rng = np.random.default_rng(0)
    ring = rng.normal(size=(2000, 2))
    ring *= np.sqrt(2) / np.linalg.norm(ring, axis=1, keepdims=True)  # covariance I, no middle
    assert c2st(ring, rng.normal(size=(2000, 2))) > 0.9


def test_the_two_sample_test_does_not_mind_order_or_constant_columns() -> None:
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.normal(size=(2000, 1)), axis=0), rng.normal(size=(2000, 1))
    same = np.ones((2000, 1))
    assert 0.45 < c2st(np.hstack((x, same)), np.hstack((y, same)), seed=3) < 0.55


def test_the_two_sample_test_leaves_the_global_random_state_alone() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    c2st(np.random.default_rng(0).normal(size=(50, 2)), np.ones((8, 2)))
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_the_energy_distance_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1500, 2)), rng.normal(size=(30, 2)) + 1
    far = [np.linalg.norm(a - b) for a in x for b in y]
    in_x, in_y = scipy.spatial.distance.pdist(x), scipy.spatial.distance.pdist(y)
    expected = 2 * np.mean(far) - in_x.mean() - in_y.mean()
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert energy_distance(y, torch.from_numpy(x)) == pytest.approx(expected, rel=1e-9)


def test_the_energy_distance_of_one_distribution_averages_to_zero() -> None:
    rng = np.random.default_rng(0)
    drawn = [
        energy_distance(rng.normal(size=(40, 2)), rng.normal(size=(40, 2))) for _ in range(200)
    ]
    assert abs(np.mean(drawn)) < 4 * np.std(drawn) / np.sqrt(200)
    assert min(drawn) < 0 < max(drawn)


@pytest.mark.parametrize("metric", [c2st, energy_distance])
def test_sets_that_do_not_match_are_refused(metric: Any) -> None:
    ones = np.ones((10, 2))
    for other in (np.ones((10, 3)), np.ones((1, 2)), np.ones(10)):
        with pytest.raises(DataError):
            metric(ones, other)
    with pytest.raises(NonFiniteError):
        metric(ones, ones * np.nan)
