"""The Fréchet distance between Gaussians."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latentfit.errors import DataError, NonFiniteError
from latentfit.metrics._arrays import FloatArray, check_numbers, check_rows

if TYPE_CHECKING:
    import torch

__all__ = ["frechet_distance", "frechet_distance_from_moments", "gaussian_moments"]


def frechet_distance(x: npt.ArrayLike | torch.Tensor, y: npt.ArrayLike | torch.Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of feature vectors.

    The estimate is biased upwards in the number of rows, so compare values at one fixed number only.
    With Inception features it is the FID (Heusel et al., 2017, arXiv:1706.08500).

    Args:
        x: Features of shape (n, d), n >= 2.
        y: Features of shape (m, d), m >= 2.

    Returns:
        The squared 2-Wasserstein distance between the two Gaussians, in squared feature units.

    Raises:
        DataError: Shapes that don't match, or fewer than two rows.
        NonFiniteError: NaN or infinity among the features.

    >>> round(frechet_distance([[0.0], [2.0]], [[3.0], [5.0]]), 6)
    9.0
    """
    a, b = check_rows(x, "x"), check_rows(y, "y")
    return frechet_distance_from_moments(*_moments(a), *_moments(b))


def gaussian_moments(x: npt.ArrayLike | torch.Tensor) -> tuple[FloatArray, FloatArray]:
    """Compute the mean (d,) and the unbiased covariance (d, d) of features (n, d), both float64.

    Raises:
        DataError: Not a matrix, or fewer than two rows.
        NonFiniteError: NaN or infinity among the features.
    """
    return _moments(check_rows(x, "x"))


def _moments(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    mean = rows.mean(axis=0)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)


def frechet_distance_from_moments(
    mean_x: npt.ArrayLike, cov_x: npt.ArrayLike, mean_y: npt.ArrayLike, cov_y: npt.ArrayLike
) -> float:
    """Fréchet distance between two Gaussians given by means (d,) and covariances (d, d).

    ``|m_x - m_y|^2 + tr(C_x) + tr(C_y) - 2 tr((C_x^1/2 C_y C_x^1/2)^1/2)`` (Dowson and Landau, 1982). Only
    symmetric eigenvalue problems are solved, so singular covariances need no special case.

    Raises:
        DataError: Shapes that don't match.
        NonFiniteError: NaN or infinity among the moments.
    """
    given = {"mean_x": mean_x, "cov_x": cov_x, "mean_y": mean_y, "cov_y": cov_y}
    moments = {name: check_numbers(value, name, "numbers") for name, value in given.items()}
    m_x, c_x, m_y, c_y = moments.values()
    d = m_x.size
    if m_x.shape != (d,) or m_y.shape != (d,) or c_x.shape != (d, d) or c_y.shape != (d, d):
        raise DataError(
            f"Expected two means of shape ({d},) and two covariances of shape ({d}, {d}); "
            f"got {', '.join(f'{name} {moment.shape}' for name, moment in moments.items())}."
        )
    bad = [name for name, moment in moments.items() if not np.isfinite(moment).all()]
    if bad:
        raise NonFiniteError(
            f"Expected finite means and covariances; got NaN or infinity in {', '.join(bad)}."
        )
    values, vectors = np.linalg.eigh(c_x)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T  # (d, d)
    product = root @ c_y @ root
    cross = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0)).sum()
    difference = m_x - m_y
    distance = difference @ difference + np.trace(c_x) + np.trace(c_y) - 2 * cross
    return float(max(distance, 0.0))  # rounding can leave it a hair below zero
