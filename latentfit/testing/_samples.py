"""Checks of what a sampler draws."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit.metrics import c2st
from latentfit.testing import _data
from latentfit.testing._check import expect
from latentfit.testing._fitted import Fitted
from latentfit.testing._lab import Lab

__all__ = [
    "fit_is_reproducible",
    "rows_of_a_draw_are_independent",
    "samples_follow_the_data",
    "samples_have_shape_and_dtype",
    "seed_decides_the_samples",
    "small_draws_are_like_large_ones",
]

_AUC_BAR = 0.6


def samples_have_shape_and_dtype(lab: Lab) -> None:
    """sample(n, generator) gives finite float32 rows (n, D), for one row and for many."""
    fitted = lab.brief()
    for n in (1, 2, 100):
        _expect_rows(lab, fitted.draw_raw(n), n, fitted.dim)
    for kind in lab.kinds:
        for n in (1, 100):
            drawn = lab.brief(kind).draw_raw(n, context=lab.contexts(n, kind))
            _expect_rows(lab, drawn, n, fitted.dim)


def seed_decides_the_samples(lab: Lab) -> None:
    """The same seed draws the same bits, and another seed draws others."""
    fitted, name = lab.brief(), lab.cls.__name__
    one, again, other = fitted.draw(50, seed=1), fitted.draw(50, seed=1), fitted.draw(50, seed=2)
    expect(
        torch.equal(one, again),
        f"Expected {name}.sample to draw the same bits from generators of one seed; they differ by up to "
        f"{float((one - again).abs().max()):.3g}. Draw from the generator only: no clock, no "
        "other state.",
    )
    repeated = int((one[:, None] == other[None]).all(dim=2).any(dim=1).sum())
    expect(
        repeated < len(one) // 2,
        f"Expected {name}.sample to draw other rows from a generator of another seed; {repeated} "
        f"of {len(one)} are the same. Does it make a generator of its own, or seed one?",
    )


def fit_is_reproducible(lab: Lab) -> None:
    """Two fits with one seed give the same state and history, bit for bit."""
    one = lab.brief()
    torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002 - latentfit seeds these anew
    again = lab.fit_briefly()
    first, second = one.state, again.state
    differing = [k for k in first if not _same_bits(first[k], second.get(k))]
    expect(
        not differing,
        f"Expected two fits of {lab.cls.__name__} with one seed to be equal bit for bit; they differ in "
        f"{', '.join(differing[:5])}. Randomness has to come from run.generator; look for the "
        "clock, threads, and state kept on the class.",
    )
    expect(
        repr(one.history) == repr(again.history),
        f"Expected two fits of {lab.cls.__name__} with one seed to log one history; got "
        f"{one.history} and {again.history}.",
    )


def small_draws_are_like_large_ones(lab: Lab) -> None:
    """Many draws of one to four rows have the distribution of one large draw."""
    fitted = lab.brief()
    small = torch.cat(fitted.draws([1] * 100 + [4] * 50, seed=5))
    distance, bar = _data.kolmogorov_smirnov(small, fitted.draw(2000, seed=6))
    expect(
        distance < bar,
        f"Expected {lab.cls.__name__}.sample to draw each row alike, however many it draws; 150 "
        "draws of 1 or 4 rows and one of 2,000 differ: Kolmogorov-Smirnov distance "
        f"{distance:.3f}, expected below "
        f"{bar:.3f}. Look for statistics over the rows of a draw (batch norm, centring) and for a "
        "reseeded generator.",
    )


def rows_of_a_draw_are_independent(lab: Lab) -> None:
    """The rows of a draw come in no order, and no row tells of the one before."""
    rows, name = lab.full().draw(4000, seed=7), lab.cls.__name__
    distance, bar = _data.kolmogorov_smirnov(rows[:2000], rows[2000:])
    expect(
        distance < bar,
        f"Expected the first and the second half of 4,000 rows of {name}.sample to be alike; the "
        f"Kolmogorov-Smirnov distance is {distance:.3f}, expected below {bar:.3f}. Rows that come grouped, "
        "say by component, have to be shuffled with the generator.",
    )
    scaled = _data.standardised(rows)
    for lag in (1, 2):
        correlation = float((scaled[lag:] * scaled[:-lag]).mean(0).abs().max())
        expect(
            correlation < 5.5 / len(rows) ** 0.5,
            f"Expected the rows of {name}.sample to be independent; rows {lag} apart correlate by "
            f"{correlation:.3f}.",
        )


def samples_follow_the_data(lab: Lab) -> None:
    """A classifier hardly tells samples from fresh data of a mixture in the plane."""
    fitted = lab.full()
    fresh = _as_trained_on(fitted, _data.mixture(2500, seed=2), _data.mixture(2000, seed=12))
    auc = c2st(fitted.draw(2000, seed=8), fresh, seed=0)
    expect(
        auc < _AUC_BAR,
        f"Expected samples of {lab.cls.__name__} that a classifier hardly tells from fresh data "
        f"of the same distribution, AUC below {_AUC_BAR}; got {auc:.3f}. (The data is two overlapping "
        "Gaussians in the plane, standardised; one full-covariance Gaussian passes.) Does it "
        "need more steps? Compare means, "
        f"{_listed(fitted.draw(2000).mean(0))} for 0, and deviations, "
        f"{_listed(fitted.draw(2000).std(0))} for 1.",
    )


def _expect_rows(lab: Lab, rows: Any, n: int, dim: int) -> None:
    call = f"{lab.cls.__name__}.sample({n}, generator)"
    shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
    expect(
        shape == (n, dim),
        f"Expected {call} to return a tensor of shape ({n}, {dim}); got {shape}.",
    )
    expect(rows.dtype == torch.float32, f"Expected {call} to return float32; got {rows.dtype}.")
    bad = int((~rows.isfinite()).any(dim=1).sum())
    expect(bad == 0, f"Expected {call} to return finite rows; {bad} of {n} hold NaN or infinity.")


def _as_trained_on(fitted: Fitted, trained: Tensor, latents: Tensor) -> Tensor:
    """Standardise other latents as those were that the sampler was fitted to."""
    mean, scale = trained.mean(0), trained.std(0, correction=0)
    rows = (latents - mean) / scale
    assert torch.allclose(fitted.rows, (trained - mean) / scale, atol=1e-4)
    return rows


def _same_bits(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one, other)


def _listed(values: Tensor) -> str:
    return "(" + ", ".join(f"{v:.2f}" for v in values.tolist()) + ")"
