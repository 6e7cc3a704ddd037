"""The data that samplers are checked on: made from a seed, known in closed form, not standardised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "CENTRES",
    "SLOPE",
    "blobs",
    "correlated",
    "line",
    "mixed_scales",
    "mixture",
    "standardised",
]

# Three blobs far apart, in the plane.
CENTRES = torch.tensor([[0.0, 0.0], [8.0, 1.0], [2.0, 9.0]])
SLOPE = torch.tensor([[3.0, -2.0]])  # the mean of a row whose condition is c is c @ SLOPE


def generator(seed: int) -> torch.Generator:
    """Make a generator on the CPU."""
    return torch.Generator("cpu").manual_seed(seed)


def mixture(n: int, seed: int) -> Tensor:
    """Draw from two overlapping, correlated Gaussians in the plane, (n, 2), far from the origin.

    One Gaussian with the same mean and covariance is so near that no fair judge tells them apart: a method
    need not be a good one to pass.
    """
    source = generator(seed)
    second = (torch.rand(n, generator=source) < 0.4)[:, None]
    noise = torch.randn(n, 2, generator=source)
    one = noise @ torch.tensor([[1.0, 0.0], [0.6, 0.8]]).T
    other = noise @ torch.tensor([[0.9, 0.0], [0.3, 0.7]]).T + torch.tensor([0.9, 0.7])
    return torch.where(second, other, one) * torch.tensor([2.0, 0.5]) + torch.tensor([4.0, -3.0])


def correlated(n: int, dim: int, seed: int) -> Tensor:
    """Draw correlated, slightly skewed rows (n, dim)."""
    source = generator(seed)
    mixing = torch.eye(dim) + 0.5 * torch.ones(dim, dim).tril(-1)
    rows = torch.randn(n, dim, generator=source) @ mixing.T
    return rows + 0.2 * rows.square()


def mixed_scales(n: int, seed: int) -> Tensor:
    """Draw rows (n, 5) whose column 2 is constant; the others' scales differ a million times."""
    rows = correlated(n, 5, seed) * torch.tensor([1.0, 1e3, 0.0, 1e-3, 5.0])
    return rows + torch.tensor([0.0, -1e4, 3.0, 0.1, 100.0])


def blobs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw rows (n, 2) around CENTRES, and which centre each is of: (n,) int64, in no order."""
    source = generator(seed)
    labels = torch.arange(n) % len(CENTRES)
    labels = labels[torch.randperm(n, generator=source)]
    noise = torch.randn(n, 2, generator=source) @ torch.tensor([[1.0, 0.0], [0.5, 0.8]]).T
    return CENTRES[labels] + noise, labels


def line(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw rows (n, 2) whose mean is linear in a condition (n, 1), uniform in [-2, 2]."""
    source = generator(seed)
    condition = 4 * torch.rand(n, 1, generator=source) - 2
    noise = torch.randn(n, 2, generator=source) @ torch.tensor([[1.0, 0.0], [0.5, 0.8]]).T
    return condition @ SLOPE + noise, condition


def standardised(rows: Tensor) -> Tensor:
    """Shift and scale each column of rows to mean 0 and deviation 1; a constant one is only shifted."""
    scale = rows.std(0, correction=0)
    return (rows - rows.mean(0)) / torch.where(scale > 0, scale, torch.ones_like(scale))


def kolmogorov_smirnov(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Compare two samples (n, D) and (m, D) along the axes, their sum and their difference.

    Returns:
        The largest two-sample Kolmogorov-Smirnov distance among the directions, and the distance that
        samples of one distribution exceed once in a million comparisons.
    """
    dim = one.shape[1]
    extra = [torch.ones(dim), torch.tensor([(-1.0) ** k for k in range(dim)])] if dim > 1 else []
    directions = torch.stack([*torch.eye(dim), *extra], dim=1)  # (D, directions)
    largest = 0.0
    for a, b in zip((one @ directions).T, (other @ directions).T, strict=True):
        a, b = a.sort().values, b.sort().values
        at = torch.cat([a, b])
        gap = torch.searchsorted(a, at, right=True) / len(a) - torch.searchsorted(
            b, at, right=True
        ) / len(b)
        largest = max(largest, float(gap.abs().max()))
    tail = 1e-6 / directions.shape[1]
    n, m = len(one), len(other)
    return largest, math.sqrt(-math.log(tail / 2) / 2 * (n + m) / (n * m))
