"""From a dataset to latents: batches of any origin through an encoder, once and in order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from latentfit.condition import as_labels
from latentfit.errors import DataError, NonFiniteError
from latentfit.models import Model
from latentfit.outputs import from_array
from latentfit.progress import Bar

__all__ = ["check_finite", "encode"]

# What a dict item's input is called in torch, transformers and datasets.
_INPUT_KEYS = ("x", "input", "inputs", "data", "image", "images", "img", "pixel_values", "latents")
_LABEL_KEYS = ("y", "label", "labels", "target", "targets")
_DATASETS = "a tensor, an array, a torch Dataset or IterableDataset, a DataLoader, or an iterable of batches"


def encode(
    encoder: Model | None,
    dataset: Any,
    *,
    batch_size: int,
    progress: bool | None = None,
    labels: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Encode a dataset batch by batch.

    Args:
        encoder: The encoder, or None if the dataset already holds latents.
        dataset: A tensor, an array, a torch Dataset, a DataLoader or an iterable of batches; items are
            ``x``, ``(x, y)`` or dicts.
        batch_size: Rows a call, where the dataset does not come in batches already.
        progress: Whether to show a bar; None means on a terminal.
        labels: Whether to collect the items' labels: y of ``(x, y)``, or a dict's "labels".

    Returns:
        Latents (N, *shape) on the CPU, in the encoder's floating dtype; and the labels (N, ...) or None.

    Raises:
        DataError: An unusable dataset, batches that disagree in shape, or no rows.
        NonFiniteError: NaN or infinity among the latents.
        EncoderOutputError: The encoder returned no single tensor with a row for each input.
    """
    batches, total = _batches(dataset, batch_size)
    parts: list[Tensor] = []
    label_parts: list[Tensor] = []
    bar = Bar("encoding" if encoder else "reading", progress)
    with bar:
        for index, item in enumerate(batches):
            bar.show(index, total)
            batch = _input_of(item)
            if isinstance(dataset, list | tuple):
                _check_is_batch(item, batch)
            latents = _encode_batch(encoder, batch)
            if parts and latents.shape[1:] != parts[0].shape[1:]:
                raise DataError(
                    f"Expected batches of one shape (n, {_listed(parts[0].shape[1:])}); batch {index} has "
                    f"{tuple(latents.shape)}. A list or tuple is read as batches, not as (x, y)."
                )
            if len(latents):
                parts.append(latents)
                if labels and not isinstance(dataset, Mapping):
                    label_parts.append(_labels_of(item, len(latents)))
        bar.show(total or len(parts), total)
    if not parts:
        raise DataError(
            "Expected a dataset with at least 2 rows; got none. Was its iterator used up?"
        )
    latents = torch.cat(parts)
    check_finite(latents, "latents", "if the encoder runs in half precision, run it in float32")
    if not labels:
        return latents, None
    if isinstance(dataset, Mapping):  # one dict of arrays for the whole dataset
        return latents, _labels_of(dataset, len(latents))
    return latents, _joined(label_parts)


def check_finite(rows: Tensor, what: str, remedy: str) -> None:
    """Raise if rows (n, ...) hold NaN or infinity.

    Raises:
        NonFiniteError: With the count, the first index and the remedy.
    """
    bad = ~rows.reshape(len(rows), math.prod(rows.shape[1:])).isfinite().all(dim=1)
    count = int(bad.sum())
    if count:
        raise NonFiniteError(
            f"Expected finite {what}; got {count} of {len(rows)} rows with NaN or infinity, the first at "
            f"index {int(bad.int().argmax())}; {remedy}."
        )


def _check_is_batch(item: Any, batch: Tensor) -> None:
    """Refuse an item of a list that is one sample by all appearances; as a batch it would be misread."""
    label = item[1] if isinstance(item, tuple | list) and len(item) == 2 else None
    labelled = isinstance(label, int | float) or getattr(label, "ndim", None) == 0
    if labelled or (batch.ndim == 1 and batch.is_floating_point()):
        raise DataError(
            f"Expected a list of batches (n, ...); its items look like single samples of shape "
            f"{tuple(batch.shape)}. Stack them with torch.stack, or pass "
            "DataLoader(samples, batch_size=512)."
        )


