"""The paper's figures 4 to 7 and the bars of distances, as PNG; without pyplot's global state."""

import hashlib
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from latentfit_bench.measure import CLASSES
from latentfit_bench.settings import Gallery, first
from latentfit_bench.systems import FLOOR, SYSTEMS

NAMES = {"samples.png", "fcd.png", "training-gan.png", "training-flow.png", "tsne.png"}
_TITLE = 30  # letters of a line above a grid
LONGEST = 100  # letters of a row's name in a file's name
_GREY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "none"}


def conditional_name(row: str) -> str:
    """Return the file name of a conditional sampler's figure, for a row of any name."""
    plain = re.sub(r"[^A-Za-z0-9.+_-]", "_", row)
    if len(plain) > LONGEST:  # no file may be called that
        digest = hashlib.sha256(row.encode("utf-8", "surrogatepass")).hexdigest()
        plain = f"{plain[:LONGEST]}-{digest[:12]}"
    return f"conditional-{plain}.png"


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _tiled(images: Tensor, shape: tuple[int, int], rows: int, columns: int) -> np.ndarray:
    height, width = shape
    # One pixel of grey between the images.
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), 0.5, dtype=np.float32)
    for index, image in enumerate(images[: rows * columns].reshape(-1, height, width).numpy()):
        row, column = divmod(index, columns)
        top, left = row * (height + 1) + 1, column * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    return canvas


def samples(images: Mapping[str, Tensor], shape: tuple[int, int], side: int = 8) -> bytes:
    """Draw a grid of samples of every system, side by side (the paper's figure 4)."""
    columns = min(5, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(3 * columns, 3.25 * rows), layout="constrained")
    for position, (name, batch) in enumerate(images.items(), start=1):
        axes = figure.add_subplot(rows, columns, position)
        axes.imshow(_tiled(batch, shape, side, side), **_GREY)
        # Two lines of what a grid is wide: a plugin's name may be of any length.
        title = textwrap.fill(name, _TITLE, max_lines=2, placeholder=" …")
        axes.set_title(title, parse_math=False)
        axes.set_axis_off()
    return _png(figure)


