"""What datasets hold: batches of inputs, with labels where there are any, in one order."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from latentfit.arguments import reason, told
from latentfit.condition import as_labels
from latentfit.errors import DataError, LatentfitError, OptionError
from latentfit.outputs import as_array, from_array

__all__ = ["Batches", "check_dense", "input_of", "labels_of", "single_samples"]

# What a dict item's input is called in torch, transformers and datasets.
_INPUT_KEYS = ("x", "input", "inputs", "data", "image", "images", "img", "pixel_values", "latents")
_LABEL_KEYS = ("y", "label", "labels", "target", "targets")
_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_DATASETS = "a tensor, an array, a torch Dataset or IterableDataset, a DataLoader, or an iterable of batches"
_TO_TENSOR = (
    "Make tensors of images by torchvision's transform=ToTensor(), or arrays by np.array(image)"
)
# What a DataLoader that loads some of another's batches has in common with it.
_LOADING = (
    "collate_fn",
    "generator",
    "multiprocessing_context",
    "num_workers",
    "pin_memory",
    "prefetch_factor",
    "timeout",
    "worker_init_fn",
)


class Batches:
    """A dataset as numbered batches.

    Args:
        dataset: A tensor, an array, a dict of arrays, a torch Dataset, a DataLoader, or an iterable of
            batches.
        batch_size: Rows in a batch, where the dataset does not come in batches already.

    Attributes:
        total: The number of batches, or None where nobody knows.
        size: Rows in a batch, as far as that is known beforehand.
        may_be_samples: Whether the items are whatever somebody made, and so maybe single samples.
        are_copies: Whether batches are in memory of their own, so that writing to one changes no dataset.

    Raises:
        DataError: It is no dataset.
    """

    def __init__(self, dataset: Any, batch_size: int) -> None:
        self.total: int | None = None
        self.size = batch_size
        self.are_copies = False
        self._at: Callable[[int], Any] | None = None
        self.may_be_samples = isinstance(dataset, list | tuple)
        _check_no_pair(dataset)
        if isinstance(dataset, Mapping):
            dataset = _Columns(dataset)
        elif not isinstance(dataset, Tensor | Dataset) and hasattr(dataset, "__array__"):
            dataset = as_array(dataset)
        if isinstance(dataset, _Columns | Tensor | np.ndarray):
            if isinstance(dataset, Tensor | np.ndarray) and dataset.ndim == 0:
                raise DataError(
                    f"Expected a dataset of shape (N, ...); got a scalar, {told(dataset)}."
                )
            if isinstance(dataset, Tensor):
                check_dense(dataset)
            rows: Any = dataset
            self.total = len(range(0, len(rows), batch_size))
            self._at = lambda i: rows[i * batch_size : (i + 1) * batch_size]
            return
        if isinstance(dataset, Dataset) or hasattr(dataset, "__getitems__"):
            dataset = DataLoader(dataset, batch_size=batch_size, collate_fn=_collate)
        if not isinstance(dataset, Iterable) or isinstance(dataset, str | bytes):
            path = isinstance(dataset, str | bytes | os.PathLike)
            remedy = (
                " Load the file first; LatentStore(path) opens a folder of latents." if path else ""
            )
            raise DataError(
                f"Expected dataset as {_DATASETS}; got {type(dataset).__name__}.{remedy}"
            )
        self._items: Any = dataset
        if _is_sequential(dataset):
            _check_length(cast(Any, dataset).dataset)
        if type(dataset) is DataLoader:  # torch's own collation stacks, which copies
            self.are_copies = dataset.collate_fn in (_collate, default_collate)
        if not isinstance(dataset, DataLoader):
            self.may_be_samples = True  # whose items may be; they are looked at
        elif dataset.batch_size:
            self.size = dataset.batch_size
        elif dataset.batch_sampler is None:
            self.may_be_samples = True
            if not isinstance(dataset.dataset, IterableDataset):
                raise DataError(
                    "Expected a DataLoader that makes batches; got one with batch_size=None, whose items are "
                    "single samples. Pass batch_size=512."
                )
        try:
            self.total = len(cast(Any, dataset))
        except TypeError:
            self.total = None

    def check_order(self, purpose: str) -> None:
        """Refuse a DataLoader that shuffles.

        Args:
            purpose: What the order is needed for.

        Raises:
            OptionError: It does.
        """
        for sampler in self._samplers():
            if isinstance(sampler, _SHUFFLING) or getattr(sampler, "shuffle", False) is True:
                raise OptionError(
                    f"Expected a DataLoader in a fixed order for {purpose}; got one with a "
                    f"{type(sampler).__name__}. Pass shuffle=False: the fit shuffles by itself."
                )

    def check_labels_apart(self, name: str) -> None:
        """Refuse a DataLoader in another order than the dataset's, which labels that come apart are in.

        Args:
            name: What the labels are called.

        Raises:
            OptionError: It has a sampler that may give another order.
        """
        for sampler in self._samplers():
            if type(sampler) not in (SequentialSampler, BatchSampler):
                raise OptionError(
                    f"Expected a DataLoader in the dataset's order where {name} comes apart from it; got one "
                    f"with a {type(sampler).__name__}. Pass shuffle=False, or a dataset whose items are "
                    "(x, y)."
                )

    def check_undivided(self) -> None:
        """Refuse a DataLoader that was dealt out among the processes before, as the fit does that itself.

        Raises:
            OptionError: It was.
        """
        loader = self._items if self._at is None else None
        for part in (loader, *self._samplers()):
            divided = isinstance(part, DistributedSampler) and part.num_replicas > 1
            if divided or type(part).__module__.partition(".")[0] == "accelerate":
                raise OptionError(
                    "Expected the whole dataset in each process, as they deal it out among themselves; got "
                    f"a {type(part).__name__}, which gives a process its own part. Pass the dataset, or the "
                    "DataLoader as it was before accelerator.prepare."
                )

    def _samplers(self) -> list[Any]:
        """What tells in which order a DataLoader reads."""
        if self._at is not None or not isinstance(self._items, DataLoader):
            return []
        if isinstance(self._items.dataset, IterableDataset):
            return []  # in its own
        found: list[Any] = []
        inner = [self._items.sampler, self._items.batch_sampler]
        while inner:  # and what they are made from, as a BatchSampler is
            sampler = inner.pop()
            if sampler is not None:
                found.append(sampler)
                inner += [getattr(sampler, name, None) for name in ("sampler", "batch_sampler")]
        return found

    @contextmanager
    def giving_back(self) -> Iterator[None]:
        """Give a DataLoader's own generators back as they were: a later pass is in the same order."""
        loader = None if self._at is not None else self._items
        owners = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
        owners.append(getattr(owners[-1], "sampler", None))
        found = [getattr(owner, "generator", None) for owner in owners]
        states = [(g, g.get_state()) for g in found if isinstance(g, torch.Generator)]
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)

    def select(
        self,
        wanted: Callable[[int], bool] = lambda _: True,
        before: Callable[[int], None] = lambda _: None,
    ) -> Iterator[tuple[int, Any]]:
        """Yield the wanted batches with their numbers; what is not wanted is not loaded, if that can be.

        Args:
            wanted: Tells by its number whether a batch is.
            before: Called with a batch's number before it is loaded.
        """
        if self._at is not None:
            for index in range(self.total or 0):
                if wanted(index):
                    before(index)
                    yield index, self._at(index)
            return
        items = self._items
        numbers: Iterable[int] = itertools.count()
        if self.total is not None and _is_sequential(items):
            own = [index for index in range(self.total) if wanted(index)]
            if len(own) < self.total:
                items, numbers = _loader_of(items, own), own
        iterator = iter(items)
        for index in numbers:
            before(index)
            try:
                item = next(iterator)
            except StopIteration:
                return
            except _UnlikeItems as error:
                raise DataError(
                    f"Expected items of one kind and shape; item {index * self.size + error.place} of the "
                    f"dataset {error.told}. Leave it out, or bring it into the others' form."
                ) from error
            except LatentfitError:
                raise
            except Exception as error:
                if found := re.search(
                    r"default_collate: batch must contain .* <class '(.+)'>", str(error)
                ):
                    is_image = found[1].startswith("PIL.")
                    remedy = (
                        _TO_TENSOR if is_image else "Leave such items out, or make tensors of them"
                    )
                    raise DataError(
                        "Expected items that are tensors, arrays or numbers (or (x, y) or dicts of them); "
                        f"got {found[1]} in batch {index}. {remedy}."
                    ) from error
                error.add_note(self._place(index, error))
                raise
            if wanted(index):
                if self.may_be_samples:
                    _check_is_batch(item)
                yield index, item

    def _place(self, index: int, error: Exception) -> str:
        """Tell where in the dataset an error comes from: which batch, and which item if it comes again."""
        place = f"while the dataset gave batch {index}"
        if not _is_sequential(self._items):
            return place
        dataset = self._items.dataset
        first, end = index * self.size, min((index + 1) * self.size, len(dataset))
        for i in range(first, end):
            try:
                dataset[i]
            except type(error):
                return f"{place}: it is item {i}, of the {len(dataset)} that the dataset's len() tells of"
            except Exception:
                break
        return f"{place}, items {first} to {end - 1} of {len(dataset)}"


