"""Gaussian mixtures fitted by EM, and the single Gaussian."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from latentfit.plugin import DataError, DivergenceError, GaussianMixture, Interval, Run, Sampler

__all__ = ["GMM", "Gaussian"]

_MOST = 1024  # components
_NUMBERS = 2**22  # in the covariances of all components; bounds the size of the state
_SURE = (
    8  # up to so many components all numbers are tried: they cost little, and chance ends no search
)
_WORTH = 0.01  # nats per row: what twice as many components have to gain
_EVERY = 5  # EM steps between two looks at the held-out rows
_TRIAL = 10  # EM steps that each number of components is judged by
_SHRINKAGES = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_ASIDE = 0.1

_NonNegative = Annotated[float, Interval(0)]


class GMM(Sampler):
    """A Gaussian mixture with full covariances, fitted by EM from a k-means++ start.

    EM (Dempster, Laird and Rubin, 1977) runs until the held-out likelihood gains too little, and its best
    step is kept; the number of components and how far their covariances are shrunk are chosen likewise.
    Without held-out rows a tenth of the rows is set aside to choose by; then the mixture is fitted to all.

    Under classes the components are shared, and each class has its own weights. Under a vector the mixture is
    that of condition and row together, and what follows from it for the row given the condition is exact.

    Args:
        components: The number of Gaussians; None chooses among 1, 2, 4, 8, ... by held-out likelihood.
        iterations: EM steps at most, for each number that is tried.
        tolerance: EM ends when it gains less than so many nats per row and step.
        shrinkage: The weight in each covariance of the one common to all, in units of D rows; None adjusts it
            during EM by held-out likelihood.
    """

    has_density = True
    conditions = ("classes", "vector")

    def __init__(
        self,
        *,
        components: Annotated[int, Interval(1)] | None = None,
        iterations: Annotated[int, Interval(1)] = 100,
        tolerance: _NonNegative = 2e-4,
        shrinkage: _NonNegative | None = None,
    ) -> None:
        super().__init__()
        self.components = components
        self.iterations = iterations
        self.tolerance = tolerance
        self.shrinkage = shrinkage

    def build(self, dim: int, n: int) -> None:
        """Create a mixture with room for the largest number of components that may be chosen."""
        # A vector's columns come first: so the mixture can be completed from them.
        self.given = self.context_dim if self.context_kind == "vector" else 0
        columns = self.given + dim
        if self.components is None:
            most = max(1, min(_MOST, n // columns, _NUMBERS // columns**2))
            self.ladder = [2**power for power in range(most.bit_length())]
        else:
            self.ladder = [min(n, self.components)]
        gated = self.context_dim if self.context_kind == "classes" else 0
        self.mixture = GaussianMixture(columns, self.ladder[-1], gated).requires_grad_(False)
        self.register_buffer("used", torch.tensor(self.ladder[-1]))
        self.used: Tensor

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        """Choose the number of components, and fit them."""
        train = self._join(rows, run.context)
        watched = self._join(held_out, run.held_out_context)
        choice = self.ladder[-1] > 1 and None in (self.components, self.shrinkage)
        if len(held_out):
            best, by = self._choose(train, watched, run), "held-out rows"
        elif choice and len(rows) > 1:
            order = torch.randperm(len(rows), generator=run.generator, device=rows.device)
            aside = max(1, round(_ASIDE * len(rows)))
            chosen = self._choose(train.pick(order[aside:]), train.pick(order[:aside]), run)
            best, by = self._again(chosen, train, run), "a tenth of the training rows"
        else:
            best, by = self._choose(train, None, run), "training rows"
        k = best.mixture.components
        self.mixture.head(components=k).load_state_dict(best.mixture.state_dict())
        self.used.fill_(k)
        run.facts |= {"components": k, "iterations": best.steps, "chosen_by": by}
        if k > 1:
            run.facts["shrinkage"] = best.shrinkage

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        """Draw n rows, (n, D)."""
        if self.given and context is not None:
            return self._fitted().complete(context, generator)[:, self.given :]
        return self._fitted().sample(n, generator, context)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density in nats, (n,), of rows (n, D)."""
        mixture = self._fitted()
        if self.given and context is not None:
            joint = mixture.log_prob(torch.cat((context, rows), dim=1))
            return joint - mixture.head(columns=self.given).log_prob(context)
        return mixture.log_prob(rows, context)

    def _fitted(self) -> GaussianMixture:
        """The components in use; the others cost nothing."""
        used = int(self.used.clamp(1, self.mixture.components))  # a file may claim any number
        return self.mixture.head(components=used)

    def _join(self, rows: Tensor, context: Tensor | None) -> _Rows:
        if self.given and context is not None:
            return _Rows(torch.cat((context, rows), dim=1), None, self.given)
        return _Rows(rows, context, 0)

    def _choose(self, train: _Rows, watched: _Rows | None, run: Run) -> _Fit:
        """Begin with more and more components until that gains little, and finish the best two."""
        fits: list[_Fit] = []
        shrinkage = 1.0 if self.shrinkage is None else self.shrinkage
        for rung, k in enumerate(self.ladder):
            if fits and run.elapsed() >= 1:
                break
            fit = self._kept(
                run, f"trial {k}", self._trial, k, train, watched, run, rung, shrinkage
            )
            gain = fit.score - max((other.score for other in fits), default=-math.inf)
            shrinkage = fit.shrinkage
            fits.append(fit)
            if k > _SURE and gain < _WORTH:
                break
        scores = {str(fit.mixture.components): fit.score for fit in fits}
        best = sorted(fits, key=lambda fit: -fit.score)[:2]
        for i, fit in enumerate(best):
            if fit.steps == 0 or run.elapsed() < 1:
                rung = len(self.ladder) + i
                more = (fit, train, watched, run, rung, self.iterations)
                best[i] = self._kept(run, f"EM of {fit.mixture.components}", self._em, *more)
        run.facts["scores"] = scores | {str(fit.mixture.components): fit.score for fit in best}
        return max(best, key=lambda fit: fit.score)

    def _kept(self, run: Run, name: str, make: Callable[..., _Fit], *arguments: Any) -> _Fit:
        """Make a fit, or take it from the checkpoint."""

        def load(state: dict[str, Any]) -> _Fit:
            weights = state["mixture"]
            k = len(weights["logits"])
            mixture = GaussianMixture(self.mixture.dim, k, self.mixture.context_dim)
            mixture.requires_grad_(False).to(run.generator.device)
            mixture.load_state_dict(weights)
            return _Fit(mixture, state["shrinkage"], float(state["score"]), state["steps"])

        return run.once(name, lambda: make(*arguments).state(), load)

    def _trial(
        self, k: int, train: _Rows, watched: _Rows | None, run: Run, rung: int, shrinkage: float
    ) -> _Fit:
        """Start with so many components and, where there is a choice, take a few EM steps."""
        fit = self._start(k, train, run, shrinkage)
        if len(self.ladder) == 1:
            return fit
        return self._em(fit, train, watched, run, rung, min(_TRIAL, self.iterations))

    def _em(
        self, begin: _Fit, train: _Rows, watched: _Rows | None, run: Run, rung: int, steps: int
    ) -> _Fit:
        """Take EM steps, and return the one that was best on the rows watched, or else the last."""
        best, now = begin, copy.deepcopy(begin)
        mixture = now.mixture
        for now.steps in range(begin.steps, steps + 1):
            sums = mixture.expect(train.rows, train.context)
            # One Gaussian is known after the start.
            last = now.steps == steps or mixture.components == 1 or run.elapsed() >= 1
            if now.steps % _EVERY == 0 or last:
                likelihood = sums.likelihood - train.of_contexts(mixture)
                now.score = likelihood if watched is None else watched.score(mixture)
                self._log(now, likelihood, watched, run, rung)
                gain = now.score - best.score
                if gain >= 0 or watched is None:
                    best = copy.deepcopy(now)
                if last or (gain < _EVERY * self.tolerance and now.steps > begin.steps):
                    break
                if self.shrinkage is None and watched is not None:
                    now.shrinkage = self._shrink(now, sums, watched)
            mixture.maximise(sums, now.shrinkage)
        return best

    def _shrink(self, fit: _Fit, sums: Any, watched: _Rows) -> float:
        """Find the shrinkage of the M step that the rows watched are likeliest after."""
        scores = {}
        for shrinkage in (fit.shrinkage, *_SHRINKAGES):
            fit.mixture.maximise(sums, shrinkage)
            scores[shrinkage] = watched.score(fit.mixture)
        best = max(scores, key=lambda shrinkage: scores[shrinkage])
        # Few components need none, and chance would choose.
        worth = scores[best] - scores[fit.shrinkage] > self.tolerance
        return best if worth else fit.shrinkage

    def _log(
        self, fit: _Fit, likelihood: float, watched: _Rows | None, run: Run, rung: int
    ) -> None:
        """Add a point to the training curves.

        Raises:
            DivergenceError: The likelihood is not finite.
        """
        k = fit.mixture.components
        if not math.isfinite(likelihood + fit.score):
            raise DivergenceError(
                f"Expected a finite likelihood; got {likelihood} with {k} components. Check the latents for "
                "outliers, or standardise them."
            )
        curves = {} if watched is None else {"validation_loss": -fit.score}
        step = rung * self.iterations + fit.steps
        total = (len(self.ladder) + 2) * self.iterations
        run.log(step, total, train_loss=-likelihood, components=k, **curves)

    def _again(self, chosen: _Fit, train: _Rows, run: Run) -> _Fit:
        """Fit as many components in as many steps to other rows."""
        if run.elapsed() >= 1:
            return chosen
        fit = self._start(chosen.mixture.components, train, run, chosen.shrinkage)
        while fit.steps < chosen.steps and run.elapsed() < 1:
            fit.mixture.improve(train.rows, context=train.context, shrinkage=fit.shrinkage)
            fit.steps += 1
        return fit

    def _start(self, k: int, train: _Rows, run: Run, shrinkage: float) -> _Fit:
        mixture = GaussianMixture(self.mixture.dim, k, self.mixture.context_dim)
        mixture.requires_grad_(False).to(train.rows.device)
        mixture.start(train.rows, run.generator, context=train.context, shrinkage=shrinkage)
        return _Fit(mixture, shrinkage)


