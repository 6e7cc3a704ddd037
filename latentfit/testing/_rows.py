"""Checks of what rows a sampler can be fitted to."""

from __future__ import annotations

import torch
from torch import Tensor

from latentfit.errors import DataError, DivergenceError, OptionError
from latentfit.testing import _data
from latentfit.testing._check import Violation, expect
from latentfit.testing._fitted import Fitted, brief_fit
from latentfit.testing._integral import integral
from latentfit.testing._lab import Lab

__all__ = [
    "constant_dimensions_come_back",
    "dependent_columns_are_handled",
    "few_rows_are_handled",
    "fit_needs_no_held_out_rows",
    "heavy_tails_are_handled",
    "many_columns_are_handled",
    "one_dimension_is_handled",
    "repeated_rows_are_handled",
    "rows_are_not_modified",
]

_MOMENT = 0.4  # seconds


def rows_are_not_modified(lab: Lab) -> None:
    """Neither fit nor log_prob changes the rows or contexts that it is given."""
    name = lab.cls.__name__
    for kind in (None, *lab.kinds):
        rows = _data.standardised(_data.correlated(130, 3, seed=1))
        context = lab.contexts(len(rows), kind) if kind else None
        copies = rows.clone(), None if context is None else context.clone()
        fitted = brief_fit(
            lab.cls, lab.options, rows[:100], rows[100:], context=context, kind=kind, most=3
        )
        _expect_unchanged(f"{name}.fit", rows, context, copies)
        fitted.draw(len(rows), context=context)
        if lab.cls.has_density:
            with torch.no_grad():
                fitted.plugin.log_prob(rows, *(() if context is None else (context,)))
        _expect_unchanged(f"{name}'s sample or log_prob", rows, context, copies)


def fit_needs_no_held_out_rows(lab: Lab) -> None:
    """A fit without held-out rows works."""
    rows = _data.standardised(_data.correlated(200, 3, seed=13))
    for kind in (None, *lab.kinds):
        context = lab.contexts(len(rows), kind) if kind else None
        fitted = brief_fit(lab.cls, lab.options, rows, rows[:0], context=context, kind=kind)
        _expect_finite(lab, fitted, "without held-out rows", context)


def few_rows_are_handled(lab: Lab) -> None:
    """1, 2 and 5 training rows give finite samples and densities, or a DataError or OptionError."""
    rows = _data.standardised(_data.correlated(6, 3, seed=14))
    for n, m in ((1, 0), (1, 1), (2, 0), (5, 1)):
        noun = "row" if n == 1 else "rows"
        _expect_handled(lab, rows[:n], rows[n : n + m], f"{n} training {noun} and {m} held out")


def one_dimension_is_handled(lab: Lab) -> None:
    """Rows of one column work, with a density that integrates to 1, or are refused by an OptionError."""
    rows = _data.standardised(_data.mixture(400, seed=15)[:, :1])
    fitted = _expect_handled(lab, rows[:360], rows[360:], "rows of one column")
    if fitted is not None and lab.cls.has_density:
        mass = integral(fitted)
        expect(
            0.98 < mass < 1.02,
            f"Expected the density of {lab.cls.__name__} in one dimension to integrate to 1; got "
            f"{mass:.4f}.",
        )


def repeated_rows_are_handled(lab: Lab) -> None:
    """Rows that are a few values over and over give finite samples and densities."""
    rows = _data.standardised(_data.correlated(5, 3, seed=16)).repeat(50, 1)
    _expect_handled(lab, rows[:200], rows[200:], "250 rows of which only 5 are different")


def dependent_columns_are_handled(lab: Lab) -> None:
    """A column twice, so that the covariance is singular, gives finite samples and densities."""
    rows = _data.standardised(_data.correlated(300, 3, seed=17))
    rows = torch.cat([rows, rows[:, :1]], dim=1)
    _expect_handled(lab, rows[:260], rows[260:], "a column that is there twice")


def many_columns_are_handled(lab: Lab) -> None:
    """More columns than rows give finite samples, and densities that are still each row's own."""
    rows = _data.standardised(_data.correlated(50, 80, seed=19))
    fitted = _expect_handled(lab, rows[:40], rows[40:], "40 rows of 80 columns", DivergenceError)
    if fitted is None or not lab.cls.has_density:
        return
    scores, again = fitted.score(rows), fitted.score(rows)
    expect(
        torch.equal(scores, again),
        f"Expected {lab.cls.__name__}.log_prob to give the same bits for the same rows, of 80 columns "
        "too; a second call gave others.",
    )
    gap = float(((fitted.score(rows.flip(0)).flip(0) - scores).abs() / (1 + scores.abs())).max())
    expect(
        gap < 1e-3,
        f"Expected {lab.cls.__name__}.log_prob to score each row by itself, of 80 columns too; in "
        f"reverse order a row's value changes by {gap:.2g} of its size. What is drawn for an estimate has "
        "to be the same for every row.",
    )


