"""Images that the command line writes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from latentfit.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PICTURES", "write_grid"]

PICTURES = (".png",)  # what the name of a picture ends in
_LEAST_PIXELS = 28  # of an image's longer side; smaller ones are enlarged


def write_grid(path: str, images: Tensor) -> None:
    """Write images as a grid that is about square; small images are enlarged a whole number of times.

    Args:
        path: A .png file.
        images: What a decoder returned (n, ...).

    Raises:
        DataError: They are no images, as far as can be told.
        OSError: The file can't be written.
    """
    from latentfit.persistence import atomic_path
    from latentfit.reporting import draw_grid
    from latentfit.reporting._images import as_images

    shown = as_images(images)
    if shown is None:
        raise DataError(
            "Expected images (n, height, width), (n, channels, height, width) with one or three channels, or "
            f"(n, pixels) of square ones, of the decoder; got {tuple(images.shape)}."
        )
    times = math.ceil(_LEAST_PIXELS / max(shown.shape[1:3]))
    shown = shown.repeat_interleave(times, 1).repeat_interleave(times, 2)
    content = draw_grid(shown, columns=max(1, round(len(shown) ** 0.5)))
    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(content)
