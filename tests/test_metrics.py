"""The Fréchet distance, against scipy's matrix square root and closed forms."""

import numpy as np
import pytest
import scipy.linalg
import torch

from latentfit.errors import DataError, NonFiniteError
from latentfit.metrics import frechet_distance, frechet_distance_from_moments, gaussian_moments

rng = np.random.default_rng(0)


def features(n: int, d: int, seed: int) -> np.ndarray:
    own = np.random.default_rng(seed)
    return own.normal(size=(n, d)) @ own.normal(size=(d, d)) + own.normal(size=d)


@pytest.mark.parametrize("d", [1, 2, 10, 64])
def test_it_equals_the_formula_with_a_matrix_square_root(d: int) -> None:
    x, y = features(300, d, 1), features(200, d, 2)
    c_x, c_y = np.cov(x.T).reshape(d, d), np.cov(y.T).reshape(d, d)
    root = scipy.linalg.sqrtm(c_x @ c_y).real
    gap = x.mean(0) - y.mean(0)
    expected = gap @ gap + np.trace(c_x + c_y - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-6)


def test_commuting_covariances_have_a_closed_form() -> None:
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    a, b = rng.uniform(0.1, 9, 5), rng.uniform(0.1, 9, 5)
    mean = rng.normal(size=5)
    got = frechet_distance_from_moments(mean, basis * a @ basis.T, np.zeros(5), basis * b @ basis.T)
    assert got == pytest.approx(mean @ mean + ((a**0.5 - b**0.5) ** 2).sum())


def test_singular_covariances_are_no_special_case() -> None:
    # Lines along two axes: nothing in common, so the traces add up.
    got = frechet_distance_from_moments(
        np.zeros(3), np.diag([4.0, 0, 0]), np.zeros(3), np.diag([0, 9.0, 0])
    )
    assert got == pytest.approx(13)
    x = features(4, 30, 3)  # fewer rows than columns
    rounding = 30 * np.finfo(float).eps ** 0.5 * np.trace(np.cov(x.T))  # a root per eigenvalue
    assert frechet_distance(x, x) == pytest.approx(0, abs=rounding)
    assert frechet_distance(x, x + 1) == pytest.approx(30, abs=rounding)


def test_it_is_zero_for_equal_sets_and_never_below() -> None:
    for seed in range(20):
        x = features(50, 8, seed) * 1e3
        assert 0 <= frechet_distance(x, x) < 1e-3


def test_moments_are_those_of_numpy() -> None:
    x = features(40, 3, 4)
    mean, covariance = gaussian_moments(x)
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(covariance, np.cov(x.T))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_takes_tensors(dtype: torch.dtype) -> None:
    x, y = torch.from_numpy(features(40, 3, 5)), torch.from_numpy(features(40, 3, 6))
    given = x.to(dtype).requires_grad_()
    expected = frechet_distance(given.detach().double().numpy(), y.numpy())
    assert frechet_distance(given, y) == expected


@pytest.mark.parametrize(
    "x", [np.zeros(3), np.zeros((1, 3)), np.zeros((3, 0)), np.zeros((2, 2, 2)), 3.0, []]
)
def test_other_shapes_are_refused(x: object) -> None:
    with pytest.raises(DataError, match="Expected features of shape"):
        gaussian_moments(x)


@pytest.mark.parametrize("x", [[["a", "b"], ["c", "d"]], [[1.0], [1.0, 2.0]], None])
def test_other_things_are_refused(x: object) -> None:
    with pytest.raises(DataError, match="Expected features"):
        gaussian_moments(x)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match=r"two means of shape \(2,\)"):
        frechet_distance(np.eye(2), np.eye(3))


@pytest.mark.parametrize("name", ["mean_x", "cov_x", "mean_y", "cov_y"])
def test_moments_of_another_shape_are_refused_by_name(name: str) -> None:
    given = {"mean_x": [0, 0], "cov_x": np.eye(2), "mean_y": [0, 0], "cov_y": np.eye(2)}
    assert frechet_distance_from_moments(**given) == 0
    given[name] = np.ones((1, 3))
    with pytest.raises(DataError, match=rf"Expected two means .* {name} \(1, 3\)"):
        frechet_distance_from_moments(**given)
    given[name] = np.full((2, 2) if name.startswith("cov") else 2, np.inf)
    with pytest.raises(NonFiniteError, match=f"NaN or infinity in {name}"):
        frechet_distance_from_moments(**given)


def test_non_finite_features_are_counted() -> None:
    x = np.zeros((5, 2))
    x[3, 1] = np.nan
    x[4] = np.inf
    with pytest.raises(NonFiniteError, match="2 of 5 rows .* index 3"):
        gaussian_moments(x)


def test_non_finite_moments_are_refused() -> None:
    with pytest.raises(NonFiniteError, match="finite means and covariances"):
        frechet_distance_from_moments([0.0], [[np.nan]], [0.0], [[1.0]])
    with pytest.raises(NonFiniteError, match="in cov_x, mean_y"):
        frechet_distance_from_moments([0.0], [[np.nan]], [np.inf], [[1.0]])
