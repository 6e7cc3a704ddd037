"""The processes that share a run, on Hugging Face accelerate; one alone where there is no accelerator."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from latentfit.arguments import told
from latentfit.errors import OptionError

__all__ = ["SOLO", "Workers", "workers_of"]


class Workers:
    """The processes of a run: who this one is, and what they tell each other.

    All methods but those that say otherwise are called by all processes, in the same order.

    Args:
        accelerator: An ``accelerate.Accelerator``; None for a process of its own.

    Attributes:
        count: How many they are.
        rank: Which one this is, from 0.
    """

    def __init__(self, accelerator: Any = None) -> None:
        self._accelerator = accelerator
        self.count = 1 if accelerator is None else int(accelerator.num_processes)
        self.rank = 0 if accelerator is None else int(accelerator.process_index)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def owns(self, number: int) -> bool:
        """Tell, of numbered pieces of work that are dealt out in turn, which are this process's."""
        return number % self.count == self.rank

    def wait(self) -> None:
        """Wait until all have come here."""
        if self.count > 1:
            self._accelerator.wait_for_everyone()

    def gather(self, mine: list[Any]) -> list[Any]:
        """Put all processes' lists together, in the order of the processes."""
        if self.count == 1:
            return mine
        from accelerate.utils import gather_object

        gathered: list[Any] = gather_object(mine)
        return gathered

    def agree(self, **arguments: Any) -> None:
        """Make sure that all were given the same: else they would wait for each other for ever, or mix.

        Numbers and texts are compared, of all else the type and the length.

        Raises:
            OptionError: They were not; in all processes, with the first difference.
        """
        told = self.gather([{name: _told(value) for name, value in arguments.items()}])
        for rank, other in enumerate(told):
            for name, value in told[0].items():
                if other[name] != value:
                    raise OptionError(
                        f"Expected the same {name} in all processes; got {value} in the first and "
                        f"{other[name]} in that of rank {rank}."
                    )

    def first(self, value: Any) -> Any:
        """Give everyone the first process's value."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        (given,) = broadcast_object_list([value])
        return given

    def any(self, flag: bool) -> bool:
        """Tell whether it holds in any of them."""
        return self.largest(float(flag)) > 0

    def largest(self, value: float) -> float:
        """Give everyone the largest of their values."""
        if self.count == 1:
            return value
        own = torch.tensor([value], dtype=torch.float32, device=self._accelerator.device)
        return float(self._accelerator.gather(own).max())

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their means over the processes."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])  # one message for all
        flat = self._accelerator.reduce(flat, reduction="mean")
        for gradient, mean in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))

    @torch.no_grad()
    def share(self, *modules: nn.Module) -> None:
        """Give everyone the first process's parameters and buffers."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        for module in modules:
            for tensor in module.state_dict(keep_vars=True).values():
                tensor.copy_(broadcast(tensor.detach().clone()))

    def pick(self, rows: Tensor) -> Tensor:
        """Take this process's share of a minibatch."""
        return rows if self.count == 1 else rows[self.rank :: self.count]


def _told(value: Any) -> str:
    members = value if isinstance(value, tuple | list) else (value,)
    plain = (str, int, float, os.PathLike, torch.dtype, type(None))
    if all(isinstance(member, plain) for member in members):
        return repr(value)
    name = type(value).__name__
    with suppress(Exception):  # many have none
        return f"{name} of length {len(value)}"
    return name


SOLO = Workers()


def workers_of(accelerator: Any) -> Workers:
    """Check an accelerator.

    Raises:
        OptionError: It is something else.
    """
    if accelerator is None:
        return SOLO
    needed = ("num_processes", "process_index", "wait_for_everyone", "gather", "reduce", "device")
    if isinstance(accelerator, type) or not all(hasattr(accelerator, name) for name in needed):
        raise OptionError(
            f"Expected accelerator as an accelerate.Accelerator() or None; got {told(accelerator)}."
        )
    return Workers(accelerator)
