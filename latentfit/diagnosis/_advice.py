"""From numbers to findings: how much it matters, and one sentence of advice."""

from __future__ import annotations

import math

import torch

from latentfit.diagnosis._anomalies import Copies, Outliers
from latentfit.diagnosis._clusters import Clusters
from latentfit.diagnosis._moments import Moments, Spectrum, effective_rank
from latentfit.diagnosis._report import Finding, Severity
from latentfit.diagnosis._shift import Shift

__all__ = [
    "MOST_COPIES",
    "about_clusters",
    "about_constants",
    "about_copies",
    "about_dimension",
    "about_kurtosis",
    "about_outliers",
    "about_rank",
    "about_repeated",
    "about_scales",
    "about_shift",
    "about_spectrum",
]

MOST_COPIES = 0.1
"""The fraction of rows that may be copies of others before it harms a fit."""

_SOME_COPIES = 0.001
_HEAVY, _VERY_HEAVY = 5.0, 50.0  # excess kurtosis; an exponential distribution has 6
_FAINT = 0.1  # a dimension's deviation, of the largest
_GAIN = 0.5  # nats by which a mixture must beat one Gaussian to be worth a word
_WIDE, _VERY_WIDE = 30.0, 1e4  # the ratio of the dimensions' deviations
_LISTED = 10  # indices that a finding names at most
P_VALUE = 0.01


def about_spectrum(spectrum: Spectrum, unit: float, dim: int) -> Finding:
    """Tell in how few directions the variance lies."""
    shares = (spectrum.values / spectrum.values.sum()).cumsum(0)
    most, nearly = (int((shares < share).sum()) + 1 for share in (0.9, 0.99))
    few = nearly <= dim / 2
    return Finding(
        "spectrum",
        "note" if few else "ok",
        f"90 % of the variance in {_count(most, 'direction')}, 99 % in {nearly}",
        f"transform='scale' keeps the other {_count(dim - nearly, 'direction')} faint, 'standardize' and "
        "'whiten' may make them as loud as these."
        if few
        else "No few directions hold nearly all of the variance.",
        {
            "largest": float(spectrum.values[0]) * unit**2,
            "smallest": float(spectrum.values[spectrum.rank - 1]) * unit**2,
            "directions_90": most,
            "directions_99": nearly,
            "rows": spectrum.rows,
        },
    )


def about_rank(spectrum: Spectrum, dim: int) -> Finding:
    """Tell the effective and the numerical rank."""
    effective, rank = effective_rank(spectrum.values), spectrum.rank
    severity: Severity = "note"
    if spectrum.rows <= dim:
        advice = (
            f"{spectrum.rows:,} rows show {spectrum.rows - 1:,} of {dim:,} directions at most: prefer "
            "more latents, or an encoder with fewer dimensions."
        )
    elif rank < dim:
        advice = (
            f"Only {rank} of {dim} directions vary: transform='auto', 'scale' or 'whiten' leaves the others "
            "out of the fit and puts them back."
        )
    elif effective < dim / 2:
        advice = (
            "Most directions are faint beside the first: let transform='auto' choose, or try 'scale' and "
            "'whiten'."
        )
    else:
        severity, advice = "ok", "All directions count: any transform will do."
    return Finding(
        "effective_rank",
        severity,
        f"{effective:.1f} of {dim}, numerical rank {rank}",
        advice,
        {"effective_rank": effective, "numerical_rank": rank, "dimensions": dim},
    )


def about_dimension(twonn: float | None, mle: float | None, rank: int, rows: int) -> Finding:
    """Tell the intrinsic dimension."""
    found = [value for value in (twonn, mle) if value is not None]
    severity: Severity = "ok"
    if not found:
        advice = "Expected three or more different rows whose distances differ."
    elif math.fsum(found) / len(found) < rank / 2:
        severity = "note"
        advice = (
            f"The latents lie near a surface of few dimensions in {rank}: a likelihood says little there, so "
            "compare samples, as method='auto' does."
        )
    else:
        advice = "A density over all directions describes them well."
    texts = [
        f"{value:.1f} ({name})"
        for value, name in ((twonn, "TwoNN"), (mle, "MLE"))
        if value is not None
    ]
    return Finding(
        "intrinsic_dimension",
        severity,
        ", ".join(texts) or "not computed",
        advice,
        {"twonn": twonn, "mle": mle, "rows": rows},
    )


