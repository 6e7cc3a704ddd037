"""The fits that checks look at, each made once for a sampler class and its options."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from latentfit.fitting import Plan, fit_class
from latentfit.options import resolve_options
from latentfit.sampler import LatentSampler
from latentfit.sampler_base import Sampler
from latentfit.testing import _data
from latentfit.testing._check import Skipped
from latentfit.testing._fitted import Fitted, Kind, brief_fit, collected_warnings

__all__ = ["Lab"]


class Lab:
    """A sampler class under test.

    Args:
        cls: The class.
        options: The options to test it with.
        max_seconds: What a fit may take whose quality is judged.
        name: What it is registered as, or None.
    """

    def __init__(
        self,
        cls: type[Sampler],
        options: Mapping[str, Any],
        *,
        max_seconds: float,
        name: str | None = None,
    ) -> None:
        self.cls, self.given, self.max_seconds, self.name = cls, dict(options), max_seconds, name
        self._made: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """What messages call the sampler."""
        return self.name or self.cls.__name__

    @property
    def options(self) -> dict[str, Any]:
        """All options, defaults included."""
        return cast(
            dict[str, Any],
            self._once("options", lambda: resolve_options(self.cls, self.given, method=self.label)),
        )

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of condition that the class says it can take."""
        declared = self.cls.conditions
        return [kind for kind in ("classes", "vector") if kind in declared]

    def brief(self, kind: Kind | None = None) -> Fitted:
        """A fit of a few steps on rows of three columns, with a context of the kind if one is named."""
        return cast(Fitted, self._once(f"brief {kind}", lambda: self.fit_briefly(kind)))

    def fit_briefly(self, kind: Kind | None = None, *, seed: int = 0) -> Fitted:
        """Make the fit that :meth:`brief` keeps, anew."""
        rows = _data.standardised(_data.correlated(360, 3, seed=1))
        context = self.contexts(len(rows), kind) if kind else None
        return brief_fit(
            self.cls, self.options, rows[:300], rows[300:], context=context, kind=kind, seed=seed
        )

    def contexts(self, n: int, kind: Kind) -> Tensor:
        """Contexts (n, C) such as :meth:`brief` is fitted with."""
        if kind == "classes":
            return torch.eye(3)[torch.arange(n) % 3]
        return torch.randn(n, 2, generator=_data.generator(7))

    def full(self) -> Fitted:
        """A fit as good as the options and max_seconds allow, of a mixture in the plane."""
        return cast(
            Fitted, self._once("full", lambda: self._fit_fully(_data.mixture(2500, seed=2)))
        )

    def by_class(self) -> Fitted:
        """The same of blobs, conditioned on which blob a row is of."""
        return cast(
            Fitted, self._once("by class", lambda: self._fit_fully(*_data.blobs(2400, seed=3)))
        )

    def by_vector(self) -> Fitted:
        """The same of rows whose mean moves with a number."""
        return cast(
            Fitted, self._once("by vector", lambda: self._fit_fully(*_data.line(2400, seed=4)))
        )

    def hurried(self) -> tuple[LatentSampler, float]:
        """A fit that is given half a second, of latents of mixed scales, and the CPU seconds it took."""
        self.brief()  # what is imported at the first use is not counted
        return cast(tuple[LatentSampler, float], self._once("hurried", self._hurry))

    def _hurry(self) -> tuple[LatentSampler, float]:
        started = time.thread_time()
        with collected_warnings([]):
            sampler = self.fit_as_user(_data.mixed_scales(4000, seed=5), max_seconds=0.5)
        return sampler, time.thread_time() - started

    def fit_as_user(
        self,
        latents: Tensor,
        labels: Tensor | None = None,
        *,
        transform: str = "standardize",
        **plan: Any,
    ) -> LatentSampler:
        """Fit the way that fit_latent_sampler does, without the registry; to standardised rows."""
        return fit_class(
            self.cls,
            latents,
            method=self.label,
            options=self.options,
            labels=labels,
            plan=Plan(transform=transform, progress=False, **plan),
        )

    def _fit_fully(self, latents: Tensor, labels: Tensor | None = None) -> Fitted:
        warned: list[str] = []
        with collected_warnings(warned):
            sampler = self.fit_as_user(latents, labels, max_seconds=self.max_seconds)
        rows = sampler._transform.forward(latents)
        facts = sampler.info["fit"]
        return Fitted(sampler._plugin, rows, rows[:0], sampler.history, facts, warned)

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        """Make a thing the first time; if that fails, the checks that ask for it later are skipped."""
        if key not in self._made:
            try:
                self._made[key] = make()
            except Exception as error:
                self._made[key] = error
                raise
        made = self._made[key]
        if isinstance(made, Exception):
            raise Skipped(f"It needs what an earlier check failed to make: {_first_line(made)}")
        return made


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
