"""LatentStore: latents on disk, to be read in parts. docs/large-datasets.md describes the files."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latentfit.arguments import check_flag, check_path, check_whole, scalar, told
from latentfit.errors import DataError, FileFormatError
from latentfit.moments import Moments, measure
from latentfit.persistence import atomic_path

__all__ = [
    "INDEX",
    "MOMENTS",
    "STORE_FORMAT",
    "STORE_VERSION",
    "LatentStore",
    "Shard",
    "content_digest",
    "is_intact",
    "read_metadata",
    "shard_metadata",
]

INDEX = "index.json"
STORE_FORMAT = "latentfit latents"
STORE_VERSION = 1
MOMENTS = "moments.safetensors"
_MOMENTS = ("mean", "variance", "low", "high")
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_KEY = "latentfit"  # in the files' metadata
_MOST_INDEX_BYTES = 256 * 2**20
_DTYPES = {
    str(t).removeprefix("torch."): t
    for t in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}


_KINDS = {  # of what an index tells of the whole
    "n": int,
    "order": str,
    "shape": list,
    "dtype": str,
    "labels": bool,
    "encoder": str,
    "data": str,
    "shards": list,
}
_ANEW = "Fit with store= and the encoder's data once more: the index is written anew."


@dataclass(frozen=True)
class Shard:
    """One file of a store.

    Attributes:
        file: Its name in the store's folder.
        rows: How many latents it holds.
        sha256: Of the inputs that they were made of.
    """

    file: str
    rows: int
    sha256: str


class LatentStore:
    r"""Latents on disk, in the order of their dataset, read in parts and never as a whole.

    ``fit_latent_sampler(..., store=PATH)`` makes one; it can be a dataset of latents itself:
    ``fit_latent_sampler(None, LatentStore(PATH))``, which asks for neither the encoder nor the data.

    Args:
        path: The store's folder.

    Attributes:
        path: The folder.
        shape: The shape of one latent.
        dtype: The dtype of the latents.
        has_labels: Whether each latent has a label.
        encoder: The fingerprint of the encoder that made them.
        data: The SHA-256 of the data that they were made of.
        shards: The files, in order.

    Raises:
        OptionError: It is no path.
        FileFormatError: There is no complete store there, or it is damaged or of a newer format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_path("path", path, "a store's folder")
        index = _read_index(self.path)
        try:
            for name, kind in _KINDS.items():
                if type(index[name]) is not kind:
                    raise TypeError(f"{name} {told(index[name])}")
            self.shape = tuple(index["shape"])
            self.dtype = _DTYPES[index["dtype"]]
            self.has_labels: bool = index["labels"]
            self.encoder: str = index["encoder"]
            self.data: str = index["data"]
            self.shards = [Shard(*_fields(entry)) for entry in index["shards"]]
            if not self.shards or any(type(size) is not int or size < 1 for size in self.shape):
                raise ValueError(f"shape {self.shape}, {len(self.shards)} files")
            if index["n"] != sum(shard.rows for shard in self.shards):
                raise ValueError(f"n {index['n']}, which the files' rows do not add up to")
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"{self.path / INDEX}: expected the index of a store; {type(error).__name__}: {error}. "
                f"{_ANEW}"
            ) from error
        starts = torch.tensor([0, *(shard.rows for shard in self.shards)]).cumsum(0)
        self._starts = starts.tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return (
            f"LatentStore({str(self.path)!r}: {len(self):,} latents, shape={self.shape}, "
            f"dtype={str(self.dtype).removeprefix('torch.')}, labels={'yes' if self.has_labels else 'no'})"
        )

    def read(self, start: Any, stop: Any) -> Tensor:
        r"""Read latents (stop - start, \*shape), which may lie in several files.

        Raises:
            DataError: There are no such latents.
            FileFormatError: A file is missing, damaged, or another than the index tells.
        """
        low, high = scalar(start), scalar(stop)
        whole = all(isinstance(i, Integral) and not isinstance(i, bool) for i in (low, high))
        if not whole or not 0 <= low <= high <= len(self):
            raise DataError(
                f"Expected whole numbers 0 <= start <= stop <= {len(self)}; got start={told(start)}, "
                f"stop={told(stop)}."
            )
        start, stop = int(low), int(high)
        parts = [self._read("latents", i, low, high) for i, low, high in self._pieces(start, stop)]
        return torch.cat(parts) if parts else torch.zeros(0, *self.shape, dtype=self.dtype)

    def verify(self) -> None:
        """Read all files and compare them with their SHA-256; a fit does so, too.

        Raises:
            FileFormatError: One is missing or damaged.
        """
        for i, shard in enumerate(self.shards):
            self._read("latents", i, 0, 0)
            path = self.path / shard.file
            with safe_open(path, framework="pt") as file:
                if not is_intact(file):
                    raise FileFormatError(
                        f"{path}: damaged: its content is not that of its SHA-256. Fit with store= and the "
                        "encoder's data once more: the file is made again."
                    )

    def parts(self, rows: Any = None) -> Iterator[Tensor]:
        r"""Read all latents in order, (n, \*shape) at a time; None means a file at a time."""
        return self._parts(check_whole("rows", rows, 1, optional=True, error=DataError))

    def _parts(self, rows: int | None) -> Iterator[Tensor]:
        if rows is None:
            for i in range(len(self.shards)):
                yield self._read("latents", i, 0, self.shards[i].rows)
            return
        for start in range(0, len(self), rows):
            yield self.read(start, min(start + rows, len(self)))

    def take(self, index: Tensor) -> Tensor:
        r"""Read single latents.

        Args:
            index: Which, (n,) int64, ascending.

        Returns:
            Latents (n, \*shape).

        Raises:
            DataError: There are no such latents, or they are not in order.
            FileFormatError: A file is missing, damaged, or another than the index tells.
        """
        index = self._checked_index(index)
        taken = torch.empty(len(index), *self.shape, dtype=self.dtype)
        edges = torch.searchsorted(index, torch.tensor(self._starts)).tolist()
        for i, (low, high) in enumerate(itertools.pairwise(edges)):
            if low < high:
                own = index[low:high] - self._starts[i]
                first, last = int(own[0]), int(own[-1]) + 1
                taken[low:high] = self._read("latents", i, first, last)[own - first]
        return taken

    def _checked_index(self, given: Any) -> Tensor:
        with suppress(TypeError, ValueError, RuntimeError, OverflowError):  # no numbers at all
            index = torch.as_tensor(given)
            whole = index.dtype in _WHOLE or not index.numel()
            inside = whole and index.ndim == 1 and bool(((index >= 0) & (index < len(self))).all())
            if inside and not bool((index.diff() < 0).any()):
                return index.long()
        raise DataError(
            f"Expected index as an ascending index (n,) of whole numbers from 0 to {len(self) - 1}; got "
            f"{told(given)}."
        )

    def labels(self) -> Tensor:
        """Read all labels: int64 classes (N,), or vectors (N, C).

        Raises:
            FileFormatError: There are none, or a file is damaged.
        """
        if not self.has_labels:
            raise FileFormatError(
                f"Expected labels in the store {self.path}; it has none. Encode a dataset of (x, y)."
            )
        return torch.cat(
            [self._read("labels", i, 0, shard.rows) for i, shard in enumerate(self.shards)]
        )

    def moments(self, *, covariance: bool) -> Moments:
        """Measure the latents' moments in one pass, once: they are kept beside the latents.

        Args:
            covariance: Whether to measure it: (D, D) numbers.
        """
        covariance = check_flag("covariance", covariance)
        kept = self._kept_moments()
        if kept is not None and not (covariance and kept.covariance is None):
            return kept
        moments = measure(self.parts(), covariance=covariance)
        tensors = {name: getattr(moments, name) for name in _MOMENTS}
        if moments.covariance is not None:
            tensors["covariance"] = moments.covariance
        content = save(tensors, metadata={_KEY: json.dumps(self._identity())})
        path = self.path / MOMENTS
        with suppress(OSError), atomic_path(path, follow=False) as temporary:  # may be read-only
            temporary.write_bytes(content)
        return moments

    def _identity(self) -> dict[str, Any]:
        """What moments are of: these latents and no others."""
        return {
            "data": self.data,
            "encoder": self.encoder,
            "n": len(self),
            "shape": list(self.shape),
        }

    def _kept_moments(self) -> Moments | None:
        """The moments that were measured before; None if there are none, or of other latents."""
        try:
            with safe_open(self.path / MOMENTS, framework="pt") as file:
                if read_metadata(file) != self._identity():
                    return None
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        except (SafetensorError, OSError, ValueError):
            return None
        dim = math.prod(self.shape)
        expected = dict.fromkeys(_MOMENTS, (dim,)) | {"covariance": (dim, dim)}
        if not set(_MOMENTS) <= set(tensors) or any(
            tuple(tensor.shape) != expected.get(name) or tensor.dtype != torch.float64
            for name, tensor in tensors.items()
        ):
            return None
        found = {"covariance": None, **tensors}
        return Moments(n=len(self), shape=self.shape, dtype=self.dtype, **cast(Any, found))

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The files that rows start to stop lie in, each with its own first and last row."""
        i = bisect_right(self._starts, start) - 1
        while start < stop:
            begin, end = self._starts[i], min(stop, self._starts[i + 1])
            yield i, start - begin, end - begin
            start, i = end, i + 1

    def _read(self, name: str, i: int, start: int, stop: int) -> Tensor:
        shard = self.shards[i]
        path = self.path / shard.file
        try:
            with safe_open(path, framework="pt") as file:
                if read_metadata(file).get("sha256") != shard.sha256:
                    raise FileFormatError(
                        f"{path}: expected the file that the index tells of; it has been written anew since. "
                        f"Open the store {self.path} again."
                    )
                part = file.get_slice(name)
                size, dtype = part.get_shape(), part.get_dtype()
                if size[0] != shard.rows or (name == "latents" and tuple(size[1:]) != self.shape):
                    raise FileFormatError(
                        f"{path}: expected {shard.rows} {name} of shape {self.shape}; got {size}."
                    )
                read: Tensor = part[start:stop]
                if name == "latents" and read.dtype != self.dtype:
                    raise FileFormatError(f"{path}: expected {self.dtype}; got {dtype}.")
                return read
        except FileFormatError:
            raise
        except (SafetensorError, OSError, ValueError) as error:
            raise FileFormatError(
                f"{path}: expected a file of the store {self.path}; {error}. Fit with store= once more: what "
                "is missing is encoded again."
            ) from error


def shard_metadata(
    digest: str, batches: list[tuple[str, int]], tensors: dict[str, Tensor]
) -> dict[str, str]:
    """Tell of a file what it was made of and what it holds.

    It is one entry, since the format keeps no order among several.
    """
    told = {"sha256": digest, "batches": batches, "content": content_digest(tensors)}
    return {_KEY: json.dumps(told)}


def content_digest(tensors: dict[str, Tensor]) -> str:
    """Hash tensors to 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_intact(file: Any) -> bool:
    """Tell whether an open file holds what its metadata says; a bit that has changed is seen."""
    tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    return bool(read_metadata(file).get("content") == content_digest(tensors))


