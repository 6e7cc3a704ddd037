"""The conformance suite: a right sampler passes, and for each check there is one that breaks its law."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from latentfit.errors import OptionError, UnknownPluginError
from latentfit.plugin import Interval, Run, Sampler
from latentfit.testing import (
    CheckFailed,
    check_sampler,
    list_checks,
    parametrize_with_checks,
    run_checks,
)
from latentfit.testing._devices import MixedDevices
from latentfit.testing._laws import LAWS

# These take seconds, and few mutants can break them.
SLOW = {"samples_follow_the_data", "saved_sampler_works_in_a_fresh_process"}


class Honest(Sampler):
    """A Gaussian whose mean is linear in the condition, in closed form.

    Args:
        ridge: What is added to the covariance's diagonal.
        centre: Whether the mean is learnt, or left at zero.
    """

    has_density = True
    conditions = ("classes", "vector")

    def __init__(
        self,
        *,
        ridge: Annotated[float, Interval(1e-4)] = 1e-3,
        centre: Literal["mean", "zero"] = "mean",
    ) -> None:
        super().__init__()
        self.ridge = ridge
        self.centre = centre

    def build(self, dim: int, n: int) -> None:
        self.register_buffer("weight", torch.zeros(1 + self.context_dim, dim))
        self.register_buffer("factor", torch.eye(dim))
        self.weight: Tensor
        self.factor: Tensor

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        features = self.features(len(rows), run.context)
        gram = features.T @ features + 1e-4 * torch.eye(len(self.weight), device=rows.device)
        if self.centre == "mean":
            self.weight.copy_(torch.linalg.solve(gram, features.T @ rows))
        residual = rows - features @ self.weight
        self.factor.copy_(torch.linalg.cholesky(self.covariance(residual)))
        for step, _ in run.steps(3):
            run.log(step, 3, deviation=float(residual.square().mean().sqrt()))
        run.facts["rows"] = len(rows)

    def covariance(self, residual: Tensor) -> Tensor:
        ridge = self.ridge * torch.eye(residual.shape[1], device=residual.device)
        return residual.T @ residual / len(residual) + ridge

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        noise = torch.randn(n, len(self.factor), generator=generator, device=self.factor.device)
        return self.features(n, context) @ self.weight + noise @ self.factor.T

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        residual = rows - self.features(len(rows), context) @ self.weight
        white = torch.linalg.solve_triangular(self.factor, residual.T, upper=False)
        constant = self.factor.diagonal().log().sum() + 0.5 * len(white) * math.log(2 * math.pi)
        return -0.5 * white.square().sum(0) - constant

    def features(self, n: int, context: Tensor | None) -> Tensor:
        one = self.weight.new_ones(n, 1)
        return one if context is None else torch.cat([one, context], dim=1)


# --- what breaks one law each; `breaks` names the checks that have to notice, and no other may ---


class Mutant(Honest):
    breaks: ClassVar[tuple[str, ...]]
    given: ClassVar[dict[str, Any]] = {}


class Undescribed(Mutant):
    """No word of its option."""

    breaks = ("options_are_declared",)

    def __init__(self, *, mystery: bool = True) -> None:
        super().__init__()
        self.mystery = mystery


class Untyped(Mutant):
    """An option of no type.

    Args:
        extra: Told.
    """

    breaks = ("options_are_declared",)

    def __init__(self, *, extra=None) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.extra = extra


class WithoutDefault(Mutant):
    """An option that has to be given.

    Args:
        extra: Told.
    """

    breaks = ("options_are_declared",)
    given: ClassVar[dict[str, Any]] = {"extra": 3}

    def __init__(self, *, extra: int) -> None:
        super().__init__()
        self.extra = extra


class BadDefault(Mutant):
    """A default out of its range: nothing can be tried.

    Args:
        extra: Told.
    """

    breaks = ("options_are_declared",)

    def __init__(self, *, extra: Annotated[int, Interval(1)] = 0) -> None:
        super().__init__()
        self.extra = extra


class TakenName(Mutant):
    """An option that nobody can set.

    Args:
        seed: Told.
    """

    breaks = ("options_are_declared",)

    def __init__(self, *, seed: Annotated[int, Interval(0)] = 0) -> None:
        super().__init__()
        self.seed = seed


class Catchall(Mutant):
    """Options of any name."""

    breaks = ("options_are_declared",)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


class Renames(Mutant):
    """An option under another name.

    Args:
        spread: Told.
    """

    breaks = ("constructor_only_stores",)

    def __init__(self, *, spread: Annotated[float, Interval(0.01)] = 1.0) -> None:
        super().__init__()
        self._spread = spread


class Converts(Mutant):
    """An option that is stored as something else.

    Args:
        widths: Told.
    """

    breaks = ("constructor_only_stores",)

    def __init__(self, *, widths: tuple[Annotated[int, Interval(1)], ...] = (3,)) -> None:
        super().__init__()
        self.widths = list(widths)


class CreatesEarly(Mutant):
    breaks = ("constructor_only_stores",)

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.zeros(3)


class DrawsEarly(Mutant):
    breaks = ("constructor_only_stores",)

    def __init__(self) -> None:
        super().__init__()
        np.random.rand()  # noqa: NPY002


class HidesDensity(Mutant):
    breaks = ("has_density_tells_the_truth",)
    has_density = False


class WrongRefusal(Mutant):
    breaks = ("has_density_tells_the_truth",)
    has_density = False

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class PromisesDensity(Mutant):
    breaks = (
        "has_density_tells_the_truth",
        "conditions_are_declared",  # the base class's log_prob takes no context
        "log_prob_has_shape_and_dtype",
        "log_prob_of_a_row_is_its_own",
        "log_prob_integrates_to_one",
        "log_prob_agrees_with_samples",
        "log_prob_has_the_right_gradient",
        "classes_are_honoured",
        "conditional_log_prob_integrates_to_one",
        "state_is_complete",
        "use_changes_nothing",
        "saved_sampler_works_in_a_fresh_process",
        "rows_are_not_modified",
        "fit_needs_no_held_out_rows",
        "few_rows_are_handled",
        "one_dimension_is_handled",
        "repeated_rows_are_handled",
        "dependent_columns_are_handled",
        "many_columns_are_handled",
        "heavy_tails_are_handled",
        "constant_dimensions_come_back",
        "process_is_left_as_it_was",
        "tensors_of_one_device_are_used_together",
        "nothing_is_warned_of",
    )

    log_prob = Sampler.log_prob  # type: ignore[assignment]


class UnknownCondition(Mutant):
    breaks = ("conditions_are_declared",)
    conditions = ("classes", "vector", "images")


class KeepsQuietOfConditions(Mutant):
    breaks = ("conditions_are_declared",)
    conditions = ()


class UnknownTransform(Mutant):
    breaks = ("suitable_latents_are_declared",)
    preferred_transform = "zca"  # type: ignore[assignment]


class MaybeSpatial(Mutant):
    breaks = ("suitable_latents_are_declared",)
    spatial = None  # type: ignore[assignment]


class MisreadsLayout(Mutant):
    breaks = ("suitable_latents_are_declared",)
    spatial = True

    def build(self, dim: int, n: int) -> None:
        if self.layout is not None:
            height, width, channels = self.layout
            if not height == width > channels:
                raise TypeError(f"Expected (H, W, C); got {self.layout}.")
        super().build(dim, n)


class ForgetsLayout(Mutant):
    breaks = ("suitable_latents_are_declared",)
    spatial = True

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        self.layout = None


class CantTakeContext(Mutant):
    breaks = (
        "conditions_are_declared",
        "samples_have_shape_and_dtype",
        "classes_are_honoured",
        "vectors_are_honoured",
        "state_is_complete",
        "use_changes_nothing",
        "saved_sampler_works_in_a_fresh_process",
        "rows_are_not_modified",
        "fit_needs_no_held_out_rows",
    )

    def sample(self, n: int, generator: torch.Generator) -> Tensor:  # type: ignore[override]
        return super().sample(n, generator)


class WideRange(Mutant):
    """A number that is a count, and does not say so.

    Args:
        bins: Told.
    """

    breaks = ("options_work_within_their_ranges",)

    def __init__(self, *, bins: int = 10) -> None:
        super().__init__()
        self.bins = bins

    def build(self, dim: int, n: int) -> None:
        super().build(dim, n)
        torch.linspace(0, 1, self.bins)


class BrokenChoice(Mutant):
    """A choice that was never tried.

    Args:
        kind: Told.
    """

    breaks = ("options_work_within_their_ranges",)

    def __init__(self, *, kind: Literal["good", "bad"] = "good") -> None:
        super().__init__()
        self.kind = kind

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        rows = super().sample(n, generator, context)
        return rows if self.kind == "good" else rows / 0


class Doubles(Mutant):
    breaks = ("samples_have_shape_and_dtype",)

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        return super().sample(n, generator, context).double()


class ExtraAxis(Mutant):
    breaks = ("samples_have_shape_and_dtype",)

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        rows = super().sample(n, generator, context)
        return rows if n > 1 else rows[0]


class OwnSeed(Mutant):
    breaks = ("seed_decides_the_samples", "small_draws_are_like_large_ones")

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        return super().sample(n, torch.Generator().manual_seed(0), context)


class NoSeed(Mutant):
    breaks = (
        "seed_decides_the_samples",
        "state_is_complete",
        "saved_sampler_works_in_a_fresh_process",
    )

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        own = torch.Generator()
        own.seed()
        return super().sample(n, own, context)


class FitsByChance(Mutant):
    breaks = ("fit_is_reproducible", "interruption_leaves_nothing_half_made")

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        self.weight.add_(1e-3 * int.from_bytes(os.urandom(2)) / 2**16)


class LogsTheTime(Mutant):
    breaks = ("fit_is_reproducible",)

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        for _ in run.history["step"]:
            run.history.setdefault("seconds", []).append(time.perf_counter())


class CentresDraws(Mutant):
    breaks = ("small_draws_are_like_large_ones",)

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        noise = torch.randn(n, len(self.factor), generator=generator, device=self.factor.device)
        noise = noise - noise.mean(0)
        return self.features(n, context) @ self.weight + noise @ self.factor.T


class SortsRows(Mutant):
    breaks = ("rows_of_a_draw_are_independent",)

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        rows = super().sample(n, generator, context)
        return rows if context is not None else rows[rows[:, 0].argsort()]


class MirrorsRows(Mutant):
    breaks = ("rows_of_a_draw_are_independent",)

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        half = torch.randn(
            -(-n // 2), len(self.factor), generator=generator, device=self.factor.device
        )
        noise = torch.stack([half, -half], dim=1).flatten(0, 1)[:n]  # antithetic pairs
        return self.features(n, context) @ self.weight + noise @ self.factor.T


class Uncorrelated(Mutant):
    breaks = ("samples_follow_the_data",)

    def covariance(self, residual: Tensor) -> Tensor:
        return super().covariance(residual).diagonal().diag_embed()


class Column(Mutant):
    breaks = ("log_prob_has_shape_and_dtype",)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        values = super().log_prob(rows, context)
        return values if len(values) > 1 else values[0]


class DoubleDensity(Mutant):
    breaks = ("log_prob_has_shape_and_dtype",)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        return super().log_prob(rows, context).double()


class LooksAtOthers(Mutant):
    breaks = ("log_prob_of_a_row_is_its_own",)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        return super().log_prob(rows, context) + 0.01 * rows.detach().mean()


class ScoresEachTimeOtherwise(Mutant):
    breaks = (
        "log_prob_of_a_row_is_its_own",
        "state_is_complete",
        "many_columns_are_handled",
        "saved_sampler_works_in_a_fresh_process",
    )
    calls: ClassVar[int] = 0

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        ScoresEachTimeOtherwise.calls += 1
        return super().log_prob(rows, context) + 2e-5 * (self.calls % 2)


class Unnormalised(Mutant):
    breaks = (
        "log_prob_integrates_to_one",
        "conditional_log_prob_integrates_to_one",
        "one_dimension_is_handled",
    )

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        return super().log_prob(rows, context) + 0.05


class UnnormalisedAlone(Mutant):
    breaks = ("log_prob_integrates_to_one",)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        values = super().log_prob(rows, context)
        return values - (0.03 if rows.shape[1] > 1 and context is None else 0)


class ScoresAnother(Mutant):
    breaks = ("log_prob_agrees_with_samples",)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        values = super().log_prob(rows, context)
        d, log_scale = rows.shape[1], self.factor.diagonal().log().sum()
        constant = log_scale + 0.5 * d * math.log(2 * math.pi)
        return (values + constant) / 1.2**2 - constant - d * math.log(1.2)  # of a wider Gaussian


class WrongGradient(Mutant):
    breaks = ("log_prob_has_the_right_gradient",)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        values = super().log_prob(rows, context)
        return values + 0.2 * (values - values.detach())


class NoGradient(Mutant):
    breaks = ("log_prob_has_the_right_gradient",)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        return super().log_prob(rows.detach(), context)


class SortsContexts(Mutant):
    breaks = ("classes_are_honoured", "vectors_are_honoured")

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        if context is not None:
            context = context[context[:, 0].argsort()]
        return super().sample(n, generator, context)


class ClassesInOrder(Mutant):
    breaks = ("classes_are_honoured",)

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        if self.context_kind == "classes" and context is not None:
            context = context[context.argmax(1).argsort()]
        return super().sample(n, generator, context)


class DensityOfNoClass(Mutant):
    breaks = ("classes_are_honoured",)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        if self.context_kind == "classes" and context is not None:
            context = torch.ones_like(context) / context.shape[1]
        return super().log_prob(rows, context)


class FlipsVectors(Mutant):
    breaks = ("vectors_are_honoured",)

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        if self.context_kind == "vector" and context is not None:
            context = -context
        return super().sample(n, generator, context)


class UnnormalisedByClass(Mutant):
    breaks = ("conditional_log_prob_integrates_to_one",)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        values = super().log_prob(rows, context)
        return values if context is None else values + 0.1 * context[:, 0]


class BuildsByChance(Mutant):
    breaks = (
        "shapes_are_fixed_before_the_fit",
        "state_is_complete",
        "saved_sampler_works_in_a_fresh_process",
    )

    def build(self, dim: int, n: int) -> None:
        super().build(dim, n)
        self.register_buffer("scratch", torch.zeros(int(torch.initial_seed() % 7)))


class ChangesType(Mutant):
    breaks = ("shapes_are_fixed_before_the_fit",)

    def build(self, dim: int, n: int) -> None:
        super().build(dim, n)
        self.register_buffer("size", torch.zeros(()))

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        self.size = torch.tensor(len(rows), device=rows.device)


class GrowsInFit(Mutant):
    breaks = (
        "shapes_are_fixed_before_the_fit",
        "state_is_complete",
        "saved_sampler_works_in_a_fresh_process",
    )

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        self.register_buffer("kept", rows[:3].clone())


class KeepsAnAttribute(Mutant):
    breaks = ("state_is_complete", "saved_sampler_works_in_a_fresh_process")

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        self.shift = rows.mean(0) + 1e-3

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        return super().sample(n, generator, context) + getattr(self, "shift", 0)


class Counts(Mutant):
    breaks = ("use_changes_nothing",)

    def build(self, dim: int, n: int) -> None:
        super().build(dim, n)
        self.register_buffer("draws", torch.zeros(()))

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        self.draws += 1
        return super().sample(n, generator, context)


class KeepsOnTheClass(Mutant):
    breaks = ("saved_sampler_works_in_a_fresh_process",)
    shift: ClassVar[float] = 0.0

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        KeepsOnTheClass.shift = 1e-3

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        return super().sample(n, generator, context) + KeepsOnTheClass.shift


class CentresInPlace(Mutant):
    breaks = ("rows_are_not_modified",)

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        rows -= rows.mean(0)


class ScoresInPlace(Mutant):
    breaks = ("rows_are_not_modified",)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        values = super().log_prob(rows, context)
        if not rows.requires_grad:
            rows.zero_()
        return values


class NeedsHeldOut(Mutant):
    breaks = ("fit_needs_no_held_out_rows", "few_rows_are_handled")

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        self.weight.add_(0 * held_out.mean())


class NeedsTwoRows(Mutant):
    breaks = ("few_rows_are_handled",)

    def covariance(self, residual: Tensor) -> Tensor:
        n = len(residual)
        return super().covariance(residual) * (n / (n - 1) if n > 1 else math.nan)


class NeedsTwoColumns(Mutant):
    breaks = ("one_dimension_is_handled",)

    def covariance(self, residual: Tensor) -> Tensor:
        ridge = self.ridge * torch.eye(residual.shape[1], device=residual.device)
        return residual.T.cov(correction=0) + (ridge if residual.shape[1] > 1 else 0)


class RefusesWithoutWords(Mutant):
    breaks = ("one_dimension_is_handled",)

    def build(self, dim: int, n: int) -> None:
        if dim == 1:
            raise OptionError("no")
        super().build(dim, n)


class NeedsDifferentRows(Mutant):
    breaks = ("repeated_rows_are_handled",)

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        if len(rows) > 5:
            self.weight.add_(0 * torch.pdist(rows[:300]).min().log())


class NeedsFullRank(Mutant):
    breaks = ("dependent_columns_are_handled", "many_columns_are_handled")

    def covariance(self, residual: Tensor) -> Tensor:
        covariance = super().covariance(residual)
        if len(residual) > 5 and float(torch.linalg.eigvalsh(covariance)[0]) < 2 * self.ridge:
            raise torch.linalg.LinAlgError("singular")
        return covariance


class NeedsMoreRowsThanColumns(Mutant):
    breaks = ("many_columns_are_handled",)

    def covariance(self, residual: Tensor) -> Tensor:
        n, dim = residual.shape
        return super().covariance(residual) / (n > dim or n <= 5)


class EstimatesInManyColumns(Mutant):
    breaks = ("many_columns_are_handled",)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        values = super().log_prob(rows, context)
        if rows.shape[1] < 65:
            return values
        fixed = torch.Generator(rows.device).manual_seed(0)
        noise = torch.randn(len(rows), generator=fixed, device=rows.device)  # by position
        return values * (1 + 0.01 * noise)


class NeedsLightTails(Mutant):
    breaks = ("heavy_tails_are_handled",)

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        self.weight.add_(0 * rows.abs().max().exp())


class NeedsTime(Mutant):
    breaks = ("constant_dimensions_come_back",)

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        if run.max_seconds != 0.5:
            super().fit(rows, held_out, run)
        else:
            self.factor.mul_(1e-3)


class SetsTheEnvironment(Mutant):
    breaks = ("process_is_left_as_it_was",)

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        os.environ["LATENTFIT_MUTANT"] = str(time.perf_counter())
        return super().sample(n, generator, context)


class SilencesNumPy(Mutant):
    breaks = ("process_is_left_as_it_was", "interruption_leaves_nothing_half_made")

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        np.seterr(all="warn" if np.geterr()["under"] == "ignore" else "ignore")
        super().fit(rows, held_out, run)


class LeavesAFile(Mutant):
    breaks = ("process_is_left_as_it_was", "interruption_leaves_nothing_half_made")

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        if os.listdir() == []:  # the folder that the check makes
            open("checkpoint", "w").close()
        super().fit(rows, held_out, run)


class DrawsToScore(Mutant):
    breaks = ("process_is_left_as_it_was",)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        torch.rand(())
        return super().log_prob(rows, context)


class HomelessFit(Mutant):
    breaks = ("tensors_of_one_device_are_used_together",)

    def covariance(self, residual: Tensor) -> Tensor:
        ridge = self.ridge * torch.eye(residual.shape[1])
        return residual.T @ residual / len(residual) + ridge


class HomelessSamples(Mutant):
    breaks = ("tensors_of_one_device_are_used_together",)

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        return super().sample(n, generator, context) + torch.zeros(n, 1)


class WarnsInFit(Mutant):
    breaks = ("nothing_is_warned_of",)

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        warnings.warn("Rows are rows.", stacklevel=1)
        super().fit(rows, held_out, run)


class WarnsInUse(Mutant):
    breaks = ("nothing_is_warned_of",)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        warnings.warn("An old function.", DeprecationWarning, stacklevel=1)
        return super().log_prob(rows, context)


class LogsNaN(Mutant):
    breaks = ("history_and_facts_can_be_saved",)

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        run.history["gap"] = [math.nan] * len(run.history["step"])


class LogsUnevenly(Mutant):
    breaks = ("history_and_facts_can_be_saved",)

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        run.log(3, 3, other=1.0)


class TellsATensor(Mutant):
    breaks = ("history_and_facts_can_be_saved",)

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        run.facts["mean"] = rows.mean(0)


class TakesItsTime(Mutant):
    breaks = ("fit_ends_near_max_seconds",)

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        started = time.thread_time()
        while run.max_seconds == 0.5 and time.thread_time() < started + 1.2:
            pass


class Swallows(Mutant):
    breaks = ("interruption_leaves_nothing_half_made",)

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        try:
            super().fit(rows, held_out, run)
        except BaseException:
            self.factor.copy_(torch.eye(rows.shape[1], device=rows.device))


class StaysLocked(Mutant):
    breaks = ("interruption_leaves_nothing_half_made",)
    locked: ClassVar[bool] = False

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        if self.locked:
            raise RuntimeError("Another fit is going on.")
        type(self).locked = True
        with contextlib.suppress(Exception):
            super().fit(rows, held_out, run)
        type(self).locked = False


MUTANTS = Mutant.__subclasses__()


@pytest.fixture(autouse=True)
def _process_stays() -> Iterator[None]:
    before = np.geterr()
    yield
    np.seterr(**before)
    os.environ.pop("LATENTFIT_MUTANT", None)
    StaysLocked.locked = False


@parametrize_with_checks([Honest])
def test_a_right_sampler_passes(check: Any) -> None:
    check()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda cls: cls.__name__)
def test_a_mutant_fails_its_checks_and_no_other(
    mutant: type[Mutant], monkeypatch: pytest.MonkeyPatch
) -> None:
    if mutant is TakesItsTime:
        monkeypatch.setattr("latentfit.testing._process._SLACK", 0.5)
    breaks = set(mutant.breaks)
    names = set(list_checks()) - (SLOW if len(breaks) > 1 else SLOW - breaks)
    failed = {
        result.name: result.message
        for result in run_checks(mutant, mutant.given, only=names)
        if result.status == "failed"
    }
    assert failed.keys() == breaks & names, failed
    if "saved_sampler_works_in_a_fresh_process" in failed:  # and not because the process ended
        assert "bit for bit" in failed["saved_sampler_works_in_a_fresh_process"]
    assert all(
        message.startswith(("Expected ", "DensityUnavailable", "PluginLoadError", "TypeError"))
        for message in failed.values()
    ), failed


def test_every_check_has_a_mutant_that_hardly_another_check_notices() -> None:
    least = {
        name: min((len(m.breaks) for m in MUTANTS if name in m.breaks), default=99)
        for name in list_checks()
    }
    assert {name: n for name, n in least.items() if n > 2} == {}


# --- running them ---


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the slow checks."""
    laws = tuple(law for law in LAWS if law.__name__ not in SLOW)
    monkeypatch.setattr("latentfit.testing._runner.LAWS", laws)


