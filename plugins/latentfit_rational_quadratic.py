"""Monotone rational-quadratic splines (Durkan et al., 2019, arXiv:1906.04032)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["LEAST", "rational_quadratic_spline"]

LEAST = (
    1e-3  # a bin's width and height, as fractions of the interval, and a derivative: as in nflows
)


def rational_quadratic_spline(
    inputs: Tensor,
    params: Tensor,
    *,
    tail_bound: float,
    scale: float = 1.0,
    inverse: bool = False,
    fused: bool = False,
) -> tuple[Tensor, Tensor]:
    """Monotone rational-quadratic spline with linear tails: nflows' function, dense and without its assert.

    nflows selects the inputs inside the bound with boolean masks and asserts that a discriminant, which
    rounding can push below zero, is not negative. Here every input is computed, tails are chosen at the end,
    and the discriminant is clamped at zero.

    Args:
        inputs: Any shape S.
        params: S + (3 bins - 1,): unnormalised widths and heights, and derivatives at the inner knots; those
            at the outer ones are 1.
        tail_bound: The spline acts on [-tail_bound, tail_bound].
        scale: What widths and heights are multiplied by before they are normalised.
        inverse: Whether to compute the inverse.
        fused: Whether gradients may be had once only, and then in a fraction of autograd's time; not of the
            inverse.

    Returns:
        Outputs of shape S and the log absolute derivative, of shape S.
    """
    x = inputs.reshape(-1)
    # A row for each parameter: sums over the bins then run through memory once, several inputs at a time.
    table = params.to(x.dtype).reshape(len(x), params.shape[-1]).T.contiguous()
    if fused and not inverse:
        apply: Any = _Fused.apply  # untyped in torch
        outputs, log_derivative = apply(x, table, tail_bound, scale)
    else:
        outputs, log_derivative = (_backwards if inverse else _forwards)(
            _find(x, table, tail_bound, scale, of_outputs=inverse)
        )
        inside = x.abs() <= tail_bound
        outputs = torch.where(inside, outputs, x)
        log_derivative = log_derivative.masked_fill(~inside, 0.0)
    return outputs.view(inputs.shape), log_derivative.view(inputs.shape)


@dataclass(frozen=True)
class _Curve:
    """A bin's curve at places theta in [0, 1], all (m,).

    Attributes:
        theta: The places, as fractions of the bin's width.
        mixed: theta (1 - theta).
        denominator: Of the rational function.
        rise: The height so far, as a fraction of the bin's.
        numerator: Of the derivative, but for the squared slope.
        log_derivative: Of the outputs.
    """

    theta: Tensor
    mixed: Tensor
    denominator: Tensor
    rise: Tensor
    numerator: Tensor
    log_derivative: Tensor


@dataclass(frozen=True)
class _Bin:
    """The bins that m inputs fall into.

    Attributes:
        place: The inputs, clamped to the interval, (m,).
        past: Whether an input lies beyond a bin, (bins - 1, m).
        ends: The numbers of the bin's two knots, (2, m).
        shares: Of the widths and of the heights, (2, bins, m), each summing to one.
        x0, y0, width, height: The bin's corner and size, (m,).
        raw: Unnormalised derivatives at the two knots, (2, m).
        d0, d1: The derivatives, (m,).
        slope: height / width.
    """

    place: Tensor
    past: Tensor
    ends: Tensor
    shares: Tensor
    x0: Tensor
    y0: Tensor
    width: Tensor
    height: Tensor
    raw: Tensor
    d0: Tensor
    d1: Tensor
    slope: Tensor

    def at(self, theta: Tensor) -> _Curve:
        """Evaluate the bins' curves at fractions of their widths."""
        slope, d0, d1 = self.slope, self.d0, self.d1
        squared = theta * theta
        mixed = theta - squared
        denominator = torch.addcmul(slope, d0 + d1 - 2 * slope, mixed)
        rise = torch.addcmul(d0 * mixed, slope, squared) / denominator
        rest = 1 - theta
        numerator = torch.addcmul(d1 * squared + 2 * slope * mixed, d0, rest * rest)
        log_derivative = ((slope / denominator).square() * numerator).log()
        return _Curve(theta, mixed, denominator, rise, numerator, log_derivative)

    def fraction(self) -> Tensor:
        """The places, as fractions of the bins' widths."""
        return (self.place - self.x0) / self.width

    def root(self) -> Tensor:
        """Solve for the fractions of the width at which the curves have the places' height."""
        rise = self.place - self.y0
        bend = self.d0 + self.d1 - 2 * self.slope
        a = rise * bend + self.height * (self.slope - self.d0)
        b = self.height * self.d0 - rise * bend
        c = -self.slope * rise
        return (2 * c / (-b - (b * b - 4 * a * c).clamp_min(0).sqrt())).clamp(0, 1)


def _forwards(bin_: _Bin) -> tuple[Tensor, Tensor]:
    curve = bin_.at(bin_.fraction())
    return bin_.y0 + bin_.height * curve.rise, curve.log_derivative


