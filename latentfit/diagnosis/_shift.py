"""Whether two sets of rows are from one distribution: a permutation test on the energy distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Shift", "two_sample_test"]

PERMUTATIONS = 999


@dataclass(frozen=True)
class Shift:
    """The result of the test.

    Attributes:
        p_value: The chance of such a distance, or of a larger one, between two random halves.
        effect: The energy distance over twice the mean distance between the sets, from 0 to 1.
        rows: How many were compared, of both together.
    """

    p_value: float
    effect: float
    rows: int


def two_sample_test(x: Tensor, y: Tensor, generator: torch.Generator) -> Shift:
    """Test whether rows x (n, D) and y (m, D) are from one distribution.

    Dimensions are standardised by both together. The p-value is exact for exchangeable rows, whatever
    their distribution.

    Source: Székely and Rizzo, 2013, doi:10.1016/j.jspi.2013.03.018.
    """
    both = torch.cat((x, y))
    both = both - both.mean(0)
    both = both / both.std(0, correction=0).clamp_min(1e-300)
    n, m = len(x), len(y)
    distances = torch.cdist(both, both)
    # The energy distance is minus s'Ds, with s = 1/n on x and -1/m on y. As s sums to zero, centring the
    # matrix changes nothing but the rounding.
    centred = distances - distances.mean(0) - distances.mean(1)[:, None] + distances.mean()
    order = torch.rand(PERMUTATIONS, n + m, generator=generator).argsort(1)
    signs = torch.full((PERMUTATIONS + 1, n + m), -1 / m, dtype=both.dtype)
    signs[0, :n] = 1 / n
    signs[1:].scatter_(1, order[:, :n], 1 / n)
    energy = -((signs @ centred) * signs).sum(1)
    # A permutation that gives the same sets again may differ by rounding.
    reached = int((energy[1:] >= energy[0] - 1e-12 * distances.mean()).sum())
    between = float(distances[:n, n:].mean())
    effect = float(energy[0]) / (2 * between) if between else 0.0
    return Shift((1 + reached) / (1 + PERMUTATIONS), max(0.0, effect), n + m)
