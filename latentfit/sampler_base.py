"""The base classes of sampler plugins; authors import them from :mod:`latentfit.plugin`."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from latentfit.arguments import check_whole
from latentfit.errors import DensityUnavailable
from latentfit.mixture import GaussianMixture, mixture_size
from latentfit.rows import Rows
from latentfit.training import Run, train

__all__ = ["FlowSampler", "Sampler", "StandardNormal"]

_CHUNK = (
    2048  # rows whose hidden layers stay in the cache: on CPUs twice as fast as many more at once
)
_MOST = 100  # components of a mixture base, where the user gives no number
_MOST_UNDER_VECTOR = 10
_FLOW_COLUMNS = 512  # beyond which a fit of a flow warns; docs/growth.md has the measurements


class Sampler(nn.Module, ABC):
    """A distribution over rows, centred and scaled: what a plugin implements.

    The constructor takes the method's options as keyword arguments and stores them; it creates nothing.
    Annotations say what an option may be: ``Annotated[int, Interval(1)]``, ``Literal["a", "b"]``,
    ``tuple[int, ...]``; latentfit checks them before it constructs.

    A life is ``__init__(**options)``, then ``build(dim, n)``, then either ``fit`` or ``load_state_dict``,
    then ``sample`` and ``log_prob``. All state is parameters and buffers. Rows are float32. Around ``build``,
    ``fit`` and ``sample`` the global random number generators are seeded and given back by the
    caller, so that libraries which take no generator are reproducible too.

    A method that can be conditioned names the kinds in ``conditions``, takes a last argument
    ``context: Tensor | None = None`` in ``sample`` and ``log_prob``, and finds the rows' contexts in ``run``.
    A context is one float32 row for each row: one-hot for classes, standardised values for a vector.

    Attributes:
        has_density: Whether ``log_prob`` works.
        conditions: The kinds of condition that the method can take: "classes", "vector".
        streams: Whether ``fit`` can take :class:`Rows` in place of a tensor, where they are too many for
            memory. A method that can't is given as many rows as memory allows, drawn at random.
        context_dim: Columns of a context, set before ``build``; 0 in a fit without a condition.
        context_kind: Its kind, set before ``build``; None in a fit without a condition.
        preferred_transform: What ``transform="auto"`` means for the method: "standardize", "scale",
            "whiten" or "none".
        spatial: Whether the method makes use of ``layout``; "auto" keeps it then where there is one.
        least_positions: The number of positions H * W from which on it does; fewer are flat rows to "auto".
        layout: The shape (C, H, W) of a row that is an image, set before ``build``; None where rows are
            none. The rows are flat all the same.
    """

    has_density: ClassVar[bool] = False
    conditions: ClassVar[tuple[str, ...]] = ()
    streams: ClassVar[bool] = False
    preferred_transform: ClassVar[Literal["standardize", "scale", "whiten", "none"]] = "standardize"
    spatial: ClassVar[bool] = False
    least_positions: ClassVar[int] = 2
    context_dim: int = 0
    context_kind: Literal["classes", "vector"] | None = None
    layout: tuple[int, ...] | None = None

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def build(self, dim: int, n: int) -> None:
        """Create the parameters and buffers for n training rows of dim columns.

        Called once with the same numbers before a fit and before a state is loaded, so it may depend on
        nothing else than them, the options, ``layout``, ``context_dim`` and ``context_kind``.
        """

    @abstractmethod
    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        """Learn the distribution of rows (N, D), with held_out (M, D) to stop by; M may be 0.

        In a fit with a condition ``run.context`` (N, C) and ``run.held_out_context`` (M, C) belong to them.
        """

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n rows, (n, D)."""

    def log_prob(self, rows: Tensor) -> Tensor:  # noqa: ARG002 - subclasses use it
        """Log density in nats, (n,), of rows (n, D).

        Raises:
            DensityUnavailable: The method has none (``has_density`` is False).
        """
        raise DensityUnavailable(f"{type(self).__name__} draws samples but has no density.")


