"""Filling a LatentStore: encode what is not there yet, in any number of processes, resumable at any time."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentfit._version import __version__
from latentfit.arguments import check_path, reason
from latentfit.batches import Batches, input_of, labels_of
from latentfit.encoding import Encoding, check_alike, check_finite, device_of, digest_of, joined
from latentfit.errors import DataError, FileFormatError, OptionError
from latentfit.models import Model
from latentfit.parallel import SOLO, Workers
from latentfit.persistence import atomic_path
from latentfit.progress import Bar, say
from latentfit.randomness import isolated_rng, reseed
from latentfit.store import (
    INDEX,
    MOMENTS,
    STORE_FORMAT,
    STORE_VERSION,
    LatentStore,
    Shard,
    is_intact,
    read_metadata,
    shard_metadata,
)

__all__ = ["fill_store"]

SHARD_ROWS = 4096  # about; a file ends with a batch
_LOCK = ".lock"
_PATIENCE = 1.0  # seconds of waiting for it without a word
_OWN = re.compile(r"[0-9a-f]{16}-\d{7}\.safetensors|\.[^/]+\.[0-9a-f]{8}\.tmp")
_KEPT = "; the files that are complete so far are kept"


def fill_store(
    path: str | os.PathLike[str],
    encoder: Model | None,
    dataset: Any,
    *,
    batch_size: int,
    labels: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    workers: Workers = SOLO,
) -> LatentStore:
    """Encode a dataset into a store; what this encoder made of the same data before is kept.

    The dataset is read in any case and compared batch by batch, by SHA-256; the encoder sees only what is
    not in the store. Latents of another encoder are replaced when the new ones are complete. A kill at any
    instant leaves whole files, from which the next call goes on. One process at a time fills a store; others
    wait for it. Labels are kept where the items have any.

    Args:
        path: The store's folder; it is created where it is missing.
        encoder: The encoder, or None if the dataset already holds latents.
        dataset: As for :func:`latentfit.encoding.encode`, in a fixed order.
        batch_size: Rows a call, where the dataset does not come in batches already.
        labels: Whether the items must have labels.
        seed: Of the encoder's and the dataset's random numbers.
        progress: Whether to show a bar; None means on a terminal.
        workers: The processes that share the work and this folder.

    Raises:
        OptionError: The folder holds other things than a store, or the dataset is shuffled.
        DataError: An unusable dataset, batches that disagree in shape, or no rows.
        NonFiniteError: NaN or infinity among the latents.
        EncoderOutputError: The encoder returned no single tensor with a row for each input.
        OSError: The folder can't be written.
    """
    batches = Batches(dataset, batch_size)
    if workers.count > 1:
        batches.check_undivided()
    batches.check_order("store=")
    folder, device = _folder_of(path), device_of(encoder, dataset)
    fingerprint = "latents" if encoder is None else encoder.fingerprint()
    if encoder is not None and encoder.draws:
        fingerprint += f" drawn by seed {seed}"
    fingerprint = workers.first(fingerprint)  # files are named by it
    with _locked(folder, progress) if workers.is_first else nullcontext():
        if workers.is_first:
            _clear(folder)
        workers.wait()
        encoding = Encoding(encoder, may_be_samples=batches.may_be_samples)
        each = max(1, SHARD_ROWS // batches.size)
        with (
            ThreadPoolExecutor(1, "latentfit-hashing") as hashing,
            isolated_rng(seed, device),
            batches.giving_back(),
            Bar(encoding.verb, progress) as bar,
        ):
            filling = _Filling(folder, fingerprint, encoding, labels, hashing)
            for index, item in batches.select(
                # All look at the first batch, to be sure that they have the same.
                lambda i: i == 0 or workers.owns(i // each),
                lambda i: reseed(seed, i, device),
            ):
                bar.show(index, batches.total)
                if index == 0 and workers.count > 1:
                    inputs = input_of(item)
                    check_alike(workers, digest_of(inputs), encoding.latents(index, inputs))
                    reseed(seed, index, device)  # as it was, for whose batch it is
                if workers.owns(index // each):
                    filling.add(index, index // each, item)
            filling.finish()
            bar.show(batches.total or filling.seen, batches.total)
        entries = sorted(workers.gather(filling.entries), key=lambda entry: entry["number"])
        if workers.is_first:
            _write_index(folder, fingerprint, entries)
        workers.wait()
        return LatentStore(folder)


class _Filling:
    """The files of a store that one process writes, one after the other."""

    _agree: bool  # whether all batches of the file so far are those that it was made of
    _aligned: bool  # whether they have as many rows as those
    _sizes: list[int]  # rows of the file's batches

    def __init__(
        self, folder: Path, fingerprint: str, encoding: Encoding, labels: bool, hashing: Executor
    ) -> None:
        self.folder, self.encoding, self._hashing = folder, encoding, hashing
        self.prefix = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
        self.entries: list[dict[str, Any]] = []
        self.seen = 0  # rows
        self._labelled = True if labels else None
        self._number, self._sizes = -1, []

    def add(self, index: int, number: int, item: Any) -> None:
        """Take one batch, that of this index, into the file of this number."""
        if number != self._number:
            self.finish()
            self._begin(number)
        inputs = input_of(item)
        n = 0 if inputs.ndim == 0 else len(inputs)
        labels = self._labels(item, n)
        digest = self._hashing.submit(digest_of, inputs, labels)  # while the encoder works
        place, start = len(self._hashes), sum(self._sizes)
        known, rows = self._known[place] if place < len(self._known) else ("", -1)
        is_kept = self._aligned and (known, rows) == (digest.result(), n)
        self._aligned = self._aligned and rows == n
        self._agree = self._agree and is_kept
        if is_kept:
            self._latents.append((start, start + n))
        else:
            latents = self.encoding.latents(index, inputs)  # of a copy: the inputs are being read
            if self.encoding.encoder is not None:
                self.encoding.encoder.check_fingerprint()
            if not self.encoding.is_finite:
                remedy = self.encoding.remedy + _KEPT
                check_finite(latents, "latents", remedy, start=self.seen)
            self._latents.append(latents)
        self._hashes.append(digest.result())
        self._sizes.append(n)
        self._label_parts.append(labels)
        self.seen += n

    def finish(self) -> None:
        """Write the file, unless the one that is there has the same in it."""
        rows = sum(self._sizes)
        if not rows:
            return
        digest = hashlib.sha256("".join(self._hashes).encode()).hexdigest()
        labels = joined([p for p in self._label_parts if p is not None]) if self._labelled else None
        if not (self._agree and len(self._hashes) == len(self._known)):
            latents = torch.cat([self._part(part) for part in self._latents])
            tensors = {
                "latents": latents.contiguous()
            }  # channels_last is an order that files do not know
            if labels is not None:
                tensors["labels"] = labels.contiguous()
            batches = list(zip(self._hashes, self._sizes, strict=True))
            content = safetensors.torch.save(
                tensors, metadata=shard_metadata(digest, batches, tensors)
            )
            with atomic_path(self._file, follow=False) as temporary:
                temporary.write_bytes(content)
            shape, dtype = tensors["latents"].shape[1:], tensors["latents"].dtype
        else:
            with safe_open(self._file, framework="pt") as file:
                first: Tensor = file.get_slice("latents")[:1]
            shape, dtype = first.shape[1:], first.dtype
        self.entries.append(
            {
                "number": self._number,
                "file": self._file.name,
                "rows": rows,
                "sha256": digest,
                "shape": list(shape),
                "dtype": str(dtype).removeprefix("torch."),
                "labels": None if labels is None else f"{labels.dtype} {(*labels.shape[1:],)}",
            }
        )

    def _begin(self, number: int) -> None:
        self._number = number
        self._file = self.folder / f"{self.prefix}-{number:07d}.safetensors"
        self._hashes: list[str] = []
        self._sizes = []
        self._latents: list[Tensor | tuple[int, int]] = []
        self._label_parts: list[Tensor | None] = []
        self._known = _known(self._file)
        self._agree = self._aligned = bool(self._known)

    def _part(self, part: Tensor | tuple[int, int]) -> Tensor:
        if isinstance(part, Tensor):
            return part
        with safe_open(self._file, framework="pt") as file:
            read: Tensor = file.get_slice("latents")[part[0] : part[1]]
            return read.clone()

    def _labels(self, item: Any, n: int) -> Tensor | None:
        """An item's labels; unless they are asked for, the first batch decides whether there are any."""
        if self._labelled is False:
            return None
        try:
            labels = labels_of(item, n)
        except DataError:
            if self._labelled:
                raise
            self._labelled = False
            return None
        self._labelled = True
        return labels


