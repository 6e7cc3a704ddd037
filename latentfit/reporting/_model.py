"""What a report shows: rows with their measures, and exhibits to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "Cloud",
    "Curves",
    "Exhibits",
    "LatentMap",
    "Neighbours",
    "Picture",
    "Report",
    "Row",
]

_MOST_STEPS = 300  # of a curve

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """What was measured of one thing: a sampler, or something that samplers are held against.

    Attributes:
        name: What it is called.
        values: By measure ("fcd", "nll", "fit_seconds", ...) one number for each seed.
        is_reference: Whether it is no sampler: real data, reconstructions, latents drawn again.
        description: One line on what it is.
        paper: The value of the report's first measure in a publication.
        errors: What failed, a line each.
        options: What it was made with.
    """

    name: str
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    is_reference: bool = False
    description: str = ""
    paper: float | None = None
    errors: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def mean(self, measure: str) -> float | None:
        """Give the mean over the seeds; None where there is none."""
        values = self.values.get(measure, ())
        return sum(values) / len(values) if len(values) else None

    def spread(self, measure: str) -> float | None:
        """Give the standard deviation over the seeds; None for less than two."""
        values = self.values.get(measure, ())
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class Picture:
    """A grid of a row's images.

    Attributes:
        row: The row's name.
        seed: Of the samples.
        png: The image's file.
        count: How many images it has.
        by_class: Whether its columns are classes that a sampler was asked for.
    """

    row: str
    seed: int
    png: bytes = field(repr=False)
    count: int
    by_class: bool = False


@dataclass(frozen=True)
class Curves:
    """Training curves.

    Attributes:
        name: Whose.
        steps: Where they were noted.
        losses: By name, one value for each step.
        unit: What a step is: "step" or "epoch".
    """

    name: str
    steps: Sequence[float] = field(repr=False)
    losses: Mapping[str, Sequence[float]] = field(repr=False)
    unit: str = "step"

    @classmethod
    def of(cls, name: str, history: Mapping[str, Sequence[float]]) -> Curves | None:
        """Take the curves of a sampler's ``history``; None where there are none, as of closed forms."""
        steps = history.get("step", ())
        losses = {
            key: _thinned(values)
            for key, values in history.items()
            if key.endswith("_loss") and len(values) == len(steps)
        }
        return cls(name, _thinned(steps), losses) if len(steps) > 1 and losses else None


def _thinned(values: Sequence[float]) -> Sequence[float]:
    """Leave out what a curve of so many points does not show; the last one stays."""
    stride = math.ceil(len(values) / _MOST_STEPS)
    return values if stride < 2 else [*values[: len(values) - 1 : stride], values[-1]]


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points of a map.

    Attributes:
        name: Whose latents they are.
        points: (n, 2).
        labels: Their classes (n,), small whole numbers; None without.
    """

    name: str
    points: FloatArray = field(repr=False)
    labels: npt.NDArray[np.int64] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class LatentMap:
    """Latents of data and of samplers in one plane, embedded together.

    Attributes:
        name: Whose latents they are.
        method: How they were embedded: "t-SNE", "PCA", or "" where they have two dimensions or one.
        real: Those of data.
        sampled: Those of each sampler.
    """

    name: str
    method: str
    real: Cloud
    sampled: tuple[Cloud, ...] = ()


@dataclass(frozen=True)
class Neighbours:
    """Samples with their nearest training images.

    Attributes:
        row: The row's name.
        png: An image with two rows: samples, and below each the training image that is nearest.
        shown: How many it shows.
        distances: Of all samples that were looked up, in the images' units.
    """

    row: str
    png: bytes = field(repr=False)
    shown: int
    distances: Sequence[float] = field(repr=False)


@dataclass(frozen=True)
class Exhibits:
    """What there is to look at beside the numbers; all of it may be missing.

    Attributes:
        pictures: Grids of images, of each row and seed.
        curves: Of the samplers' training, and that of the autoencoders.
        maps: Of latents.
        neighbours: Of samples of each row.
    """

    pictures: tuple[Picture, ...] = ()
    curves: tuple[Curves, ...] = ()
    maps: tuple[LatentMap, ...] = ()
    neighbours: tuple[Neighbours, ...] = ()


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`render` makes a page of.

    Attributes:
        title: What was looked at.
        name: What tells it from other runs.
        kind: "benchmark", or "evaluation" of a user's own sampler.
        rows: In the order of the table.
        conditional: Rows of samplers that were asked for classes, measured apart.
        primary: The measure that ranks.
        floor: The name of the row that no sampler is expected to beat.
        seeds: Of the values.
        notes: What has to be said about the numbers, a sentence each.
        facts: How it was made: pairs of a name and a text.
        comparable: What must be equal for another run's numbers to be comparable.
        exhibits: What there is to look at.
        warnings: What must not be overlooked, a sentence each.
    """

    title: str
    name: str
    rows: tuple[Row, ...]
    conditional: tuple[Row, ...] = ()
    kind: Literal["benchmark", "evaluation"] = "benchmark"
    primary: str = "fcd"
    floor: str = "Resample"
    seeds: tuple[int, ...] = (0,)
    notes: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    comparable: str = ""
    exhibits: Exhibits = field(default_factory=Exhibits)
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Tell what it is in a line: all that it holds would fill a notebook."""
        rows = ", ".join(row.name for row in self.rows)
        pictures = len(self.exhibits.pictures)
        return (
            f"<Report, {self.kind} {self.title!r}: {len(self.rows)} rows ({rows}); "
            f"{pictures} picture{'' if pictures == 1 else 's'}>"
        )

    @property
    def samplers(self) -> tuple[Row, ...]:
        """The rows that are samplers and have a value, the best first."""
        ranked = [
            (mean, row)
            for row in self.rows
            if not row.is_reference and (mean := row.mean(self.primary)) is not None
        ]
        return tuple(row for _, row in sorted(ranked, key=lambda pair: pair[0]))

    @property
    def floor_value(self) -> float | None:
        """The mean of the first measure of the row that is the floor."""
        found = (row.mean(self.primary) for row in self.rows if row.name == self.floor)
        return next(found, None)