@pytest.mark.usefixtures("_quick")
def test_check_sampler_says_which_checks_failed_and_why() -> None:
    check_sampler(Honest, ridge=1e-2, centre="mean")
    with pytest.raises(CheckFailed) as caught:
        check_sampler(Unnormalised, max_seconds=5, ridge=1e-2)
    names = [failure.name for failure in caught.value.failures]
    assert set(names) == {*Unnormalised.breaks}
    head, first, *rest = str(caught.value).split("\n")
    assert head == "Unnormalised fails 3 checks:"
    assert first.startswith(f"  {names[0]}: Expected the density of Unnormalised to integrate to 1")
    assert len(rest) == 2


@pytest.mark.usefixtures("_quick")
def test_a_fit_that_fails_is_told_by_the_checks_that_are_about_it_and_not_by_all() -> None:
    results = list(run_checks(NeverFits))
    assert [result.name for result in results] == [n for n in list_checks() if n not in SLOW]
    failed = {result.name: result.message for result in results if result.status == "failed"}
    assert "ZeroDivisionError: division by zero" in failed["has_density_tells_the_truth"]
    assert "test_testing.py" in failed["has_density_tells_the_truth"]
    assert "samples_have_shape_and_dtype" not in failed
    (skipped,) = [r for r in results if r.name == "samples_have_shape_and_dtype"]
    assert skipped.status == "skipped"
    assert "earlier check failed to make: ZeroDivisionError" in skipped.message


