"""The paper's figures 4 to 7 and the bars of distances, as PNG; without pyplot's global state."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from latentfit_bench.runner import Gallery
from latentfit_bench.systems import FLOOR, SYSTEMS

NAMES = {"samples.png", "fcd.png", "training-gan.png", "training-flow.png", "tsne.png"}


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _tiled(images: Tensor, shape: tuple[int, int], side: int) -> np.ndarray:
    height, width = shape
    # One pixel of grey between the images.
    canvas = np.full((side * (height + 1) + 1, side * (width + 1) + 1), 0.5, dtype=np.float32)
    for index, image in enumerate(images[: side * side].reshape(-1, height, width).numpy()):
        row, column = divmod(index, side)
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
        axes.imshow(_tiled(batch, shape, side), cmap="gray", vmin=0, vmax=1, interpolation="none")
        axes.set_title(name)
        axes.set_axis_off()
    return _png(figure)


def curves(
    histories: Mapping[str, Mapping[str, Sequence[float]]], ylabel: str, title: str
) -> bytes:
    """Draw training curves over the steps (the paper's figures 5 and 6)."""
    figure = Figure(figsize=(3.6 * len(histories) + 1.5, 3.4), layout="constrained")
    for position, (name, history) in enumerate(histories.items(), start=1):
        axes = figure.add_subplot(1, len(histories), position)
        for key, values in history.items():
            if key != "step" and len(values) == len(history["step"]):
                axes.plot(history["step"], values, label=key.replace("_", " "), linewidth=1.2)
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        if position == 1:
            axes.set_ylabel(ylabel)
    figure.suptitle(title)
    return _png(figure)


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
    names = list(systems)
    figure = Figure(figsize=(1 + 1.05 * len(names), 4), layout="constrained")
    axes = figure.add_subplot()
    means = [systems[name]["fcd"]["mean"] for name in names]
    spreads = [systems[name]["fcd"]["std"] for name in names]
    # On a log axis a bar that reaches below zero can't be drawn.
    lower = [min(spread, 0.9 * mean) for mean, spread in zip(means, spreads, strict=True)]
    positions = range(len(names))
    colours = ["C0" if SYSTEMS[name].kind == "sampler" else "C7" for name in names]
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
    axes.set_xticks(positions, names, rotation=25, ha="right")
    axes.set_ylabel("FCD in the logits (lower is better)")
    return _png(figure)


def draw_all(
    results: Mapping[str, Any], gallery: Gallery, shape: tuple[int, int]
) -> dict[str, bytes]:
    """Draw every figure for which the run has something to show, by file name."""
    seed = results["seeds"][0]
    files = {
        "samples.png": samples({name: gallery.images[name] for name in results["systems"]}, shape),
        "fcd.png": bars(results["systems"]),
    }
    is_gan = {name: "critic_loss" in curve for name, curve in gallery.histories.items()}
    gans = {name: curve for name, curve in gallery.histories.items() if is_gan[name]}
    flows = {name: curve for name, curve in gallery.histories.items() if not is_gan[name]}
    if gans:
        files["training-gan.png"] = curves(gans, "loss", "Training of the GAN")
    if flows:
        files["training-flow.png"] = curves(flows, "nats", "Training of the flows")
    if gallery.latents:
        files["tsne.png"] = embeddings(
            gallery.latents, gallery.labels, results["settings"]["tsne_points"], seed=seed
        )
    return files