def _backwards(bin_: _Bin) -> tuple[Tensor, Tensor]:
    curve = bin_.at(bin_.root())
    return bin_.x0 + bin_.width * curve.theta, -curve.log_derivative


def _find(x: Tensor, table: Tensor, bound: float, scale: float, *, of_outputs: bool) -> _Bin:
    """Find the bins that inputs (m,), or outputs, fall into, by parameters (3 bins - 1, m)."""
    bins = (len(table) + 1) // 3
    shares = (table[: 2 * bins].unflatten(0, (2, bins)) * scale).softmax(1)
    least = torch.arange(1, bins, dtype=x.dtype, device=x.device)[:, None] * (2 * bound * LEAST)
    inner = (least - bound) + shares[:, :-1].cumsum(1) * (2 * bound * (1 - LEAST * bins))
    end = x.new_full((2, 1, len(x)), bound)
    knots = torch.cat((-end, inner, end), 1)  # (2, bins + 1, m)

    place = x.clamp(-bound, bound)
    past = place >= knots[int(of_outputs), 1:-1]
    index = past.sum(0, keepdim=True)
    ends = torch.cat((index, index + 1))
    corners = knots.gather(1, ends.expand(2, -1, -1))
    (x0, y0), (width, height) = corners[:, 0], corners[:, 1] - corners[:, 0]
    # Softplus is taken after gathering, so the derivatives at the ends are those that it makes 1.
    raw = F.pad(table[2 * bins :], (0, 0, 1, 1), value=math.log(math.expm1(1 - LEAST)))
    raw = raw.gather(0, ends)
    d0, d1 = F.softplus(raw) + LEAST
    slope = height / width
    return _Bin(place, past, ends, shares, x0, y0, width, height, raw, d0, d1, slope)


class _Fused(torch.autograd.Function):
    """The spline of inputs (m,) by parameters (3 bins - 1, m), with its gradient written out.

    Autograd keeps and visits some eighty small tensors for a spline, which takes longer than the networks
    around it. Here a dozen are kept. There are no second derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, table: Tensor, bound: float, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Give outputs and log derivatives, both (m,)."""
        inside = x.abs() <= bound
        bin_ = _find(x, table, bound, scale, of_outputs=False)
        curve = bin_.at(bin_.fraction())
        ctx.save_for_backward(
            inside,
            bin_.past,
            bin_.ends,
            bin_.shares,
            bin_.width,
            bin_.height,
            bin_.raw,
            bin_.d0,
            bin_.d1,
            bin_.slope,
            curve.theta,
            curve.mixed,
            curve.denominator,
            curve.rise,
            curve.numerator,
        )
        ctx.factor = scale * 2 * bound
        outputs = torch.addcmul(bin_.y0, bin_.height, curve.rise)
        log_derivative = curve.log_derivative.masked_fill_(~inside, 0.0)
        return torch.where(inside, outputs, x), log_derivative

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_outputs: Tensor, of_log_derivative: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Chain the gradients of both outputs to the inputs and the parameters."""
        inside, past, ends, shares, width, height, raw, d0, d1, slope, *curve = ctx.saved_tensors
        theta, mixed, denominator, rise, numerator = curve
        go, gl = of_outputs * inside, of_log_derivative * inside
        rest, squared = 1 - theta, theta - mixed
        turn = rest - theta
        # Of the outputs, with respect to numerator and denominator; of the log derivative, likewise.
        over = go * height / denominator
        per = gl / numerator
        down = -torch.addcmul(2 * gl / denominator, rise, over)
        of_d0 = torch.addcmul((over + down) * mixed, per, rest * rest)
        of_d1 = torch.addcmul(down * mixed, per, squared)
        of_slope = over * squared + down * (1 - 2 * mixed) + 2 * (per * mixed + gl / slope)
        of_theta = (
            over * (2 * slope * theta + d0 * turn)
            + down * (d0 + d1 - 2 * slope) * turn
            + 2 * per * (d1 * theta + slope * turn - d0 * rest)
        )
        of_x = of_theta / width
        of_height = torch.addcmul(go * rise, of_slope, 1 / width)
        of_width = -torch.addcmul(of_x * theta, of_slope, slope / width)

        bins, m = shares.shape[1:]
        gradient = theta.new_empty(3 * bins - 1, m)
        sizes = gradient[: 2 * bins].view(2, bins, m)
        # A bin before the input's moves its start, the input's own its size.
        torch.mul(past, torch.stack((-of_x, go))[:, None], out=sizes[:, :-1])
        sizes[:, -1] = 0
        sizes.scatter_(1, ends[:1].expand(2, -1, -1), torch.stack((of_width, of_height))[:, None])
        sizes.sub_((sizes * shares).sum(1, keepdim=True))
        sizes.mul_(shares).mul_(ctx.factor * (1 - LEAST * bins))
        slopes = theta.new_zeros(bins + 1, m)
        slopes.scatter_(0, ends, torch.stack((of_d0, of_d1)).mul_(raw.sigmoid()))
        gradient[2 * bins :] = slopes[1:-1]
        return torch.where(inside, of_x, of_outputs), gradient, None, None