def test_results_come_one_by_one_and_only_those_asked_for() -> None:
    results = run_checks(Honest, only=["seed_decides_the_samples", "options_are_declared"])
    one = next(results)
    assert (one.name, one.status, one.message) == ("options_are_declared", "passed", "")
    assert next(results).seconds >= 0
    assert next(results, None) is None


def test_a_check_that_does_not_apply_is_skipped_with_its_reason() -> None:
    (result,) = run_checks(SamplesOnly, only=["log_prob_integrates_to_one"])
    assert result.status == "skipped"
    assert result.message == "SamplesOnly has no density."


@pytest.mark.parametrize(
    "sampler, options, error, words",
    [
        (Honest, {"rigde": 1.0}, OptionError, "Did you mean 'ridge'"),
        (Honest, {"ridge": -1.0}, OptionError, "expected float >= 0.0001; got -1.0"),
        ("no-such-sampler", {}, UnknownPluginError, "no-such-sampler"),
        (int, {}, OptionError, "subclass of latentfit.plugin.Sampler"),
    ],
)
def test_what_can_not_be_checked_is_refused_at_once(
    sampler: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        run_checks(sampler, options)
    with pytest.raises(error, match=words):
        check_sampler(sampler, **options)
    with pytest.raises(error, match=words):
        parametrize_with_checks([(sampler, options)])


def test_an_unknown_check_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="Unknown checks no_such; there are options_are_declared"):
        run_checks(Honest, only=["no_such"])


