"""What is measured: Fréchet classifier distances, accuracy and likelihood."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latentfit.metrics import (
    c2st,
    data_copying,
    density_coverage,
    frechet_distance_from_moments,
    gaussian_moments,
    kernel_distance,
)
from latentfit_bench.classifier import LoadedClassifier

CLASSES = 10
COMPARED = 2000  # images, or latents, of which each is held against each of as many others


class Ruler:
    """Measures binary images in a frozen classifier's features, against the binary training images.

    Args:
        classifier: The classifier.
        train: Binary training images (N, pixels).
        compared: How many images are also held against as many training images, one by one: "kid",
            "density" and "coverage". None are by default.
    """

    def __init__(self, classifier: LoadedClassifier, train: Tensor, compared: int = 0) -> None:
        self._model = classifier.model
        penultimate, logits = self._model.features(train)
        self._moments = [gaussian_moments(features) for features in (logits, penultimate)]
        self._train = at_random(penultimate, compared)

    def measure(self, images: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """Return "fcd", in the logits, and "fcd_penultimate"; with labels (n,), "accuracy" too.

        Where some are compared one by one, "kid", "density" and "coverage" are of the last layer but one.
        """
        penultimate, logits = self._model.features(images)
        pairs = zip(self._moments, (logits, penultimate), strict=True)
        first, second = (
            frechet_distance_from_moments(*gaussian_moments(features), *reference)
            for reference, features in pairs
        )
        measured = {"fcd": first, "fcd_penultimate": second}
        if len(self._train):
            few = at_random(penultimate, len(self._train))
            density, coverage = density_coverage(self._train, few)
            measured["kid"] = kernel_distance(self._train, few)
            measured |= {"density": density, "coverage": coverage}
        if labels is not None:
            hits = logits.argmax(1).cpu() == labels
            measured["accuracy"] = hits.double().mean().item()
        return measured


def balanced_labels(n: int) -> Tensor:
    """Return n labels (n,) that go through the classes in turn."""
    return torch.arange(n) % CLASSES


def balanced_rows(labels: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw n row numbers, with replacement, so that the rows' labels are `balanced_labels(n)`."""
    wanted = balanced_labels(n)
    chosen = torch.empty(n, dtype=torch.int64)
    for label in range(CLASSES):
        rows = (labels == label).nonzero()[:, 0]
        places = wanted == label
        drawn = torch.randint(len(rows), (int(places.sum()),), generator=generator)
        chosen[places] = rows[drawn]
    return chosen


def at_random(rows: Tensor, n: int, seed: int = 0) -> Tensor:
    """Take at most n rows (N, ...) at random: the first of MNIST's test images are easier than the others."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:n].to(rows.device)]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, sample standard deviation (0 for one value, None for none) and all values."""
    if not values:
        return {"mean": None, "std": None, "values": []}
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": spread, "values": list(values)}


def standardised_nll(
    log_prob: Callable[[Tensor], Tensor], train: Tensor, held_out: Tensor
) -> float:
    """Return the mean negative log density of held-out latents (m, k), in nats.

    It is that of latents standardised with the training latents' moments, so that the scale an
    autoencoder happens to have does not matter; `log_prob` is in the autoencoder's own units.
    """
    scale = train.double().std(0).log().sum().item()
    return -log_prob(held_out).double().mean().item() - scale


def latent_measures(
    sampled: Tensor, train: Tensor, held_out: Tensor, *, seed: int, told_apart: bool = True
) -> dict[str, float]:
    """Hold sampled latents (n, k) against those of the training (N, k) and the test images (m, k).

    Returns:
        "copying", the z-score of a test for samples that are nearer to the training latents than others
        are; and "c2st", how well a classifier tells samples from test latents.
    """
    few, others = sampled[:COMPARED], at_random(held_out, COMPARED, seed)
    measured = {"copying": data_copying(train, others, few, seed=seed)}
    if told_apart:
        measured["c2st"] = c2st(few, others, seed=seed)
    return measured


def plain(value: Any) -> Any:
    """Return what a plugin told as strict JSON has it: NaN and infinity as null, the unknown as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
