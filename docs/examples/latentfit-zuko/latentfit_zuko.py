"""Samplers on the flows of zuko (Rozet et al., https://github.com/probabilists/zuko)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal

import zuko
from torch import Tensor

from latentfit.plugin import FlowSampler, Interval

__all__ = ["NAF", "NSF"]


class _Zuko(FlowSampler):
    """A flow of zuko's: its transformation, on latentfit's base, fitted by latentfit."""

    conditions = ("classes", "vector")

    @abstractmethod
    def _make(self, dim: int) -> Any:
        """Create zuko's flow."""

    def build_flow(self, dim: int) -> None:
        """Keep the flow's transformation; the base is latentfit's."""
        self.transform = self._make(dim).transform

    def to_base(self, rows: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows (n, D) to the base's space: (n, D) and the log absolute determinant (n,)."""
        noise, log_determinant = self.transform(context).call_and_ladj(rows)
        return noise, log_determinant

    def from_base(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """Map base samples (n, D) to rows (n, D)."""
        rows: Tensor = self.transform(context).inv(noise)
        return rows


class NSF(_Zuko):
    """Neural spline flow (Durkan et al., 2019, arXiv:1906.04032); the identity beyond 5 deviations.

    Args:
        transforms: Layers, each a rational-quadratic spline of every dimension given the ones before it.
        hidden: Widths of the hidden layers of each network.
        bins: Bins of each spline.
        passes: Network calls that it takes to invert a layer; 2 makes coupling layers, None makes
            autoregressive ones, with as many passes as dimensions.
        base: "mixture", a trainable Gaussian mixture that starts on the data, or "normal".
        components: The mixture's size; None chooses it from the data's.
        steps: Optimiser steps at most; a held-out loss that no longer falls stops earlier.
        learning_rate: The highest of the cosine schedule.
    """

    def __init__(
        self,
        *,
        transforms: Annotated[int, Interval(1)] = 3,
        hidden: tuple[Annotated[int, Interval(1)], ...] = (128, 128),
        bins: Annotated[int, Interval(2)] = 8,
        passes: Annotated[int, Interval(2)] | None = None,
        base: Literal["mixture", "normal"] = "mixture",
        components: Annotated[int, Interval(1)] | None = None,
        steps: Annotated[int, Interval(1)] = 2000,
        learning_rate: Annotated[float, Interval(0, open_low=True)] = 2e-3,
    ) -> None:
        super().__init__(base=base, components=components, steps=steps, learning_rate=learning_rate)
        self.transforms = transforms
        self.hidden = hidden
        self.bins = bins
        self.passes = passes

    def _make(self, dim: int) -> Any:
        return zuko.flows.NSF(
            dim,
            self.context_dim,
            bins=self.bins,
            transforms=self.transforms,
            passes=self.passes,
            hidden_features=self.hidden,
        )


class NAF(_Zuko):
    """Neural autoregressive flow (Huang et al., 2018, arXiv:1804.00779); density first.

    Each dimension goes through a monotonic network that the dimensions before it steer. To invert that, zuko
    bisects [-10, 10], to 1e-6: a draw takes some 25 network calls for each layer and dimension, and rows
    beyond 10 deviations can be scored, but are never drawn.

    Args:
        transforms: Layers; one can make any distribution.
        hidden: Widths of the hidden layers of the networks that steer.
        signal: Numbers that steer each monotonic network.
        monotonic: Pairs of units in the hidden layers of the monotonic networks.
        passes: Network calls that it takes to invert a layer; 2 makes coupling layers, None makes
            autoregressive ones, with as many passes as dimensions.
        base: "mixture", a trainable Gaussian mixture that starts on the data, or "normal".
        components: The mixture's size; None chooses it from the data's.
        steps: Optimiser steps at most; a held-out loss that no longer falls stops earlier.
        learning_rate: The highest of the cosine schedule.
    """

    def __init__(
        self,
        *,
        transforms: Annotated[int, Interval(1)] = 1,
        hidden: tuple[Annotated[int, Interval(1)], ...] = (128, 128),
        signal: Annotated[int, Interval(1)] = 16,
        monotonic: tuple[Annotated[int, Interval(1)], ...] = (16, 16),
        passes: Annotated[int, Interval(2)] | None = None,
        base: Literal["mixture", "normal"] = "mixture",
        components: Annotated[int, Interval(1)] | None = None,
        steps: Annotated[int, Interval(1)] = 2000,
        learning_rate: Annotated[float, Interval(0, open_low=True)] = 1e-3,
    ) -> None:
        super().__init__(base=base, components=components, steps=steps, learning_rate=learning_rate)
        self.transforms = transforms
        self.hidden = hidden
        self.signal = signal
        self.monotonic = monotonic
        self.passes = passes

    def _make(self, dim: int) -> Any:
        return zuko.flows.NAF(
            dim,
            self.context_dim,
            transforms=self.transforms,
            signal=self.signal,
            network={"hidden_features": [2 * pairs for pairs in self.monotonic]},
            passes=self.passes,
            hidden_features=self.hidden,
        )