def check_dense(tensor: Tensor, what: str = "the dataset") -> None:
    """Refuse a sparse tensor.

    Args:
        tensor: The tensor.
        what: What it is called in the message.

    Raises:
        DataError: It is one.
    """
    if tensor.layout != torch.strided:
        raise DataError(
            f"Expected {what} as a dense tensor; got {tensor.layout}. Use x.to_dense()."
        )


class _Columns:
    """One dict of arrays for the whole dataset, cut into dicts of a batch each."""

    def __init__(self, dataset: Mapping[str, Any]) -> None:
        self.inputs = input_of(dataset)
        labels: Any = [dataset[key] for key in _LABEL_KEYS if key in dataset]
        self.labels = labels[0] if labels else None
        rows = getattr(self.labels, "__len__", lambda: -1)()
        self._cut = rows == len(self.inputs)  # what does not fit is told on use

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice) -> dict[str, Any]:
        batch = {"x": self.inputs[rows]}
        if self.labels is None:
            return batch
        return batch | {"y": self.labels[rows] if self._cut else self.labels}


class _UnlikeItems(Exception):
    """Items that make no batch; ``place`` is that of the first odd one, ``told`` what is odd about it."""

    def __init__(self, place: int, told: str) -> None:
        super().__init__(place, told)
        self.place, self.told = place, told