def _encode_batch(encoder: Model | None, batch: Tensor) -> Tensor:
    if encoder is not None:
        with torch.inference_mode():
            batch = encoder(batch)
    if batch.ndim == 0:
        raise DataError(f"Expected batches of shape (n, ...); got a scalar {batch.dtype}.")
    if batch.is_complex():
        raise DataError(f"Expected real latents; got {batch.dtype}. Use torch.view_as_real.")
    if not batch.is_floating_point():
        batch = batch.float()
    return batch.detach().to("cpu", copy=True)  # outside inference mode: an ordinary tensor


def _batches(dataset: Any, batch_size: int) -> tuple[Iterator[Any], int | None]:
    """Iterate over a dataset's batches; tell their number where it is known."""
    if isinstance(dataset, Mapping):
        dataset = _input_of(dataset)
    if not isinstance(dataset, Tensor | Dataset) and hasattr(dataset, "__array__"):
        dataset = np.asarray(dataset)
    if isinstance(dataset, Tensor | np.ndarray):
        if dataset.ndim == 0:
            raise DataError("Expected a dataset of shape (N, ...); got a scalar.")
        starts = range(0, len(dataset), batch_size)
        return (dataset[i : i + batch_size] for i in starts), len(starts)
    if isinstance(dataset, Dataset) or hasattr(dataset, "__getitems__"):
        dataset = DataLoader(dataset, batch_size=batch_size)
    if isinstance(dataset, Iterable) and not isinstance(dataset, str | bytes):
        try:
            total: int | None = len(dataset)  # type: ignore[arg-type]
        except TypeError:
            total = None
        return iter(dataset), total
    raise DataError(f"Expected dataset as {_DATASETS}; got {type(dataset).__name__}.")


def _input_of(item: Any) -> Tensor:
    """Take the encoder's input out of an item: ``x``, ``(x, y)`` or a dict."""
    if isinstance(item, Mapping):
        arrays = [key for key, value in item.items() if isinstance(value, Tensor | np.ndarray)]
        named = [key for key in _INPUT_KEYS if key in arrays]
        if len(arrays) != 1 and not named:
            raise DataError(
                f"Expected dict items with one tensor, or with one called {', '.join(_INPUT_KEYS)}; got the "
                f"keys {', '.join(map(repr, item)) or 'none'}."
            )
        item = item[named[0] if named else arrays[0]]
    elif isinstance(item, tuple | list):
        if not item:
            raise DataError("Expected items x, (x, y) or dicts; got an empty tuple or list.")
        item = item[0]
    if not isinstance(item, Tensor) and hasattr(item, "__array__"):
        item = np.asarray(item)
    if isinstance(item, np.ndarray):
        try:
            return from_array(item)
        except TypeError:
            raise DataError(f"Expected an array of numbers; got dtype {item.dtype}.") from None
    if not isinstance(item, Tensor):
        raise DataError(
            f"Expected items that are tensors or arrays (or (x, y) or dicts of them); got "
            f"{type(item).__name__}. The dataset may be {_DATASETS}."
        )
    return item


def _labels_of(item: Any, n: int) -> Tensor:
    """Take the labels out of a batch's item: y of ``(x, y)``, or a dict's labels."""
    found: Any = None
    if isinstance(item, Mapping):
        found = next((item[key] for key in _LABEL_KEYS if key in item), None)
    elif isinstance(item, tuple | list) and len(item) > 1:
        found = item[1]
    if found is None:
        keys = ", ".join(map(repr, _LABEL_KEYS))
        raise DataError(
            f"Expected items (x, y), or dicts with one of {keys}, for condition='labels'; got "
            f"{type(item).__name__}. Or pass the labels themselves as condition=; or TensorDataset(x, y): a "
            "tuple is read as batches."
        )
    return as_labels(found, n)


def _joined(parts: list[Tensor]) -> Tensor:
    kinds = {f"{part.dtype} (n, {_listed(part.shape[1:])})": part.dtype for part in parts}
    if (
        len(kinds) > 1
        and len({(d.is_floating_point, k.partition("(")[2]) for k, d in kinds.items()}) > 1
    ):
        raise DataError(
            f"Expected labels of one kind and shape; the batches have {' and '.join(kinds)}."
        )
    return torch.cat(parts)


def _listed(shape: torch.Size) -> str:
    return ", ".join(map(str, shape))