def about_kurtosis(moments: Moments) -> Finding:
    """Tell of heavy tails."""
    kurtosis = moments.kurtosis.nan_to_num(-math.inf)
    index = int(kurtosis.argmax())
    largest = float(kurtosis[index])
    faint = float(moments.scale[index]) < _FAINT * moments.unit
    severity: Severity = "ok"
    if largest <= _HEAVY:
        advice = "No heavy tails."
    elif faint:
        severity = "note"
        advice = (
            "That dimension is nearly constant but for few rows: transform='scale' keeps it faint, "
            "'standardize' makes its few values huge."
        )
    else:
        severity = "warning" if largest > _VERY_HEAVY else "note"
        advice = (
            "Heavy tails stretch the scale: look at the outliers, and use a mixture (method='gmm', or the "
            "flows' base='mixture') to follow what belongs."
        )
    heavy = int((kurtosis > _HEAVY).sum())
    return Finding(
        "kurtosis",
        severity,
        f"at most {largest:.3g} (dimension {index}); above {_HEAVY:g} in {_count(heavy, 'dimension')}",
        advice,
        {"largest": largest, "dimension": index, "heavy_dimensions": heavy},
    )


def about_clusters(clusters: Clusters | None) -> Finding:
    """Tell whether there are groups."""
    if clusters is None:
        values = {"count": None, "gain": None, "components": None, "axes": None}
        return Finding("clusters", "ok", "not computed", "There are too few rows to tell.", values)
    severity: Severity = "ok"
    if clusters.count > 1:
        severity = "note"
        advice = (
            "Keep a mixture (method='gmm', or the flows' base='mixture', the default): one blob as a base "
            "leaves bridges between the groups."
        )
    elif clusters.gain > _GAIN:
        advice = "Of one piece, but no Gaussian: method='gaussian' would miss much."
    else:
        advice = "Close to one Gaussian: method='gaussian' is hard to beat."
    better = "one Gaussian explains held-out rows best"
    if clusters.components > 1:
        better = (
            f"a mixture of {clusters.components} explains held-out rows better than one Gaussian by "
            f"{clusters.gain:.2f} nats"
        )
    return Finding(
        "clusters",
        severity,
        f"{_count(clusters.count, 'group')}; {better}",
        advice,
        {
            "count": clusters.count,
            "gain": clusters.gain,
            "components": clusters.components,
            "axes": clusters.axes,
        },
    )


def about_outliers(outliers: Outliers) -> Finding:
    """Tell of rows far outside."""
    count, listed = len(outliers.index), outliers.index[:_LISTED].tolist()
    severity: Severity = "ok"
    summary, advice = "none", "No row lies far outside the others."
    if count:
        severity = "warning" if outliers.share > 0.5 else "note"
        more = ", ..." if count > 3 else ""
        summary = (
            f"{_count(count, 'row')} ({', '.join(map(str, listed[:3]))}{more}) with "
            f"{100 * outliers.share:.2g} % of the variance"
        )
        advice = (
            f"Look at row {listed[0]}, {float(outliers.ratios[0]):.3g} times as far out as the cutoff, and "
            "drop or clip what is broken."
        )
    return Finding(
        "outliers",
        severity,
        summary,
        advice,
        {
            "count": count,
            "indices": listed,
            "ratios": [_finite(value) for value in outliers.ratios[:_LISTED].tolist()],
            "variance_share": outliers.share,
        },
    )


