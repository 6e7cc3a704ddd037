"""Monotone rational-quadratic splines (Durkan et al., 2019, arXiv:1906.04032)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["FusedSpline", "rational_quadratic_spline"]


class FusedSpline(torch.autograd.Function):
    """:func:`rational_quadratic_spline`, not inverse, with its gradient written out; for training.

    Autograd keeps and visits some eighty small tensors for a spline, which takes longer than the networks
    around it. Here a dozen are kept. There are no second derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        params: Tensor,
        scale: float,
        bound: float,
        least: tuple[float, float, float],
    ) -> tuple[Tensor, Tensor]:
        """Map inputs of shape S.

        Args:
            ctx: What the gradient needs.
            inputs: Any shape S.
            params: S + (3 bins - 1,): unnormalised widths, heights and inner derivatives.
            scale: What widths and heights are multiplied by first.
            bound: The spline acts on [-bound, bound].
            least: The least width and height, as fractions of the interval, and the least derivative.

        Returns:
            Outputs and log derivatives, both of shape S.
        """
        bins = (params.shape[-1] + 1) // 3
        widths, heights, derivatives = params.split((bins, bins, bins - 1), -1)
        x_knots, x_shares = _knots(widths * scale, bound, least[0])
        y_knots, y_shares = _knots(heights * scale, bound, least[1])
        inside = inputs.abs() <= bound
        x = inputs.clamp(-bound, bound)[..., None]
        index = (x >= x_knots[..., 1:-1]).sum(-1, keepdim=True)
        following = index + 1
        x0, y0 = x_knots.gather(-1, index), y_knots.gather(-1, index)
        width, height = x_knots.gather(-1, following) - x0, y_knots.gather(-1, following) - y0
        slopes = _padded(derivatives, least[2])
        raw0, raw1 = slopes.gather(-1, index), slopes.gather(-1, following)
        d0, d1 = F.softplus(raw0).add_(least[2]), F.softplus(raw1).add_(least[2])
        slope = height / width
        bend = d0 + d1 - 2 * slope
        theta = (x - x0).div_(width)
        mixed = theta * (1 - theta)
        denominator = torch.addcmul(slope, bend, mixed)
        ratio = torch.addcmul(d0 * mixed, slope, theta * theta).div_(denominator)
        derivative = d1 * theta * theta + 2 * slope * mixed + d0 * (1 - theta) * (1 - theta)
        outputs = torch.addcmul(y0, height, ratio)
        log_derivative = (slope / denominator).square_().mul_(derivative).log_()
        ctx.save_for_backward(
            inside,
            index,
            x_shares,
            y_shares,
            width,
            height,
            raw0,
            raw1,
            d0,
            d1,
            theta,
            denominator,
            ratio,
            derivative,
        )
        ctx.settings = scale, bound, least, params.shape
        log_derivative = log_derivative[..., 0].masked_fill_(~inside, 0.0)
        return torch.where(inside, outputs[..., 0], inputs), log_derivative

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_outputs: Tensor, of_log_derivative: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Chain the gradients of both outputs to the inputs and the parameters."""
        inside, index, *saved = ctx.saved_tensors
        (
            x_shares,
            y_shares,
            width,
            height,
            raw0,
            raw1,
            d0,
            d1,
            theta,
            denominator,
            ratio,
            derivative,
        ) = saved
        scale, bound, least, shape = ctx.settings
        bins = x_shares.shape[-1]
        go = (of_outputs * inside)[..., None]
        gl = (of_log_derivative * inside)[..., None]
        slope, rest = height / width, 1 - theta
        mixed, turn = theta * rest, rest - theta
        bend = d0 + d1 - 2 * slope
        # Of the outputs, with respect to numerator and denominator; of the log derivative, likewise.
        over = go * height / denominator
        per = gl / derivative
        down = -ratio * over - 2 * gl / denominator
        of_d = torch.addcmul(down * mixed, over, mixed)  # of d0, but for the derivative's own part
        of_d1 = torch.addcmul(down * mixed, per, theta * theta)
        of_d0 = torch.addcmul(of_d, per, rest * rest)
        of_slope = over * theta * theta + down * (1 - 2 * mixed) + 2 * (per * mixed + gl / slope)
        of_theta = (
            over * (2 * slope * theta + d0 * turn)
            + down * bend * turn
            + 2 * per * (d1 * theta + slope * turn - d0 * rest)
        )
        of_x = of_theta / width
        of_height = torch.addcmul(go * ratio, of_slope, 1 / width)
        of_width = -(of_theta * theta + of_slope * slope) / width

        gradient = torch.zeros(shape, dtype=theta.dtype, device=theta.device)
        before = torch.arange(bins, device=theta.device) < index  # bins before the input's
        for number, (shares, of_start, of_size) in enumerate(
            ((x_shares, -of_x, of_width), (y_shares, go, of_height))
        ):
            part = gradient[..., number * bins : (number + 1) * bins]
            torch.mul(before, of_start, out=part)
            part.scatter_(-1, index, of_size)
            part.sub_((part * shares).sum(-1, keepdim=True))
            part.mul_(shares).mul_(scale * 2 * bound * (1 - least[number] * bins))
        inner = torch.zeros((*index.shape[:-1], bins + 1), dtype=theta.dtype, device=theta.device)
        inner.scatter_(-1, index, of_d0 * raw0.sigmoid())
        inner.scatter_(-1, index + 1, of_d1 * raw1.sigmoid())
        gradient[..., 2 * bins :] = inner[..., 1:-1]
        of_inputs = torch.where(inside, of_x[..., 0], of_outputs)
        return of_inputs, gradient, None, None, None


def rational_quadratic_spline(
    inputs: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    tail_bound: float,
    inverse: bool = False,
    least: tuple[float, float, float] = (1e-3, 1e-3, 1e-3),
) -> tuple[Tensor, Tensor]:
    """Monotone rational-quadratic spline with linear tails: nflows' function, dense and without its assert.

    nflows selects the inputs inside the bound with boolean masks and asserts that a discriminant, which
    rounding can push below zero, is not negative. Here every input is computed, tails are chosen at the end,
    and the discriminant is clamped at zero.

    Args:
        inputs: Any shape S.
        widths: Unnormalised, S + (bins,).
        heights: Unnormalised, S + (bins,).
        derivatives: Unnormalised, at the inner knots, S + (bins - 1,); 1 at the outer ones.
        tail_bound: The spline acts on [-tail_bound, tail_bound].
        inverse: Whether to compute the inverse.
        least: The least width and height, as fractions of the interval, and the least derivative.

    Returns:
        Outputs of shape S and the log absolute derivative, of shape S.
    """
    x_knots, _ = _knots(widths, tail_bound, least[0])
    y_knots, _ = _knots(heights, tail_bound, least[1])
    slopes = _padded(derivatives, least[2])

    inside = inputs.abs() <= tail_bound
    clamped = inputs.clamp(-tail_bound, tail_bound)
    knots = y_knots if inverse else x_knots
    index = (clamped[..., None] >= knots[..., 1:-1]).sum(-1, keepdim=True)  # the bin, S + (1,)
    ends = torch.cat((index, index + 1), dim=-1)  # its two knots
    x0, x1 = x_knots.gather(-1, ends).unbind(-1)
    y0, y1 = y_knots.gather(-1, ends).unbind(-1)
    d0, d1 = (least[2] + F.softplus(slopes.gather(-1, ends))).unbind(-1)
    width, height = x1 - x0, y1 - y0
    slope = height / width
    bend = d0 + d1 - 2 * slope
    if inverse:
        rise = clamped - y0
        a = rise * bend + height * (slope - d0)
        b = height * d0 - rise * bend
        c = -slope * rise
        root = 2 * c / (-b - (b * b - 4 * a * c).clamp_min(0).sqrt())
        theta = root.clamp(0, 1)
        outputs = theta * width + x0
    else:
        theta = (clamped - x0) / width
    mixed = theta * (1 - theta)
    denominator = slope + bend * mixed
    if not inverse:
        outputs = y0 + height * (slope * theta * theta + d0 * mixed) / denominator
    derivative = d1 * theta * theta + 2 * slope * mixed + d0 * (1 - theta).square()
    log_derivative = 2 * (slope.log() - denominator.log()) + derivative.log()
    if inverse:
        log_derivative = -log_derivative
    zero = torch.zeros_like(log_derivative)
    return torch.where(inside, outputs, inputs), torch.where(inside, log_derivative, zero)


def _knots(unnormalised: Tensor, bound: float, least: float) -> tuple[Tensor, Tensor]:
    """Knots (bins + 1) from -bound to bound, at least so far apart as a fraction of it; and the softmax."""
    bins = unnormalised.shape[-1]
    # torch's softmax takes three times as long on rows as short as these.
    shares = (unnormalised - unnormalised.detach().amax(-1, keepdim=True)).exp()
    shares = shares / shares.sum(-1, keepdim=True)
    steps = least + (1 - least * bins) * shares
    inner = steps[..., :-1].cumsum(-1) * (2 * bound) - bound
    return F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound), shares


def _padded(derivatives: Tensor, least: float) -> Tensor:
    """Unnormalised derivatives with those of the ends, which softplus, taken after gathering, makes 1."""
    return F.pad(derivatives, (1, 1), value=math.log(math.expm1(1 - least)))