def by_digit(images: Tensor, shape: tuple[int, int], title: str) -> bytes:
    """Draw images that go through the digits in turn, a column for each digit."""
    rows = math.ceil(len(images) / CLASSES)
    height, width = shape
    figure = Figure(figsize=(7.5, 0.7 + 0.75 * rows * height / width), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(_tiled(images, shape, rows, CLASSES), **_GREY)
    centres = [1 + width / 2 + digit * (width + 1) for digit in range(CLASSES)]
    axes.set_xticks(centres, [str(digit) for digit in range(CLASSES)])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.set_title(title, parse_math=False)
    return _png(figure)


def curves(
    histories: Mapping[str, Mapping[str, Sequence[float]]], ylabel: str, title: str
) -> bytes:
    """Draw training curves over the steps (the paper's figures 5 and 6)."""
    columns = min(4, len(histories))
    rows = math.ceil(len(histories) / columns)
    figure = Figure(figsize=(3.6 * columns + 1.5, 3.1 * rows + 0.3), layout="constrained")
    for position, (name, history) in enumerate(histories.items(), start=1):
        axes = figure.add_subplot(rows, columns, position)
        for key, values in history.items():
            if key.endswith("_loss") and len(values) == len(history["step"]):
                label = key.replace("_", " ").replace("$", r"\$")  # a plugin's name is no formula
                axes.plot(history["step"], values, label=label, linewidth=1.2)
        axes.set_title(name, parse_math=False)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        if position % columns == 1 or columns == 1:
            axes.set_ylabel(ylabel)
    figure.suptitle(title)
    return _png(figure)


def _is_curve(history: Mapping[str, Sequence[float]]) -> bool:
    """Tell whether there is something to draw; methods in closed form have nothing, or a point."""
    steps = len(history.get("step", ()))
    return steps > 1 and any(
        key.endswith("_loss") and len(history[key]) == steps for key in history
    )


def embeddings(
    latents: Mapping[str, Tensor], labels: Tensor, points: int, *, perplexity: float = 70, seed: int
) -> bytes:
    """Draw t-SNE maps of the latents of each model, coloured by digit (the paper's figure 7)."""
    from sklearn.manifold import TSNE

    figure = Figure(figsize=(5 * len(latents) + 0.8, 5), layout="constrained")
    for position, (name, z) in enumerate(latents.items(), start=1):
        rows = z[:points].numpy()
        standardised = (rows - rows.mean(0)) / rows.std(0).clip(1e-6)
        # Perplexity must stay below the number of points.
        tsne = TSNE(perplexity=min(perplexity, (len(rows) - 1) / 3), random_state=seed)
        flat = tsne.fit_transform(standardised)
        axes = figure.add_subplot(1, len(latents), position)
        digits = labels[:points].numpy()
        dots = axes.scatter(
            flat[:, 0], flat[:, 1], c=digits, cmap="tab10", s=5, vmin=-0.5, vmax=9.5
        )
        axes.set_title(f"{name} latents")
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(dots, ax=figure.axes, ticks=range(10), label="digit", fraction=0.03)
    return _png(figure)


def bars(systems: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Draw the distances in the logits with error bars, and the floor as a line."""
    names = [name for name, row in systems.items() if row["fcd"]["values"]]
    figure = Figure(figsize=(1 + 1.05 * len(names), 4), layout="constrained")
    axes = figure.add_subplot()
    means = [systems[name]["fcd"]["mean"] for name in names]
    spreads = [systems[name]["fcd"]["std"] for name in names]
    # On a log axis a bar that reaches below zero can't be drawn.
    lower = [min(spread, 0.9 * mean) for mean, spread in zip(means, spreads, strict=True)]
    positions = range(len(names))
    others = {name for name, system in SYSTEMS.items() if system.kind != "sampler"}
    colours = ["C7" if name in others else "C0" for name in names]
    axes.bar(positions, means, yerr=[lower, spreads], capsize=4, color=colours)
    for position, mean, spread in zip(positions, means, spreads, strict=True):
        axes.annotate(
            f"{mean:.2f}",
            (position, mean + spread),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )
    if FLOOR in systems:
        floor = systems[FLOOR]["fcd"]["mean"]
        axes.axhline(floor, color="C3", linestyle="--", label=f"the floor ({FLOOR})")
        axes.legend()
    axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.set_xticks(positions, names, rotation=25, ha="right", parse_math=False)
    axes.set_ylabel("FCD in the logits (lower is better)")
    return _png(figure)


def draw_all(
    results: Mapping[str, Any], gallery: Gallery, shape: tuple[int, int]
) -> dict[str, bytes]:
    """Draw every figure for which the run has something to show, by file name."""
    files = {}
    systems = results["systems"]
    if gallery.images:  # whose order is that of the trainings
        files["samples.png"] = samples(
            {name: first(gallery.images[name]) for name in systems if name in gallery.images}, shape
        )
        files["fcd.png"] = bars(systems)
    curved = {name: curve for name, curve in gallery.histories.items() if _is_curve(curve)}
    gans = {name: curve for name, curve in curved.items() if "critic_loss" in curve}
    others = {name: curve for name, curve in curved.items() if name not in gans}
    if gans:
        files["training-gan.png"] = curves(gans, "loss", "Adversarial training")
    if others:
        files["training-flow.png"] = curves(others, "loss (of flows in nats)", "Training")
    for name, images in gallery.conditional.items():
        accuracy = results["conditional"][name]["accuracy"]["mean"]
        title = f"{name}, given the digit; accuracy {accuracy:.1%}"
        files[conditional_name(name)] = by_digit(first(images), shape, title)
    latents = {name: z for name, z in gallery.latents.items() if name in ("AE", "VAE")}
    if latents:
        files["tsne.png"] = embeddings(
            latents,
            gallery.labels,
            results["settings"]["tsne_points"],
            seed=results["seeds"][0],
        )
    return files
