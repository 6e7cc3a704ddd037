"""What a diagnosis is: findings, the numbers behind them, and a figure."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from latentfit.arguments import told
from latentfit.errors import OptionError
from latentfit.persistence import atomic_path, check_target

if TYPE_CHECKING:
    from latentfit.diagnosis._figure import Figure

__all__ = ["Diagnosis", "Finding", "Marginal", "Plots", "Severity"]

Severity = Literal["ok", "note", "warning"]
_WIDTH = 80
_INDENT = 24
FIGURES = (".png", ".pdf", ".svg")  # what the name of a figure ends in

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What, as ``Diagnosis[name]`` takes it.
        severity: "ok", "note" (worth knowing) or "warning" (it harms a fit).
        summary: The values in words.
        advice: One sentence: what to do about it, or that nothing need be.
        values: The numbers, by name; None where one can't be computed.
    """

    name: str
    severity: Severity
    summary: str
    advice: str
    values: Mapping[str, Any]


class Marginal(NamedTuple):
    """A dimension for the figure: its index, its excess kurtosis and some standardised values of it."""

    dimension: int
    kurtosis: float
    values: FloatArray


@dataclass(frozen=True)
class Plots:
    """What the figure shows beside the findings.

    Attributes:
        leading: Some rows on the first two principal axes, (m, 2) or (m, 1).
        marginals: The dimensions of the least, the middle and the largest kurtosis.
        twonn: The points of TwoNN's line, (2, m).
        kept: How many of these the line is fitted to.
    """

    leading: FloatArray = field(default_factory=lambda: np.zeros((0, 2)))
    marginals: tuple[Marginal, ...] = ()
    twonn: FloatArray = field(default_factory=lambda: np.zeros((2, 0)))
    kept: int = 0


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What :func:`latentfit.diagnose` found out about latents.

    ``print(diagnosis)`` shows a table, ``diagnosis["effective_rank"]`` is one finding.

    Attributes:
        findings: All, in a fixed order.
        rows: N, the number of latents.
        shape: Of one latent.
        dtype: As it came.
        sampled: How many random rows the neighbours, clusters and repeated dimensions were looked for in.
        seed: Of their choice.
        eigenvalues: Of the covariance, in descending order, (D,) float64, in the latents' squared units.
    """

    findings: tuple[Finding, ...]
    rows: int
    shape: tuple[int, ...]
    dtype: str
    sampled: int
    seed: int
    eigenvalues: FloatArray = field(repr=False)
    plots: Plots = field(repr=False)

    def __getitem__(self, name: str) -> Finding:
        """Give the finding of this name.

        Raises:
            OptionError: There is none; the message lists them.
        """
        given: Any = name  # an array would compare itself member by member
        for finding in self.findings:
            if isinstance(given, str) and finding.name == given:
                return finding
        names = ", ".join(finding.name for finding in self.findings)
        raise OptionError(f"Expected a finding's name ({names}); got {told(name)}.")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that harm a fit."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    @property
    def effective_rank(self) -> float | None:
        """The exponential of the spectrum's entropy, from 1 to D."""
        value: float | None = self["effective_rank"].values["effective_rank"]
        return value

    @property
    def numerical_rank(self) -> int:
        """The number of directions that vary beyond rounding."""
        return int(self["effective_rank"].values["numerical_rank"])

    @property
    def intrinsic_dimension(self) -> float | None:
        """TwoNN's estimate; the maximum-likelihood one is among the finding's values."""
        value: float | None = self["intrinsic_dimension"].values["twonn"]
        return value

    def to_dict(self) -> dict[str, Any]:
        """Give all but the figure as what JSON can hold."""
        return {
            "rows": self.rows,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "sampled": self.sampled,
            "seed": self.seed,
            "findings": [
                {
                    "name": finding.name,
                    "severity": finding.severity,
                    "summary": finding.summary,
                    "advice": finding.advice,
                    "values": dict(finding.values),
                }
                for finding in self.findings
            ],
            "eigenvalues": self.eigenvalues.tolist(),
        }

    def __str__(self) -> str:
        lines = textwrap.wrap(
            f"{self.rows:,} latents of shape {self.shape}, {self.dtype}; neighbours, clusters and repeated "
            f"dimensions were looked for in {self.sampled:,} of them (seed {self.seed}).",
            _WIDTH,
        )
        lines.append("")
        for finding in self.findings:
            name = finding.name.replace("_", " ")
            mark = "" if finding.severity == "ok" else f"{finding.severity}: "
            first = f"{name:{_INDENT}}"
            blank = " " * _INDENT
            for text, start in ((mark + finding.summary, first), (finding.advice, blank)):
                lines += textwrap.wrap(
                    text,
                    _WIDTH,
                    initial_indent=start,
                    subsequent_indent=blank,
                    break_on_hyphens=False,
                )
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw the spectrum, the leading principal axes, marginals and TwoNN's line, by matplotlib.

        The figure belongs to no window and to no pyplot state; ``save_figure`` writes it.
        """
        from latentfit.diagnosis._figure import draw

        return draw(self)

    def save_figure(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`figure` to a .png, .pdf or .svg file, whole or not at all.

        Raises:
            OptionError: No path.
            DataError: Another suffix, or a folder that isn't there.
            OSError: The file can't be written.
        """
        target = check_target(path, suffixes=FIGURES)
        figure = self.figure()
        with atomic_path(target) as temporary:
            figure.savefig(temporary, format=target.suffix.lower().removeprefix("."), dpi=120)
