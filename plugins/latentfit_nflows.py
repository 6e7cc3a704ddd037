"""Neural spline flows, on the transforms of nflows (Durkan et al., 2019, arXiv:1906.04032)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from nflows.nn.nets import ResidualNet
from nflows.transforms import (
    CompositeTransform,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    PiecewiseRationalQuadraticCDF,
    PiecewiseRationalQuadraticCouplingTransform,
    RandomPermutation,
    ReversePermutation,
)
from nflows.transforms.made import MaskedLinear
from torch import Tensor, nn

from latentfit.plugin import FlowSampler, Interval
from latentfit_rational_quadratic import LEAST, rational_quadratic_spline

__all__ = ["Spline", "SplineAR"]


class _SplineFlow(FlowSampler):
    """What the spline flows share: a composite of nflows' transforms from rows to the base."""

    conditions = ("classes", "vector")
    flow: CompositeTransform

    def to_base(self, rows: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows (n, D) to the base's space: (n, D) and the log absolute determinant (n,)."""
        noise, log_determinant = self.flow(rows, context)
        return noise, log_determinant

    def from_base(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """Map base samples (n, D) to rows (n, D)."""
        rows: Tensor = self.flow.inverse(noise, context)[0]
        return rows


class Spline(_SplineFlow):
    """Rational-quadratic coupling layers on a normal or a mixture base; the identity beyond ``tail_bound``.

    Args:
        layers: Coupling layers; in pairs they transform all dimensions, in an order drawn at random.
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
        layers: Annotated[int, Interval(1, 1000)] = 4,
        hidden: Annotated[int, Interval(1)] = 128,
        blocks: Annotated[int, Interval(1, 1000)] = 1,
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
        """Create the coupling layers; a single dimension gets one spline, of the context if there is one."""
        context = self.context_dim or None
        settings = {"num_bins": self.bins, "tails": "linear", "tail_bound": self.tail_bound}
        transforms: list[Any] = []
        if dim == 1 and context:
            transforms.append(_Autoregressive(1, self.hidden, self.blocks, context, settings))
        elif dim == 1:
            transforms.append(_Single([1], **settings))
        for layer in range(self.layers if dim > 1 else 0):
            # By chance alone all layers might transform the same columns: each second takes the others.
            if layer % 2 == 0:
                transforms.append(RandomPermutation(dim))
            coupling = _Coupling(
                (torch.arange(dim) + layer) % 2,
                lambda n_in, n_out: ResidualNet(
                    n_in, n_out, self.hidden, context_features=context, num_blocks=self.blocks
                ),
                **settings,
            )
            _start_as_identity(coupling, coupling.transform_net.final_layer)
            transforms.append(coupling)
        self.flow = CompositeTransform(transforms)


class SplineAR(_SplineFlow):
    """Rational-quadratic autoregressive layers (Durkan et al., 2019, arXiv:1906.04032).

    A density takes one pass through the networks, a sample of D columns takes D.

    Args:
        layers: Autoregressive layers; the columns are reversed between them.
        hidden: Width of each layer's masked network.
        blocks: Residual blocks in each masked network.
        bins: Bins of each spline.
        tail_bound: Splines act on [-tail_bound, tail_bound] standard deviations, and are the identity beyond.
        base: "mixture", a trainable Gaussian mixture that starts on the data, or "normal".
        components: The mixture's size; None chooses it from the data's.
        steps: Optimiser steps at most; a held-out loss that no longer falls stops earlier.
        learning_rate: The highest of the cosine schedule.
    """

    def __init__(
        self,
        *,
        layers: Annotated[int, Interval(1, 1000)] = 3,
        hidden: Annotated[int, Interval(1)] = 128,
        blocks: Annotated[int, Interval(1, 1000)] = 1,
        bins: Annotated[int, Interval(2, 512)] = 8,
        tail_bound: Annotated[float, Interval(0, open_low=True)] = 5.0,
        base: Literal["mixture", "normal"] = "mixture",
        components: Annotated[int, Interval(1)] | None = None,
        steps: Annotated[int, Interval(1)] = 3000,
        learning_rate: Annotated[float, Interval(0, open_low=True)] = 4e-3,
    ) -> None:
        super().__init__(base=base, components=components, steps=steps, learning_rate=learning_rate)
        self.layers = layers
        self.hidden = hidden
        self.blocks = blocks
        self.bins = bins
        self.tail_bound = tail_bound

    def build_flow(self, dim: int) -> None:
        """Create the layers; they begin as the identity up to the order of the columns."""
        context = self.context_dim or None
        settings = {"num_bins": self.bins, "tails": "linear", "tail_bound": self.tail_bound}
        transforms: list[Any] = []
        for _ in range(self.layers if dim > 1 else 1):
            transforms.append(ReversePermutation(dim))
            transforms.append(_Autoregressive(dim, self.hidden, self.blocks, context, settings))
        self.flow = CompositeTransform(transforms)


class _Single(PiecewiseRationalQuadraticCDF):  # type: ignore[misc]
    """nflows' spline of each column by itself, with a dense kernel in place of its masked one."""

    def _spline(self, inputs: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        own = (self.unnormalized_widths, self.unnormalized_heights, self.unnormalized_derivatives)
        params = torch.cat(own, dim=-1).expand(len(inputs), -1, -1)
        outputs, log_determinant = _spline(self, inputs, params, inverse=inverse)
        return outputs, log_determinant.sum(1)


class _Coupling(PiecewiseRationalQuadraticCouplingTransform):  # type: ignore[misc]
    """nflows' coupling layer with a dense kernel in place of its masked one."""

    def _coupling_transform(
        self, inputs: Tensor, transform_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        params = transform_params.view(*inputs.shape, self._transform_dim_multiplier())
        width = math.sqrt(self.transform_net.hidden_features)
        outputs, log_determinant = _spline(self, inputs, params, width, inverse)
        return outputs, log_determinant.sum(1)


class _Autoregressive(MaskedPiecewiseRationalQuadraticAutoregressiveTransform):  # type: ignore[misc]
    """nflows' autoregressive layer with a dense kernel, inverted a column at a time."""

    def __init__(
        self, dim: int, hidden: int, blocks: int, context_dim: int | None, settings: dict[str, Any]
    ) -> None:
        super().__init__(dim, hidden, context_features=context_dim, num_blocks=blocks, **settings)
        network = self.autoregressive_net
        _start_as_identity(self, network.final_layer)
        linear = [m for m in network.modules() if isinstance(m, MaskedLinear)]
        if context_dim:
            # No hidden unit of nflows' masks stands before the first column, which thus would not see the
            # context; units of degree 0 do.
            column = torch.arange(1, dim + 1)
            degree = torch.arange(hidden) % dim
            for layer, inputs in zip(linear, (column, *[degree] * (len(linear) - 1)), strict=True):
                layer.mask = (degree[:, None] >= inputs).float()
            repeated = column.repeat_interleave(self._output_dim_multiplier())
            linear[-1].mask = (repeated[:, None] > degree).float()
        for layer in linear:  # the masks follow from the options: no state
            layer.register_buffer("mask", layer.mask, persistent=False)
            layer.register_buffer("degrees", layer.degrees, persistent=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # nflows inverts all columns at every pass and keeps one more of them: D times the work.
        outputs = torch.zeros_like(inputs)
        total = inputs.new_zeros(len(inputs))
        for i in range(inputs.shape[1]):
            params = self.autoregressive_net(outputs, context)
            params = params.view(*inputs.shape, self._output_dim_multiplier())
            column, log_determinant = _spline(self, inputs[:, i], params[:, i], inverse=True)
            outputs = torch.cat((outputs[:, :i], column[:, None], outputs[:, i + 1 :]), dim=1)
            total = total + log_determinant
        return outputs, total

    def _elementwise(
        self, inputs: Tensor, autoregressive_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        params = autoregressive_params.view(*inputs.shape, self._output_dim_multiplier())
        outputs, log_determinant = _spline(self, inputs, params, inverse=inverse)
        return outputs, log_determinant.sum(1)


def _start_as_identity(transform: Any, last: nn.Linear) -> None:
    """Zero a network's last layer, but for the derivatives, which softplus must take to 1."""
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    unit = math.log(math.expm1(1 - LEAST))
    with torch.no_grad():
        last.bias.view(-1, 3 * transform.num_bins - 1)[:, 2 * transform.num_bins :] = unit


def _spline(
    transform: Any, inputs: Tensor, params: Tensor, width: float = 1.0, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Apply the kernel with a network's outputs and the settings of one of nflows' transforms."""
    return rational_quadratic_spline(
        inputs,
        params,
        tail_bound=transform.tail_bound,
        scale=1 / width,
        inverse=inverse,
        fused=transform.training and not inverse,
    )
