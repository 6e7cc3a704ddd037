"""Fitting an installed method to the latents of a frozen autoencoder, through the public API."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentfit import LatentSampler, fit_latent_sampler
from latentfit_bench.measure import balanced_labels, standardised_nll
from latentfit_bench.models import Autoencoder
from latentfit_bench.systems import SYSTEMS, System


@dataclass(frozen=True)
class Frozen:
    """A trained autoencoder and what it makes of the images.

    Attributes:
        model: In eval mode, without gradients.
        seconds: Its training's.
        train: Latents of the training images (N, k).
        test: Latents of the test images (M, k).
        train_labels: The digits of the training images (N,).
        test_labels: The digits of the test images (M,).
    """

    model: Autoencoder
    seconds: float
    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Drawn:
    """A fitted sampler and its decoded samples (n, pixels), with the digits (n,) that were asked for."""

    sampler: LatentSampler
    images: Tensor
    labels: Tensor | None
    fit_seconds: float
    sample_seconds: float


def fit_and_draw(
    system: System,
    frozen: Frozen,
    n: int,
    *,
    seed: int,
    device: torch.device,
    options: dict[str, Any],
    max_seconds: float | None = None,
    conditional: bool = False,
) -> Drawn:
    """Fit a system's method to the training latents, and draw and decode n samples.

    Args:
        system: What to fit.
        frozen: On whose latents.
        n: How many.
        seed: Of the fit and of the samples.
        device: Where.
        options: The method's options.
        max_seconds: Ends the fit; for methods that the table does not have as a system.
        conditional: Whether to fit with the digits as classes, and to ask for as many of each.
    """
    if system.method is None:
        raise ValueError(f"Expected a method for {system.name}; got None.")
    labels = balanced_labels(n) if conditional else None
    start = time.perf_counter()
    sampler = fit_latent_sampler(
        None,
        frozen.train,
        method=system.method,
        condition=frozen.train_labels if conditional else None,
        decoder=frozen.model.decode,
        device=device,
        seed=seed,
        max_seconds=None if system.name in SYSTEMS else max_seconds,
        **options,
    )
    fitted = time.perf_counter()
    images = sampler.generate(n, seed=seed, condition=labels)
    return Drawn(sampler, images, labels, fitted - start, time.perf_counter() - fitted)


def held_out_nll(drawn: Drawn, frozen: Frozen) -> float:
    """Return the standardised NLL of the test latents; of a conditional sampler, given their digits.

    Raises:
        ValueError: It is not finite.
    """
    labels = None if drawn.labels is None else frozen.test_labels
    nll = standardised_nll(
        lambda z: drawn.sampler.log_prob(z, condition=labels), frozen.train, frozen.test
    )
    if not math.isfinite(nll):
        raise ValueError(f"expected a finite NLL of held-out latents; got {nll}")
    return nll
