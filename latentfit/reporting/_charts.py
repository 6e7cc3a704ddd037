"""From numbers to places in a drawing: scales, ticks, bars, points and lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from latentfit.reporting._measures import MEASURES, number, seconds, value_text
from latentfit.reporting._model import Cloud, Curves, FloatArray, LatentMap, Report, Row

__all__ = ["Bar", "Bars", "Plot", "Scale", "bars", "dots", "line_plot", "map_panels", "scatter"]

_MOST_POINTS = 240  # of a curve
_WIDE = 20.0  # times between the least and the largest value from which on a scale is logarithmic


class Scale:
    """Maps values to shares of an axis, 0 to 1.

    Args:
        values: What must fit on it.
        log: Whether it is logarithmic; only for positive values.
        start: Where a linear one begins, whatever the values; None for their own ends.
        margin: The share that is left free at its ends.
    """

    def __init__(
        self, values: Iterable[float], *, log: bool, start: float | None = None, margin: float = 0.0
    ) -> None:
        found = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
        low, high = min(found), max(found)
        self.log = log
        if log:
            low, high = math.log10(low), math.log10(high)
        elif start is not None:
            low, high = start, max(high, start)
        if high - low < 1e-9 * max(1.0, abs(high)):
            low, high = (low, low + 1.0) if start is not None else (low - 0.5, high + 0.5)
        room = margin * (high - low)
        self.low = low if not log and start is not None else low - room
        self.high = high + room

    def __call__(self, value: float) -> float:
        """Give the share at which a value lies; what lies beyond the ends is put there."""
        if self.log:
            value = math.log10(value) if value > 0 else self.low
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def ticks(self, most: int = 6) -> list[float]:
        """Give round values on the axis."""
        if self.log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            for mantissas in ((1, 2, 5), (1, 3), (1,)):
                found = [m * 10.0**d for d in decades for m in mantissas]
                found = [
                    t
                    for t in found
                    if self.low <= math.log10(t) + 1e-9 and math.log10(t) <= self.high + 1e-9
                ]
                if len(found) <= most:
                    return found
            return found[:: math.ceil(len(found) / most)]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        for factor in (1, 2, 5, 10, 20):
            first = math.ceil(self.low / (step * factor) - 1e-9)
            last = math.floor(self.high / (step * factor) + 1e-9)
            if last - first < most:
                return [k * step * factor for k in range(first, last + 1)]
        return []


def tick_text(value: float) -> str:
    """Write a tick as short as can be: 0.5, 20, 1,000, 1e6."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:,.10g}" if abs(value) >= 1000 else f"{value:.4g}"


class Bar(NamedTuple):
    """A row's bar: shares of the axis in both scales, linear and logarithmic."""

    name: str
    text: str
    kind: str  # "reference", "floor", "best" or ""
    description: str
    linear: float
    log: float
    seeds: list[tuple[float, float]]
    spread: tuple[float, float, float, float] | None  # its ends, linear, then logarithmic


class Bars(NamedTuple):
    """The bars with their axes: of each, ticks as (text, share), and where the floor is."""

    bars: list[Bar]
    linear_ticks: list[tuple[str, float]]
    log_ticks: list[tuple[str, float]]
    floor: tuple[float, float] | None
    has_log: bool
    starts_log: bool


def bars(report: Report) -> Bars | None:
    """Lay out the first measure of all rows: references first, then samplers, the best first."""
    measure = MEASURES[report.primary]
    references = [r for r in report.rows if r.is_reference and r.mean(measure.key) is not None]
    rows = [*references, *report.samplers]
    if not rows:
        return None
    every = [value for row in rows for value in row.values[measure.key]]
    ends = [end for row in rows for end in _ends(row, measure.key) or ()]
    linear = Scale([*every, *ends, measure.reach], log=False, start=measure.least, margin=0.04)
    positive = [] if measure.least else [value for value in every if value > 0]
    log = Scale(positive, log=True, margin=0.08)
    best = report.samplers[0].name if report.samplers else None
    laid = []
    for row in rows:
        mean = row.mean(measure.key) or 0.0
        span = _ends(row, measure.key)
        kind = "floor" if row.name == report.floor else "reference" if row.is_reference else ""
        laid.append(
            Bar(
                row.name,
                value_text(measure, row.values[measure.key]),
                "best" if row.name == best else kind,
                row.description,
                linear(mean),
                log(mean),
                [(linear(v), log(v)) for v in row.values[measure.key]],
                None
                if span is None
                else (linear(span[0]), linear(span[1]), log(span[0]), log(span[1])),
            )
        )
    floor = report.floor_value
    return Bars(
        laid,
        [(tick_text(t), linear(t)) for t in linear.ticks()],
        [(tick_text(t), log(t)) for t in log.ticks()],
        None if floor is None else (linear(floor), log(floor)),
        bool(positive),
        bool(positive) and max(positive) > _WIDE * min(positive),
    )


def _ends(row: Row, key: str) -> tuple[float, float] | None:
    mean, spread = row.mean(key), row.spread(key)
    return None if mean is None or spread is None else (mean - spread, mean + spread)


