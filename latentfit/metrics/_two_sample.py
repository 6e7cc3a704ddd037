"""Whether two samples are of one distribution: by a classifier, by distances, by a kernel, along lines."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latentfit.arguments import check_number, check_whole
from latentfit.metrics._arrays import FloatArray, check_sets, distances, pieces, twice_below
from latentfit.options import Interval
from latentfit.randomness import check_seed, importing

if TYPE_CHECKING:
    import torch

__all__ = [
    "c2st",
    "c2st_interval",
    "energy_distance",
    "kernel_distance",
    "sliced_wasserstein",
]

_LINES = 16  # along which rows are projected together
_MOST_LINES = 10**6


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
        it is off 0.5 by about ``0.55 / sqrt(n)``; see :func:`c2st_interval`.

    Raises:
        DataError: Shapes that don't match, or fewer than eight rows.
        NonFiniteError: NaN or infinity.
    """
    return float(np.mean([_area(*scores) for scores in _scores(x, y, seed)]))


def c2st_interval(
    x: npt.ArrayLike | torch.Tensor,
    y: npt.ArrayLike | torch.Tensor,
    *,
    level: float = 0.95,
    seed: int | None = 0,
) -> tuple[float, float, float]:
    """Classifier two-sample test, as :func:`c2st`, with a confidence interval of its area.

    The variance of each half's area is DeLong's (DeLong et al., 1988), which assumes no distribution. The
    two halves count as one: each is the training set of the other, and areas that are so made go up and down
    together. The interval is Wilson's for a share of as many rows as have this variance, at least
    the rows of a set in one half, fewer than which no two distributions can be worth (Birnbaum and Klose,
    1957), and at most twice as many: it stays within [0, 1] and has a width at an area of 1, too.

    Args:
        x: (n, d), n >= 8.
        y: (m, d), m >= 8; of the longer set, as many rows as the other has are used.
        level: The share of intervals that should hold the area, in (0, 1).
        seed: Of the shuffle and the network, a whole number; None for a new one.

    Returns:
        The area that :func:`c2st` gives, and the ends of the interval: low <= area <= high.

    Raises:
        OptionError: A level out of its range.
        DataError: Shapes that don't match, or fewer than eight rows.
        NonFiniteError: NaN or infinity.
    """
    level = check_number("level", level, Interval(0, 1, open_low=True, open_high=True))
    halves = _scores(x, y, seed)
    area = float(np.mean([_area(*scores) for scores in halves]))
    error = float(np.mean([_variance(*scores) ** 0.5 for scores in halves]))
    least = len(halves[0][0])
    rows = min(max(area * (1 - area) / error**2, least), 2 * least) if error > 0 else least
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (area + z**2 / (2 * rows)) / (1 + z**2 / rows)
    reach = z / (1 + z**2 / rows) * (area * (1 - area) / rows + z**2 / (4 * rows**2)) ** 0.5
    return area, min(max(middle - reach, 0.0), area), max(min(middle + reach, 1.0), area)


