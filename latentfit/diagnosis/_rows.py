"""Latents as rows: the one place where they are checked and read, a part at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit.arguments import reason, told
from latentfit.batches import check_dense
from latentfit.encoding import check_finite
from latentfit.errors import DataError
from latentfit.outputs import as_array
from latentfit.store import LatentStore

__all__ = ["Rows"]

_NUMBERS = 2**21  # in a part: 16 MiB of float64
_ROOM = 10  # different rows that a dtype must have for each row, at the least


class Rows:
    r"""Latents (N, \*shape) as float64 rows (N, D), of which only parts are ever in memory.

    Args:
        latents: A tensor, an array (which may be mapped from a file), a store, or nested lists of numbers.
        what: What they are called in messages.

    Attributes:
        shape: Of one latent.
        dim: D.
        dtype: As it came.
        eps: The relative rounding of the numbers.
        crowded: Whether they have so few digits that rounding alone may make rows equal.

    Raises:
        DataError: No numbers, or fewer than two rows.
    """

    def __init__(self, latents: Any, what: str = "latents") -> None:
        self.what = what
        self._data = _as_data(latents, what)
        self.shape = tuple(self._data.shape[1:])
        self.dim = math.prod(self.shape)
        if len(self) < 2:
            raise DataError(f"Expected at least 2 {what}; got {len(self)}.")
        if self.dim == 0:
            raise DataError(
                f"Expected {what} of at least one value; got shape {tuple(self._data.shape)}."
            )
        self.dtype = str(self._data.dtype).removeprefix("torch.")
        own = _rounding(self._data)
        self.crowded = self.dim * -math.log2(own) < math.log2(_ROOM * len(self))
        # As in the transforms: what is stored in less than float64 has float32's rounding at best.
        self.eps = own if self.dtype == "float64" else float(np.finfo(np.float32).eps)

    def __len__(self) -> int:
        return int(self._data.shape[0])

    def parts(self, index: Tensor | None = None) -> Iterator[Tensor]:
        """Yield all rows, or those at a sorted index (n,), in order, in parts (m, D)."""
        size = max(1, _NUMBERS // self.dim)
        if index is None or len(index) == len(self):
            for start in range(0, len(self), size):
                yield self._rows(self._data[start : start + size])
        else:
            yield from map(self.take, index.split(size))

    def take(self, index: Tensor) -> Tensor:
        """Give the rows (n, D) at an index (n,)."""
        data = self._data
        if isinstance(data, Tensor):
            return self._rows(data[index.to(data.device)])
        return self._rows(data[index.numpy()])

    def check_finite(self) -> None:
        """Raise if any value is NaN or infinite.

        Raises:
            NonFiniteError: With the number of such rows and the first.
        """
        finite = torch.cat([part.isfinite().all(1) for part in self.parts()])
        marked = torch.where(finite, 0.0, math.nan)[:, None]
        remedy = "leave these rows out"
        if self.dtype == "float16":
            remedy = "if an encoder made them in half precision, run it in float32"
        check_finite(marked, self.what, remedy)

    def _rows(self, part: Any) -> Tensor:
        if not isinstance(part, Tensor):
            part = torch.from_numpy(np.array(part, dtype=np.float64))
        wide: Tensor = part.reshape(len(part), self.dim).to("cpu", torch.float64)
        return wide


class _Stored:
    """A store, indexed as an array is: by slices, and by ascending indices."""

    def __init__(self, store: LatentStore) -> None:
        self._store = store
        self.shape, self.ndim = (len(store), *store.shape), 1 + len(store.shape)
        self.dtype = store.dtype

    def __getitem__(self, rows: Any) -> Tensor:
        if isinstance(rows, slice):
            return self._store.read(*rows.indices(len(self._store))[:2])
        return self._store.take(torch.from_numpy(rows))


def _rounding(data: Any) -> float:
    """The relative rounding of a tensor's or an array's dtype; whole numbers become float32 in a fit."""
    if isinstance(data.dtype, torch.dtype):
        floating = data.dtype.is_floating_point
        return torch.finfo(data.dtype if floating else torch.float32).eps
    return float(np.finfo(data.dtype if data.dtype.kind == "f" else np.float32).eps)


def _remedy(latents: Any) -> str:
    if isinstance(latents, str | os.PathLike):
        return "Load the file first, as by np.load; LatentStore(path) opens a folder of latents."
    if isinstance(latents, Iterable) and not isinstance(latents, np.ndarray | list | tuple):
        return (
            "Put its batches together with torch.cat; an encoder's latents of it are kept by "
            "fit_latent_sampler(encoder, dataset, store=path), and LatentStore(path) is diagnosed."
        )
    return "Leave out what is no number."


def _as_data(latents: Any, what: str) -> Any:
    """Give a tensor or an array (N, ...) of real numbers."""
    if isinstance(latents, LatentStore):
        return _Stored(latents)
    if isinstance(latents, Tensor):
        if latents.is_complex():
            raise DataError(f"Expected real {what}; got {latents.dtype}. Use torch.view_as_real.")
        check_dense(latents, what)
        data: Any = latents.detach()
        if data.is_floating_point() and data.element_size() == 1:  # no sums of eight bits
            data = data.float()
    else:
        try:
            data = as_array(latents)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"Expected {what} as numbers (N, ...); got {told(latents)} ({reason(error)})."
            ) from error
        if data.dtype.kind not in "buif":
            raise DataError(
                f"Expected {what} as a tensor or an array of numbers (N, ...); got "
                f"{type(latents).__name__} of dtype {data.dtype}. {_remedy(latents)}"
            )
    if data.ndim == 0:
        raise DataError(f"Expected {what} of shape (N, ...); got a scalar, {told(latents)}.")
    return data