def _collate(items: list[Any]) -> Any:
    """Make a batch as torch does by default, and tell which item is unlike the first if that fails."""
    try:
        return default_collate(items)
    except (TypeError, RuntimeError):
        forms = [_form(item) for item in items]
        odd = next((i for i, form in enumerate(forms) if form != forms[0]), None)
        if odd is None:
            raise
        raise _UnlikeItems(odd, f"is {forms[odd]}, where the batch's first is {forms[0]}") from None


def _form(item: Any) -> str:
    """Tell an item's kind and shape."""
    if isinstance(item, tuple | list):
        return f"({', '.join(map(_form, item[:4]))}{', ...' if len(item) > 4 else ''})"
    if isinstance(item, Mapping):
        return "{" + ", ".join(f"{key}: {_form(value)}" for key, value in item.items()) + "}"
    shape = getattr(item, "shape", None)
    return type(item).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")


def _check_no_pair(dataset: Any) -> None:
    """Refuse (inputs, labels), which as two batches would be misread."""
    if not isinstance(dataset, list | tuple) or len(dataset) != 2:
        return
    x, y = (tuple(getattr(part, "shape", ())) for part in dataset)
    if x and y and x[0] == y[0] and (len(x) != len(y) or (y[1:] == (1,) and x[1:] != (1,))):
        raise DataError(
            f"Expected dataset as {_DATASETS}; got a {type(dataset).__name__} of {x} and {y}. A list or "
            "tuple is read as batches, not as (x, y): pass TensorDataset(x, y), of tensors."
        )


