"""Checks of log densities: against integrals, samples and finite differences."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentfit.errors import DensityUnavailable
from latentfit.sampler_base import Sampler
from latentfit.testing._check import Skipped, Violation, expect
from latentfit.testing._fitted import Fitted
from latentfit.testing._integral import Chart, integral
from latentfit.testing._lab import Lab

__all__ = [
    "has_density_tells_the_truth",
    "log_prob_agrees_with_samples",
    "log_prob_has_shape_and_dtype",
    "log_prob_has_the_right_gradient",
    "log_prob_integrates_to_one",
    "log_prob_of_a_row_is_its_own",
]

_CELLS = 10  # per axis


def has_density_tells_the_truth(lab: Lab) -> None:
    """With has_density, log_prob works; without it, log_prob raises DensityUnavailable."""
    fitted, name = lab.brief(), lab.cls.__name__
    declared = lab.cls.has_density
    expect(
        isinstance(declared, bool),
        f"Expected {name}.has_density to be True or False on the class; got {declared!r}.",
    )
    if declared:
        expect(
            lab.cls.log_prob is not Sampler.log_prob,
            f"Expected {name} to implement log_prob, because has_density is True; it does not.",
        )
        fitted.score(fitted.rows[:5])
        return
    try:
        fitted.score(fitted.rows[:5])
    except DensityUnavailable:
        return
    except Exception as error:
        raise Violation(
            f"Expected {name}.log_prob to raise DensityUnavailable, because has_density is False; got "
            f"{type(error).__name__}: {error}. Leave log_prob to the base class."
        ) from error
    raise Violation(
        f"Expected {name}.log_prob to raise DensityUnavailable, because has_density is False; it "
        "returned numbers. Set has_density = True if they are log densities."
    )


def log_prob_has_shape_and_dtype(lab: Lab) -> None:
    """log_prob(rows) gives finite float32 nats (n,) for training, held-out and drawn rows."""
    fitted, name = _with_density(lab, lab.brief()), lab.cls.__name__
    for rows in (fitted.rows[:1], fitted.rows, fitted.held_out, fitted.draw(50, seed=9)):
        with torch.no_grad():
            values = fitted.plugin.log_prob(rows.clone())
        n = len(rows)
        expect(
            values.shape == (n,),
            f"Expected {name}.log_prob to return shape ({n},) for {n} rows; got {tuple(values.shape)}.",
        )
        expect(
            values.dtype == torch.float32,
            f"Expected {name}.log_prob to return float32; got {values.dtype}.",
        )
        bad = int((~values.isfinite()).sum())
        expect(
            bad == 0,
            f"Expected {name}.log_prob to be finite on training, held-out and drawn rows; {bad} "
            f"of {n} values are NaN or infinite.",
        )


def log_prob_of_a_row_is_its_own(lab: Lab) -> None:
    """The density of a row depends on no other row, not on their number or order, and not on chance."""
    fitted, name = _with_density(lab, lab.brief()), lab.cls.__name__
    rows = fitted.rows[:60]
    together = fitted.score(rows)
    expect(
        torch.equal(together, fitted.score(rows)),
        f"Expected {name}.log_prob to give the same bits for the same rows; a second call gave "
        "others. What is drawn in it has to be drawn in fit or build, and kept.",
    )
    backwards = torch.arange(len(rows) - 1, -1, -1)
    far = torch.cat([rows, torch.full((1, fitted.dim), 30.0)])
    for others, values in {
        "alone": torch.cat([fitted.score(row) for row in rows.split(1)]),
        "in chunks of 7": torch.cat([fitted.score(part) for part in rows.split(7)]),
        "in reverse order": fitted.score(rows[backwards])[backwards],
        "next to an outlier": fitted.score(far)[:-1],
    }.items():
        gap = float(((values - together).abs() / (1 + together.abs())).max())
        expect(
            gap < 1e-3,
            f"Expected {name}.log_prob to score each row by itself; scored {others}, a row's "
            f"value changes by {gap:.2g} of its size. Look for statistics over the batch, and for "
            "steps that adapt to it.",
        )


def log_prob_has_the_right_gradient(lab: Lab) -> None:
    """log_prob is differentiable in the rows, and its gradient is that of finite differences."""
    fitted, name = _with_density(lab, lab.full()), lab.cls.__name__
    rows = fitted.rows[:200].clone().requires_grad_()
    values = fitted.score_with_gradients(rows)
    expect(
        values.requires_grad,
        f"Expected {name}.log_prob to be differentiable in the rows; its result needs no "
        "gradient. Look for no_grad, detach, item and NumPy.",
    )
    (gradient,) = torch.autograd.grad(values.sum(), rows)
    step = 2e-3
    numerical = torch.empty_like(gradient)
    for column in range(fitted.dim):
        shift = torch.zeros(fitted.dim)
        shift[column] = step
        difference = fitted.score(rows.detach() + shift) - fitted.score(rows.detach() - shift)
        numerical[:, column] = difference / (2 * step)
    gap = (gradient - numerical).abs() / (0.2 + numerical.abs())
    wrong = float((gap > 0.05).float().mean())
    expect(
        wrong < 0.1,  # kinks, as splines have, spoil single points
        f"Expected the gradient of {name}.log_prob to be that of finite differences; {wrong:.0%} "
        f"of the entries are off by more than 5 % (at the first row {_listed(gradient[0])}, expected "
        f"{_listed(numerical[0])}). Look for detach, no_grad and in-place changes.",
    )


def log_prob_integrates_to_one(lab: Lab) -> None:
    """The density's integral over the plane is 1, within 2 %."""
    mass = integral(_with_density(lab, lab.full()))
    expect(
        0.98 < mass < 1.02,
        f"Expected the density of {lab.cls.__name__} to integrate to 1 over the plane, within 0.02; got "
        f"{mass:.4f}. Look for a constant that is missing (2 pi, a weight), and at the sign of the log "
        "determinant.",
    )


def log_prob_agrees_with_samples(lab: Lab) -> None:
    """How often samples fall into the cells of a grid is what the density says."""
    fitted = _with_density(lab, lab.full())
    n, points = 5000, 8
    chart = Chart(fitted)
    index = (chart.locate(fitted.draw(n, seed=11)) * _CELLS).long().clamp(0, _CELLS - 1)
    counts = (index[:, 0] * _CELLS + index[:, 1]).bincount(minlength=_CELLS**2)
    masses = chart.masses(_CELLS * points).view(_CELLS, points, _CELLS, points).sum(dim=(1, 3))
    said = (masses / masses.sum()).reshape(-1)
    variation = 0.5 * float((counts / n - said).abs().sum())
    # The mean absolute deviation of a frequency, summed, is what chance makes of samples that are right.
    chance = 0.5 * float((2 * said * (1 - said).clamp_min(0) / (math.pi * n)).sqrt().sum())
    bar = chance + 0.03
    expect(
        variation < bar,
        f"Expected samples of {lab.cls.__name__} to be distributed as its log_prob says; the total "
        f"variation between {n:,} samples and the density, over {_CELLS**2} cells, is {variation:.3f}, "
        f"expected below {bar:.3f}. sample and log_prob are of two distributions: look for a map that is not "
        "the inverse of the other.",
    )


def _with_density(lab: Lab, fitted: Fitted) -> Fitted:
    if not lab.cls.has_density:
        raise Skipped(f"{lab.label} has no density.")
    return fitted


def _listed(values: Tensor) -> str:
    return "(" + ", ".join(f"{v:.3g}" for v in values.tolist()) + ")"
