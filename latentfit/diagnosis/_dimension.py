"""The intrinsic dimension, from the distances of rows to their nearest neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["SHARE", "mle_dimension", "neighbour_distances", "twonn_dimension", "twonn_points"]

_MARGIN = 5  # more candidates than neighbours, because rounding may change their order
_NUMBERS = 2**21
SHARE = 0.9  # of the ratios, the smallest; the paper leaves out a tenth, the largest


def neighbour_distances(rows: Tensor, k: int) -> Tensor:
    """Distances of each row to its k nearest others, in ascending order.

    Candidates come from a matrix product, whose rounding is then undone: the differences of near rows are
    computed anew.

    Args:
        rows: (n, D) float64, no two of them equal, centred.
        k: At most n - 1.

    Returns:
        (n, k) float64.
    """
    n, d = rows.shape
    squares = rows.square().sum(1)
    count = min(k + _MARGIN, n - 1)
    found = torch.empty(n, k, dtype=torch.float64)  # filled in place, as in the moments
    for block in torch.arange(n).split(max(1, _NUMBERS // n)):
        near = torch.addmm(squares, rows[block], rows.T, alpha=-2)
        near[torch.arange(len(block)), block] = math.inf
        candidates = near.topk(count, largest=False).indices
        size = max(1, _NUMBERS // (count * d))
        for own, others in zip(block.split(size), candidates.split(size), strict=True):
            gaps = rows[others] - rows[own][:, None]
            found[own] = torch.linalg.vector_norm(gaps, dim=2).sort(1).values[:, :k]
    return found


def twonn_points(distances: Tensor) -> tuple[Tensor, Tensor]:
    """The points of TwoNN's line: log of each row's ratio of distances, ascending, and -log(1 - F) of it."""
    ratios = (distances[:, 1] / distances[:, 0]).log().sort().values
    n = len(ratios)
    return ratios, -torch.log1p(-torch.arange(1, n + 1, dtype=torch.float64) / (n + 1))


def twonn_dimension(distances: Tensor) -> float | None:
    """Estimate the intrinsic dimension from the first two neighbours.

    It is the slope of a line through the origin and :func:`twonn_points`, a tenth of them, those of the
    largest ratios, left out.

    Args:
        distances: (n, k >= 2), as :func:`neighbour_distances` gives them.

    Returns:
        The dimension; None where all ratios are one, as on a grid.

    Source: Facco, d'Errico, Rodriguez and Laio, 2017, doi:10.1038/s41598-017-11873-y.
    """
    x, y = (points[: max(1, int(SHARE * len(points)))] for points in twonn_points(distances))
    bottom = float(x @ x)
    return float(x @ y) / bottom if bottom > 0 else None


def mle_dimension(distances: Tensor) -> float | None:
    """Estimate the intrinsic dimension by maximum likelihood.

    For each k from 10 to 20 (or as many neighbours as there are) the rows' inverse estimates are averaged;
    the result is the mean over k.

    Args:
        distances: (n, K >= 2), as :func:`neighbour_distances` gives them.

    Returns:
        The dimension; None where all distances of rows are equal.

    Source: Levina and Bickel, NIPS 2004; the averaging is MacKay's and Ghahramani's, 2005
    (inference.org.uk/mackay/dimension).
    """
    logs = distances.log()
    most = distances.shape[1]
    estimates = []
    for k in range(min(10, most), most + 1):
        inverse = float((logs[:, k - 1 : k] - logs[:, : k - 1]).mean())
        if inverse <= 0:
            return None
        estimates.append(1 / inverse)
    return math.fsum(estimates) / len(estimates)
