"""latentfit.diagnose: what there is to know of latents before a sampler is fitted to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit.diagnosis import _advice as advice
from latentfit.diagnosis._anomalies import find_copies, find_outliers, find_repeated
from latentfit.diagnosis._clusters import find_clusters
from latentfit.diagnosis._dimension import (
    SHARE,
    mle_dimension,
    neighbour_distances,
    twonn_dimension,
    twonn_points,
)
from latentfit.diagnosis._moments import Moments, measure_moments, measure_spectrum
from latentfit.diagnosis._report import Diagnosis, Finding, Marginal, Plots
from latentfit.diagnosis._rows import Rows
from latentfit.diagnosis._shift import Shift, two_sample_test
from latentfit.errors import DataError
from latentfit.randomness import check_seed, plugin_defaults
from latentfit.rows import draw_index

__all__ = ["diagnose"]

_SAMPLE = 5000  # rows for what is quadratic in them
_NEIGHBOURS = 20
_COMPARED = 1500  # rows of each of two sets
_LEAST_COMPARED = 8
_DRAWN = 2000  # points of the figure


@torch.no_grad()
def diagnose(latents: Any, *, validation: Any = None, seed: int | None = 0) -> Diagnosis:
    r"""Look at latents before a fit: what they are like, what harms, and what to do about it.

    Moments, copies and outliers are those of all rows, and so is the covariance's spectrum unless that would
    take more than some seconds. Neighbours, clusters and repeated dimensions are looked for in 5,000 random
    rows, shifts in 1,500 of each set. The global random state is neither read nor changed.

    Args:
        latents: A tensor or array (N, \*shape), N >= 2, or a LatentStore.
        validation: Latents (M, \*shape) from elsewhere, to tell whether they differ; None compares the first
            half of the rows with the second.
        seed: A whole number; None for a new one.

    Returns:
        The findings, each with its values, a severity and one sentence of advice; ``print`` shows them as a
        table.

    Raises:
        DataError: Latents that can't be used; NonFiniteError for NaN and infinity.
        OptionError: A seed that is none.

    >>> found = diagnose(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)))
    >>> found.numerical_rank, found["clusters"].values["count"]
    (3, 1)
    """
    rows = Rows(latents)
    others = None if validation is None else Rows(validation, "validation latents")
    if others is not None and others.shape != rows.shape:
        raise DataError(
            f"Expected validation latents of shape {_listed(rows.shape)}; got {_listed(others.shape)}."
        )
    seed = check_seed(seed)
    for given in (rows, others):
        if given is not None:
            given.check_finite()
    generator = torch.Generator().manual_seed(seed)
    with plugin_defaults(torch.device("cpu")):
        return _diagnose(rows, others, seed, generator)


def _diagnose(rows: Rows, others: Rows | None, seed: int, generator: torch.Generator) -> Diagnosis:
    moments = measure_moments(rows)
    copies = advice.about_copies(find_copies(moments.prints), crowded=rows.crowded)
    constants = advice.about_constants(moments)
    index = draw_index(len(rows), _SAMPLE, generator)
    shift = advice.about_shift(_shift(rows, others, generator), validation=others is not None)
    if not bool(moments.varies.any()):
        findings = (*_unknown(rows.dim), copies, constants, shift)
        eigenvalues = np.zeros(rows.dim)
        return Diagnosis(
            findings, len(rows), rows.shape, rows.dtype, len(index), seed, eigenvalues, Plots()
        )
    sample = rows.take(index)
    spectrum = measure_spectrum(rows, moments, generator)
    outliers = find_outliers(rows, moments, spectrum, sample)
    scores = ((sample - moments.mean) / moments.unit * moments.varies) @ spectrum.axes
    inside = ~torch.isin(index, outliers.index)
    distances = _distances(sample, moments, index)
    twonn, mle = None, None
    if distances is not None:
        twonn, mle = twonn_dimension(distances), mle_dimension(distances)
    findings = (
        advice.about_spectrum(spectrum, moments.unit, rows.dim),
        advice.about_rank(spectrum, rows.dim),
        advice.about_dimension(twonn, mle, spectrum.rank, len(index)),
        advice.about_kurtosis(moments),
        advice.about_clusters(find_clusters(scores[inside], generator)),
        advice.about_outliers(outliers),
        copies,
        constants,
        advice.about_repeated(find_repeated(sample, moments, rows.eps)),
        advice.about_scales(moments),
        shift,
    )
    plots = _plots(sample, scores, moments, distances)
    eigenvalues = spectrum.values.numpy() * moments.unit**2
    return Diagnosis(
        findings, len(rows), rows.shape, rows.dtype, len(index), seed, eigenvalues, plots
    )


def _listed(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, ('M', *shape)))})"


def _shift(rows: Rows, others: Rows | None, generator: torch.Generator) -> Shift | None:
    if others is None:
        half = len(rows) // 2
        if half < _LEAST_COMPARED:
            return None
        first = rows.take(draw_index(half, _COMPARED, generator))
        second = rows.take(half + draw_index(len(rows) - half, _COMPARED, generator))
        return two_sample_test(first, second, generator)
    if min(len(rows), len(others)) < _LEAST_COMPARED:
        return None
    x = rows.take(draw_index(len(rows), _COMPARED, generator))
    return two_sample_test(x, others.take(draw_index(len(others), _COMPARED, generator)), generator)


def _distances(sample: Tensor, moments: Moments, index: Tensor) -> Tensor | None:
    """Distances to the nearest neighbours in the sample, each row in it once; None for too few rows."""
    _, first = np.unique(moments.prints[index.numpy()], return_index=True)
    if len(first) < 3:
        return None
    different = sample[torch.from_numpy(np.sort(first))]
    # The median: one row far out must not leave the others without digits.
    centred = (different - different.median(0).values) / moments.unit * moments.varies
    return neighbour_distances(centred, min(_NEIGHBOURS, len(first) - 1))


def _unknown(dim: int) -> tuple[Finding, ...]:
    """Findings on latents that are all equal."""
    advice = "All latents are equal."
    ranks = {"effective_rank": None, "numerical_rank": 0, "dimensions": dim}
    dimensions = {"twonn": None, "mle": None, "rows": None}
    return (
        Finding("effective_rank", "ok", "not computed", advice, ranks),
        Finding("intrinsic_dimension", "ok", "not computed", advice, dimensions),
    )


def _plots(sample: Tensor, scores: Tensor, moments: Moments, distances: Tensor | None) -> Plots:
    unit = moments.unit
    varying = moments.varies.nonzero()[:, 0]
    order = varying[moments.kurtosis[varying].argsort()].tolist()
    chosen = dict.fromkeys((order[0], order[len(order) // 2], order[-1]))
    marginals = tuple(
        Marginal(
            i,
            float(moments.kurtosis[i]),
            ((sample[:, i] - moments.mean[i]) / moments.scale[i]).numpy(),
        )
        for i in chosen
    )
    points = torch.zeros(2, 0) if distances is None else torch.stack(twonn_points(distances))
    return Plots(
        (scores[:_DRAWN, :2] * unit).numpy(),
        marginals,
        points.numpy(),
        int(SHARE * points.shape[1]),
    )
