"""Draw the README's picture: real digits, and the first samples of several systems, uncurated.

    python benchmarks/picture.py [--data-dir DIR] [--seed 0] [--out docs/images/samples.png]

The autoencoder and the VAE are those of `latentfit bench mnist`, and the samplers have their defaults, but
for the paper's FlowAE. Nothing is chosen: each row has the first digits that the seed draws.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from latentfit import fit_latent_sampler
from latentfit_bench.datasets import binarize, load_mnist
from latentfit_bench.models import Autoencoder, VariationalAutoencoder
from latentfit_bench.systems import SYSTEMS
from latentfit_bench.training import train_autoencoder

ROOT = Path(__file__).parents[1]
DIGITS, SIDE, GAP, LABEL = 12, 28, 3, 18  # pixels of a digit's image
PAPER, INK = "#14161a", "#e8eaed"  # one look on a light page and on a dark one


def rows(data_dir: str | None, seed: int, epochs: int = 20) -> dict[str, Tensor]:
    """Return binary images (DIGITS, 784) by the label of their row."""
    data = load_mnist(data_dir)
    pixels = data.train_images.shape[1]
    train, test = (
        binarize(images, "threshold") for images in (data.train_images, data.test_images)
    )
    model, vae = (
        train_autoencoder(
            lambda kind=kind: kind(pixels, 10), data.train_images, epochs=epochs, seed=seed
        ).model
        for kind in (Autoencoder, VariationalAutoencoder)
    )
    noise = torch.randn(DIGITS, 10, generator=torch.Generator().manual_seed(seed))
    real = test[:DIGITS]
    found = {
        "real": real,
        "real, encoded and decoded": (model.decode(model.encode(real)) >= 0.5).float(),
        "VAE, from its prior": (vae.decode(noise) >= 0.5).float(),
    }
    for label, method, options in (
        ("gaussian", "gaussian", {}),
        ("realnvp, as in the paper", "realnvp", dict(SYSTEMS["FlowAE"].options)),
        ("realnvp", "realnvp", {}),
        ("gmm", "gmm", {}),
        ("flow-matching", "flow-matching", {}),
        ("wgan-gp", "wgan-gp", {}),
    ):
        sampler = fit_latent_sampler(
            model.encode, train, decoder=model.decode, method=method, seed=seed, **options
        )
        found[label] = (sampler.generate(DIGITS, seed=seed) >= 0.5).float()
        print(label, f"{sampler.info['seconds']:.0f} s", flush=True)
    return found


def draw(images: dict[str, Tensor]) -> Figure:
    """Draw a line of digits for each row, its label above, large enough for the width of a phone."""
    step = SIDE + GAP
    height, width = len(images) * (LABEL + step) + 2 * GAP, DIGITS * step + GAP
    canvas = np.zeros((height, width), dtype=np.float32)
    tops = [LABEL + row * (LABEL + step) for row in range(len(images))]
    for top, batch in zip(tops, images.values(), strict=True):
        for column, image in enumerate(batch.view(-1, SIDE, SIDE).numpy()):
            left = column * step + GAP
            canvas[top : top + SIDE, left : left + SIDE] = image
    scale = 2 / 100  # inches: two dots of 100 an inch for each pixel
    figure = Figure(figsize=(width * scale, height * scale), dpi=100, facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest", alpha=canvas)
    axes.set_axis_off()
    for top, label in zip(tops, images, strict=True):
        axes.text(GAP + 1, top - GAP, label, color=INK, fontsize=16, va="bottom")
    return figure


def main() -> None:
    """Train, fit, draw."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data-dir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "samples.png")
    arguments = parser.parse_args()
    figure = draw(rows(arguments.data_dir, arguments.seed))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
