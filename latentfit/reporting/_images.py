"""Tensors that are images, as far as that can be told, in the form that can be looked at."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

__all__ = ["Shades", "as_images"]

_MOST_PIXELS = 96  # of a side; larger images are shrunk
_LEAST_PIXELS = 4  # of a side that is made of a row of numbers


class Shades(NamedTuple):
    """The values that are black and white."""

    black: float
    white: float

    @classmethod
    def of(cls, images: Tensor) -> Shades:
        """Guess them: 0 and 1 where all values lie between, else 0 (or the least) and the largest.

        NaN and infinity count for nothing.
        """
        values = images[images.isfinite()]
        if not len(values):
            return cls(0.0, 1.0)
        low, high = float(values.min()), float(values.max())
        if low >= -0.01 and high <= 1.01:
            return cls(0.0, 1.0)
        if low >= -1.01 and high <= 1.01:
            return cls(-1.0, 1.0)
        return cls(0.0 if low >= 0 else low, high)


def as_images(images: Tensor, shades: Shades | None = None) -> Tensor | None:
    """Give images as (n, height, width), or (n, height, width, 3) where they have colours, in [0, 1].

    Args:
        images: (n, height, width), (n, channels, height, width) or (n, height, width, channels), of one or
            three channels; or (n, pixels), which are square.
        shades: What is black and white; None guesses it.

    Returns:
        They, large ones shrunk; None if they are no such images.
    """
    if images.is_complex() or not images.numel():
        return None
    batch = images.detach().cpu().float()
    if batch.ndim == 2:
        side = math.isqrt(batch.shape[1])
        if side < _LEAST_PIXELS or side * side != batch.shape[1]:
            return None
        batch = batch.view(len(batch), 1, side, side)
    elif batch.ndim == 3:
        batch = batch[:, None]
    elif batch.ndim == 4 and batch.shape[1] not in (1, 3) and batch.shape[3] in (1, 3):
        batch = batch.permute(0, 3, 1, 2)
    if batch.ndim != 4 or batch.shape[1] not in (1, 3):
        return None
    black, white = shades or Shades.of(batch)
    batch = ((batch - black) / max(white - black, 1e-12)).clamp(0, 1).nan_to_num(0.5)
    shrink = math.ceil(max(batch.shape[2:]) / _MOST_PIXELS)
    if shrink > 1 and min(batch.shape[2:]) >= shrink:
        batch = avg_pool2d(batch, shrink)
    coloured = batch.permute(0, 2, 3, 1).contiguous()
    return coloured if coloured.shape[3] == 3 else torch.squeeze(coloured, 3)
