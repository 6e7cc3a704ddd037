"""What a pass or two over all rows give: moments, copies, the covariance and its eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentfit.diagnosis._rows import Rows
from latentfit.errors import DataError
from latentfit.moments import beyond_rounding
from latentfit.rows import draw_index

__all__ = [
    "Moments",
    "Spectrum",
    "effective_rank",
    "fingerprints",
    "measure_moments",
    "measure_spectrum",
]

_MOST_DIMENSIONS = 4096  # whose covariance is decomposed: seconds, and 134 MB
_MOST_WORK = 4e11  # multiplications for a covariance: some ten seconds of a core
_GRAM_ROWS = 2048  # that a spectrum is measured on in more dimensions than that
_AXES = 50


@dataclass(frozen=True)
class Moments:
    """Of each dimension, over all rows.

    Attributes:
        mean: (D,).
        low: (D,), the least value.
        high: (D,), the largest.
        scale: (D,), standard deviations; 0 where a dimension does not vary beyond rounding.
        kurtosis: (D,), excess kurtosis (0 for a Gaussian); NaN where a dimension does not vary.
        prints: (N,), a fingerprint of each row; equal rows have equal ones.
    """

    mean: Tensor
    low: Tensor
    high: Tensor
    scale: Tensor
    kurtosis: Tensor
    prints: npt.NDArray[np.int64]

    @property
    def varies(self) -> Tensor:
        """Which dimensions vary, (D,) of bool."""
        return self.scale > 0

    @property
    def unit(self) -> float:
        """A length that keeps all squares near one: the largest standard deviation."""
        return float(self.scale.max())


def measure_moments(rows: Rows) -> Moments:
    """Go over all rows twice.

    Raises:
        DataError: Values whose squares leave float64's range.
    """
    total = torch.zeros(rows.dim, dtype=torch.float64)
    low, high = torch.full_like(total, torch.inf), torch.full_like(total, -torch.inf)
    prints, done = torch.empty(len(rows), dtype=torch.int64), 0
    weights = _weights(rows.dim)
    for part in rows.parts():
        total += part.sum(0)
        low = torch.minimum(low, part.amin(0))
        high = torch.maximum(high, part.amax(0))
        # Filled in place: small results kept between large parts would fragment the memory.
        prints[done : done + len(part)] = fingerprints(part, weights)
        done += len(part)
    mean, width = total / len(rows), high - low
    if not bool((mean.isfinite() & width.square().isfinite()).all()):
        raise DataError(
            f"Expected {rows.what} whose squares are finite; got values from {float(low.min()):.3g} to "
            f"{float(high.max()):.3g}. Scale them down."
        )
    varies = beyond_rounding(low, high, rows.eps)
    safe = torch.where(varies, width, 1.0)  # whose powers neither overflow nor vanish
    second, fourth = torch.zeros_like(total), torch.zeros_like(total)
    for part in rows.parts():
        squares = ((part - mean) / safe).square_()
        second += squares.sum(0)
        fourth += squares.square_().sum(0)
    second, fourth = second / len(rows), fourth / len(rows)
    scale = torch.where(varies, second.sqrt() * safe, 0.0)
    kurtosis = torch.where(varies, fourth / second.square() - 3, torch.nan)
    return Moments(mean, low, high, scale, kurtosis, prints.numpy())


def fingerprints(part: Tensor, weights: Tensor | None = None) -> Tensor:
    """Hash rows (n, D) of float64 to int64 (n,): equal numbers for equal rows, and else others but for luck.

    Args:
        part: The rows; -0.0 equals 0.0.
        weights: (D,), odd random numbers; None draws the same ones for the same D.
    """
    weights = _weights(part.shape[1]) if weights is None else weights
    bits = (part + 0.0).view(torch.int64)
    # What came from float32 ends in zero bits; without the mixing products would, too.
    return ((bits ^ (bits >> 29)) * weights).sum(1)


def _weights(dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**63), 2**63 - 1, (dim,), generator=generator) | 1


@dataclass(frozen=True)
class Spectrum:
    """The covariance's eigenvalues.

    Attributes:
        values: (D,) in descending order, in units of the moments' unit squared; if D is very large, only
            those that the rows can tell.
        axes: (D, a), the eigenvectors of the first.
        rank: How many of the values are above rounding.
        rows: How many rows they were measured on.
    """

    values: Tensor
    axes: Tensor
    rank: int
    rows: int


def measure_spectrum(rows: Rows, moments: Moments, generator: torch.Generator) -> Spectrum:
    """Decompose the covariance, of all rows or of as many random ones as there is time for.

    In more than 4,096 dimensions the rows' Gram matrix, which has the same eigenvalues, takes its place.
    """
    n, d, unit = len(rows), rows.dim, moments.unit
    if d <= _MOST_DIMENSIONS:
        most = max(2 * d, int(_MOST_WORK / d**2))
        covariance = torch.zeros(d, d, dtype=torch.float64)
        index = draw_index(n, most, generator)
        used = len(index)
        for part in rows.parts(index):
            centred = ((part - moments.mean) / unit) * moments.varies
            covariance.addmm_(centred.T, centred)
        covariance /= used
        values = torch.linalg.eigvalsh(covariance).flip(0)
        axes = _leading(covariance, generator)
    else:
        index = draw_index(n, _GRAM_ROWS, generator)
        sample = rows.take(index)
        used = len(index)
        centred = ((sample - sample.mean(0)) / unit) * moments.varies
        values, vectors = torch.linalg.eigh(centred @ centred.T / used)
        values, vectors = values.flip(0), vectors[:, -_AXES:].flip(1)
        axes = centred.T @ vectors
        axes /= torch.linalg.vector_norm(axes, dim=0).clamp_min(1e-300)
    # Rounding of the latents themselves, and of this computation.
    largest = torch.maximum(moments.low.abs(), moments.high.abs()).max() / unit
    floor = max(4 * float(rows.eps * largest) ** 2, 4 * d * 2.3e-16 * float(values[0]))
    rank = int((values > floor).sum())
    return Spectrum(values.clamp_min(0), axes[:, : max(1, rank)], rank, used)


def _leading(covariance: Tensor, generator: torch.Generator) -> Tensor:
    """The leading eigenvectors (D, a) by subspace iteration: all of them would take minutes if D is large.

    Source: Halko, Martinsson and Tropp, 2011, algorithm 4.4, arXiv:0909.4061.
    """
    d = len(covariance)
    start = torch.randn(d, min(d, _AXES + 10), dtype=covariance.dtype, generator=generator)
    basis = torch.linalg.qr(start).Q
    for _ in range(8):
        basis = torch.linalg.qr(covariance @ basis).Q
    vectors = torch.linalg.eigh(basis.T @ covariance @ basis).eigenvectors
    leading: Tensor = basis @ vectors.flip(1)
    return leading[:, :_AXES]


def effective_rank(values: Tensor) -> float:
    """Exponential of the entropy of eigenvalues that are normalised to sum to one.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.

    >>> round(effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])), 6)
    3.0
    """
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())