@dataclass
class _Rows:
    """Rows with their contexts, which are apart (classes), or the first ``given`` columns (a vector)."""

    rows: Tensor
    context: Tensor | None
    given: int

    def pick(self, index: Tensor) -> _Rows:
        context = None if self.context is None else self.context[index]
        return _Rows(self.rows[index], context, self.given)

    def score(self, mixture: GaussianMixture) -> float:
        """The mean log density of the rows under their contexts."""
        return mixture.mean_log_prob(self.rows, self.context) - self.of_contexts(mixture)

    def of_contexts(self, mixture: GaussianMixture) -> float:
        """The mean log density of the contexts that are the first columns; 0 without."""
        if not self.given:
            return 0.0
        return mixture.head(columns=self.given).mean_log_prob(self.rows[:, : self.given])


@dataclass
class _Fit:
    """A mixture after some EM steps, and what it scored."""

    mixture: GaussianMixture
    shrinkage: float
    score: float = -math.inf
    steps: int = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep."""
        return {
            "mixture": self.mixture.state_dict(),
            "shrinkage": self.shrinkage,
            "score": torch.tensor(self.score, dtype=torch.float64),  # may be infinite
            "steps": self.steps,
        }


class Gaussian(Sampler):
    """One Gaussian with a full covariance, in closed form.

    Few rows make a covariance thin, so each has a share of a broader one: that of all rows of its diagonal;
    that of a class of the one within all classes. A class without rows is taken for all rows. Under a vector
    the mean is linear in it, and the covariance is that of the errors made for each row from the others.

    Args:
        shrinkage: The weight of the broader covariance: so many rows, and D times as many for a class.
        ridge: What is added to a covariance's diagonal, relative to one plus its largest entry.
    """

    has_density = True
    conditions = ("classes", "vector")

    def __init__(
        self,
        *,
        shrinkage: _NonNegative = 1.0,
        ridge: Annotated[float, Interval(0, open_low=True)] = 1e-6,
    ) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.ridge = ridge

    def build(self, dim: int, n: int) -> None:  # noqa: ARG002 - the data's size changes nothing
        """Create means and factors, a pair for each class or one for all, and a vector's slopes."""
        groups = self.context_dim if self.context_kind == "classes" else 1
        slopes = self.context_dim if self.context_kind == "vector" else 0
        self.register_buffer("mean", torch.zeros(groups, dim))
        self.register_buffer("factor", torch.eye(dim).repeat(groups, 1, 1))  # lower triangular
        self.register_buffer("slope", torch.zeros(slopes, dim))
        self.mean: Tensor
        self.factor: Tensor
        self.slope: Tensor

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:  # noqa: ARG002
        """Take the moments."""
        n, dim = rows.shape
        x = rows if rows.device.type == "mps" else rows.double()
        mean = x.mean(0, keepdim=True)
        x = x - mean
        scatter = x.T @ x
        covariance = (scatter + self.shrinkage * scatter.diagonal().diag() / n) / (
            n + self.shrinkage
        )
        means, covariances = mean, covariance[None]
        if run.context is not None and self.context_kind == "vector":
            slope, intercept, errors = _regression(run.context.to(x), x)
            errors = (errors + self.shrinkage * covariance) / (n + self.shrinkage)
            means, covariances = mean + intercept, errors[None]
            self.slope.copy_(slope)
        elif run.context is not None:
            counts = run.context.to(x).sum(0)[:, None, None]
            means, scatters = mean.repeat(len(counts), 1), x.new_zeros(len(counts), dim, dim)
            labels = run.context.argmax(1)
            for k in labels.unique().tolist():
                own = x[labels == k]
                means[k] += own.mean(0)
                own = own - own.mean(0)
                scatters[k] = own.T @ own
            within = (scatters.sum(0) + covariance) / (n - (counts > 0).sum() + 1)
            prior = self.shrinkage * dim
            covariances = (scatters + prior * within) / (counts + prior)
            covariances = torch.where(counts > 0, covariances, covariance)
        diagonal = covariances.diagonal(dim1=1, dim2=2)
        diagonal += self.ridge * (1 + diagonal.amax(1, keepdim=True))
        factor, failed = torch.linalg.cholesky_ex(covariances)
        if bool((failed > 0).any()):
            raise DataError(
                "Expected a covariance that is positive definite in float64; got one that is not, with "
                f"ridge={self.ridge:g}. Raise ridge, or leave columns out that depend on each other."
            )
        self.mean.copy_(means)
        self.factor.copy_(factor)

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        """Draw n rows, (n, D)."""
        noise = torch.randn(n, self.mean.shape[1], generator=generator, device=self.mean.device)
        rows = torch.empty_like(noise)
        for k, index in self._groups(noise, context):
            rows[index] = self.mean[k] + noise[index] @ self.factor[k].T
        return rows if context is None or not len(self.slope) else rows + context @ self.slope

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density in nats, (n,), of rows (n, D)."""
        if context is not None and len(self.slope):
            rows = rows - context @ self.slope
        result = rows.new_zeros(len(rows))
        for k, index in self._groups(rows, context):
            factor, centred = self.factor[k], rows[index] - self.mean[k]
            white = torch.linalg.solve_triangular(factor, centred.T, upper=False)
            constant = factor.diagonal().log().sum() + 0.5 * len(factor) * math.log(2 * math.pi)
            result[index] = -0.5 * white.square().sum(0) - constant
        return result

    def _groups(self, rows: Tensor, context: Tensor | None) -> Iterator[tuple[int, Tensor]]:
        """The Gaussians that rows belong to, with the rows' indices."""
        if context is None or self.context_kind == "vector":
            yield 0, torch.arange(len(rows), device=rows.device)
            return
        labels = context.argmax(1)
        for k in labels.unique().tolist():
            yield k, (labels == k).nonzero()[:, 0]


def _regression(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Regress rows x (n, D) of mean 0 on y (n, C), with a ridge of one row of unit variance.

    Returns:
        Slopes (C, D), the intercept (D,), and the scatter (D, D) of the errors made for each row by the
        regression on the others: theirs does not fall with the number of columns of y.
    """
    centre = y.mean(0)
    y = y - centre
    inverse = torch.linalg.inv(y.T @ y + torch.eye(y.shape[1], dtype=y.dtype, device=y.device))
    slope = inverse @ (y.T @ x)
    leverage = ((y @ inverse) * y).sum(1, keepdim=True) + 1 / len(y)
    errors = (x - y @ slope) / (1 - leverage).clamp_min(1e-3)
    return slope, -centre @ slope, errors.T @ errors