def test_list_checks_describes_each_in_a_sentence() -> None:
    for name, description in list_checks().items():
        assert name.isidentifier()
        assert description.endswith(".")
        assert len(description) < 110


def test_ids_tell_the_sampler_its_options_and_the_check() -> None:
    mark = parametrize_with_checks([Honest, (Honest, {"ridge": 0.5, "centre": "zero"})]).mark
    ids = [parameter.id for parameter in mark.args[1]]
    assert ids[0] == "Honest-options_are_declared"
    assert ids[-1] == f"Honest-ridge=0.5-centre=zero-{list(list_checks())[-1]}"
    assert len(ids) == len(set(ids)) == 2 * len(list_checks())


def called(sampler: type[Sampler], name: str) -> None:
    """Run one check as pytest would."""
    parameters = parametrize_with_checks([sampler]).mark.args[1]
    (call,) = [p.values[0] for p in parameters if p.id.endswith(f"-{name}")]
    assert repr(call) == f"<{name} of {sampler.__name__}>"
    call()


def test_under_pytest_checks_fail_and_skip_as_tests_do() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"within 0\.02; got 1\.05"):
        called(Unnormalised, "log_prob_integrates_to_one")
    with pytest.raises(pytest.skip.Exception, match="has no density"):
        called(SamplesOnly, "log_prob_integrates_to_one")
    with pytest.raises(ZeroDivisionError):
        called(NeverFits, "seed_decides_the_samples")
    with pytest.raises(AssertionError, match="or to refuse it") as caught:
        called(BrokenForOneRow, "few_rows_are_handled")
    assert isinstance(caught.value.__cause__, IndexError)  # its traceback is shown