def _known(file: Path) -> list[tuple[str, int]]:
    """The batches that a file was made of; none where it is missing or damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            known = [(str(digest), int(n)) for digest, n in read_metadata(opened)["batches"]]
            rows = opened.get_slice("latents").get_shape()[0]
            if not is_intact(opened):
                return []
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return []
    return known if rows == sum(n for _, n in known) else []


@contextmanager
def _locked(folder: Path, progress: bool | None) -> Iterator[None]:
    """Hold the folder's lock; the system gives it back if this process dies."""
    lock = FileLock(folder / _LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_folder(folder)  # before a lock is left in another's folder
        lock.acquire(timeout=_PATIENCE)
    except (FileExistsError, NotADirectoryError):
        raise OptionError(f"Expected store as a folder; {str(folder)!r} is a file.") from None
    except Timeout:
        where = str(folder.absolute())
        say(f"latentfit: waiting for another process, which fills the store {where!r}.", progress)
        lock.acquire()
    except OSError as error:  # no permission, or a place that takes no folders, such as /proc
        raise OptionError(
            f"Expected store as a folder that can be written; {str(folder)!r}: "
            f"{error.strerror or reason(error)}. A finished store can be read as a dataset: "
            "fit_latent_sampler(None, LatentStore(path))."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _folder_of(path: Any) -> Path:
    folder = check_path("store", path, "a folder of its own")
    if folder == Path():
        raise OptionError("Expected store as the path of a folder of its own; got '.'.")
    return folder


def _clear(folder: Path) -> None:
    """Remove what killed writers have left."""
    for name in os.listdir(folder):
        if name.endswith(".tmp") and _OWN.fullmatch(name):
            (folder / name).unlink()


def _check_folder(folder: Path) -> None:
    """Refuse a folder with other people's files, or with a store that a newer latentfit has made."""
    if (folder / os.pardir / INDEX).is_file() and any(
        _OWN.fullmatch(name) for name in os.listdir(folder / os.pardir)
    ):
        raise OptionError(
            "Expected store as a folder outside of other stores, which hold nothing but latents; "
            f"{str(folder)!r} is in one."
        )
    names = sorted(os.listdir(folder))
    others = [n for n in names if n not in (INDEX, MOMENTS, _LOCK) and not _OWN.fullmatch(n)]
    index = folder / INDEX
    if index.is_file():
        try:
            found = json.loads(index.read_bytes())
            known = found["format"] == STORE_FORMAT
            version = found["format_version"] if known else STORE_VERSION
        except (ValueError, TypeError, KeyError):  # damaged, or somebody else's
            known, version = any(_OWN.fullmatch(name) for name in names), STORE_VERSION
        if not known:
            others.append(INDEX)
        if version != STORE_VERSION:
            raise FileFormatError(
                f"{index}: expected format version {STORE_VERSION}; got {version!r}. Upgrade latentfit, or "
                "take another folder."
            )
    if others:
        raise OptionError(
            f"Expected store as an empty folder or a store of latents; {str(folder)!r} holds "
            f"{', '.join(others[:3])}{' and more' if len(others) > 3 else ''}."
        )


def _write_index(folder: Path, fingerprint: str, entries: list[dict[str, Any]]) -> None:
    """Write the index, then remove the files that it does not name."""
    if not entries:
        raise DataError(
            "Expected a dataset with at least 2 rows; got none. Was its iterator used up?"
        )
    for what in ("shape", "dtype", "labels"):
        found = {json.dumps(entry[what]) for entry in entries}
        if len(found) > 1:
            raise DataError(
                f"Expected batches of one {what}; got {' and '.join(sorted(found))} in one dataset."
            )
    shards = [Shard(entry["file"], entry["rows"], entry["sha256"]) for entry in entries]
    index = {
        "format": STORE_FORMAT,
        "format_version": STORE_VERSION,
        "latentfit": __version__,
        "encoder": fingerprint,
        "data": hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest(),
        "n": sum(shard.rows for shard in shards),
        "order": "that of the dataset",
        "shape": entries[0]["shape"],
        "dtype": entries[0]["dtype"],
        "labels": entries[0]["labels"] is not None,
        "shards": [vars(shard) for shard in shards],
    }
    text = json.dumps(index, indent=1)
    target = folder / INDEX
    if not target.is_file() or target.read_text() != text:
        with atomic_path(target, follow=False) as temporary:
            temporary.write_text(text)
    named = {shard.file for shard in shards}
    for name in os.listdir(folder):
        if name.endswith(".safetensors") and _OWN.fullmatch(name) and name not in named:
            (folder / name).unlink()
