"""The numerics of fitting a Gaussian mixture: k-means++, and EM by products of matrices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Terms", "expect", "factorise", "kmeans", "widest"]

# Numbers that are worked on at once: what fits a CPU's cache, or keeps a GPU busy.
_NUMBERS = {"cpu": 2**20, "cuda": 2**26}
_PACKED_DIM = (
    96  # up to here it pays to compute each product of two columns once for all components
)
_LEAST = -60.0  # the log of a share that counts; smaller ones become denormals, which are slow
_KMEANS_ROWS = 20_000
_KMEANS_STEPS = 30  # of Lloyd's, and what the next has to gain in squared distance
_KMEANS_GAIN = 1e-3


class Terms(NamedTuple):
    """Numbers that belong to 1, x and x x' of rows x, and to further values of theirs, for K components.

    Either weights, of functions that are quadratic in x as a Gaussian's log density is; or sums over rows.
    """

    one: Tensor  # (K,)
    linear: Tensor  # (K, D)
    products: Tensor  # (K, D, D), symmetric
    extra: Tensor  # (K, E)

    def to(self, dtype: torch.dtype) -> Terms:
        """Convert to a dtype."""
        return Terms(*(tensor.to(dtype) for tensor in self))


def widest(device: torch.device) -> torch.dtype:
    """Tell the widest floating dtype of a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def expect(
    x: Tensor,
    centre: Tensor,
    weights: Terms,
    extra: Tensor | None = None,
    *,
    only_total: bool = False,
) -> tuple[Tensor, Terms]:
    """Take the E step, and add up what the M step needs.

    Args:
        x: Rows (n, D).
        centre: What is subtracted from them, (D,); near their mean, which keeps digits.
        weights: The log joint densities as functions of the rows; their dtype is that of the computation.
        extra: Further values of the rows (n, E).
        only_total: Leave out the sums of the terms, which are half of the work.

    Returns:
        The sum over rows of the log of the summed joint densities, and the sums of the rows' terms weighted
        by the components' shares, both in the widest dtype.
    """
    k, d = weights.linear.shape
    step: _Packed | _Plain = _Packed(weights) if d <= _PACKED_DIM else _Plain(weights)
    size = max(64, _NUMBERS.get(x.device.type, 2**20) // (k + step.width))
    total = x.new_zeros((), dtype=widest(x.device))
    extras: Iterable[Tensor | None] = itertools.repeat(None) if extra is None else extra.split(size)
    for part, more in zip(x.split(size), extras, strict=False):
        own = (part - centre).to(weights.one.dtype)
        more = own.new_zeros(len(own), 0) if more is None else more.to(own.dtype)
        # Components first, (K, rows), so that reductions over them run along the rows.
        shares = step.weigh(own, more)
        largest = shares.amax(0)
        shares.sub_(largest).clamp_min_(_LEAST).exp_()
        summed = shares.sum(0)
        total += (largest + summed.log()).sum(dtype=total.dtype)
        if not only_total:
            step.add(shares, 1 / summed)
    return total, step.sums()


class _Packed:
    """All terms of a row in one column, each product once: both steps are one product of matrices."""

    def __init__(self, weights: Terms) -> None:
        (self.k, self.d), e = weights.linear.shape, weights.extra.shape[1]
        device = weights.one.device
        self.row, self.column = torch.triu_indices(self.d, self.d, device=device)
        products = weights.products[:, self.row, self.column]
        products = products * torch.where(self.row == self.column, 1, 2)
        self.weights = torch.cat(
            (weights.one[:, None], weights.linear, products, weights.extra), dim=1
        )
        self.width, self.products = self.weights.shape[1], self.weights.shape[1] - e
        self.total = self.weights.new_zeros(self.weights.shape, dtype=widest(device))

    def weigh(self, x: Tensor, extra: Tensor) -> Tensor:
        made = x.new_empty(self.width, len(x))
        made[0], made[1 : 1 + self.d], made[self.products :] = 1, x.T, extra.T
        columns, start = made[1 : 1 + self.d], 1 + self.d
        for i in range(self.d):
            stop = start + self.d - i
            torch.mul(columns[i:], columns[i], out=made[start:stop])
            start = stop
        self.terms = made
        return self.weights @ made

    def add(self, shares: Tensor, scale: Tensor) -> None:
        self.total += shares @ self.terms.mul_(scale).T

    def sums(self) -> Terms:
        one, linear, products, extra = self.total.split(
            (1, self.d, self.products - 1 - self.d, self.width - self.products), dim=1
        )
        full = products.new_empty(self.k, self.d, self.d)
        full[:, self.row, self.column] = full[:, self.column, self.row] = products
        return Terms(one[:, 0], linear, full, extra)


class _Plain:
    """One component at a time: for many columns, whose products would take more room than they save."""

    def __init__(self, weights: Terms) -> None:
        self.weights = weights
        self.width = weights.linear.shape[1] // 8  # larger parts than those with the products
        wide = widest(weights.one.device)
        self.total = Terms(*(torch.zeros_like(tensor, dtype=wide) for tensor in weights))

    def weigh(self, x: Tensor, extra: Tensor) -> Tensor:
        self.x, self.extra = x, extra
        weights = self.weights
        shares = torch.addmm(weights.one[:, None], weights.linear, x.T)
        shares += weights.extra @ extra.T
        for own, products in zip(shares, weights.products, strict=True):
            own += (x @ products).mul_(x).sum(1)
        return shares

    def add(self, shares: Tensor, scale: Tensor) -> None:
        shares *= scale
        self.total.one.add_(shares.sum(1))
        self.total.linear.add_(shares @ self.x)
        self.total.extra.add_(shares @ self.extra)
        for own, share in zip(self.total.products, shares, strict=True):
            own += (self.x * share[:, None]).T @ self.x

    def sums(self) -> Terms:
        return self.total


def factorise(matrices: Tensor) -> Tensor:
    """Factorise covariances (K, D, D); those that rounding has left indefinite get a larger diagonal.

    Where sums have overflowed there is nothing to mend: the factors are not finite either.
    """
    ridge = torch.finfo(matrices.dtype).eps * matrices.diagonal(dim1=1, dim2=2).abs().amax(1)
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(matrices)
    while bool((failed > 0).any()) and bool(ridge.isfinite().all()):
        ridge = 10 * ridge
        eye = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
        matrices = matrices + (failed > 0)[:, None, None] * ridge[:, None, None] * eye
        lower, failed = torch.linalg.cholesky_ex(matrices)
    return lower


def kmeans(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Find centres (k, D) of rows near zero, on at most 20,000 of them: greedy k-means++, then Lloyd's.

    Each new centre is the best of a few candidates, drawn by their squared distances (Arthur and
    Vassilvitskii, 2007). Not scikit-learn's: that one adds up in the order in which its threads finish, so
    that one seed would not give the same bits twice, and it does not run where the latents are.
    """
    if len(x) > _KMEANS_ROWS:
        x = x[torch.randperm(len(x), generator=generator, device=x.device)[:_KMEANS_ROWS]]
    columns = x.T.contiguous()
    squares = x.square().sum(1)
    candidates = 2 + int(math.log(k))
    first = torch.randint(len(x), (1,), generator=generator, device=x.device)
    chosen = [x[first[0]]]
    distance = (x - chosen[0]).square().sum(1)
    for _ in range(k - 1):
        odds = distance if bool(distance.sum() > 0) else torch.ones_like(distance)
        index = torch.multinomial(odds, candidates, replacement=True, generator=generator)
        to_each = torch.addmm(squares[index, None] + squares, x[index], columns, alpha=-2)
        to_each = torch.minimum(to_each.clamp_min_(0), distance)
        best = to_each.sum(1).argmin()
        distance = to_each[best]
        chosen.append(x[index[best]])
    centres, before = torch.stack(chosen), math.inf
    for _ in range(_KMEANS_STEPS):
        nearness = torch.addmm(-0.5 * centres.square().sum(1, keepdim=True), centres, columns)
        largest = nearness.amax(0)
        spread = float((squares - 2 * largest).mean())  # the mean squared distance from the nearest
        if spread >= (1 - _KMEANS_GAIN) * before:
            break
        before = spread
        member = (nearness == largest).to(x)
        count = member.sum(1, keepdim=True)
        centres = torch.where(count > 0, member @ x / count.clamp_min(1), centres)
    return centres