def about_copies(copies: Copies, *, crowded: bool) -> Finding:
    """Tell of rows that are there more than once; where they are crowded, it may be by rounding."""
    severity: Severity = "ok"
    if crowded and copies.fraction > _SOME_COPIES:
        severity = "note"
        advice = "Rounding may have made them equal: use float32, or float64, to tell them apart."
    elif copies.fraction > MOST_COPIES:
        severity = "warning"
        advice = (
            "Drop the copies: a density grows without bound on them, and those among the held-out rows hide "
            "overfitting."
        )
    elif copies.fraction > _SOME_COPIES:
        severity = "note"
        advice = "Drop them, unless the data holds the same sample more than once on purpose."
    else:
        advice = "Too few to matter." if copies.count else "All rows differ."
    summary = "none"
    if copies.count:
        summary = (
            f"{_count(copies.count, 'row')} equal an earlier one ({100 * copies.fraction:.2g} %); row "
            f"{copies.first} is there {copies.most:,} times"
        )
    return Finding(
        "duplicate_rows",
        severity,
        summary,
        advice,
        {
            "count": copies.count,
            "fraction": copies.fraction,
            "most": copies.most,
            "most_index": copies.first,
        },
    )


def about_constants(moments: Moments) -> Finding:
    """Tell of dimensions that never vary."""
    index = (~moments.varies).nonzero()[:, 0].tolist()
    severity: Severity = "note" if index else "ok"
    advice = "All dimensions vary."
    if len(index) == len(moments.scale):
        severity, advice = "warning", "Nothing varies: does the encoder ignore its input?"
    elif index:
        advice = "Every transform but 'none' leaves them out of the fit and puts them back."
    return Finding(
        "constant_dimensions",
        severity,
        f"{len(index)} ({_listing(index)})" if index else "none",
        advice,
        {"count": len(index), "indices": index[:_LISTED]},
    )


def about_repeated(pairs: list[tuple[int, int]]) -> Finding:
    """Tell of dimensions that repeat others."""
    summary, advice = "none", "No dimension is a linear function of another."
    if pairs:
        first, second = pairs[0]
        summary = f"{len(pairs)} (the first: {first} repeats {second})"
        advice = (
            "transform='auto', 'scale' or 'whiten' fits each only once; under 'standardize' and 'none' a "
            "density has no bound there."
        )
    return Finding(
        "duplicated_dimensions",
        "note" if pairs else "ok",
        summary,
        advice,
        {"count": len(pairs), "pairs": [list(pair) for pair in pairs[:_LISTED]]},
    )


def about_scales(moments: Moments) -> Finding:
    """Tell how unlike the dimensions' scales are."""
    scale = torch.where(moments.varies, moments.scale, torch.inf)
    low, high = int(scale.argmin()), int(moments.scale.argmax())
    ratio = float(moments.scale[high] / scale[low])
    severity: Severity = "ok"
    if ratio > _WIDE:
        severity = "warning" if ratio > _VERY_WIDE else "note"
        advice = (
            "If the dimensions' units differ, transform='standardize' makes them equal; if not, 'scale' "
            "keeps the small ones small, which may be no more than rounding."
        )
    else:
        advice = "The dimensions' deviations are much alike."
    return Finding(
        "scale_range",
        severity,
        f"deviations from {float(scale[low]):.3g} (dimension {low}) to "
        f"{float(moments.scale[high]):.3g} (dimension {high})",
        advice,
        {"ratio": ratio, "smallest": low, "largest": high},
    )


def about_shift(shift: Shift | None, *, validation: bool) -> Finding:
    """Tell whether two sets differ: latents and validation, or their first half and their second."""
    sets = "latents and validation" if validation else "first and second half"
    if shift is None:
        values = {"p_value": None, "effect": None, "rows": None, "between": sets}
        return Finding("shift", "ok", "not computed", "There are too few rows to tell.", values)
    severity: Severity = "ok"
    if shift.p_value > P_VALUE:
        advice = "They can't be told apart."
    elif validation:
        severity = "warning"
        advice = (
            "They differ: pool and shuffle them before you split, or expect scores of one to say little "
            "about the other."
        )
    else:
        severity = "note"
        advice = (
            "The order matters: rows held out at random (validation=) can't show what a later part would "
            "look like."
        )
    return Finding(
        "shift",
        severity,
        f"p = {shift.p_value:.3f}, effect {shift.effect:.2g} of 1 ({sets})",
        advice,
        {"p_value": shift.p_value, "effect": shift.effect, "rows": shift.rows, "between": sets},
    )


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def _listing(index: list[int]) -> str:
    return ", ".join(map(str, index[:5])) + (", ..." if len(index) > 5 else "")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