def test_a_class_of_a_function_can_not_be_tried_in_another_process() -> None:
    class Local(Honest):
        pass

    (result,) = run_checks(Local, only=["saved_sampler_works_in_a_fresh_process"])
    assert result.status == "skipped"
    assert "top level of a file" in result.message


def test_a_users_own_ctrl_c_ends_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Honest, "fit", interrupted)
    for name in ("seed_decides_the_samples", "few_rows_are_handled"):
        with pytest.raises(KeyboardInterrupt):
            list(run_checks(Honest, only=[name]))


@pytest.mark.usefixtures("_quick")
def test_what_the_caller_has_set_changes_nothing() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.no_grad():
            check_sampler(Honest)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_a_script_that_checks_at_its_top_level_does_not_start_itself_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LATENTFIT_CHECK", "1")  # as in the process that a check starts
    with pytest.raises(RuntimeError, match="if __name__ == '__main__':"):
        run_checks(Honest)
    parametrize_with_checks([Honest])  # a test's module does this where it is imported


GPU_SAFE: dict[str, Callable[[Tensor, torch.Generator], object]] = {
    "device=": lambda rows, g: torch.zeros(3, device=rows.device) + rows,
    "new_zeros": lambda rows, g: rows.new_zeros(3) + torch.zeros_like(rows),
    "moved": lambda rows, g: torch.zeros(3).to(rows.device) + torch.ones(3).to(rows) + rows,
    "a number": lambda rows, g: rows * torch.tensor(2.0),
    "an index": lambda rows, g: rows[torch.arange(2)],
    "copy_": lambda rows, g: rows.copy_(torch.ones(5, 3)) + rows,
    "a module": lambda rows, g: torch.nn.Linear(3, 3).to(rows.device)(rows),
    "NumPy and back": lambda rows, g: (
        torch.from_numpy(rows.cpu().numpy() + 1).to(rows.device) + rows
    ),
    "among themselves": lambda rows, g: torch.zeros(3) + torch.eye(3),
    "random": lambda rows, g: torch.randn(5, 3, generator=g, device=rows.device) + rows,
}
GPU_BROKEN: dict[str, Callable[[Tensor, torch.Generator], object]] = {
    "no device": lambda rows, g: torch.zeros(3) + rows,
    "eye": lambda rows, g: rows @ torch.eye(3),
    "computed": lambda rows, g: (torch.ones(3) * 2).sqrt() + rows,
    "another dtype": lambda rows, g: torch.zeros(3).to(torch.float64) + rows,
    "cat": lambda rows, g: torch.cat([rows, torch.zeros(1, 3)]),
    "where": lambda rows, g: torch.where(rows > 0, rows, torch.zeros(5, 3)),
    "to the CPU": lambda rows, g: rows.cpu() + rows,
    "numpy": lambda rows, g: rows.numpy(),
    "asarray": lambda rows, g: np.asarray(rows),
    "random": lambda rows, g: torch.randn(5, 3, generator=g),
}


@pytest.mark.parametrize("name", GPU_SAFE)
def test_what_works_on_a_gpu_is_not_found_fault_with(name: str) -> None:
    rows, generator = torch.ones(5, 3), torch.Generator()
    with MixedDevices() as mode:
        GPU_SAFE[name](rows, generator)
    assert mode.places == []


@pytest.mark.parametrize("name", GPU_BROKEN)
def test_what_mixes_devices_on_a_gpu_is_found_with_its_line(name: str) -> None:
    rows, generator = torch.ones(5, 3), torch.Generator()
    with MixedDevices() as mode:
        GPU_BROKEN[name](rows, generator)
    (place,) = mode.places
    assert "test_testing.py:" in place


def test_importing_the_suite_imports_neither_pytest_nor_sklearn(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run_python(
        "-c",
        "import sys, latentfit.testing; print({'pytest', 'sklearn', 'scipy'} & set(sys.modules))",
    )
    assert done.stdout.strip() == "set()"


class SamplesOnly(Honest):
    has_density = False
    log_prob = Sampler.log_prob  # type: ignore[assignment]


class NeverFits(Honest):
    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        raise ZeroDivisionError("division by zero")


class BrokenForOneRow(Honest):
    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        self.weight.add_(0 * rows[1])