def heavy_tails_are_handled(lab: Lab) -> None:
    """Rows with outliers of a hundred deviations give finite samples and densities, or a typed error."""
    source = _data.generator(18)
    rows = torch.randn(300, 3, generator=source)
    rows = rows / torch.rand(300, 1, generator=source).clamp_min(1e-3).sqrt()
    rows[3], rows[297] = torch.tensor([100.0, -100.0, 100.0]), torch.tensor([-60.0, 60.0, 60.0])
    _expect_handled(
        lab, rows[:260], rows[260:], "outliers of a hundred deviations", DivergenceError
    )


def constant_dimensions_come_back(lab: Lab) -> None:
    """Through LatentSampler, constant dimensions keep their value and the others their scales."""
    sampler, _ = lab.hurried()
    latents = _data.mixed_scales(4000, seed=5)
    drawn = sampler.sample(500, seed=0)
    expect(
        drawn.shape == (500, 5) and bool((drawn[:, 2] == 3).all()),
        f"Expected samples (500, 5) whose column 2 is always 3; got {tuple(drawn.shape)} with "
        f"values from {float(drawn[:, 2].min()):g} to {float(drawn[:, 2].max()):g}.",
    )
    varying = [0, 1, 3, 4]
    ratio = drawn[:, varying].std(0) / latents[:, varying].std(0)
    expect(
        bool(((ratio > 0.05) & (ratio < 20)).all()),
        "Expected samples whose columns have about the deviations of the data, after half a "
        f"second of training; they are {', '.join(f'{r:.3g}' for r in ratio.tolist())} times as large.",
    )
    if not sampler.has_density:
        return
    scores = sampler.log_prob(latents[:200])
    expect(
        bool(scores.isfinite().all()),
        f"Expected finite densities of training latents; {int((~scores.isfinite()).sum())} of 200 "
        "are not.",
    )


def _expect_handled(
    lab: Lab, rows: Tensor, held_out: Tensor, what: str, *also: type[Exception]
) -> Fitted | None:
    """Expect a fit of a moment to give finite results, or to be refused with words; None if it is refused.

    It is not cut after a few steps, because these rows do harm when the learning rate is high.
    """
    refusals: tuple[type[Exception], ...] = (OptionError, DataError, *also)
    try:
        fitted = brief_fit(lab.cls, lab.options, rows, held_out, most=None, max_seconds=_MOMENT)
    except refusals as error:
        expect(
            len(str(error)) > 10,
            f"Expected a message that says what is wrong with {what}, and the remedy; got "
            f"{type(error).__name__}: {str(error)!r}.",
        )
        return None
    except Exception as error:
        raise Violation(
            f"Expected {lab.cls.__name__} to handle {what}, or to refuse it by an OptionError or "
            f"a DataError; got {type(error).__name__}: {error}"
        ) from error
    _expect_finite(lab, fitted, f"after a fit to {what}")
    return fitted


def _expect_finite(lab: Lab, fitted: Fitted, when: str, context: Tensor | None = None) -> None:
    n = 100 if context is None else min(100, len(context))
    given = None if context is None else context[:n]
    drawn = fitted.draw(n, context=given)
    bad = int((~drawn.isfinite()).any(dim=1).sum())
    expect(
        drawn.shape == (n, fitted.dim) and bad == 0,
        f"Expected finite samples ({n}, {fitted.dim}) of {lab.cls.__name__} {when}; got "
        f"{tuple(drawn.shape)}, and {bad} rows hold NaN or infinity.",
    )
    if lab.cls.has_density:
        scored = fitted.rows[:n] if context is not None else torch.cat([fitted.rows[:n], drawn])
        scores = fitted.score(scored, None if context is None else context[: len(scored)])
        bad = int((~scores.isfinite()).sum())
        expect(
            bad == 0,
            f"Expected finite densities of {lab.cls.__name__} {when}, of training and drawn rows; "
            f"{bad} of {len(scores)} are NaN or infinite.",
        )


def _expect_unchanged(
    who: str, rows: Tensor, context: Tensor | None, copies: tuple[Tensor, Tensor | None]
) -> None:
    expect(
        torch.equal(rows, copies[0]),
        f"Expected {who} to leave the rows it was given as they are; it changed them. Copy before "
        "an in-place operation (add_, clamp_, x[...] = ...).",
    )
    expect(
        context is None or copies[1] is None or torch.equal(context, copies[1]),
        f"Expected {who} to leave the contexts it was given as they are; it changed them.",
    )
