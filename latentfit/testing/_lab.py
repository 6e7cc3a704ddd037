"""The fits that checks look at, each made once for a sampler class and its options."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from latentfit.fitting import Plan, fit_class
from latentfit.options import resolve_options
from latentfit.randomness import isolated_rng, plugin_defaults
from latentfit.sampler import LatentSampler
from latentfit.sampler_base import Sampler
from latentfit.testing import _data
from latentfit.testing._check import Skipped
from latentfit.training import Run

__all__ = ["Bench", "Lab", "brief_fit", "build"]

Kind = Literal["classes", "vector"]

_CPU = torch.device("cpu")
_BRIEF_STEPS = 12
_CHUNK = 8192  # rows that a plugin is given at once, as LatentSampler does


@dataclass
class _BriefRun(Run):
    """A run of a few steps, whatever the method's options say: enough where quality does not matter."""

    most: int | None = _BRIEF_STEPS

    def steps(self, total: int) -> Iterator[tuple[int, float]]:
        return super().steps(total if self.most is None else min(total, self.most))


@dataclass
class Bench:
    """A fitted plugin, in the conditions under which latentfit calls it.

    Attributes:
        plugin: The plugin.
        rows: What it was trained on, (N, D).
        held_out: What was held out, (M, D).
        history: The training curves.
        facts: What the fit told of itself.
        warnings: What it warned of.
        state: A copy of the state dict as the fit left it.
    """

    plugin: Sampler
    rows: Tensor
    held_out: Tensor
    history: dict[str, list[float]]
    facts: dict[str, Any]
    warnings: list[str]
    state: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.state = {k: v.clone() for k, v in self.plugin.state_dict().items()}

    @property
    def dim(self) -> int:
        """The number of columns."""
        return self.rows.shape[1]

    def draw(self, n: int, *, seed: int = 0, context: Tensor | None = None) -> Tensor:
        """Draw n rows by a seed, in one call of the plugin, and make them float32 as LatentSampler does."""
        return self.draw_plainly(n, seed=seed, context=context).reshape(n, self.dim).float()

    def draw_plainly(self, n: int, *, seed: int = 0, context: Tensor | None = None) -> Tensor:
        """Draw n rows by a seed, and give what the plugin gave."""
        with isolated_rng(seed, _CPU) as generator, plugin_defaults(_CPU), torch.no_grad():
            return self.plugin.sample(n, generator, *_given(context))

    def draws(self, sizes: list[int], *, seed: int = 0) -> list[Tensor]:
        """Draw again and again from one generator."""
        with isolated_rng(seed, _CPU) as generator, plugin_defaults(_CPU), torch.no_grad():
            drawn = [self.plugin.sample(n, generator) for n in sizes]
        return [rows.reshape(n, self.dim).float() for n, rows in zip(sizes, drawn, strict=True)]

    def score(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        """Log densities of rows, with gradients."""
        with plugin_defaults(_CPU), torch.enable_grad():
            parts = [
                self.plugin.log_prob(part.clone(), *_given(given)).reshape(len(part))
                for part, given in zip(rows.split(_CHUNK), _split(context, len(rows)), strict=True)
            ]
        return torch.cat(parts)

    def score_plainly(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        """Log densities of rows, detached."""
        with torch.no_grad():
            return self.score(rows, context)


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

    def brief(self, kind: Kind | None = None) -> Bench:
        """A fit of a few steps on rows of three columns, with a context of the kind if one is named."""
        return cast(Bench, self._once(f"brief {kind}", lambda: self.fit_briefly(kind)))

    def fit_briefly(self, kind: Kind | None = None, *, seed: int = 0) -> Bench:
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

    def full(self) -> Bench:
        """A fit as good as the options and max_seconds allow, of a mixture in the plane."""
        return cast(Bench, self._once("full", lambda: self._fit_fully(_data.mixture(2500, seed=2))))

    def by_class(self) -> Bench:
        """The same of blobs, conditioned on which blob a row is of."""
        return cast(
            Bench, self._once("by class", lambda: self._fit_fully(*_data.blobs(2400, seed=3)))
        )

    def by_vector(self) -> Bench:
        """The same of rows whose mean moves with a number."""
        return cast(
            Bench, self._once("by vector", lambda: self._fit_fully(*_data.line(2400, seed=4)))
        )

    def hurried(self) -> tuple[LatentSampler, float]:
        """A fit that is given half a second, of latents of mixed scales, and the CPU seconds it took."""
        self.brief()  # what is imported at the first use is not counted
        return cast(tuple[LatentSampler, float], self._once("hurried", self._hurry))

    def _hurry(self) -> tuple[LatentSampler, float]:
        started = time.thread_time()
        with _quietly([]):
            sampler = self.fit_as_user(_data.mixed_scales(4000, seed=5), max_seconds=0.5)
        return sampler, time.thread_time() - started

    def fit_as_user(
        self, latents: Tensor, labels: Tensor | None = None, **plan: Any
    ) -> LatentSampler:
        """Fit the way that fit_latent_sampler does, without the registry."""
        return fit_class(
            self.cls,
            latents,
            method=self.label,
            options=self.options,
            labels=labels,
            plan=Plan(progress=False, **plan),
        )

    def _fit_fully(self, latents: Tensor, labels: Tensor | None = None) -> Bench:
        warned: list[str] = []
        with _quietly(warned):
            sampler = self.fit_as_user(latents, labels, max_seconds=self.max_seconds)
        rows = sampler._transform.forward(latents)
        facts = sampler.info["fit"]
        return Bench(sampler._plugin, rows, rows[:0], sampler.history, facts, warned)

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


def build(
    cls: type[Sampler],
    options: Mapping[str, Any],
    dim: int,
    n: int,
    *,
    context_dim: int = 0,
    kind: Kind | None = None,
    seed: int = 0,
) -> Sampler:
    """Construct and build a plugin the way latentfit does, before a fit and before a state is loaded."""
    with isolated_rng(seed, _CPU), plugin_defaults(_CPU):
        plugin = cls(**options)
        if kind is not None:
            plugin.context_dim, plugin.context_kind = context_dim, kind
        plugin.build(dim, n)
    return plugin


def brief_fit(
    cls: type[Sampler],
    options: Mapping[str, Any],
    rows: Tensor,
    held_out: Tensor,
    *,
    context: Tensor | None = None,
    kind: Kind | None = None,
    seed: int = 0,
    most: int | None = _BRIEF_STEPS,
    max_seconds: float | None = None,
    around: AbstractContextManager[Any] | None = None,
) -> Bench:
    """Fit a plugin in a few steps.

    Args:
        cls: The class.
        options: All its options.
        rows: Training rows (N, D).
        held_out: Held-out rows (M, D).
        context: Contexts (N + M, C), or None.
        kind: Their kind.
        seed: What the fit's randomness comes from.
        most: Training steps at most; None for as many as the options say.
        max_seconds: What the fit may take.
        around: A context manager to call the plugin's ``fit`` in.
    """
    width = 0 if context is None else context.shape[1]
    plugin = build(cls, options, rows.shape[1], len(rows), context_dim=width, kind=kind, seed=seed)
    kept = rows.clone(), held_out.clone()  # one check is about fits that change them
    warned: list[str] = []
    with (
        _quietly(warned),
        isolated_rng(seed, _CPU) as generator,
        plugin_defaults(_CPU),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        run = _BriefRun(generator, batch_size=64, max_seconds=max_seconds, most=most)
        if context is not None:
            run.context, run.held_out_context = context[: len(rows)], context[len(rows) :]
        with around or nullcontext():
            plugin.fit(rows, held_out, run)
    plugin.requires_grad_(False).eval()
    return Bench(plugin, *kept, run.history, run.facts, warned)


class _quietly:
    """Collect warnings as text instead of showing or raising them."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._catcher = warnings.catch_warnings(record=True)

    def __enter__(self) -> None:
        self._caught = self._catcher.__enter__()
        warnings.simplefilter("always")

    def __exit__(self, *exception: Any) -> None:
        self._catcher.__exit__(*exception)
        self._texts += [
            f"{w.category.__name__}: {w.message} ({w.filename}:{w.lineno})"
            for w in self._caught or ()
        ]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _given(context: Tensor | None) -> tuple[Any, ...]:
    return () if context is None else (context,)


def _split(context: Tensor | None, n: int) -> list[Tensor | None]:
    if context is None:
        return [None] * -(-n // _CHUNK)
    return list(context.split(_CHUNK))
