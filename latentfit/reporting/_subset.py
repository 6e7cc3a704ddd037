"""Random rows of a dataset of any form, with their latents and their labels."""

from __future__ import annotations

import heapq
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentfit.arguments import told
from latentfit.batches import Batches, input_of, labels_of
from latentfit.condition import as_labels
from latentfit.encoding import Encoding, check_finite, device_of
from latentfit.errors import DataError
from latentfit.models import Model
from latentfit.randomness import isolated_rng, without_autocast

__all__ = ["Subset", "random_subset"]

_BATCH = 256


class Subset(NamedTuple):
    """Random rows of a dataset.

    Attributes:
        rows: How many the dataset has.
        inputs: What was encoded (n, ...); None where the dataset holds latents.
        latents: (n, *shape), on the CPU.
        labels: (n,) or (n, C); None without.
    """

    rows: int
    inputs: Tensor | None
    latents: Tensor
    labels: Tensor | None


def random_subset(
    dataset: Any, n: int, encoder: Model | None, *, labels: Any = None, seed: int
) -> Subset:
    """Choose n rows at random, in random order, in one pass, and encode these only.

    Args:
        dataset: As for :func:`latentfit.fit_latent_sampler`.
        n: How many; all, if it has less.
        encoder: The encoder; None if the dataset holds latents.
        labels: Of all rows; None takes those of the dataset, if it has any.
        seed: Of the choice.

    Raises:
        DataError: A dataset that can't be used, or labels that do not fit.
        NonFiniteError: NaN or infinity among the latents.
        EncoderOutputError: The encoder returned no single tensor with a row for each input.
    """
    generator = np.random.default_rng(seed)
    # The n rows with the smallest of random keys; the largest of these is on top.
    heap: list[tuple[float, int, Tensor, Tensor | None]] = []
    total = 0
    batches = Batches(dataset, _BATCH)
    if labels is not None:
        batches.check_labels_apart("labels=")
    device = device_of(encoder, dataset)
    with isolated_rng(seed, device), batches.giving_back():
        for _, item in batches.select():
            inputs = input_of(item)
            if not inputs.ndim:
                raise DataError(f"Expected batches (n, ...) in the dataset; got {told(inputs)}.")
            own = None if labels is not None else _labels_in(item, len(inputs))
            for row, key in enumerate(generator.random(len(inputs))):
                index = total + row
                if len(heap) < n or -key > heap[0][0]:
                    label = None if own is None else own[row]
                    entry = (-key, index, inputs[row].detach().to("cpu", copy=True), label)
                    (heapq.heappush if len(heap) < n else heapq.heapreplace)(heap, entry)
            total += len(inputs)
        if not heap:
            raise DataError("Expected a dataset with rows; got none. Was its iterator used up?")
        chosen = sorted(heap, key=lambda entry: -entry[0])
        shapes = {tuple(entry[2].shape) for entry in chosen}
        if len(shapes) > 1:
            raise DataError(f"Expected a dataset of one shape; got rows of {sorted(shapes)[:4]}.")
        rows = torch.stack([entry[2] for entry in chosen])
        encoding = Encoding(encoder)
        with without_autocast(device), nullcontext() if encoder is None else encoder.evaluating():
            parts = [encoding.latents(i, part) for i, part in enumerate(rows.split(_BATCH))]
    latents = torch.cat(parts)
    check_finite(latents, "latents", encoding.remedy)
    return Subset(
        total,
        None if encoder is None else rows,
        latents,
        _chosen_labels(
            labels, [entry[1] for entry in chosen], [entry[3] for entry in chosen], total
        ),
    )


def _labels_in(item: Any, n: int) -> Tensor | None:
    """Take the labels of a batch, if it has any that can be used."""
    try:
        return labels_of(item, n)
    except DataError:
        return None


def _chosen_labels(
    labels: Any, indices: list[int], own: list[Tensor | None], total: int
) -> Tensor | None:
    if labels is not None:
        return as_labels(labels, total, "labels")[indices]
    found = [label for label in own if label is not None]
    return torch.stack(found) if len(found) == len(own) else None
