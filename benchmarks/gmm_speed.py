"""Time the gmm method and scikit-learn's mixture side by side, in one run, on the same rows and threads.

    python benchmarks/gmm_speed.py [LATENTS.npy | LATENTS.pt] [--components 200] [--repeats 3]

LATENTS holds rows (n, d), some of which are held out, or a dict with "train" and "test". Without it 60,000
rows of 10 columns are drawn from 100 Gaussians. Rows are standardised first. Prints a table: seconds of wall
clock and of processor, the mean log likelihood of the held-out rows, and how much longer scikit-learn takes.
"""

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from latentfit import fit_latent_sampler


def load(path: Path | None) -> tuple[Tensor, Tensor]:
    """Return standardised training and held-out rows."""
    if path is None:
        rows = synthetic(66_000, 10)
    elif path.suffix == ".npy":
        rows = torch.from_numpy(np.load(path))
    else:
        rows = torch.load(path, weights_only=True)
    if isinstance(rows, dict):
        train, test = rows["train"].float(), rows["test"].float()
    else:
        rows = rows.float()[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
        train, test = rows[len(rows) // 11 :], rows[: len(rows) // 11]
    return (train - train.mean(0)) / train.std(0), (test - train.mean(0)) / train.std(0)


def synthetic(n: int, dim: int, clusters: int = 100) -> Tensor:
    """Draw rows from correlated Gaussians that overlap a little."""
    generator = torch.Generator().manual_seed(0)
    centres = 1.5 * torch.randn(clusters, dim, generator=generator)
    factors = 0.5 * torch.randn(clusters, dim, dim, generator=generator) / math.sqrt(dim)
    own = torch.randint(clusters, (n,), generator=generator)
    noise = torch.randn(n, dim, generator=generator)
    return centres[own] + torch.einsum("nij,nj->ni", factors[own], noise) + 0.2 * noise


def with_latentfit(train: Tensor, components: int, seed: int, **options: Any) -> Any:
    """Fit the method as a user does."""
    return fit_latent_sampler(
        None,
        train,
        method="gmm",
        components=components,
        transform="none",
        seed=seed,
        progress=False,
        **options,
    )


def with_scikit_learn(train: Tensor, components: int, seed: int) -> GaussianMixture:
    """Fit scikit-learn's mixture with its own defaults."""
    model = GaussianMixture(components, covariance_type="full", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(train.numpy())


def main() -> None:
    """Fit, time, score and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("latents", nargs="?", type=Path, help="a .npy or .pt file")
    parser.add_argument("--components", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3, help="seeds; the table has the medians")
    arguments = parser.parse_args()
    train, test = load(arguments.latents)
    k = arguments.components
    fits: dict[str, Callable[[int], Any]] = {
        "scikit-learn": lambda seed: with_scikit_learn(train, k, seed),
        "latentfit gmm": lambda seed: with_latentfit(train, k, seed),
        "latentfit gmm, validation=0": lambda seed: with_latentfit(train, k, seed, validation=0),
    }
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in fits}
    for seed in range(arguments.repeats):
        for name, fit in fits.items():
            wall, processor = time.perf_counter(), time.process_time()
            model = fit(seed)
            times = time.perf_counter() - wall, time.process_time() - processor
            score = float(np.mean(np.asarray(model.score_samples(test.numpy()))))
            measured[name].append((*times, score))
    print(
        f"{len(train):,} x {train.shape[1]}, {k} components, {torch.get_num_threads()} threads, "
        f"median of {arguments.repeats}\n"
    )
    print(f"{'':28}  {'wall, s':>8}  {'cpu, s':>8}  {'held-out LL':>11}  {'ratio (cpu)':>11}")
    first = None
    for name, values in measured.items():
        wall, processor, score = (statistics.median(column) for column in zip(*values, strict=True))
        first = first or processor
        print(
            f"{name:28}  {wall:8.2f}  {processor:8.2f}  {score:11.4f}  {first / processor:10.1f}x"
        )


if __name__ == "__main__":
    main()