def _scores(
    x: npt.ArrayLike | torch.Tensor, y: npt.ArrayLike | torch.Tensor, seed: int | None
) -> list[tuple[FloatArray, FloatArray]]:
    """For each half, how much like y a classifier of the other finds its rows of x, and of y."""
    seed = check_seed(seed)
    a, b = check_sets(x=x, y=y, least=8)
    with importing():
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.neural_network import MLPClassifier

    generator = np.random.default_rng(seed)
    n = min(len(a), len(b)) // 2 * 2
    a, b = generator.permutation(a)[:n], generator.permutation(b)[:n]
    both = np.concatenate((a, b))
    scale = both.std(axis=0)
    both = (both - both.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    of_b = np.arange(2 * n) >= n
    fold = np.arange(2 * n) % 2  # rows are in random order
    found = []
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
        found.append((score[~of_b[test]], score[of_b[test]]))
    return found


def _placements(of_x: FloatArray, of_y: FloatArray) -> FloatArray:
    """The share of x's scores that are below each of y's (m,); those that are equal count half."""
    shares: FloatArray = twice_below(of_x, of_y) / (2 * len(of_x))
    return shares


def _area(of_x: FloatArray, of_y: FloatArray) -> float:
    """The area under the ROC curve: the chance that a score of y's is above one of x's."""
    return float(_placements(of_x, of_y).mean())


def _variance(of_x: FloatArray, of_y: FloatArray) -> float:
    """DeLong's estimate of the area's variance."""
    parts = _placements(of_x, of_y), _placements(of_y, of_x)
    return float(sum(part.var(ddof=1) / len(part) for part in parts))


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
    a, b = check_sets(x=x, y=y)
    n, m = len(a), len(b)
    within = _total(distances, a, a) / (n * (n - 1)) + _total(distances, b, b) / (m * (m - 1))
    return 2 * _total(distances, a, b) / (n * m) - within


def kernel_distance(
    x: npt.ArrayLike | torch.Tensor,
    y: npt.ArrayLike | torch.Tensor,
    *,
    bandwidth: float | None = None,
) -> float:
    """Squared maximum mean discrepancy, ``E k(x, x') + E k(y, y') - 2 E k(x, y)`` (Gretton et al., 2012).

    Unbiased, at any number of rows, and so below zero at times. With Inception features and the kernel
    ``(<a, b> / d + 1)^3``, the default, it is the KID (Bińkowski et al., 2018, arXiv:1801.01401).

    Args:
        x: (n, d), n >= 2.
        y: (m, d), m >= 2.
        bandwidth: Of the kernel ``exp(-|a - b|^2 / (2 bandwidth^2))``, in the units of the rows, which is
            used instead.

    Returns:
        The squared distance; with a bandwidth it is zero in the mean for equal distributions only.

    Raises:
        OptionError: A bandwidth that is no number > 0.
        DataError: Shapes that don't match, or fewer than two rows.
        NonFiniteError: NaN or infinity.

    >>> kernel_distance([[0.0], [0.0]], [[1.0], [1.0]])
    7.0
    """
    width = check_number("bandwidth", bandwidth, Interval(0, open_low=True), optional=True)
    a, b = check_sets(x=x, y=y)

    def cubic(rows: FloatArray, others: FloatArray) -> FloatArray:
        kernel: FloatArray = (rows @ others.T / rows.shape[1] + 1) ** 3
        return kernel

    def gaussian(rows: FloatArray, others: FloatArray) -> FloatArray:
        with np.errstate(over="ignore"):  # too far apart for the kernel
            kernel: FloatArray = np.exp(-((distances(rows, others) / width) ** 2) / 2)
        return kernel

    kernel = cubic if width is None else gaussian
    n, m = len(a), len(b)
    within = _of_others(kernel, a) / (n * (n - 1)) + _of_others(kernel, b) / (m * (m - 1))
    return within - 2 * _total(kernel, a, b) / (n * m)


def sliced_wasserstein(
    x: npt.ArrayLike | torch.Tensor,
    y: npt.ArrayLike | torch.Tensor,
    *,
    projections: int = 200,
    seed: int | None = 0,
) -> float:
    """Sliced 2-Wasserstein distance: that of the coordinates along a line, over lines in all directions.

    The root of the mean square over random lines, along each of which the distance is exact, for different
    numbers of rows, too (Bonneel et al., 2015). It is biased upwards in the number of rows.

    Args:
        x: (n, d), n >= 2.
        y: (m, d), m >= 2.
        projections: The number of lines, at most a million.
        seed: Of the lines, a whole number; None for a new one.

    Returns:
        The distance in the units of the rows. Of sets that differ by a shift it is about the shift's length
        over ``sqrt(d)``.

    Raises:
        OptionError: A number of lines out of its range.
        DataError: Shapes that don't match, or fewer than two rows.
        NonFiniteError: NaN or infinity.

    >>> sliced_wasserstein([[0.0], [1.0]], [[3.0], [4.0]])
    3.0
    """
    projections = check_whole("projections", projections, 1, _MOST_LINES)
    generator = np.random.default_rng(check_seed(seed))
    a, b = check_sets(x=x, y=y)
    n, m = len(a), len(b)
    # Both quantile functions are constant between these levels, which are whole multiples of 1 / (n m).
    levels = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    share = np.diff(levels, prepend=0) / (n * m)
    at_a, at_b = (levels - 1) // m, (levels - 1) // n
    total = 0.0
    for start in range(0, projections, _LINES):
        lines = generator.normal(size=(min(_LINES, projections - start), a.shape[1]))
        lines /= np.linalg.norm(lines, axis=1, keepdims=True)
        for along_a, along_b in zip(lines @ a.T, lines @ b.T, strict=True):
            total += float(share @ (np.sort(along_a)[at_a] - np.sort(along_b)[at_b]) ** 2)
    return float(np.sqrt(total / projections))


def _total(
    function: Callable[[FloatArray, FloatArray], FloatArray], a: FloatArray, b: FloatArray
) -> float:
    """The sum of a function of two rows over all pairs of a row of a and one of b."""
    return float(sum(function(a[part], b).sum() for part in pieces(len(a), len(b))))


def _of_others(function: Callable[[FloatArray, FloatArray], FloatArray], a: FloatArray) -> float:
    """The same over all pairs of two different rows of a."""
    return _total(function, a, a) - float(sum(function(row, row)[0, 0] for row in a[:, None]))
