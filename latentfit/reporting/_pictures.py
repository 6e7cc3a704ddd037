"""Images as PNG: grids, and samples above their nearest training images."""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from latentfit.arguments import check_text, check_whole, told
from latentfit.errors import DataError
from latentfit.reporting._arrays import array_of
from latentfit.reporting._model import Neighbours

__all__ = ["PNG", "draw_grid", "find_neighbours"]

PNG = b"\x89PNG\r\n\x1a\n"  # how a file of this kind begins

_GREY = 0.5  # of the pixel between two images
_CHUNK = 16_384  # training images that are compared at once

FloatArray = npt.NDArray[np.float32]


def draw_grid(images: Any, *, columns: int = 8) -> bytes:
    """Draw images as a grid, row by row, with a pixel of grey between them.

    Args:
        images: (n, height, width) grey or (n, height, width, 3) coloured, values in [0, 1]; what lies beyond
            is cut off.
        columns: How many stand side by side.

    Returns:
        A PNG file.

    Raises:
        DataError: No such images.
        OptionError: columns is no whole number >= 1.
    """
    batch = _images(images, "images")
    columns = min(check_whole("columns", columns, 1), len(batch))
    rows = math.ceil(len(batch) / columns)
    height, width, *colours = batch.shape[1:]
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, *colours), _GREY)
    for index, image in enumerate(batch):
        row, column = divmod(index, columns)
        top, left = row * (height + 1) + 1, column * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    return _png((255 * canvas.clip(0, 1) + 0.5).astype(np.uint8))


def find_neighbours(row: str, images: Any, train: Any, *, shown: int = 10) -> Neighbours:
    """Find the nearest training image of each image, by the Euclidean distance of their pixels.

    Args:
        row: Whose images they are.
        images: (n, height, width) or (n, height, width, 3), values in [0, 1].
        train: (N, ...) of the same shape.
        shown: How many of the images the picture has.

    Returns:
        The distances of all, and a picture of the first with their neighbours below.

    Raises:
        DataError: No such images, or of two shapes.
        OptionError: shown is no whole number >= 1, or row is no text.
    """
    check_text("row", row)
    shown = check_whole("shown", shown, 1)
    batch, known = _images(images, "images"), _images(train, "train")
    if batch.shape[1:] != known.shape[1:]:
        raise DataError(
            f"Expected images and train of one shape; got {batch.shape[1:]} and {known.shape[1:]}."
        )
    flat, others = batch.reshape(len(batch), -1), known.reshape(len(known), -1)
    nearest = np.full(len(flat), np.inf)
    which = np.zeros(len(flat), dtype=np.int64)
    own = (flat**2).sum(axis=1)
    for start in range(0, len(others), _CHUNK):
        part = others[start : start + _CHUNK]
        squared = own[:, None] - 2 * flat @ part.T + (part**2).sum(axis=1)  # (n, chunk)
        at = squared.argmin(axis=1)
        least = squared[np.arange(len(flat)), at]
        closer = least < nearest
        nearest[closer], which[closer] = least[closer], start + at[closer]
    # Exactly, as a difference of squares does not give the zero of a copy.
    distances = np.sqrt(((flat - others[which]).astype(np.float64) ** 2).sum(axis=1))
    shown = min(shown, len(batch))
    pairs = np.concatenate([batch[:shown], known[which[:shown]]])
    return Neighbours(row, draw_grid(pairs, columns=shown), shown, distances.tolist())


def _images(value: Any, name: str) -> FloatArray:
    """Check images, and give them as float32 (n, height, width) or (n, height, width, 3)."""
    what = "images of shape (n, height, width) or (n, height, width, 3)"
    batch = array_of(value, name, what)
    if batch.ndim not in (3, 4) or (batch.ndim == 4 and batch.shape[3] != 3):
        raise DataError(f"Expected {what} for {name}; got {told(value)} of shape {batch.shape}.")
    return batch.astype(np.float32)


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Write grey (height, width) or coloured (height, width, 3) pixels as a PNG file."""
    height, width = pixels.shape[:2]
    colour = 2 if pixels.ndim == 3 else 0
    rows = pixels.reshape(height, -1)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # 0: as they are
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return PNG + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
