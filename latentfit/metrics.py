"""Distances between sets of vectors: pure functions on arrays, computed in float64."""

from __future__ import annotations

import random
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latentfit.arguments import check_whole, reason, told
from latentfit.errors import DataError, NonFiniteError
from latentfit.randomness import check_seed

if TYPE_CHECKING:
    import torch

__all__ = [
    "c2st",
    "density_coverage",
    "energy_distance",
    "frechet_distance",
    "frechet_distance_from_moments",
    "gaussian_moments",
]

_CHUNK = 1024  # rows; bounds the (rows, m) distances

FloatArray = npt.NDArray[np.float64]


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
    a, b = _rows(x, "x"), _rows(y, "y")
    return frechet_distance_from_moments(*_moments(a), *_moments(b))


def gaussian_moments(x: npt.ArrayLike | torch.Tensor) -> tuple[FloatArray, FloatArray]:
    """Compute the mean (d,) and the unbiased covariance (d, d) of features (n, d), both float64.

    Raises:
        DataError: Not a matrix, or fewer than two rows.
        NonFiniteError: NaN or infinity among the features.
    """
    return _moments(_rows(x, "x"))


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
    moments = {name: _numbers(value, name, "numbers") for name, value in given.items()}
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


def c2st(
    x: npt.ArrayLike | torch.Tensor, y: npt.ArrayLike | torch.Tensor, *, seed: int | None = 0
) -> float:
    """Classifier two-sample test: how well a classifier tells x from y on rows that it was not trained on.

    The classifier averages a nearest-neighbour vote, which sees local differences, and a small neural
    network, which sees global ones, on columns standardised by x and y together. It is trained on one half
    and tested on the other, both ways round (Lopez-Paz and Oquab, 2017, arXiv:1610.06545). Rows are
    shuffled first.

    Args:
        x: (n, d), n >= 8.
        y: (m, d), m >= 8; of the longer set, as many rows as the other has are used.
        seed: Of the shuffle and the network, a whole number; None for a new one.

    Returns:
        The area under the ROC curve: 0.5 where the sets can't be told apart, 1 where they can. By chance
        it is off 0.5 by about ``0.4 / sqrt(n)``.

    Raises:
        DataError: Shapes that don't match, or fewer than eight rows.
        NonFiniteError: NaN or infinity.
    """
    seed = check_seed(seed)
    a, b = _pair(x=x, y=y, least=8)
    state = random.getstate()
    try:  # a library of theirs draws while it is imported
        from sklearn.metrics import roc_auc_score
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.neural_network import MLPClassifier
    finally:
        random.setstate(state)

    generator = np.random.default_rng(seed)
    n = min(len(a), len(b)) // 2 * 2
    a, b = generator.permutation(a)[:n], generator.permutation(b)[:n]
    both = np.concatenate((a, b))
    scale = both.std(axis=0)
    both = (both - both.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    of_b = np.arange(2 * n) >= n
    fold = np.arange(2 * n) % 2  # rows are in random order
    areas = []
    for held_out in (0, 1):
        train, test = fold != held_out, fold == held_out
        classifiers = (
            KNeighborsClassifier(n_neighbors=min(20, n // 2)),
            MLPClassifier((100, 100), batch_size=min(256, n), early_stopping=n >= 100, max_iter=60),
        )
        score = np.zeros(n)
        for classifier in classifiers:
            if isinstance(classifier, MLPClassifier):
                classifier.set_params(random_state=seed % 2**32)
            with warnings.catch_warnings():  # sixty epochs that have not converged are enough
                warnings.simplefilter("ignore")
                classifier.fit(both[train], of_b[train])
            score += classifier.predict_proba(both[test])[:, 1]
        areas.append(roc_auc_score(of_b[test], score))
    return float(np.mean(areas))


def energy_distance(x: npt.ArrayLike | torch.Tensor, y: npt.ArrayLike | torch.Tensor) -> float:
    """Energy distance ``2 E|x - y| - E|x - x'| - E|y - y'|`` (Székely and Rizzo, 2013).

    Unbiased: pairs of a row with itself are left out, so that two samples of one distribution average to zero
    and may fall below it.

    Args:
        x: (n, d), n >= 2.
        y: (m, d), m >= 2.

    Returns:
        The distance in the units of the rows.

    Raises:
        DataError: Shapes that don't match, or fewer than two rows.
        NonFiniteError: NaN or infinity.

    >>> energy_distance([[0.0], [0.0]], [[3.0], [3.0]])
    6.0
    """
    a, b = _pair(x=x, y=y, least=2)
    n, m = len(a), len(b)
    within = _total_distance(a, a) / (n * (n - 1)) + _total_distance(b, b) / (m * (m - 1))
    return float(2 * _total_distance(a, b) / (n * m) - within)


def density_coverage(
    real: npt.ArrayLike | torch.Tensor, fake: npt.ArrayLike | torch.Tensor, *, k: int = 5
) -> tuple[float, float]:
    """Density and coverage: whether fake rows lie where real ones do, and whether they are there everywhere.

    Around each real row is a ball that reaches to its k-th nearest other real row. Density counts the balls
    that a fake row lies in, coverage the balls that hold a fake row (Naeem et al., 2020, arXiv:2002.09797).

    Args:
        real: (n, d), n > k.
        fake: (m, d), m >= 2; coverage grows with m, so compare values at one n and m only.
        k: Which neighbour.

    Returns:
        Density, >= 0 and 1 on average for fakes that are as good as real ones, and coverage in [0, 1].

    Raises:
        DataError: Shapes that don't match, too few rows, or k < 1.
        NonFiniteError: NaN or infinity.

    >>> density_coverage([[0.0], [1.0], [2.0]], [[0.1], [5.0]], k=1)
    (1.0, 0.6666666666666666)
    """
    a, b = _pair(real=real, fake=fake, least=2)
    k = check_whole("k", k, 1, len(a) - 1, error=DataError)  # one less than the real rows
    inside, covered = 0, 0
    for start in range(0, len(a), _CHUNK):
        part = a[start : start + _CHUNK]
        radius = np.partition(_distances(part, a), k, axis=1)[:, k]  # itself is the nearest
        within = _distances(part, b) < radius[:, None]  # as the authors' own code has it
        inside += int(within.sum())
        covered += int(within.any(axis=1).sum())
    return inside / (k * len(b)), covered / len(a)


def _distances(a: FloatArray, b: FloatArray) -> FloatArray:
    from scipy.spatial.distance import cdist

    distances: FloatArray = cdist(a, b)
    return distances


def _total_distance(a: FloatArray, b: FloatArray) -> float:
    return float(sum(_distances(a[i : i + _CHUNK], b).sum() for i in range(0, len(a), _CHUNK)))


def _pair(*, least: int, **given: Any) -> tuple[FloatArray, FloatArray]:
    """Check two sets of features, given by the arguments' names."""
    (one, a), (other, b) = ((name, _rows(value, name)) for name, value in given.items())
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < least:
        raise DataError(
            f"Expected two sets of at least {least} rows with as many columns; got {one} of {a.shape} and "
            f"{other} of {b.shape}."
        )
    return a, b


def _numbers(value: Any, name: str, what: str) -> FloatArray:
    """Give what an argument holds as float64."""
    plain = value
    try:
        if hasattr(value, "detach"):  # a tensor, which may be on another device or of bfloat16
            plain = value.detach().cpu()
            plain = plain if plain.is_complex() else plain.double().numpy()
        # NumPy would read texts as numbers, and drop imaginary parts.
        if np.asarray(plain).dtype.kind not in "buifO":
            raise TypeError("these are no real numbers")
        numbers = np.asarray(plain, dtype=np.float64)
        if numbers.ndim == 0:
            raise TypeError("that has no rows")
        return numbers
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"Expected {what} for {name}; got {told(value)} ({reason(error)})."
        ) from error


def _rows(x: Any, name: str) -> FloatArray:
    """Check features and give them as a float64 matrix (n, d)."""
    rows = _numbers(x, name, "features of shape (n, d)")
    if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] < 1:
        raise DataError(
            f"Expected features of shape (n, d) for {name}, n >= 2 and d >= 1; got {rows.shape}."
        )
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise NonFiniteError(
            f"Expected finite features for {name}; got {int(bad.sum())} of {len(rows)} rows with NaN or "
            f"infinity, the first at index {int(bad.argmax())}."
        )
    return rows
