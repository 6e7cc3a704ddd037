"""What transforms are fitted from: the moments of latents, measured in one pass over parts of any length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from latentfit.em import widest
from latentfit.errors import DataError

__all__ = ["Moments", "beyond_rounding", "measure"]

_PIECE = 2**19  # values that are looked at together: 4 MB of float64


@dataclass(frozen=True)
class Moments:
    r"""What is known of latents (n, \*shape) when a transform is fitted; all tensors are float64 on the CPU.

    Attributes:
        n: How many latents.
        mean: (D,), of the flattened latents.
        variance: (D,), the mean of squares around the mean: divided by n.
        low: (D,) minima.
        high: (D,) maxima.
        covariance: (D, D), divided by n; None where it was not asked for.
        shape: The shape of one latent; D is its product.
        dtype: The latents' own.
    """

    n: int
    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor
    covariance: Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def varies(self) -> Tensor:
        """Which dimensions vary, (D,) bool: by more than rounding to the dtype could make them.

        Latents of half precision count as constant only by float32's rounding: they can tell no less.
        """
        eps = torch.finfo(torch.float64 if self.dtype == torch.float64 else torch.float32).eps
        return beyond_rounding(self.low, self.high, eps)

    @property
    def center(self) -> Tensor:
        """The mean, (D,); of equal numbers it is that number, which the mean may miss by rounding."""
        return torch.where(self.low == self.high, self.low, self.mean)


def measure(parts: Iterable[Tensor], *, covariance: bool) -> Moments:
    r"""Measure the moments of latents that come in parts, in one pass.

    Sums are of differences from the first latent and are merged around the mean of each piece (Chan, Golub
    and LeVeque, 1983, The American Statistician 37(3)), in float64 (float32 on mps), so that a large mean
    costs no digits and it does not matter how the latents are cut. Memory holds some MB beside a part,
    and (D, D) numbers with ``covariance``.

    Args:
        parts: Tensors (n_i, \*shape) of one shape, dtype and device; n_i may be 0.
        covariance: Whether to measure it.

    Raises:
        DataError: No latents, or values whose squares leave float64's range.
    """
    total = _Sums(covariance=covariance)
    for part in parts:
        total.add(part)
    return total.moments()


class _Sums:
    """Sums over the latents seen so far, around their mean, relative to the first latent."""

    def __init__(self, *, covariance: bool) -> None:
        self.n = 0
        self.covariance = covariance

    def add(self, part: Tensor) -> None:
        for piece in _pieces(part):
            if not self.n:
                self._begin(piece, part)
            self._merge(piece.to(widest(piece.device)))

    def _begin(self, piece: Tensor, part: Tensor) -> None:
        dim = piece.shape[1]
        self.shape, self.dtype = tuple(part.shape[1:]), part.dtype
        self.first = piece[0].to(widest(piece.device))
        self.mean = torch.zeros(dim, dtype=torch.float64, device="cpu")
        shape = (dim, dim) if self.covariance else (dim,)
        self.squares = self.mean.new_zeros(shape)  # or products
        self.low = torch.full_like(self.mean, math.inf)
        self.high = -self.low

    def _merge(self, piece: Tensor) -> None:
        """Add rows (m, D)."""
        low, high = (bound.double().cpu() for bound in piece.aminmax(dim=0))
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        moved = piece - self.first
        mean = moved.mean(0)
        moved -= mean
        step = mean.double().cpu() - self.mean
        m, n = len(piece), self.n
        if not self.covariance:
            self.squares += moved.square().sum(0).double().cpu()
            self.squares += step.square() * (n * m / (n + m))
        else:
            if moved.device.type == "cpu":
                self.squares.addmm_(moved.T, moved)  # in place: (D, D) may be large
            else:
                self.squares += (moved.T @ moved).double().cpu()
            self.squares.addr_(step, step, alpha=n * m / (n + m))
        self.mean += step * (m / (n + m))
        self.n += m

    def moments(self) -> Moments:
        if not self.n:
            raise DataError("Expected latents; got none.")
        squares = self.squares.div_(self.n)
        result = Moments(
            n=self.n,
            mean=self.first.double().cpu() + self.mean,
            variance=squares.diagonal().clone() if self.covariance else squares,
            low=self.low,
            high=self.high,
            covariance=squares if self.covariance else None,
            shape=self.shape,
            dtype=self.dtype,
        )
        if not bool((result.mean.isfinite() & squares.sum(0).isfinite()).all()):
            raise DataError(
                f"Expected latents whose squares are finite; got values from {float(self.low.min()):.3g} to "
                f"{float(self.high.max()):.3g}. Scale them down."
            )
        return result


def _pieces(part: Tensor) -> Iterator[Tensor]:
    """Cut latents (n, *shape) into rows (m, D) of some MB each."""
    if not part.numel():
        return
    flat = part.detach().reshape(len(part), -1)
    yield from flat.split(max(1, _PIECE // flat.shape[1]))


def beyond_rounding(low: Tensor, high: Tensor, eps: float) -> Tensor:
    """Which ranges from low to high, (D,) each, are wider than a relative rounding could make them."""
    return high - low > 4 * eps * torch.maximum(low.abs(), high.abs())
