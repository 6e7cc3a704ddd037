"""How large a run is, and what it keeps for the figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Settings:
    """How large a run is.

    Attributes:
        k: The latent space's dimension.
        hidden: The encoder's hidden layers; the decoder mirrors them.
        batch_size: Images a step in the training of the autoencoders.
        epochs: Passes over the training images, by model.
        samples: Images that every system's distance is measured on.
        tsne_points: Test latents in the t-SNE figure.
        model_options: More constructor arguments, by model.
        sampler_options: Options of the samplers that override the systems' own, by system.
        method_seconds: The time that the fit of a method that is no system may take, or None.
    """

    k: int
    hidden: tuple[int, ...]
    batch_size: int
    epochs: Mapping[str, int]
    samples: int
    tsne_points: int
    model_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sampler_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    method_seconds: float | None = None


@dataclass
class Gallery:
    """What the figures and the report show.

    Attributes:
        images: Up to 64 binary images (n, pixels) of each system, by seed.
        conditional: Up to 80 of each conditional sampler, the digits 0 to 9 in turn, by seed.
        histories: The training curves of each sampler, of the first seed that it worked with.
        losses: The losses of each autoencoder's training by epoch, of the first seed.
        latents: Test latents (n, k) of each model, of the first seed.
        labels: The digits of these latents.
        sampled: Latents (m, k) that each sampler drew with the first seed, by model.
        train: Binary training images (N, pixels).
    """

    images: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    conditional: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    histories: dict[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    losses: dict[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    latents: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    sampled: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    train: Tensor = field(default_factory=lambda: torch.empty(0, 0))


def first(shown: Mapping[int, Tensor]) -> Tensor:
    """Return what there is of the first seed that worked."""
    return shown[min(shown)]
