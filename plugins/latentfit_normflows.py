"""RealNVP, on the coupling layers of normflows (Stimper et al., 2023, arXiv:2302.12014)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import normflows as nf
import torch
from torch import Tensor, nn

from latentfit.plugin import FlowSampler, Interval, OptionError

__all__ = ["RealNVP"]


class RealNVP(FlowSampler):
    """Affine coupling layers (Dinh et al., 2016, arXiv:1605.08803) on a normal or a mixture base.

    The paper's FlowAE is ``layers=5, hidden=(H,), base="normal"``. A mixture base costs as much and need not
    bend one blob into many clusters, which leaves bridges between them.

    Args:
        layers: Coupling layers; the halves swap after each.
        hidden: Widths of the hidden layers of each coupling network.
        base: "mixture", a trainable Gaussian mixture that starts on the data, or "normal".
        components: The mixture's size; None chooses it from the data's.
        steps: Optimiser steps at most; a held-out loss that no longer falls stops earlier.
        learning_rate: The highest of the cosine schedule.
    """

    def __init__(
        self,
        *,
        layers: Annotated[int, Interval(1)] = 5,
        hidden: tuple[Annotated[int, Interval(1)], ...] = (128,),
        base: Literal["mixture", "normal"] = "mixture",
        components: Annotated[int, Interval(1)] | None = None,
        steps: Annotated[int, Interval(1)] = 3000,
        learning_rate: Annotated[float, Interval(0, open_low=True)] = 2e-3,
    ) -> None:
        super().__init__(base=base, components=components, steps=steps, learning_rate=learning_rate)
        self.layers = layers
        self.hidden = hidden

    def build_flow(self, dim: int) -> None:
        """Create the coupling layers; they begin as the identity up to the order of the columns."""
        self.flows = nn.ModuleList()
        if dim == 1:  # nothing to couple: the base alone is the model
            if self.base == "normal":
                raise OptionError(
                    "RealNVP couples two or more dimensions; for one, expected base='mixture', got "
                    "base='normal'."
                )
            return
        kept = (dim + 1) // 2
        for _ in range(self.layers):
            network = nf.nets.MLP([kept, *self.hidden, 2 * (dim - kept)], init_zeros=True)
            self.flows.append(nf.flows.AffineCouplingBlock(_BoundedScale(network)))
            self.flows.append(nf.flows.Permute(dim, mode="swap"))

    def to_base(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Map rows (n, D) to the base's space: (n, D) and the log absolute determinant (n,)."""
        total = rows.new_zeros(len(rows))
        flow: Any  # normflows' layers are modules with an inverse method
        for flow in reversed(self.flows):
            rows, log_determinant = flow.inverse(rows)
            total = total + log_determinant
        return rows, total

    def from_base(self, noise: Tensor) -> Tensor:
        """Map base samples (n, D) to rows (n, D)."""
        for flow in self.flows:
            noise, _ = flow(noise)
        return noise


class _BoundedScale(nn.Module):
    """Bound the log scales, every second output, so that no row is stretched beyond float32's range."""

    _bound = 3.0

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        shift, scale = self.network(x).view(len(x), -1, 2).unbind(dim=2)
        bounded = self._bound * torch.tanh(scale / self._bound)
        return torch.stack((shift, bounded), dim=2).flatten(1)