def _check_length(dataset: Any) -> None:
    try:
        len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise DataError(
            f"Expected a dataset with a length; got {type(dataset).__name__} ({reason(error)}). Give it "
            "__len__, or derive it from IterableDataset."
        ) from error


def _is_sequential(items: Any) -> bool:
    return (
        type(items) is DataLoader
        and type(items.batch_sampler) is BatchSampler
        and type(items.sampler) is SequentialSampler
    )


def _loader_of(loader: DataLoader[Any], numbers: list[int]) -> DataLoader[Any]:
    """Load some of a sequential DataLoader's batches, the way it does."""
    size, n = int(loader.batch_size or 1), len(cast(Any, loader.dataset))
    chosen = [range(i * size, min((i + 1) * size, n)) for i in numbers]
    settings = {name: getattr(loader, name) for name in _LOADING}
    return DataLoader(loader.dataset, batch_sampler=cast(Any, chosen), **settings)


def input_of(item: Any) -> Tensor:
    """Take the encoder's input out of an item: ``x``, ``(x, y)`` or a dict.

    Raises:
        DataError: There is none.
    """
    if isinstance(item, Mapping):
        arrays = [key for key, value in item.items() if isinstance(value, Tensor | np.ndarray)]
        named = [key for key in _INPUT_KEYS if key in arrays]
        if len(arrays) != 1 and not named:
            raise DataError(
                "Expected dict items in the dataset with one tensor, or with one called "
                f"{', '.join(_INPUT_KEYS)}; got the keys {', '.join(map(repr, item)) or 'none'}."
            )
        item = item[named[0] if named else arrays[0]]
    elif isinstance(item, tuple | list):
        if not item:
            raise DataError(
                "Expected items x, (x, y) or dicts in the dataset; got an empty tuple or list."
            )
        item = item[0]
    if not isinstance(item, Tensor) and hasattr(item, "__array__"):
        item = as_array(item)
    if isinstance(item, np.ndarray):
        try:
            return from_array(item)
        except TypeError:
            raise DataError(
                f"Expected the dataset as an array of numbers; got dtype {item.dtype}."
            ) from None
    if isinstance(item, Tensor):
        check_dense(item)
    else:
        is_image = type(item).__module__.startswith("PIL.")
        remedy = _TO_TENSOR if is_image else f"The dataset may be {_DATASETS}"
        raise DataError(
            f"Expected items that are tensors or arrays (or (x, y) or dicts of them); got "
            f"{type(item).__name__}. {remedy}."
        )
    return item


def labels_of(item: Any, n: int) -> Tensor:
    """Take the labels out of a batch's item: y of ``(x, y)``, or a dict's labels.

    Raises:
        DataError: There are none, or none of n rows.
    """
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


def _check_is_batch(item: Any) -> None:
    """Refuse an item that is one sample by all appearances; as a batch it would be misread."""
    batch = input_of(item)
    label = item[1] if isinstance(item, tuple | list) and len(item) == 2 else None
    labelled = isinstance(label, int | float) or getattr(label, "ndim", None) == 0
    if labelled or (batch.ndim == 1 and batch.is_floating_point()):
        raise single_samples(batch)


def single_samples(item: Tensor) -> DataError:
    """Make the error of a dataset whose items are samples, where batches are expected."""
    numbers = " (Batches of latents of one number each are x[:, None].)" if item.ndim == 1 else ""
    return DataError(
        f"Expected batches (n, ...); the items look like single samples of shape {tuple(item.shape)}. Stack "
        f"them with torch.stack, or pass DataLoader(samples, batch_size=512).{numbers}"
    )
