"""A bound on what building a plugin may take, for files that nobody vouches for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentfit.errors import FileFormatError

__all__ = ["BoundedBuild"]

_SIZED = {"empty", "zeros", "ones", "full", "rand", "randn", "eye", "new_empty", "new_zeros"}


class BoundedBuild(TorchDispatchMode):
    """Stops a build that makes more, or larger, tensors than those that a file has for it.

    A header of a few bytes can ask for a network that no memory holds. So what is to be allocated is looked
    at before it is, and all that was made is added up.

    Args:
        values: The number of values in the file's tensors.
        tensors: The number of its tensors.

    Raises:
        FileFormatError: Too much was asked for.
    """

    def __init__(self, values: int, tensors: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Initialisations make what they need several times over, and buffers of their own.
        self._values = 64 * values + 2**22
        self._calls = 2000 * (tensors + 50)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        self._calls -= 1
        name = func._schema.name.removeprefix("aten::")
        if name in _SIZED:
            self._take(_asked(name, args))
            return func(*args, **(kwargs or {}))
        made = func(*args, **(kwargs or {}))
        if not func._schema.is_mutable:
            self._take(sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)))
        return made

    def _take(self, values: int) -> None:
        self._values -= values
        if self._values < 0 or self._calls < 0:
            raise FileFormatError(
                "expected options of a sampler of the size of the file's tensors; they ask for a much larger "
                "one."
            )


def _asked(name: str, args: tuple[Any, ...]) -> int:
    """The number of values that a factory is asked for."""
    if name == "eye":
        sizes = [size for size in args if isinstance(size, int)]
        return sizes[0] * sizes[-1] if sizes else 0
    shape = args[1] if name.startswith("new_") else args[0]
    return int(torch.Size(shape).numel())