class StandardNormal(nn.Module):
    """The standard normal distribution in D dimensions, with the interface of GaussianMixture.

    Args:
        dim: D, the number of columns.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim: int = check_whole("dim", dim, 1)
        self.register_buffer("_anchor", torch.zeros(1), persistent=False)  # knows the device
        self._anchor: Tensor

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Log density in nats, (n,), of rows x (n, D)."""
        return -0.5 * (x.square().sum(1) + self.dim * math.log(2 * math.pi))

    def sample(
        self,
        n: int,
        generator: torch.Generator,
        context: Tensor | None = None,  # noqa: ARG002 - the mixture's interface
    ) -> Tensor:
        """Draw n rows, (n, D)."""
        return torch.randn(n, self.dim, generator=generator, device=self._anchor.device)


class FlowSampler(Sampler):
    """A normalising flow on a normal base, or on a trainable Gaussian mixture that starts on the data.

    A subclass creates its layers in :meth:`build_flow` and implements :meth:`to_base` and
    :meth:`from_base`; fitting by maximum likelihood, sampling and scoring are here. A flow that begins as
    the identity begins, on a mixture base, with the mixture's likelihood.

    A flow that can be conditioned sets ``conditions`` and takes a last argument
    ``context: Tensor | None = None`` in :meth:`to_base` and :meth:`from_base`; the base takes it by itself.

    Args:
        base: "normal" or "mixture".
        components: The mixture's size; None chooses it from the data's (at most 100, or 10 under a vector).
        steps: Optimiser steps at most.
        learning_rate: The highest of the cosine schedule.
    """

    has_density: ClassVar[bool] = True
    streams: ClassVar[bool] = True

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
        self.noise: GaussianMixture | StandardNormal
        if self.base == "mixture":
            # EM can't split the components by a vector: many of them would fit the rows, not the condition.
            most = _MOST_UNDER_VECTOR if self.context_kind == "vector" else _MOST
            components = min(n, self.components or mixture_size(n, dim, most=most))
            self.noise = GaussianMixture(dim, components, self.context_dim)
        else:
            self.noise = StandardNormal(dim)
        self.build_flow(dim)

    def fit(self, rows: Tensor | Rows, held_out: Tensor, run: Run) -> None:
        """Fit by maximum likelihood; more than 512 columns are warned of."""
        if rows.shape[1] > _FLOW_COLUMNS:
            warnings.warn(
                f"Expected at most {_FLOW_COLUMNS} dimensions for a flow; got {rows.shape[1]}, for which its "
                "time and memory grow several times faster than they do. Use method='flow-matching'.",
                stacklevel=2,
            )
        if isinstance(self.noise, GaussianMixture):
            run.facts["components"] = self.noise.components
            some, context = run.subset(rows)
            start = self._to_base_in_parts(some, context)
            self.noise.fit(start, run.generator, context=context, stop=lambda: run.elapsed() >= 1)
        train(
            self,
            lambda *batch: -self.log_prob(*batch).mean(),
            rows,
            held_out,
            run,
            steps=self.steps,
            learning_rate=self.learning_rate,
        )

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        """Draw n rows, (n, D)."""
        noise = self.noise.sample(n, generator, context)
        if noise.device.type != "cpu" or n <= _CHUNK:
            return self.from_base(noise, *_given(context))
        return torch.cat([self.from_base(*part) for part in _parts(noise, context)])

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density in nats, (n,), of rows (n, D)."""
        noise, log_determinant = self.to_base(rows, *_given(context))
        return self.noise.log_prob(noise, context) + log_determinant

    @torch.no_grad()
    def _to_base_in_parts(self, rows: Tensor, context: Tensor | None) -> Tensor:
        return torch.cat([self.to_base(*part)[0] for part in _parts(rows, context)])


def _parts(rows: Tensor, context: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Split rows, and contexts where there are any."""
    if context is None:
        return zip(rows.split(_CHUNK), strict=True)
    return zip(rows.split(_CHUNK), context.split(_CHUNK), strict=True)


def _given(context: Tensor | None) -> tuple[Any, ...]:
    """The context as arguments: none for a flow that need not know of contexts."""
    return () if context is None else (context,)
