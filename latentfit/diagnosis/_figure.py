"""The figure of a diagnosis; the only module of latentfit that uses matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from latentfit.diagnosis._report import Diagnosis

__all__ = ["Figure", "draw"]

_RANGE = 8.0  # deviations that the marginals' panel shows


def draw(diagnosis: Diagnosis) -> Figure:
    """Draw four panels: spectrum, leading principal axes, marginals, TwoNN's line; none if all is equal."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    shape = " x ".join(map(str, diagnosis.shape)) or "1"
    figure.suptitle(f"{diagnosis.rows:,} latents of shape {shape}")
    if not diagnosis.numerical_rank:
        figure.text(0.5, 0.5, "All latents are equal: there is nothing to draw.", ha="center")
        return figure
    panels = figure.subplots(2, 2).ravel()
    for panel, axes in zip((_spectrum, _leading, _marginals, _twonn), panels, strict=True):
        panel(axes, diagnosis)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.set_axisbelow(True)
    return figure


def _spectrum(axes: Axes, diagnosis: Diagnosis) -> None:
    values = diagnosis.eigenvalues / diagnosis.eigenvalues.sum()
    values = values[: diagnosis.numerical_rank]
    effective = diagnosis.effective_rank or 0.0
    style = "o-" if len(values) <= 64 else "-"
    axes.plot(range(1, len(values) + 1), values, style, markersize=3, linewidth=1.2)
    axes.axvline(effective, color="C3", linestyle="--", label=f"effective rank {effective:.1f}")
    dim = diagnosis["effective_rank"].values["dimensions"]
    if diagnosis.numerical_rank < dim:
        axes.axvline(
            diagnosis.numerical_rank,
            color="C7",
            linestyle=":",
            label=f"numerical rank {diagnosis.numerical_rank} of {dim}",
        )
    axes.set_yscale("log")
    axes.set_title("Spectrum of the covariance")
    axes.set_xlabel("principal axis")
    axes.set_ylabel("share of the variance")
    axes.legend()


def _leading(axes: Axes, diagnosis: Diagnosis) -> None:
    points = diagnosis.plots.leading
    if points.shape[1] == 1:
        axes.hist(points[:, 0], bins="auto", color="C0")
        axes.set_ylabel("rows")
    else:
        axes.scatter(points[:, 0], points[:, 1], s=6, alpha=0.4, linewidths=0)
        axes.set_ylabel("second principal axis")
    axes.set_title("Leading principal axes, in the latents' units")
    axes.set_xlabel("first principal axis")


def _marginals(axes: Axes, diagnosis: Diagnosis) -> None:
    grid = np.linspace(-_RANGE, _RANGE, 400)
    axes.plot(grid, np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi), color="black", label="normal")
    bins = np.linspace(-_RANGE, _RANGE, 81).tolist()
    for colour, marginal in enumerate(diagnosis.plots.marginals):
        inside = marginal.values.clip(-_RANGE, _RANGE)  # what lies further out is in the last bin
        axes.hist(
            inside,
            bins=bins,
            density=True,
            histtype="step",
            linewidth=1.3,
            color=f"C{colour}",
            label=f"dimension {marginal.dimension}, kurtosis {marginal.kurtosis:.2f}",
        )
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 100)  # room for the legend
    axes.set_title("Marginals of least, middle and largest kurtosis")
    axes.set_xlabel("standard deviations from the mean")
    axes.set_ylabel("density")
    axes.legend(loc="upper left")


def _twonn(axes: Axes, diagnosis: Diagnosis) -> None:
    axes.set_title("Intrinsic dimension (TwoNN)")
    axes.set_xlabel("log of the second neighbour's distance over the first's")
    axes.set_ylabel("- log(1 - rank / rows)")
    x, y = diagnosis.plots.twonn
    dimension, kept = diagnosis.intrinsic_dimension, diagnosis.plots.kept
    if dimension is None:
        axes.text(0.5, 0.5, "not computed", ha="center", va="center", transform=axes.transAxes)
        return
    axes.plot(x[:kept], y[:kept], ".", markersize=3, label=f"{kept:,} rows")
    axes.plot(x[kept:], y[kept:], ".", markersize=3, color="C7", label="left out")
    end = min(float(x[-1]), float(y[-1]) / dimension)
    axes.plot([0, end], [0, dimension * end], color="C3", label=f"slope {dimension:.1f}")
    axes.legend()
