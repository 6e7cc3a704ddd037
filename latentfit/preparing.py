"""From latents and a transform to the rows that a plugin is fitted to: in memory, or read as needed."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentfit.choosing import to_rows
from latentfit.condition import Condition, kind_of
from latentfit.rows import Latents, Rows, TensorLatents, draw_index
from latentfit.sampler_base import Sampler
from latentfit.store import LatentStore
from latentfit.transforms import Transform

if TYPE_CHECKING:
    from latentfit.fitting import Plan

__all__ = ["Prepared", "in_memory", "prepare", "shape_of", "split"]

MEMORY = 2**27  # bytes of a store's rows that are held; more are read as they are needed
CONTEXTS = 2**30  # bytes of the contexts of rows in memory, likewise
_MOST_WATCHED = 2**16  # rows that are held out of more than memory holds
_WATCHED_BYTES = 2**26


@dataclass(frozen=True)
class Prepared:
    """What a plugin is fitted to.

    Attributes:
        rows: Training rows (N, D): a tensor on the device, or Rows.
        held_out: Held-out rows (M, D).
        context: The training rows' contexts (N, C) where the rows are a tensor, or None.
        held_out_context: The held-out rows' contexts (M, C), or None.
    """

    rows: Tensor | Rows
    held_out: Tensor
    context: Tensor | None = None
    held_out_context: Tensor | None = None


def shape_of(latents: Tensor | LatentStore) -> tuple[int, ...]:
    """The shape of one latent."""
    return latents.shape if isinstance(latents, LatentStore) else tuple(latents.shape[1:])


def in_memory(latents: Tensor | LatentStore) -> Tensor | LatentStore:
    """Read a store that is small."""
    if isinstance(latents, LatentStore) and 4 * len(latents) * math.prod(latents.shape) <= MEMORY:
        return latents.read(0, len(latents))
    return latents


def prepare(
    cls: type[Sampler],
    latents: Tensor | LatentStore,
    mapping: Transform,
    labels: Tensor | None,
    condition: Condition | None,
    plan: Plan,
    left_out: Tensor | None,
    *,
    method: str,
) -> Prepared:
    """Transform latents, hold some out, and encode the condition.

    Args:
        cls: The sampler class that the rows are for.
        latents: As for :func:`latentfit.fitting.fit_class`; so are the others.
        mapping: The fitted transform.
        labels: What to condition on, or None.
        condition: What turns labels into contexts, or None.
        plan: How much to hold out, by which seed, and the device.
        left_out: Latents that are not to be seen.
        method: The name for the warning.
    """
    wide = 0 if condition is None else condition.dim
    if isinstance(latents, Tensor) and 4 * len(latents) * wide <= CONTEXTS:
        return _hold(latents, mapping, labels, condition, plan)
    source: Latents = TensorLatents(latents) if isinstance(latents, Tensor) else latents
    generator = torch.Generator().manual_seed(plan.seed)
    left_out = torch.zeros(0, dtype=torch.int64) if left_out is None else left_out
    most = min(_MOST_WATCHED, max(1, _WATCHED_BYTES // (4 * mapping.dim)))
    watched = draw_index(
        len(source),
        min(most, round(len(source) * plan.validation)),
        generator,
        torch.cat((left_out, _last_of_each(labels))).unique(),
    )
    everything = Rows(
        source,
        partial(to_rows, mapping),
        mapping.dim,
        left_out=torch.zeros(0, dtype=torch.int64),
        condition=condition,
        labels=labels,
        device=plan.device,
    )
    held_out, *context = everything.take(watched)
    held_out_context = context[0] if context else None
    rows = everything.without(torch.cat((watched, left_out)).unique())
    if cls.streams:
        return Prepared(rows, held_out, None, held_out_context)
    room = CONTEXTS if isinstance(latents, Tensor) else MEMORY
    most = max(1, room // (4 * (mapping.dim + wide)))
    some, *context = rows.subset(most, generator)
    if len(some) < len(rows):
        warnings.warn(
            f"{method!r} holds its rows in memory: it is fitted to {len(some):,} of the {len(rows):,}, drawn "
            "at random. Methods that read as they go use all: realnvp, spline, flow-matching and others.",
            stacklevel=2,
        )
    return Prepared(some, held_out, context[0] if context else None, held_out_context)


def _hold(
    latents: Tensor,
    mapping: Transform,
    labels: Tensor | None,
    condition: Condition | None,
    plan: Plan,
) -> Prepared:
    training, watched = split(len(latents), plan.validation, plan.seed, labels)
    training, watched = training.to(plan.device), watched.to(plan.device)
    rows = to_rows(mapping, latents.reshape(len(latents), -1)).to(plan.device)
    if condition is None or labels is None:
        return Prepared(rows[training], rows[watched])
    context = condition.encode(labels, len(labels)).to(plan.device)
    return Prepared(rows[training], rows[watched], context[training], context[watched])


def _last_of_each(labels: Tensor | None) -> Tensor:
    """The last row of each class, (C,): if all were held out, nothing could be learnt of it."""
    if labels is None or kind_of(labels) != "classes":
        return torch.zeros(0, dtype=torch.int64)
    values, classes = labels.unique(return_inverse=True)
    last = torch.zeros(len(values), dtype=torch.int64)
    return last.scatter_reduce_(0, classes, torch.arange(len(labels)), "amax")


def split(
    n: int, validation: float, seed: int, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose at random, by the seed, which of n rows to train on and which to hold out: two index tensors.

    The last row of a class is never held out: nothing could be learnt of that class.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu")
    held_out = min(n - 1, max(1, round(n * validation))) if validation else 0
    if labels is not None and kind_of(labels) == "classes" and held_out:
        last = _last_of_each(labels[order])
        keep = torch.zeros(n, dtype=torch.bool)
        keep[last] = True
        order = torch.cat((order[~keep], order[keep]))
        held_out = min(held_out, n - len(last))
    return order[held_out:], order[:held_out]
