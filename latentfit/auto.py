"""method="auto": fit a short list of samplers within one time budget and keep the best on held-out data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from latentfit.affine import Standardize
from latentfit.checkpoint import DamagedCheckpoint, ForeignCheckpoint
from latentfit.condition import fit_condition, kind_of
from latentfit.errors import DataError, OptionError, UnknownPluginError
from latentfit.fitting import Plan, fit_class, fitted_transform
from latentfit.metrics import c2st, energy_distance
from latentfit.moments import measure
from latentfit.preparing import shape_of, split
from latentfit.registry import load_sampler_class, sampler_distribution
from latentfit.rows import draw_index
from latentfit.sampler import LatentSampler
from latentfit.sampler_base import Sampler
from latentfit.store import LatentStore
from latentfit.transforms import Transform

__all__ = ["AUTO", "AutoOptions", "fit_best", "load_candidates", "load_method"]

AUTO = "auto"
BUDGET = 240.0  # seconds, where the user gives none
SHORT_LIST = ("gmm", "realnvp", "spline", "flow-matching")
_FOR_MANY = ("gmm", "flow-matching")  # what comes near latents of many dimensions: see docs/studies
_MANY = 17
_SHARED = 0.25  # of the budget
# Areas no further apart may be equal: three deviations over the root of the number of rows, at most this.
_SCATTER, _MOST_NOISE = 1.2, 0.05
_LEAST_ROWS, _MOST_ROWS = 8, 5000  # that candidates are compared on
_SCORED = 1000  # of them in the likelihood, which ranks nothing and can take long


class AutoOptions:
    """Fit a short list within one time budget, and keep the best on held-out data.

    A class, so that these options are read and checked as a method's are.

    Args:
        methods: The candidates, in the order of fitting, those that gain most from more time last. None means
            gmm, realnvp, spline and flow-matching, and beyond 16 dimensions, where the others fall behind,
            gmm and flow-matching.
        metric: What ranks them: "c2st", the AUC of a classifier that tells samples from latents that no fit
            has seen, or "energy", the energy distance between the two. Never the likelihood alone, which
            does not see what a decoder sees.
    """

    def __init__(
        self,
        *,
        methods: tuple[str, ...] | None = None,
        metric: Literal["c2st", "energy"] = "c2st",
    ) -> None:
        self.methods = methods
        self.metric = metric


def load_method(method: Any) -> type[Sampler] | None:
    """Load a method's class; None for "auto", which to the registry is no sampler, to a user a method.

    Raises:
        UnknownPluginError: It is not installed; the message lists those that are.
    """
    if isinstance(method, str) and method == AUTO:
        return None
    try:
        return load_sampler_class(method)
    except UnknownPluginError as error:
        raise UnknownPluginError(f"{error} Or take 'auto', which fits several of them.") from None


def load_candidates(methods: tuple[str, ...] | None) -> dict[str, type[Sampler]]:
    """Import the samplers of these names, or all that may be on the short list.

    Raises:
        OptionError: There are no names.
        LatentfitError: One is not installed, or is broken.
    """
    if methods is not None and not methods:
        raise OptionError("Expected methods as a tuple of one name or more; got none.")
    names = SHORT_LIST if methods is None else methods
    return {name: load_sampler_class(name) for name in names}


def fit_best(
    latents: Tensor | LatentStore,
    classes: dict[str, type[Sampler]],
    *,
    labels: Tensor | None,
    plan: Plan,
    methods: tuple[str, ...] | None,
    metric: str,
) -> LatentSampler:
    r"""Fit each method, compare samples with latents that none of them saw, and return the best.

    A quarter of the time is shared equally among the methods. Of those that were stopped by the end of their
    share the best is fitted again in all the time that is left, as schedules fit themselves to their time:
    by C2ST the last one that may be as good as it, for the noise, and even if one that needed no more time is
    ahead of it. The better of its two fits counts, and is the best of all if it may be as good as that one. A
    method that fails is told in the ranking with its error and hurts nobody.

    Args:
        latents: (N, \*shape), finite, on the CPU; or a store of them.
        classes: What :func:`load_candidates` gave.
        labels: What to condition on; methods that can't are left out.
        plan: How; ``max_seconds`` is the budget for all fits.
        methods: The candidates' names as the user gave them, or None for the short list.
        metric: "c2st" or "energy".

    Returns:
        The best sampler; ``info["ranking"]`` lists all, best first, with what was measured and whether a fit
        was stopped by the end of its time.

    Raises:
        OptionError: No method is left, or none succeeded.
        DataError: Too few latents to compare on.
    """
    if methods is None and math.prod(shape_of(latents)) >= _MANY:
        classes = {name: classes[name] for name in _FOR_MANY}
    names = ", ".join(classes)
    if labels is not None:
        kind = kind_of(labels)
        classes = {name: cls for name, cls in classes.items() if kind in cls.conditions}
    if not classes:
        raise OptionError(f"Expected methods that can take the condition; got {names}.")
    total = len(latents)
    # Early stopping uses up a fit's own held-out rows; the comparison needs others.
    if isinstance(latents, Tensor):
        rest, kept = split(len(latents), plan.validation or 0.1, plan.seed, labels)
        kept, left_out = kept[:_MOST_ROWS], None
        judged, known = latents[kept], None if labels is None else labels[kept]
        latents, labels = latents[rest], None if labels is None else labels[rest]
    else:
        most = min(_MOST_ROWS, round(len(latents) * (plan.validation or 0.1)))
        kept = left_out = draw_index(len(latents), most, torch.Generator().manual_seed(plan.seed))
        judged, known = latents.take(kept), None if labels is None else labels[kept]
    if len(kept) < _LEAST_ROWS:
        raise DataError(
            f"Expected enough latents to set {_LEAST_ROWS} aside for the comparison; got {total} in "
            "all. Name a method, or raise validation."
        )
    if isinstance(plan.transform, Transform):  # its faults are no candidate's
        fitted_transform(next(iter(classes.values())), latents, plan)
    contest = _Contest(latents, labels, left_out, plan, _Judge(judged, known, plan.seed))
    budget = BUDGET if plan.max_seconds is None else plan.max_seconds
    share = budget if len(classes) == 1 else _SHARED * budget / len(classes)
    ranking = [contest.fit(name, cls, share) for name, cls in classes.items()]
    rank = partial(_rank, metric=metric)
    ranking.sort(key=rank)
    ranking = plan.workers.first(ranking)
    best = ranking[0]
    if "error" in best:
        told = "; ".join(f"{row['method']}: {row['error']}" for row in ranking)
        raise OptionError(f"Expected at least one of the methods to succeed; {told}")
    noise = min(_MOST_NOISE, _SCATTER / math.sqrt(len(judged))) if metric == "c2st" else 0.0
    unfinished = [row for row in ranking if row.get("stopped") and "error" not in row]
    if unfinished:
        early = _most_promising(unfinished, list(classes), noise)
        left = budget - contest.spent() - contest.judging[early["method"]]
        left = plan.workers.first(left)
        if left > share:
            ranking = contest.refit(early, classes[early["method"]], left, ranking, rank, noise)
    sampler = contest.fitted[ranking[0]["method"]]
    sampler.info["ranking"] = ranking
    return sampler


@dataclass
class _Contest:
    """Fits methods to the same latents and has them judged.

    Attributes:
        fitted: The sampler of each method that succeeded.
        judging: The seconds that it took to judge it.
        lost: The seconds of fits that failed.
    """

    latents: Tensor | LatentStore
    labels: Tensor | None
    left_out: Tensor | None
    plan: Plan
    judge: _Judge
    fitted: dict[str, LatentSampler] = field(default_factory=dict)
    judging: dict[str, float] = field(default_factory=dict)
    lost: float = 0.0

    def fit(
        self, name: str, cls: type[Sampler], seconds: float, checkpoint: str = ""
    ) -> dict[str, Any]:
        """Fit one method in so many seconds, and give what was measured of it, or its error."""
        row: dict[str, Any] = {"method": name}
        started = time.monotonic()
        try:
            sampler = fit_class(
                cls,
                self.latents,
                method=name,
                labels=self.labels,
                left_out=self.left_out,
                plan=replace(self.plan, max_seconds=seconds),
                distribution=sampler_distribution(name),
                name=checkpoint,
            )
            began = time.monotonic()
            row |= self.judge.measure(sampler)
            self.judging[name] = time.monotonic() - began
            self.fitted[name] = sampler
            row["stopped"] = "stopped_by" in sampler.info["fit"]
        except (DamagedCheckpoint, ForeignCheckpoint):
            raise
        except Exception as error:  # whatever goes wrong in a candidate is its own fault
            row["error"] = f"{type(error).__name__}: {error}"
            self.lost += time.monotonic() - started
        if self.plan.workers.any("error" in row):  # of one process is of all: they go on together
            row.setdefault("error", "it failed in another process")
        return row

    def spent(self) -> float:
        """Tell the seconds of all fits so far, also of those before an end, and of their judging."""
        fits = sum(float(sampler.info["seconds"]) for sampler in self.fitted.values())
        return fits + sum(self.judging.values()) + self.lost

    def refit(
        self,
        early: dict[str, Any],
        cls: type[Sampler],
        seconds: float,
        ranking: list[dict[str, Any]],
        rank: Callable[[dict[str, Any]], tuple[float, float]],
        noise: float,
    ) -> list[dict[str, Any]]:
        """Fit a method of the ranking again in more seconds; the ranking with the better of its two fits.

        The new fit counts if it may be as good as the early one, within the noise, and is the first of all
        if it may be as good as that one.
        """
        name = early["method"]
        kept = self.fitted[name]
        again = self.plan.workers.first(self.fit(name, cls, seconds, f"{name}, again"))
        if rank(again)[0] > rank(early)[0] + noise:
            self.fitted[name] = kept
            return ranking
        others = [row for row in ranking if row is not early]
        if not others or rank(again)[0] <= rank(others[0])[0] + noise:
            return [again, *others]
        return sorted([again, *others], key=rank)


def _most_promising(
    unfinished: list[dict[str, Any]], order: list[str], noise: float
) -> dict[str, Any]:
    """Choose the row of the method that is worth more time, of rows that are sorted, best first."""
    best = unfinished[0]
    if not noise:
        return best
    near = [row for row in unfinished if row["c2st"] <= max(best["c2st"], 0.5) + noise]
    return max(near, key=lambda row: order.index(row["method"]))


def _rank(row: dict[str, Any], metric: str) -> tuple[float, float]:
    if "error" in row:
        return math.inf, math.inf
    if metric == "energy":
        return row["energy"], row["c2st"]
    return max(row["c2st"], 0.5), row["energy"]  # below one half is chance, and no better than it


class _Judge:
    """Compares samples with latents that no fit has seen, in standardised units.

    Raises:
        DataError: These latents are all equal.
    """

    def __init__(self, latents: Tensor, labels: Tensor | None, seed: int) -> None:
        self.seed, self.latents, self.labels = seed, latents, labels
        self.context = torch.zeros(len(latents), 0)
        if labels is not None:
            self.context = fit_condition(labels).encode(labels, len(labels))
        flat = latents.reshape(len(latents), -1)  # each position for itself, of images, too
        self.mapping = Standardize().fit(measure([flat], covariance=False))
        if self.mapping.dim == 0:
            raise DataError(
                f"Expected latents that vary among the {len(latents)} set aside for the comparison; all are "
                "equal. Name a method, or raise validation."
            )
        self.real = self._columns(self.latents)

    def measure(self, sampler: LatentSampler) -> dict[str, Any]:
        """Give the metrics of one sampler, all told, one ranked by."""
        drawn = sampler.sample(len(self.latents), seed=self.seed, condition=self.labels)
        samples = self._columns(drawn)
        measured: dict[str, Any] = {
            "c2st": c2st(self.real, samples, seed=self.seed),
            "energy": energy_distance(self.real, samples),
            "fit_seconds": sampler.info["seconds"],
        }
        if sampler.has_density:
            some = slice(None, None, -(-len(self.latents) // _SCORED))  # they may be in order
            known = None if self.labels is None else self.labels[some]
            with torch.no_grad():
                scores = sampler.log_prob(self.latents[some], condition=known)
            measured["nll"] = -float(scores.double().mean())
        return measured

    def _columns(self, latents: Tensor) -> Tensor:
        """Standardised latents, with the condition beside them: a joint distribution is what is compared."""
        rows = self.mapping.forward(latents.reshape(len(latents), -1)).cpu()
        return torch.cat((rows, self.context), dim=1)
