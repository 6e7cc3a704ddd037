"""What should not be there: rows far from all others, copies of rows, dimensions that repeat others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentfit.diagnosis._moments import Moments, Spectrum
from latentfit.diagnosis._rows import Rows

__all__ = ["Copies", "Outliers", "find_copies", "find_outliers", "find_repeated"]

_SPREADS = 6.0  # a cutoff beyond the median, in spreads of the upper half: 1e-9 of Gaussian rows
_CHUNK = 512  # dimensions that are compared with all others at once
_NEAR = 1e-5  # one less the absolute correlation of candidates
_SAME = 1e-10  # the share of its variance that a repeated dimension may have on its own


@dataclass(frozen=True)
class Outliers:
    """Rows far outside the bulk.

    Attributes:
        index: Their indices, the farthest first.
        ratios: How many times as far out as the cutoff each is, > 1.
        share: The part of all rows' variance (about the median) that they hold.
    """

    index: Tensor
    ratios: Tensor
    share: float


def find_outliers(rows: Rows, moments: Moments, spectrum: Spectrum, sample: Tensor) -> Outliers:
    """Find rows that lie far out within the leading principal axes, or far off their subspace.

    As in ROBPCA there are two distances: within the axes, each in units of a robust scale, and orthogonal to
    them. By Wilson and Hilferty their powers of 2/3 are nearly normal for Gaussian rows; here the cutoff is
    the median and six robust deviations of these powers, whatever the distribution, so that heavy tails
    and clusters widen it.

    Args:
        rows: All rows.
        moments: Theirs.
        spectrum: Its axes.
        sample: Random rows (m, D), for the medians and scales.

    Source: Hubert, Rousseeuw and Vanden Branden, 2005, doi:10.1198/004017004000000563.
    """
    unit, axes = moments.unit, spectrum.axes
    centre = sample.median(0).values
    centre = torch.where(moments.varies, centre, moments.mean)
    scores = ((sample - centre) / unit) @ axes
    middle = scores.median(0).values
    scale = _robust_scale(scores - middle)

    within, rest, total = torch.empty(3, len(rows), dtype=torch.float64)
    done = 0
    for part in rows.parts():
        centred = ((part - centre) / unit) * moments.varies
        projected = centred @ axes
        own = slice(done, done + len(part))
        done += len(part)
        within[own] = ((projected - middle) / scale).square_().sum(1)
        # The norm of the rest itself: a difference of squares would drown what is small.
        rest[own] = (centred - projected @ axes.T).square_().sum(1)
        total[own] = centred.square_().sum(1)
    ratio = _beyond(within.sqrt())
    if float(rest.sum()) > 1e-9 * float(total.sum()):  # else the axes hold all but rounding
        ratio = torch.maximum(ratio, _beyond(rest.sqrt()))
    index = (ratio > 1).nonzero()[:, 0]
    index = index[ratio[index].argsort(descending=True, stable=True)]
    share = float(total[index].sum() / total.sum())
    return Outliers(index, ratio[index], share)


def _robust_scale(scores: Tensor) -> Tensor:
    """Median absolute deviations, (a,); of what is mostly one value, the standard deviation."""
    mad = 1.4826 * scores.abs().median(0).values
    deviation = scores.square().mean(0).sqrt()
    return torch.where(mad > 1e-6 * deviation, mad, deviation).clamp_min(1e-300)


def _beyond(distances: Tensor) -> Tensor:
    """Distances in units of their cutoff."""
    powers = distances ** (2 / 3)
    ordered = powers.sort().values
    middle = ordered[(len(ordered) - 1) // 2]
    upper = ordered[int(0.95 * (len(ordered) - 1))]
    cutoff = middle + _SPREADS * (upper - middle) / 1.645
    if float(cutoff) == 0:  # nearly all rows are equal
        return torch.where(powers > 0, torch.inf, 0.0)
    ratio: Tensor = (powers / cutoff) ** 1.5
    return ratio


@dataclass(frozen=True)
class Copies:
    """Rows that equal an earlier one to the last bit.

    Attributes:
        count: How many.
        fraction: Of all rows.
        most: How often the commonest row is there.
        first: Where it is for the first time.
    """

    count: int
    fraction: float
    most: int
    first: int


def find_copies(prints: npt.NDArray[np.int64]) -> Copies:
    """Count copies among rows of these fingerprints (n,)."""
    _, first, counts = np.unique(prints, return_index=True, return_counts=True)
    count = len(prints) - len(counts)
    commonest = int(counts.argmax())
    return Copies(count, count / len(prints), int(counts[commonest]), int(first[commonest]))


def find_repeated(sample: Tensor, moments: Moments, eps: float) -> list[tuple[int, int]]:
    """Find dimensions that are a linear function of one other dimension.

    Args:
        sample: Random rows (m, D).
        moments: Of all rows.
        eps: The relative rounding of the latents.

    Returns:
        Pairs: a dimension, and the first one that it repeats.
    """
    kept = moments.varies.nonzero()[:, 0]
    columns = (sample[:, kept] - sample[:, kept].mean(0)) / moments.scale[kept]
    columns /= torch.linalg.vector_norm(columns, dim=0).clamp_min(1e-300)
    some = columns[: 4 * _CHUNK]
    some = some / torch.linalg.vector_norm(some, dim=0).clamp_min(1e-300)
    largest = torch.maximum(moments.low.abs(), moments.high.abs())[kept]
    rounding = (eps * largest / moments.scale[kept]).square()  # as a share of the variance
    pairs = []
    for block in torch.arange(len(kept)).split(_CHUNK):
        correlation = some[:, block].T @ some[:, : int(block[-1]) + 1]  # (block, earlier)
        near = correlation.abs() > 1 - _NEAR
        near &= torch.arange(near.shape[1]) < block[:, None]
        for row in near.any(1).nonzero()[:, 0].tolist():
            own, other = int(block[row]), int(near[row].int().argmax())
            sign = float(correlation[row, other].sign())
            gap = columns[:, own] - sign * columns[:, other]
            if float(gap.square().sum()) < _SAME + float(rounding[own] + rounding[other]):
                pairs.append((int(kept[own]), int(kept[other])))
    return pairs
