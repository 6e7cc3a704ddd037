"""A plugin that was built and fitted under the conditions that latentfit gives it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from latentfit.randomness import isolated_rng, plugin_defaults
from latentfit.sampler_base import Sampler
from latentfit.training import Run

__all__ = ["Fitted", "Kind", "brief_fit", "build", "collected_warnings"]

Kind = Literal["classes", "vector"]

_CPU = torch.device("cpu")
_BRIEF_STEPS = 12
_CHUNK = 8192  # rows that a plugin is given at once, as LatentSampler does


@dataclass
class _BriefRun(Run):
    """A run of a few steps, whatever the method's options say: enough where quality does not matter."""

    most: int | None = _BRIEF_STEPS

    def steps(self, total: int, start: int = 0) -> Iterator[tuple[int, float]]:
        return super().steps(total if self.most is None else min(total, self.most), start)


@dataclass
class Fitted:
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
        return self.draw_raw(n, seed=seed, context=context).reshape(n, self.dim).float()

    def draw_raw(self, n: int, *, seed: int = 0, context: Tensor | None = None) -> Tensor:
        """Draw n rows by a seed, and give what the plugin gave."""
        with isolated_rng(seed, _CPU) as generator, plugin_defaults(_CPU), torch.no_grad():
            return self.plugin.sample(n, generator, *_given(context))

    def draws(self, sizes: list[int], *, seed: int = 0) -> list[Tensor]:
        """Draw again and again from one generator."""
        with isolated_rng(seed, _CPU) as generator, plugin_defaults(_CPU), torch.no_grad():
            drawn = [self.plugin.sample(n, generator) for n in sizes]
        return [rows.reshape(n, self.dim).float() for n, rows in zip(sizes, drawn, strict=True)]

    def score_with_gradients(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        """Log densities of rows, with gradients."""
        with plugin_defaults(_CPU), torch.enable_grad():
            parts = [
                self.plugin.log_prob(part.clone(), *_given(given)).reshape(len(part))
                for part, given in zip(rows.split(_CHUNK), _split(context, len(rows)), strict=True)
            ]
        return torch.cat(parts)

    def score(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        """Log densities of rows, detached."""
        with torch.no_grad():
            return self.score_with_gradients(rows, context)


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
) -> Fitted:
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
        collected_warnings(warned),
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
    return Fitted(plugin, *kept, run.history, run.facts, warned)


@contextmanager
def collected_warnings(texts: list[str]) -> Iterator[None]:
    """Collect warnings as text instead of showing or raising them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            texts += [
                f"{w.category.__name__}: {w.message} ({w.filename}:{w.lineno})" for w in caught
            ]


def _given(context: Tensor | None) -> tuple[Any, ...]:
    return () if context is None else (context,)


def _split(context: Tensor | None, n: int) -> list[Tensor | None]:
    if context is None:
        return [None] * -(-n // _CHUNK)
    return list(context.split(_CHUNK))