class Plot(NamedTuple):
    """Lines or points with axes, as shares of a box whose origin is below left."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[str, float]]
    y_ticks: list[tuple[str, float]]
    lines: list[tuple[str, str]]  # name, and points as SVG has them in a box of 1000 x 1000
    points: list[
        tuple[str, float, float, str, bool]
    ]  # name, x, y, what to say, whether undominated
    rule: tuple[str, float] | None  # a horizontal line
    tells: str  # for those who can't see it


def scatter(report: Report) -> Plot | None:
    """Lay out quality against the seconds of the fit, in logarithms where a measure starts at zero."""
    measure = MEASURES[report.primary]
    found = [
        (row.name, time, value)
        for row in report.samplers
        if (time := row.mean("fit_seconds")) is not None
        and (value := row.mean(measure.key)) is not None
        and time > 0
        and value > 0
    ]
    if len(found) < 2:
        return None
    floor = report.floor_value
    x = Scale((time for _, time, _ in found), log=True, margin=0.08)
    values = [*(value for *_, value in found), *([floor] if floor else [])]
    y = Scale(values, log=not measure.least, margin=0.1)
    front = [
        (time, value)
        for _, time, value in found
        if not any((t <= time and v < value) or (t < time and v <= value) for _, t, v in found)
    ]
    front.sort()
    line = " ".join(f"{1000 * x(t):.0f},{1000 * (1 - y(v)):.0f}" for t, v in front)
    undominated = set(front)
    points = [
        (
            name,
            x(time),
            y(value),
            f"{measure.name} {number(value)} after {seconds(time)}",
            (time, value) in undominated,
        )
        for name, time, value in found
    ]
    return Plot(
        f"{measure.name} against the time of the fit",
        "seconds to fit",
        measure.name,
        [(tick_text(t), x(t)) for t in x.ticks()],
        [(tick_text(t), y(t)) for t in y.ticks()],
        [("nobody is better and faster", line)] if len(front) > 1 else [],
        points,
        (report.floor, y(floor)) if floor else None,
        "; ".join(f"{name}: {told}" for name, _, _, told, _ in points),
    )


def line_plot(curves: Curves) -> Plot | None:
    """Lay out training curves over the steps; None where there is nothing to draw."""
    drawn: dict[str, tuple[list[float], list[float]]] = {}
    for name, values in curves.losses.items():
        pairs = [
            (s, v)
            for s, v in zip(curves.steps, values, strict=False)
            if math.isfinite(s) and math.isfinite(v)
        ]
        if len(pairs) > 1:
            pairs = [*pairs[:: math.ceil(len(pairs) / _MOST_POINTS)], pairs[-1]]
            drawn[name] = ([s for s, _ in pairs], [v for _, v in pairs])
    if not drawn:
        return None
    x = Scale([s for steps, _ in drawn.values() for s in steps], log=False)
    shown = [v for _, values in drawn.values() for v in _without_start(values)]
    y = Scale(shown, log=False, margin=0.05)
    lines = [
        (
            name.removesuffix("_loss").replace("_", " "),
            " ".join(
                f"{1000 * x(s):.0f},{1000 * (1 - y(v)):.0f}" for s, v in zip(*pair, strict=True)
            ),
        )
        for name, pair in drawn.items()
    ]
    ends = ", ".join(
        f"{name.removesuffix('_loss').replace('_', ' ')} from {number(values[0])} to {number(values[-1])}"
        for name, (_, values) in drawn.items()
    )
    return Plot(
        curves.name,
        curves.unit,
        "loss",
        [(tick_text(t), x(t)) for t in x.ticks(5)],
        [(tick_text(t), y(t)) for t in y.ticks(5)],
        lines,
        [],
        None,
        ends,
    )


def _without_start(values: Sequence[float]) -> list[float]:
    """Leave out what a curve falls from at its very start, where that would squeeze all the rest."""
    array = np.asarray(values)
    rest = array[len(array) // 50 + 1 :] if len(array) > 20 else array
    low, high = float(rest.min()), float(rest.max())
    return [float(v) for v in array if low - (high - low) <= v <= high + (high - low)]


class Panel(NamedTuple):
    """One panel of a map: what its dots are, as SVG paths in a box of 1000 x 1000, and labels in it."""

    title: str
    layers: list[tuple[str, str]]  # a class for the style, and the path
    labels: list[tuple[str, float, float]]
    tells: str


def map_panels(shown: LatentMap) -> list[Panel]:
    """Lay out a map: real latents by class, then those of each sampler over them."""
    every = np.concatenate([shown.real.points, *(cloud.points for cloud in shown.sampled)])
    low, high = every.min(axis=0), every.max(axis=0)
    scale = 920 / max(float((high - low).max()), 1e-12)
    middle = (low + high) / 2

    def placed(points: FloatArray) -> FloatArray:
        places: FloatArray = 500 + scale * (points - middle) * np.array([1.0, -1.0])
        return places

    real = placed(shown.real.points)
    panels = [_by_class(shown.real, real)]
    for cloud in shown.sampled:
        layers = [("real", dots(real)), ("sampled", dots(placed(cloud.points)))]
        tells = f"{len(cloud.points)} latents of {cloud.name} over {len(real)} real ones"
        panels.append(Panel(cloud.name, layers, [], tells))
    return panels


def _by_class(cloud: Cloud, points: FloatArray) -> Panel:
    if cloud.labels is None:
        return Panel(cloud.name, [("real", dots(points))], [], f"{len(points)} real latents")
    classes = np.unique(cloud.labels)
    layers = [(f"c{int(c) % 10}", dots(points[cloud.labels == c])) for c in classes]
    labels = []
    for c in classes[:20]:
        own = points[cloud.labels == c]
        medoid = own[np.abs(own - np.median(own, axis=0)).sum(axis=1).argmin()]
        x, y = np.clip(medoid, 50, 950)  # a digit that the edge would cut
        labels.append((str(int(c)), float(x), float(y)))
    tells = f"{len(points)} real latents in {len(classes)} classes"
    return Panel(cloud.name, layers, labels, tells)


def dots(points: FloatArray) -> str:
    """Write points (n, 2) as a path of strokes without length, which round caps make dots."""
    return "".join(f"M{x:.0f} {y:.0f}h0" for x, y in points)
