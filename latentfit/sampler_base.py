"""The base classes of sampler plugins; authors import them from :mod:`latentfit.plugin`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from latentfit.errors import DensityUnavailable
from latentfit.mixture import GaussianMixture, mixture_size
from latentfit.training import Run, train

__all__ = ["FlowSampler", "Sampler"]


class Sampler(nn.Module, ABC):
    """A distribution over standardised rows: what a plugin implements.

    The constructor takes the method's options as keyword arguments and stores them; it creates nothing.
    Annotations say what an option may be: ``Annotated[int, Interval(1)]``, ``Literal["a", "b"]``,
    ``tuple[int, ...]``; latentfit checks them before it constructs.

    A life is ``__init__(**options)``, then ``build(dim, n)``, then either ``fit`` or ``load_state_dict``,
    then ``sample`` and ``log_prob``. All state is parameters and buffers. Rows are float32. Around ``build``,
    ``fit`` and ``sample`` the global random number generators are seeded and given back by the
    caller, so that libraries which take no generator are reproducible too.
    """

    has_density: ClassVar[bool] = False

    @abstractmethod
    def build(self, dim: int, n: int) -> None:
        """Create the parameters and buffers for n training rows of dim columns.

        Called once with the same numbers before a fit and before a state is loaded, so it may depend on
        nothing else than them and the options.
        """

    @abstractmethod
    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        """Learn the distribution of rows (N, D), with held_out (M, D) to stop by; M may be 0."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n rows, (n, D)."""

    def log_prob(self, rows: Tensor) -> Tensor:  # noqa: ARG002 - subclasses use it
        """Log density in nats, (n,), of rows (n, D).

        Raises:
            DensityUnavailable: The method has none (``has_density`` is False).
        """
        raise DensityUnavailable(f"{type(self).__name__} draws samples but has no density.")


class _Normal(nn.Module):
    """The standard normal distribution, with the interface of GaussianMixture."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("_anchor", torch.zeros(1), persistent=False)  # knows the device
        self._anchor: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * (x.square().sum(1) + self.dim * math.log(2 * math.pi))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, self.dim, generator=generator, device=self._anchor.device)


class FlowSampler(Sampler):
    """A normalising flow on a normal base, or on a trainable Gaussian mixture that starts on the data.

    A subclass creates its layers in :meth:`build_flow` and implements :meth:`to_base` and
    :meth:`from_base`; fitting by maximum likelihood, sampling and scoring are here. A flow that begins as
    the identity begins, on a mixture base, with the mixture's likelihood.

    Args:
        base: "normal" or "mixture".
        components: The mixture's size; None chooses it from the data's (at most 100).
        steps: Optimiser steps at most.
        learning_rate: The highest of the cosine schedule.
    """

    has_density: ClassVar[bool] = True

    def __init__(
        self, *, base: str, components: int | None, steps: int, learning_rate: float
    ) -> None:
        super().__init__()
        self.base = base
        self.components = components
        self.steps = steps
        self.learning_rate = learning_rate

    @abstractmethod
    def build_flow(self, dim: int) -> None:
        """Create the flow's layers for rows of dim columns."""

    @abstractmethod
    def to_base(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Map rows (n, D) to the base's space: (n, D) and the log absolute determinant (n,)."""

    @abstractmethod
    def from_base(self, noise: Tensor) -> Tensor:
        """Map base samples (n, D) to rows (n, D): the inverse of :meth:`to_base`."""

    def build(self, dim: int, n: int) -> None:
        """Create the base and the flow."""
        self.noise: GaussianMixture | _Normal
        if self.base == "mixture":
            self.noise = GaussianMixture(dim, min(n, self.components or mixture_size(n, dim)))
        else:
            self.noise = _Normal(dim)
        self.build_flow(dim)

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        """Fit by maximum likelihood."""
        if isinstance(self.noise, GaussianMixture):
            with torch.no_grad():
                start = torch.cat([self.to_base(part)[0] for part in rows.split(8192)])
            self.noise.fit(start, run.generator, stop=lambda: run.elapsed() >= 1)
        train(
            self,
            lambda batch: -self.log_prob(batch).mean(),
            rows,
            held_out,
            run,
            steps=self.steps,
            learning_rate=self.learning_rate,
        )

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n rows, (n, D)."""
        return self.from_base(self.noise.sample(n, generator))

    def log_prob(self, rows: Tensor) -> Tensor:
        """Log density in nats, (n,), of rows (n, D)."""
        noise, log_determinant = self.to_base(rows)
        return self.noise.log_prob(noise) + log_determinant
