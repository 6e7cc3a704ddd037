"""The measures that a report knows: what they are called, which way is better, how they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from latentfit.reporting._model import Row

__all__ = ["MEASURES", "Measure", "measures_of", "number", "seconds", "value_text"]

Better = Literal["low", "high", ""]
_MOST_PLACES = 6  # after the point


class Measure(NamedTuple):
    """A measure: its key, name, what it tells, the better direction, how it is written, and two values.

    The least is its best; where that is zero, ratios of values have a meaning. An axis goes from there to
    the reach or beyond it, so that what is within chance of the best looks like it.
    """

    key: str
    name: str
    tells: str
    better: Better = "low"
    style: Literal["number", "share", "seconds", "count"] = "number"
    least: float = 0.0
    reach: float = 0.0


_KNOWN = (
    Measure(
        "fcd",
        "FCD",
        "Fréchet distance to the training images in the logits of a frozen classifier; lower is better.",
    ),
    Measure(
        "fcd_penultimate",
        "FCD, penultimate",
        "The same in the classifier's last layer but one; lower is better.",
    ),
    Measure(
        "fd",
        "Fréchet distance",
        "Fréchet distance to other real data in the features that were given; lower is better.",
    ),
    Measure(
        "fd_latents",
        "Fréchet distance, latents",
        "Fréchet distance to other real latents, each dimension scaled by their deviation; lower is better.",
    ),
    Measure(
        "kid",
        "KID",
        "Kernel distance (unbiased MMD) between images and real ones in the classifier's, or the given, "
        "features; lower is better, and about 0 for one distribution.",
    ),
    Measure(
        "precision", "Precision", "Share of samples that lie where real rows do.", "high", "share"
    ),
    Measure("recall", "Recall", "Share of real rows that lie where samples do.", "high", "share"),
    Measure(
        "density",
        "Density",
        "How densely samples lie where real rows do; about 1 for real rows.",
        "",
    ),
    Measure(
        "coverage",
        "Coverage",
        "Share of real rows with a sample among their nearest neighbours; higher is better.",
        "high",
        "share",
    ),
    Measure(
        "c2st",
        "C2ST AUC",
        "How well a classifier tells sampled latents from real ones (a classifier two-sample test): 0.5 if "
        "it can't, 1 if it always can.",
        "low",
        "share",
        0.5,
        0.6,
    ),
    Measure(
        "copying",
        "C_T, copies",
        "Whether sampled latents are nearer to training latents than those of test images are: a z-score, "
        "far below 0 for copies, far above for samples that stray.",
        "",
    ),
    Measure(
        "energy_distance",
        "Energy distance",
        "Between sampled and real latents, scaled; about 0 for one distribution.",
    ),
    Measure(
        "accuracy",
        "Accuracy",
        "How often the classifier sees the class that was asked for; higher is better.",
        "high",
        "share",
    ),
    Measure(
        "nll",
        "NLL,\u00a0nats",
        "Negative log likelihood of held-out latents, standardised; lower is better. Samples that lie "
        "between clusters hardly change it.",
    ),
    Measure("fit_seconds", "Fit,\u00a0s", "Seconds to fit.", "low", "seconds"),
    Measure("sample_seconds", "Draw,\u00a0s", "Seconds to sample and to decode.", "low", "seconds"),
    Measure("parameters", "Parameters", "Numbers that are trained.", "", "count"),
)
MEASURES = {measure.key: measure for measure in _KNOWN}


def measures_of(rows: Iterable[Row]) -> list[Measure]:
    """List the measures that some row has, in the table's order, unknown ones last."""
    found = {key for row in rows for key, values in row.values.items() if len(values)}
    unknown = sorted(found - MEASURES.keys())
    known = [measure for key, measure in MEASURES.items() if key in found]
    return known + [Measure(key, key.replace("_", " "), "", "") for key in unknown]


def number(value: float) -> str:
    """Write a number with two or three digits that tell: 0.071, 1.07, 98.70, 1,192.0, 1.2e-05."""
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.{_places(value)}f}"


def seconds(value: float) -> str:
    """Write a time: 0.4 ms, 0.08 s, 27 s, 1 min 39 s, 2 h 5 min."""
    if 0 < value < 0.01:
        return f"{1000 * value:.2g} ms"
    if value < 10:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _short(value: float) -> str:
    """Write a count with three digits: 950, 12.3k, 1.25M."""
    rounded = float(f"{value:.3g}")
    size, unit = (1e6, "M") if rounded >= 1e6 else (1e3, "k") if rounded >= 1e3 else (1, "")
    return f"{rounded / size:g}{unit}"


def _places(value: float) -> int:
    return 1 if abs(value) >= 100 else 2 if abs(value) >= 0.1 or not value else 3


def value_text(measure: Measure, values: Sequence[float]) -> str:
    """Write the mean over the seeds with the standard deviation, if there are several."""
    if not len(values):
        return ""
    mean = sum(values) / len(values)
    if measure.style == "count":
        return _short(mean)
    if measure.style == "seconds":
        return f"{mean:.1f}" if mean >= 1 else f"{mean:.3f}" if mean >= 1e-3 else f"{mean:.1g}"
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    size = max(abs(mean), spread)
    form = f".{3 if measure.style == 'share' else _places(mean)}f"
    if measure.style == "number" and 0 < size < 1e-3:  # a KID, where it is good
        places = 1 - math.floor(math.log10(size))
        form = f".{places}f" if places <= _MOST_PLACES else ".1e"
    text = f"{mean:{form}}"
    if not float(text):
        text = text.removeprefix("-")
    return text if len(values) < 2 else f"{text} ± {spread:{form}}"
