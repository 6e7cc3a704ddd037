"""Latents in the plane: those of data and of samplers, embedded together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from latentfit.arguments import check_text, told
from latentfit.errors import DataError
from latentfit.randomness import check_seed, importing
from latentfit.reporting._arrays import array_of
from latentfit.reporting._model import Cloud, FloatArray, LatentMap

__all__ = ["map_latents"]

_MOST_FOR_TSNE = 6000  # rows; beyond that it takes minutes
_PERPLEXITY = 40.0


def map_latents(
    name: str,
    real: Any,
    sampled: Mapping[str, Any],
    *,
    labels: Any = None,
    seed: int | None = 0,
) -> LatentMap:
    """Embed latents of data and of samplers in one plane, by t-SNE; by PCA where they are very many.

    Dimensions are scaled by the real latents' deviations first.

    Args:
        name: Whose latents they are.
        real: Latents of data (n, ...), n >= 8.
        sampled: Latents (m, ...) of each sampler, by its name.
        labels: The classes of the real ones (n,), whole numbers; None without.
        seed: Of t-SNE, a whole number; None for a new one.

    Raises:
        DataError: Shapes that don't match, or too few rows.
        NonFiniteError: NaN or infinity.
        OptionError: name is no text, or seed no whole number.
    """
    check_text("name", name)
    seed = check_seed(seed)
    if not isinstance(sampled, Mapping):
        raise DataError(f"Expected sampled as a dict of latents by name; got {told(sampled)}.")
    rows = _rows(real, "real")
    if len(rows) < 8:
        raise DataError(f"Expected at least 8 rows for real; got {told(real)}.")
    parts = {str(key): _rows(value, "sampled") for key, value in sampled.items()}
    for value in parts.values():
        if value.shape[1] != rows.shape[1]:
            raise DataError(
                f"Expected latents of {rows.shape[1]} values for sampled; got {value.shape}."
            )
    classes = None if labels is None else _labels(labels, len(rows))
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    every = (np.concatenate([rows, *parts.values()]) - mean) / np.where(scale > 0, scale, 1.0)
    method, flat = _embedded(every, seed)
    ends = np.cumsum([len(rows), *map(len, parts.values())])
    first, *others = np.split(flat, ends[:-1])
    return LatentMap(
        name,
        method,
        Cloud("Real, by class" if classes is not None else "Real", first, classes),
        tuple(Cloud(key, points) for key, points in zip(parts, others, strict=True)),
    )


def _embedded(rows: FloatArray, seed: int) -> tuple[str, FloatArray]:
    if rows.shape[1] < 3:
        flat = np.zeros((len(rows), 2))
        flat[:, : rows.shape[1]] = rows
        return "", flat
    centred = rows - rows.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    principal: FloatArray = centred @ axes[:50].T
    if len(rows) > _MOST_FOR_TSNE:
        return "PCA", principal[:, :2]
    with importing():
        from sklearn.manifold import TSNE
    tsne = TSNE(
        perplexity=min(_PERPLEXITY, (len(rows) - 1) / 3), init="pca", random_state=seed % 2**32
    )
    return "t-SNE", tsne.fit_transform(principal.astype(np.float32)).astype(np.float64)


def _rows(value: Any, name: str) -> FloatArray:
    """Check latents and give them as rows (n, d)."""
    array = array_of(value, name, "latents (n, ...)").astype(np.float64)
    return array.reshape(len(array), -1)


def _labels(value: Any, n: int) -> npt.NDArray[np.int64]:
    what = f"a whole number for each of the {n} rows"
    array = array_of(value, "labels", what, kinds="bui")
    if array.shape != (n,):
        raise DataError(f"Expected {what} for labels; got {told(value)} of shape {array.shape}.")
    return array.astype(np.int64)
