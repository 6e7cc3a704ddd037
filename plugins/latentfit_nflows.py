"""Neural spline flows, on the coupling transform of nflows (Durkan et al., 2019, arXiv:1906.04032)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from nflows.nn.nets import ResidualNet
from nflows.transforms import (
    CompositeTransform,
    PiecewiseRationalQuadraticCDF,
    PiecewiseRationalQuadraticCouplingTransform,
    RandomPermutation,
)
from torch import Tensor
from torch.nn import functional as F

from latentfit.plugin import FlowSampler, Interval

__all__ = ["Spline", "rational_quadratic_spline"]


class Spline(FlowSampler):
    """Rational-quadratic coupling layers on a normal or a mixture base; the identity beyond ``tail_bound``.

    Args:
        layers: Coupling layers, each after a random permutation of the dimensions.
        hidden: Width of each coupling network.
        blocks: Residual blocks in each coupling network.
        bins: Bins of each spline.
        tail_bound: Splines act on [-tail_bound, tail_bound] standard deviations.
        base: "mixture", a trainable Gaussian mixture that starts on the data, or "normal".
        components: The mixture's size; None chooses it from the data's.
        steps: Optimiser steps at most; a held-out loss that no longer falls stops earlier.
        learning_rate: The highest of the cosine schedule.
    """

    def __init__(
        self,
        *,
        layers: Annotated[int, Interval(1)] = 4,
        hidden: Annotated[int, Interval(1)] = 128,
        blocks: Annotated[int, Interval(1)] = 1,
        bins: Annotated[int, Interval(2, 512)] = 8,
        tail_bound: Annotated[float, Interval(0, open_low=True)] = 5.0,
        base: Literal["mixture", "normal"] = "mixture",
        components: Annotated[int, Interval(1)] | None = None,
        steps: Annotated[int, Interval(1)] = 2000,
        learning_rate: Annotated[float, Interval(0, open_low=True)] = 2e-3,
    ) -> None:
        super().__init__(base=base, components=components, steps=steps, learning_rate=learning_rate)
        self.layers = layers
        self.hidden = hidden
        self.blocks = blocks
        self.bins = bins
        self.tail_bound = tail_bound

    def build_flow(self, dim: int) -> None:
        """Create the coupling layers; a single dimension gets one spline without a network."""
        transforms: list[Any] = []
        if dim == 1:
            transforms.append(
                PiecewiseRationalQuadraticCDF(
                    [1], num_bins=self.bins, tails="linear", tail_bound=self.tail_bound
                )
            )
        for _ in range(self.layers if dim > 1 else 0):
            transforms.append(RandomPermutation(dim))
            coupling = _Coupling(
                torch.arange(dim) % 2,
                lambda n_in, n_out: ResidualNet(n_in, n_out, self.hidden, num_blocks=self.blocks),
                num_bins=self.bins,
                tails="linear",
                tail_bound=self.tail_bound,
            )
            coupling.start_as_identity()
            transforms.append(coupling)
        self.flow = CompositeTransform(transforms)

    def to_base(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Map rows (n, D) to the base's space: (n, D) and the log absolute determinant (n,)."""
        noise, log_determinant = self.flow(rows)
        return noise, log_determinant

    def from_base(self, noise: Tensor) -> Tensor:
        """Map base samples (n, D) to rows (n, D)."""
        rows: Tensor = self.flow.inverse(noise)[0]
        return rows


class _Coupling(PiecewiseRationalQuadraticCouplingTransform):  # type: ignore[misc]
    """nflows' coupling layer with the dense kernel below in place of its masked one."""

    def start_as_identity(self) -> None:
        """Zero the network's last layer, but for the derivatives, which softplus must take to 1."""
        last = self.transform_net.final_layer
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
        unit = math.log(math.expm1(1 - self.min_derivative))
        with torch.no_grad():
            last.bias.view(-1, 3 * self.num_bins - 1)[:, 2 * self.num_bins :] = unit

    def _piecewise_cdf(
        self, inputs: Tensor, transform_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        width = math.sqrt(self.transform_net.hidden_features)
        bins = self.num_bins
        return rational_quadratic_spline(
            inputs,
            transform_params[..., :bins] / width,
            transform_params[..., bins : 2 * bins] / width,
            transform_params[..., 2 * bins :],
            tail_bound=self.tail_bound,
            inverse=inverse,
            least=(self.min_bin_width, self.min_bin_height, self.min_derivative),
        )


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
    x_knots = _knots(widths, tail_bound, least[0])  # S + (bins + 1,)
    y_knots = _knots(heights, tail_bound, least[1])
    slopes = F.pad(least[2] + F.softplus(derivatives), (1, 1), value=1.0)

    inside = inputs.abs() <= tail_bound
    clamped = inputs.clamp(-tail_bound, tail_bound)
    knots = y_knots if inverse else x_knots
    index = (clamped[..., None] >= knots[..., 1:-1]).sum(-1, keepdim=True)  # the bin, S + (1,)
    ends = torch.cat((index, index + 1), dim=-1)  # its two knots
    x0, x1 = x_knots.gather(-1, ends).unbind(-1)
    y0, y1 = y_knots.gather(-1, ends).unbind(-1)
    d0, d1 = slopes.gather(-1, ends).unbind(-1)
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


def _knots(unnormalised: Tensor, bound: float, least: float) -> Tensor:
    """Knots from -bound to bound, at least so far apart as a fraction of the interval."""
    bins = unnormalised.shape[-1]
    steps = least + (1 - least * bins) * unnormalised.softmax(-1)
    inner = steps[..., :-1].cumsum(-1) * (2 * bound) - bound
    return F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound)
