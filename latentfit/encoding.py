"""From a dataset to latents: batches of any origin through an encoder, once and in order."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from latentfit.batches import Batches, input_of, labels_of, single_samples
from latentfit.errors import (
    DataError,
    EncoderOutputError,
    LatentfitError,
    NonFiniteError,
    OptionError,
)
from latentfit.models import Model
from latentfit.parallel import SOLO, Workers
from latentfit.progress import Bar
from latentfit.randomness import isolated_rng, reseed

# The most rows of an item that could be one sample. (An encoder exported for batches of one size takes no row
# more; batches of so few images are no such ones.)
_MOST_CHANNELS, _MOST_OF_IMAGES = 64, 4
_COMPARED = 256  # values of the first latents that processes compare

__all__ = ["Encoding", "check_alike", "check_finite", "device_of", "digest_of", "encode"]


def encode(
    encoder: Model | None,
    dataset: Any,
    *,
    batch_size: int,
    progress: bool | None = None,
    labels: bool = False,
    seed: int = 0,
    workers: Workers = SOLO,
) -> tuple[Tensor, Tensor | None]:
    """Encode a dataset batch by batch, in memory.

    Each batch has random numbers of its own, from its place in the dataset: an encoder or a dataset that
    draws gives the same ones whoever encodes the other batches. The global random state stays as it was.

    Args:
        encoder: The encoder, or None if the dataset already holds latents.
        dataset: A tensor, an array, a torch Dataset, a DataLoader or an iterable of batches; items are
            ``x``, ``(x, y)`` or dicts.
        batch_size: Rows a call, where the dataset does not come in batches already.
        progress: Whether to show a bar; None means on a terminal.
        labels: Whether to collect the items' labels: y of ``(x, y)``, or a dict's "labels".
        seed: Of the encoder's and the dataset's random numbers.
        workers: The processes that share the work; each gets all latents.

    Returns:
        Latents (N, *shape) on the CPU, in the encoder's floating dtype; and the labels (N, ...) or None.

    Raises:
        DataError: An unusable dataset, batches that disagree in shape, or no rows.
        NonFiniteError: NaN or infinity among the latents.
        EncoderOutputError: The encoder returned no single tensor with a row for each input.
    """
    batches = Batches(dataset, batch_size)
    if workers.count > 1:
        batches.check_undivided()
        batches.check_order("several processes")
    encoding = Encoding(encoder, may_be_samples=batches.may_be_samples)
    parts: list[tuple[int, Tensor, Tensor | None]] = []
    device = device_of(encoder, dataset)
    with isolated_rng(seed, device), batches.giving_back(), Bar(encoding.verb, progress) as bar:
        for index, item in batches.select(
            lambda i: i == 0 or workers.owns(i),  # all look at the first, to be sure it is the same
            lambda i: reseed(seed, i, device),
        ):
            bar.show(index, batches.total)
            inputs = input_of(item)
            digest = digest_of(inputs) if index == 0 and workers.count > 1 else ""
            latents = encoding.latents(index, inputs, is_copy=batches.are_copies)
            if digest:
                check_alike(workers, digest, latents)
            if len(latents) and workers.owns(index):
                own = labels_of(item, len(latents)) if labels else None
                parts.append((index, latents, own))
        bar.show(batches.total or len(parts), batches.total)
    parts = sorted(workers.gather(parts), key=lambda part: part[0])
    if not parts:
        raise DataError(
            "Expected a dataset with at least 2 rows; got none. Was its iterator used up?"
        )
    if workers.count > 1:  # one process may have seen other shapes than another
        encoding.check_shapes(parts)
    whole = torch.cat([latents for _, latents, _ in parts])
    if workers.count > 1 or not encoding.is_finite:
        check_finite(whole, "latents", encoding.remedy)
    return whole, joined([own for _, _, own in parts if own is not None]) if labels else None


def digest_of(*tensors: Tensor | None) -> str:
    """Hash tensors, those that are there, to 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
            plain = tensor.detach().cpu().contiguous()
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_alike(workers: Workers, digest: str, latents: Tensor) -> None:
    """Check that all processes have the same dataset and the same encoder, by the first batch.

    Args:
        workers: The processes.
        digest: Of this one's inputs.
        latents: What its encoder made of them (n, ...).

    Raises:
        DataError: Another dataset, in whichever process.
        OptionError: Another encoder.
    """
    some = latents.detach().float().reshape(-1)[:_COMPARED]
    mine = (digest, tuple(latents.shape), some.nan_to_num().tolist())
    first, *others = workers.gather([mine])
    for rank, (data, shape, values) in enumerate(others, 1):
        if data != first[0]:
            raise DataError(
                "Expected the same dataset in all processes, which deal it out among themselves; the first "
                f"batch of the process of rank {rank} differs from that of the first."
            )
        ours, theirs = torch.tensor(first[2]), torch.tensor(values)
        # Other devices may round otherwise.
        if shape != first[1] or bool(((ours - theirs).abs() > 0.05 * ours.abs().amax()).any()):
            raise OptionError(
                "Expected the same encoder in all processes; that of the process of rank "
                f"{rank} makes other latents of the first batch than that of the first. Load the same "
                "weights in each, or seed them alike."
            )


