"""Numerical integrals of a density over the whole line or plane."""

from __future__ import annotations

import torch
from torch import Tensor

from latentfit.testing._fitted import Fitted

__all__ = ["Chart", "integral"]

_SCALE = 0.8  # a logistic distribution of this scale is half as wide again as a normal one
_POINTS = {1: 1000, 2: 80}  # per axis
# Times as many where that does not do: a fit of a moment may have much of its mass in narrow peaks.
_CLOSER = {1: (1, 2, 32, 256), 2: (1, 2)}


class Chart:
    """A map of the whole line or plane onto the unit interval or square, wide where the mass is.

    Logistic distribution functions along axes in which given rows are uncorrelated: all of the density is
    integrated, however far its tails, and most points lie where it is not small.

    Args:
        fitted: A sampler of one or two columns.
        context: One context (C,) for all rows.
        rows: Where the mass is expected, (n, D); None means where the training rows are.
    """

    def __init__(
        self, fitted: Fitted, context: Tensor | None = None, rows: Tensor | None = None
    ) -> None:
        self._bench, self._context = fitted, context
        rows = (fitted.rows if rows is None else rows).double()
        self._mean: Tensor = rows.mean(0)
        covariance = torch.atleast_2d(rows.T.cov())
        self._factor: Tensor = _SCALE * torch.linalg.cholesky(covariance)

    def locate(self, rows: Tensor) -> Tensor:
        """Map rows (n, D) into the unit square."""
        centred = (rows.double() - self._mean).T
        white: Tensor = torch.linalg.solve_triangular(self._factor, centred, upper=False)
        return white.T.sigmoid()

    def masses(self, points: int) -> Tensor:
        """Integrate over each of a grid of small squares by the midpoint rule: (points,) * D."""
        dim = self._bench.dim
        axis = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        square = torch.cartesian_prod(*[axis] * dim).view(-1, dim)
        rows = (self._mean + square.logit() @ self._factor.T).float()
        volume = self._factor.diagonal().log().sum() - (square * (1 - square)).log().sum(1)
        context = None if self._context is None else self._context.expand(len(rows), -1)
        density = self._bench.score(rows, context).double()
        masses: Tensor = ((density + volume).exp() / len(rows)).view([points] * dim)
        return masses


def integral(fitted: Fitted, context: Tensor | None = None, rows: Tensor | None = None) -> float:
    """Integrate a density over all rows, with closer grids if a first one does not give 1.

    Args:
        fitted: A sampler of one or two columns.
        context: One context (C,).
        rows: Where the mass is expected, (n, D); None means where the training rows are.
    """
    chart = Chart(fitted, context, rows)
    mass = 0.0
    for closer in _CLOSER[fitted.dim]:
        mass = float(chart.masses(closer * _POINTS[fitted.dim]).sum())
        if abs(mass - 1) < 0.01:
            break
    return mass
