"""Rows: training rows that are read, transformed and shuffled as they are needed, in bounded memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from latentfit.condition import Condition

__all__ = ["Latents", "Rows", "StoredBatches", "TensorLatents", "draw_index"]

_BLOCK = (
    512  # rows that are read at once; they stay neighbours until they meet others in the buffer
)
_BUFFER_BYTES = 64 * 2**20
_LEAST_BLOCKS = 32  # in the buffer
_PART_BYTES = 16 * 2**20


class Latents(Protocol):
    """Where rows are read from: a LatentStore, or a tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        r"""The shape of one latent."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Tensor:
        r"""Latents (stop - start, \*shape)."""

    def take(self, index: Tensor) -> Tensor:
        r"""Latents (n, \*shape) of an ascending index (n,)."""


class TensorLatents:
    r"""Latents (N, \*shape) in memory."""

    def __init__(self, latents: Tensor) -> None:
        self._latents = latents

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one latent."""
        return tuple(self._latents.shape[1:])

    def __len__(self) -> int:
        return len(self._latents)

    def read(self, start: int, stop: int) -> Tensor:
        """Give some neighbours."""
        return self._latents[start:stop]

    def take(self, index: Tensor) -> Tensor:
        """Give some."""
        return self._latents[index]


class Rows:
    """Rows (N, D) that are too many for memory; a plugin that ``streams`` is given these for a tensor.

    It hands them to :func:`latentfit.plugin.train` as they are, or takes from its run what it needs of them:
    ``run.batches(rows)``, and ``run.subset(rows, most)`` as a tensor.

    Args:
        latents: Where they are read from.
        forward: From latents (n, D') to float32 rows (n, D).
        dim: D.
        left_out: The latents that are none of these rows: an index (m,), ascending.
        condition: What turns labels into contexts, or None.
        labels: The labels of all latents.
        device: Where rows are wanted.
    """

    def __init__(
        self,
        latents: Latents,
        forward: Callable[[Tensor], Tensor],
        dim: int,
        *,
        left_out: Tensor,
        condition: Condition | None = None,
        labels: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._latents, self._forward, self.dim = latents, forward, dim
        self._left_out, self._condition, self._labels = left_out, condition, labels
        self.device = device or torch.device("cpu")
        self._changes: tuple[Callable[..., Tensor], ...] = ()

    def __len__(self) -> int:
        return len(self._latents) - len(self._left_out)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self), self.dim

    def map(self, change: Callable[..., Tensor], dim: int) -> Rows:
        """Give rows that are changed as they are read.

        Args:
            change: From rows (n, D), and their contexts (n, C) where there are any, to rows (n, dim).
            dim: The number of columns afterwards.
        """
        changed = copy.copy(self)
        changed.dim, changed._changes = dim, (*self._changes, change)
        return changed

    def without(self, left_out: Tensor) -> Rows:
        """Give the rows that are not among these latents: an index (m,), ascending."""
        fewer = copy.copy(self)
        fewer._left_out = left_out
        return fewer

    def batches(
        self, size: int, generator: torch.Generator, rank: int = 0, count: int = 1
    ) -> StoredBatches:
        """Give minibatches for ever, with their contexts if there are any.

        Args:
            size: Rows in a minibatch of this process.
            generator: The source of the order, the same in all processes.
            rank: Which process this is.
            count: How many they are.
        """
        return StoredBatches(self, size, generator, rank, count)

    def parts(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield all rows once and in order, with their contexts if there are any."""
        size = self._part_rows()
        for start in range(0, len(self._latents), size):
            places = self._places(start, start + size)
            if len(places):
                yield self._finished(self._read_block(places), places)

    def subset(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw n rows without replacement, (n, D), with their contexts if there are any."""
        places = draw_index(len(self._latents), n, generator, self._left_out)
        return self.take(places)

    def first(self, n: int) -> tuple[Tensor, ...]:
        """Take n rows (n, D) at equal distances, with their contexts if there are any."""
        every = (
            torch.linspace(0, len(self._latents) - 1, min(n, len(self._latents))).long().unique()
        )
        return self.take(every[~torch.isin(every, self._left_out)])

    def take(self, places: Tensor) -> tuple[Tensor, ...]:
        """Read the rows of these latents, an ascending index (n,), with their contexts if there are any."""
        split = places.split(self._part_rows())  # one part at least
        parts = [self._finished(self._latents.take(part), part) for part in split]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _part_rows(self) -> int:
        """How many rows are read at once where all are wanted."""
        return max(1, _PART_BYTES // (4 * math.prod(self._latents.shape)))

    def _places(self, start: int, stop: int) -> Tensor:
        """The indices of rows among latents start to stop."""
        places = torch.arange(start, min(stop, len(self._latents)))
        edges = torch.tensor([start, stop])
        low, high = torch.searchsorted(self._left_out, edges).tolist()
        if low == high:
            return places
        keep = torch.ones(len(places), dtype=torch.bool)
        keep[self._left_out[low:high] - start] = False
        return places[keep]

    def _read_block(self, places: Tensor) -> Tensor:
        first, last = int(places[0]), int(places[-1]) + 1
        latents = self._latents.read(first, last)
        return latents if len(latents) == len(places) else latents[places - first]

    def _finished(self, latents: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        """Turn latents at these places into rows, with contexts."""
        rows = self._forward(latents.reshape(len(latents), -1)).to(self.device)
        finished: tuple[Tensor, ...] = (rows,)
        if self._condition is not None and self._labels is not None:
            context = self._condition.encode(self._labels[places], len(places))
            finished = (rows, context.to(self.device))
        for change in self._changes:
            finished = (change(*finished), *finished[1:])
        return finished


class StoredBatches:
    """Minibatches of rows that are read as they are needed.

    Blocks of neighbours are read in random order into a buffer, and drawn from it at random; in one pass each
    row comes once, but for a rest of less than a minibatch. Of several processes each reads the blocks that
    are its own. The arguments are those of :meth:`Rows.batches`.
    """

    def __init__(
        self, rows: Rows, size: int, generator: torch.Generator, rank: int, count: int
    ) -> None:
        self._rows, self._size, self._rank, self._count = rows, size, rank, count
        drawn = torch.randint(2**62, (1,), generator=generator, device=generator.device)
        # The first is the same in all processes, to the end.
        self._ordering = torch.Generator().manual_seed(int(drawn))
        self._mixing = torch.Generator().manual_seed(int(drawn) + 1 + rank)
        self._restart(0)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        return next(self._batches)

    def state(self) -> dict[str, Any]:
        """The two random states before the present pass, and how many minibatches of it were taken."""
        ordering, mixing = self._began
        return {"ordering": ordering, "mixing": mixing, "taken": self._taken}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state; what is left out is not read again."""
        self._ordering.set_state(state["ordering"])
        self._mixing.set_state(state["mixing"])
        self._restart(int(state["taken"]))

    def _restart(self, taken: int) -> None:
        self._began = self._ordering.get_state(), self._mixing.get_state()
        self._taken = taken
        self._batches = self._passes(taken)

    def _passes(self, skipped: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield passes for ever, without so many minibatches of the first one."""
        rows, size = self._rows, self._size
        blocks = math.ceil(len(rows._latents) / _BLOCK)
        bytes_in_block = 4 * _BLOCK * math.prod(rows._latents.shape)
        at_once = max(_LEAST_BLOCKS, _BUFFER_BYTES // bytes_in_block, math.ceil(size / _BLOCK) + 1)
        while True:
            order = torch.randperm(blocks, generator=self._ordering)
            order = order[self._rank :: self._count] if blocks >= self._count else order
            for chosen in order.split(at_once):
                found = [rows._places(i * _BLOCK, (i + 1) * _BLOCK) for i in chosen.tolist()]
                found = [places for places in found if len(places)]
                if not found:
                    continue
                places = torch.cat(found)
                mixed = torch.randperm(len(places), generator=self._mixing)
                full = [
                    index for index in mixed.split(size) if len(index) == min(size, len(places))
                ]
                wanted, skipped = full[skipped:], max(0, skipped - len(full))
                if not wanted:
                    continue
                latents = torch.cat([rows._read_block(own) for own in found])
                for index in wanted:
                    self._taken += 1
                    yield rows._finished(latents[index], places[index])
            self._began = self._ordering.get_state(), self._mixing.get_state()
            self._taken = 0


def draw_index(
    n: int, size: int, generator: torch.Generator, left_out: Tensor | None = None
) -> Tensor:
    """Draw distinct numbers below n in memory of their size, not of n: (size,) int64, ascending.

    Args:
        n: What they are below.
        size: How many; fewer if there are not so many.
        generator: The source of randomness, on any device.
        left_out: Numbers that are not to be drawn, (m,), ascending.
    """
    left_out = torch.zeros(0, dtype=torch.int64) if left_out is None else left_out
    size = min(size, n - len(left_out))
    if size == n:
        return torch.arange(n)
    if 2 * (size + len(left_out)) > n:
        drawn = torch.randperm(n, generator=generator, device=generator.device).cpu()
        drawn = drawn[~torch.isin(drawn, left_out)]
        return drawn[:size].sort().values
    drawn = torch.zeros(0, dtype=torch.int64)
    while len(drawn) < size:
        shape = (2 * (size - len(drawn)) + 16,)
        more = torch.randint(n, shape, generator=generator, device=generator.device).cpu()
        drawn = torch.cat((drawn, more)).unique()
        drawn = drawn[~torch.isin(drawn, left_out)]
    keep = torch.randperm(len(drawn), generator=generator, device=generator.device).cpu()[:size]
    return drawn[keep].sort().values