class Encoding:
    """An encoder that is given one batch after the other.

    Args:
        encoder: The encoder, or None if the batches are latents.
        may_be_samples: Whether the batches could be single samples; the first is tried, then.

    Attributes:
        is_finite: Whether all latents so far are.
        remedy: What to do about latents that are not.
    """

    def __init__(self, encoder: Model | None, *, may_be_samples: bool = False) -> None:
        self.encoder = encoder
        self.verb = "encoding" if encoder else "reading"
        self.shape: torch.Size | None = None
        self._given: set[torch.Size] = set()  # shapes of batches so far
        self._may_be_samples = may_be_samples
        self.remedy = "leave these rows out"
        if encoder is not None:
            self.remedy = "if the encoder runs in half precision, run it in float32"
        self.is_finite = True
        self._buffer = torch.zeros(0)

    def latents(self, index: int, batch: Tensor, *, is_copy: bool = False) -> Tensor:
        """Encode a batch.

        Args:
            index: Its number, for messages.
            batch: Inputs (n, ...).
            is_copy: Whether the encoder may write over them; it gets a copy otherwise.

        Returns:
            Latents (n, *shape) on the CPU.

        Raises:
            DataError: No latents, or of another shape than the batches before.
            EncoderOutputError: The encoder returned no single tensor with a row for each input.
        """
        inputs, version = batch, _version(batch)
        if self.encoder is not None:
            batch = batch.detach() if is_copy else self._copy(batch)
            # What an encoder makes of a shape when it first sees it, and keeps, has to serve training later:
            # no tensor of inference mode, then.
            mode = torch.inference_mode if batch.shape in self._given else torch.no_grad
            self._given.add(batch.shape)
            try:
                with mode():
                    batch = self.encoder(batch)
            except EncoderOutputError as error:
                if not self._may_be_samples:
                    raise
                raise EncoderOutputError(
                    f"{error} If the items are single samples, stack them with torch.stack, or pass "
                    "DataLoader(samples, batch_size=512)."
                ) from error
            except LatentfitError:
                raise
            except Exception as error:
                note = f"while the encoder was given batch {index}, {tuple(inputs.shape)} {inputs.dtype}"
                if not (inputs.is_floating_point() or inputs.is_complex()):
                    note += "; if it takes no whole numbers, give it x.float()"
                error.add_note(note)
                raise
            if self._may_be_samples:
                self._check_is_batch(inputs)
                self._may_be_samples = False
        if batch.ndim == 0:
            raise DataError(f"Expected batches of shape (n, ...); got a scalar {batch.dtype}.")
        if batch.is_complex():
            raise DataError(f"Expected real latents; got {batch.dtype}. Use torch.view_as_real.")
        if not batch.is_floating_point() or batch.element_size() == 1:  # no sums of eight bits
            batch = batch.float()
        self._check_shape(index, batch)
        latents = batch.detach().to("cpu", copy=True)  # outside inference mode: an ordinary tensor
        if self.is_finite and not bool(latents.sum().isfinite()):
            self.is_finite = bool(latents.isfinite().all())
            # Inputs that the encoder has written over tell nothing of what they were.
            known = self.encoder is not None and (not is_copy or _version(inputs) == version)
            if known and not self.is_finite:
                self._explain(index, bool(inputs.isfinite().all()))
        return latents

    def _explain(self, index: int, inputs_are_finite: bool) -> None:
        """Fit the remedy to what the first batch of latents that are not finite was made of."""
        if inputs_are_finite:
            self.remedy = f"the encoder makes them of finite inputs: {self.remedy}"
        else:
            self.remedy = (
                f"the dataset's rows hold such themselves, the first in batch {index}: leave them out, or "
                "fill them in"
            )

    def _check_is_batch(self, inputs: Tensor) -> None:
        """Refuse a sample that the encoder took for a batch: of a batch it can take one row more.

        A layer without a batch axis takes (C, H, W), and where it returns C channels these look like C rows.
        """
        if not 0 < len(inputs) <= (_MOST_CHANNELS if inputs.ndim < 4 else _MOST_OF_IMAGES):
            return
        encoder: Any = self.encoder
        with isolated_rng(0, encoder.device or inputs.device), torch.no_grad():
            try:
                encoder(torch.cat([inputs, inputs[:1]]).detach())
            except Exception as error:
                raise single_samples(inputs) from error

    def _copy(self, batch: Tensor) -> Tensor:
        """Copy a batch; into the memory of the one before, as new pages cost more than the copying."""
        old = self._buffer
        fits = (old.shape, old.dtype, old.device) == (batch.shape, batch.dtype, batch.device)
        if not fits or old.stride() != batch.stride() or old.requires_grad:
            self._buffer = torch.empty_like(batch)
        # Another object each time, for an encoder that caches by its id.
        return self._buffer.copy_(batch.detach()).detach()

    def check_shapes(self, parts: list[tuple[int, Tensor, Tensor | None]]) -> None:
        """Check that latents of other processes have the same shape.

        Raises:
            DataError: They have not.
        """
        for index, latents, _ in parts:
            self._check_shape(index, latents)

    def _check_shape(self, index: int, latents: Tensor) -> None:
        shape = latents.shape[1:]
        if self.shape is None:
            self.shape = shape
        elif shape != self.shape:
            raise DataError(
                f"Expected batches of one shape (n, {', '.join(map(str, self.shape))}); batch {index} has "
                f"{tuple(latents.shape)}. A list or tuple is read as batches, not as (x, y): that is "
                "TensorDataset(x, y)."
            )


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; tensors of inference mode don't count it."""
    return 0 if tensor.is_inference() else tensor._version


