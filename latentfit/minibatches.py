"""Shuffled minibatches of rows in memory; those of rows on disk are in latentfit.rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, overload

import torch
from torch import Tensor

from latentfit.arguments import check_kind, check_whole, told
from latentfit.errors import DataError

__all__ = ["Batches", "TensorBatches", "minibatches"]


class Batches(Protocol):
    """Minibatches for ever, which can be taken up where they were."""

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]: ...

    def __next__(self) -> tuple[Tensor, ...]: ...

    def state(self) -> dict[str, Any]:
        """Tell how far they are."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there, with the same rows and the same size."""


class TensorBatches:
    """Minibatches of tensors: a permutation at a time, the short rest left out.

    Args:
        parts: Tensors of equal length N >= 1.
        size: Rows in a minibatch; fewer rows than that are one batch.
        generator: The source of randomness, on the tensors' device. Others may draw from it, too.
        pick: Takes what is wanted of a minibatch's index (n,): all, or a process's share.
    """

    def __init__(
        self,
        parts: tuple[Tensor, ...],
        size: int,
        generator: torch.Generator,
        *,
        pick: Callable[[Tensor], Tensor] = lambda index: index,
    ) -> None:
        self._parts, self._generator, self._pick = parts, generator, pick
        self._size = min(size, len(parts[0]))
        self._at = -1  # where in the permutation the next one starts; there is none yet
        self._began = generator.get_state()
        self._order = torch.empty(0)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        if self._at < 0 or self._at + self._size > len(self._parts[0]):
            self._began, self._at = self._generator.get_state(), 0
            self._order = self._permutation()
        index = self._pick(self._order[self._at : self._at + self._size])
        self._at += self._size
        return tuple(part[index] for part in self._parts)

    def state(self) -> dict[str, Any]:
        """The generator's state before the present permutation, and how much of that is used."""
        return {"began": self._began, "at": self._at}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state; the generator is where it was after its permutation was drawn."""
        self._began, self._at = state["began"], int(state["at"])
        self._generator.set_state(self._began)
        if self._at >= 0:
            self._order = self._permutation()

    def _permutation(self) -> Tensor:
        n, device = len(self._parts[0]), self._parts[0].device
        return torch.randperm(n, generator=self._generator, device=device)


@overload
def minibatches(
    rows: Tensor, batch_size: int, generator: torch.Generator, context: None = None
) -> Iterator[Tensor]: ...


@overload
def minibatches(
    rows: Tensor, batch_size: int, generator: torch.Generator, context: Tensor
) -> Iterator[tuple[Tensor, Tensor]]: ...


def minibatches(
    rows: Tensor, batch_size: int, generator: torch.Generator, context: Tensor | None = None
) -> Iterator[Any]:
    """Yield shuffled minibatches for ever: a permutation at a time, the short rest left out.

    Fewer rows than a batch are one batch. Works on rows in memory; there is no DataLoader in the hot loop.

    Args:
        rows: Training rows (N, D).
        batch_size: Rows in a minibatch.
        generator: The source of randomness, on the rows' device.
        context: The rows' contexts (N, C).

    Yields:
        Rows (n, D); with a context, pairs of rows and contexts (n, C).

    Raises:
        OptionError: Another batch_size or generator.
        DataError: No rows, or a context that is not theirs.
    """
    _check_rows("rows", rows)
    batch_size = check_whole("batch_size", batch_size, 1)
    check_kind("generator", generator, torch.Generator, "a torch.Generator")
    if context is not None:
        _check_rows("context", context)
        if len(context) != len(rows):
            raise DataError(
                f"Expected context as one row for each of the {len(rows)} rows; got "
                f"{told(context)}."
            )
        return iter(TensorBatches((rows, context), batch_size, generator))
    return (batch for (batch,) in TensorBatches((rows,), batch_size, generator))


def _check_rows(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) == 0:
        raise DataError(f"Expected {name} as a tensor of one row at least; got {told(value)}.")
