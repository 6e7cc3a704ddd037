"""What the nearest neighbours of rows tell: fidelity, variety, and whether samples are copies."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latentfit.arguments import check_whole
from latentfit.errors import DataError
from latentfit.metrics._arrays import FloatArray, check_sets, distances, pieces, twice_below
from latentfit.randomness import check_seed, importing

if TYPE_CHECKING:
    import torch

__all__ = ["data_copying", "density_coverage", "precision_recall"]

_LEAST = 20  # samples in a cell, as in the paper


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
    a, b = check_sets(real=real, fake=fake)
    k = check_whole("k", k, 1, len(a) - 1, error=DataError)  # one less than the real rows
    radius = _radius(a, k)
    inside, covered = 0, 0
    for part in pieces(len(a), len(b)):
        within = distances(a[part], b) < radius[part, None]  # as the authors' own code has it
        inside += int(within.sum())
        covered += int(within.any(axis=1).sum())
    return inside / (k * len(b)), covered / len(a)


def precision_recall(
    real: npt.ArrayLike | torch.Tensor, fake: npt.ArrayLike | torch.Tensor, *, k: int = 3
) -> tuple[float, float]:
    """Precision and recall: the shares of fake rows among the real ones, and of real rows among the fakes.

    A row is among a set if it lies in a ball around one of its rows that reaches to that one's k-th nearest
    other row in the set (Kynkäänniemi et al., 2019, arXiv:1904.06991). One far row makes a large
    ball: :func:`density_coverage` minds that less.

    Args:
        real: (n, d), n > k.
        fake: (m, d), m > k; both values depend on n and m, so compare them at one of each only.
        k: Which neighbour.

    Returns:
        Precision and recall, in [0, 1].

    Raises:
        DataError: Shapes that don't match, too few rows, or k < 1.
        NonFiniteError: NaN or infinity.

    >>> precision_recall([[0.0], [1.0], [2.0]], [[0.1], [5.0], [5.2]], k=1)
    (0.3333333333333333, 1.0)
    """
    a, b = check_sets(real=real, fake=fake)
    k = check_whole("k", k, 1, min(len(a), len(b)) - 1, error=DataError)
    radius_a, radius_b = _radius(a, k), _radius(b, k)
    precise, recalled = np.zeros(len(b), bool), 0
    for part in pieces(len(a), len(b)):
        between = distances(a[part], b)
        precise |= (between <= radius_a[part, None]).any(axis=0)
        recalled += int((between <= radius_b).any(axis=1).sum())
    return float(precise.mean()), recalled / len(a)


def data_copying(
    train: npt.ArrayLike | torch.Tensor,
    held_out: npt.ArrayLike | torch.Tensor,
    samples: npt.ArrayLike | torch.Tensor,
    *,
    cells: int = 1,
    seed: int | None = 0,
) -> float:
    """Test for memorisation: whether samples lie nearer to the training rows than held-out rows do.

    It is the C_T of Meehan et al. (2020, arXiv:2004.05675): the distances to the nearest training row
    are ranked, and the ranks of samples and held-out rows compared (Mann and Whitney, 1947).

    Args:
        train: Rows that a sampler was fitted to, (n, d), n >= 2.
        held_out: Rows of the same distribution that it was not fitted to, (m, d), m >= 20.
        samples: What it draws, (l, d), l >= 20.
        cells: Into how many cells the space is cut, by k-means of the training rows. Ranks are compared
            within each that has at least 20 samples, so that strays in one can't make up for copies in
            another, and averaged, weighted by the held-out rows.
        seed: Of k-means, a whole number; None for a new one.

    Returns:
        A z-score: for samples that are as good as held-out rows it is standard normal with one cell, and of a
        smaller variance with more. Far below zero, say at -3, samples copy; far above they stray.

    Raises:
        OptionError: Fewer than one cell.
        DataError: Shapes that don't match, too few rows, or more cells than training rows.
        NonFiniteError: NaN or infinity.
    """
    a, b, c = check_sets(train=train, held_out=held_out, samples=samples)
    for name, rows in (("held_out", b), ("samples", c)):
        if len(rows) < _LEAST:
            raise DataError(f"Expected at least {_LEAST} rows for {name}; got {len(rows)}.")
    cells = check_whole("cells", cells, 1, len(a), error=DataError)
    cell_b, cell_c = _cells(a, b, c, cells, check_seed(seed))
    near_b, near_c = _nearest(b, a), _nearest(c, a)
    weight, total = 0, 0.0
    for cell in range(cells):
        of_b, of_c = near_b[cell_b == cell], near_c[cell_c == cell]
        if len(of_b) and len(of_c) >= _LEAST:
            weight += len(of_b)
            total += len(of_b) * _rank_score(of_b, of_c)
    if not weight:
        raise DataError(
            f"Expected a cell with at least {_LEAST} samples and a held-out row; got none among {cells} "
            "cells. Pass fewer cells, or more samples."
        )
    return total / weight


def _radius(rows: FloatArray, k: int) -> FloatArray:
    """How far each row's k-th nearest other one is, (n,)."""
    parts = pieces(len(rows), len(rows))  # itself is the nearest
    return np.concatenate([np.partition(distances(rows[p], rows), k, axis=1)[:, k] for p in parts])


def _nearest(rows: FloatArray, others: FloatArray) -> FloatArray:
    """How far the nearest of the others is from each row, (n,)."""
    with importing():
        from sklearn.metrics import pairwise_distances_argmin
    with np.errstate(over="ignore"):
        # What is squared there would lose its digits far from the origin.
        middle = others.mean(axis=0)
        found = pairwise_distances_argmin(rows - middle, others - middle)
        apart: FloatArray = np.linalg.norm(rows - others[found], axis=1)
    return apart


def _cells(
    train: FloatArray, b: FloatArray, c: FloatArray, cells: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut the space by k-means, and tell each row's cell."""
    if cells == 1:
        return np.zeros(len(b), np.int64), np.zeros(len(c), np.int64)
    with importing():
        from sklearn.cluster import KMeans
    with warnings.catch_warnings():  # of fewer distinct rows than cells
        warnings.simplefilter("ignore")
        clusters = KMeans(cells, n_init=1, random_state=seed % 2**32).fit(train)
    return clusters.predict(b), clusters.predict(c)


def _rank_score(of_b: FloatArray, of_c: FloatArray) -> float:
    """The z-score of Mann and Whitney's statistic: above zero if c's numbers are larger than b's."""
    n, m = len(of_b), len(of_c)
    wins = twice_below(of_b, of_c).sum()
    return float((wins - n * m) / 2 / (n * m * (n + m + 1) / 12) ** 0.5)