def check_finite(rows: Tensor, what: str, remedy: str, *, start: int = 0) -> None:
    """Raise if rows (n, ...) hold NaN or infinity.

    Args:
        rows: What to look at.
        what: Their name, for the message.
        remedy: What to do about it.
        start: The index of the first of them, for the message.

    Raises:
        NonFiniteError: With the count, the first index and the remedy.
    """
    if bool(rows.sum().isfinite()):  # one quick pass: neither NaN nor infinity adds up to a number
        return
    bad = ~rows.reshape(len(rows), math.prod(rows.shape[1:])).isfinite().all(dim=1)
    count = int(bad.sum())
    if count:
        among = f"rows {start} to {start + len(rows) - 1}" if start else f"{len(rows)} rows"
        raise NonFiniteError(
            f"Expected finite {what}; got {count} of {among} with NaN or infinity, the first at "
            f"index {start + int(bad.int().argmax())}; {remedy}."
        )


def device_of(encoder: Model | None, dataset: Any) -> torch.device:
    """Tell where latents are made: where the encoder is, or else the dataset."""
    if encoder is not None and encoder.device is not None:
        return encoder.device
    return dataset.device if isinstance(dataset, Tensor) else torch.device("cpu")


def joined(parts: list[Tensor]) -> Tensor:
    """Put batches' labels together.

    Raises:
        DataError: They are not of one kind and shape.
    """
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