def read_metadata(file: Any) -> dict[str, Any]:
    """Read what :func:`shard_metadata` made of an open file; nothing if it is another's.

    Raises:
        ValueError: It is no JSON.
    """
    found = json.loads((file.metadata() or {}).get(_KEY, "{}"))
    return found if isinstance(found, dict) else {}


def _fields(entry: Any) -> tuple[str, int, str]:
    file, rows, digest = entry["file"], entry["rows"], entry["sha256"]
    plain = isinstance(file, str) and file == os.path.basename(file) and file not in ("", ".", "..")
    if not plain or type(rows) is not int or rows < 1 or not isinstance(digest, str):
        raise ValueError(f"got the file {entry!r}")  # a name with a folder in it is never followed
    return file, rows, digest


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        if path.stat().st_size > _MOST_INDEX_BYTES:
            raise FileFormatError(
                f"{path}: expected an index of at most {_MOST_INDEX_BYTES} bytes."
            )
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileFormatError(
            f"Expected a complete store of latents in {str(folder)!r}; it has no {INDEX}. "
            "fit_latent_sampler(encoder, dataset, store=...) makes it, or finishes it."
        ) from None
    except NotADirectoryError:
        raise FileFormatError(
            f"Expected the folder of a store of latents; {str(folder)!r} is a file. An array file is a "
            "dataset once it is loaded, as by np.load: fit_latent_sampler(None, array)."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: expected the index of a store; {error}. {_ANEW}") from error
    if not isinstance(index, dict) or index.get("format") != STORE_FORMAT:
        raise FileFormatError(
            f"{path}: expected the index of a store of latents; got another file. Is that the store's folder?"
        )
    version = index.get("format_version")
    if version != STORE_VERSION:
        raise FileFormatError(
            f"{path}: expected format version {STORE_VERSION}; got {version!r}. Upgrade latentfit."
        )
    return index
