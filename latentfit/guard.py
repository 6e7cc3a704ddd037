"""A bound on what building a plugin may take, for files that nobody vouches for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentfit.errors import FileFormatError

__all__ = ["BoundedBuild"]

# Factories by where their shapes are, or the number of values, among the arguments.
_SHAPE_FIRST = {"empty", "zeros", "ones", "full", "rand", "randn", "empty_strided", "randint"}
_SHAPE_SECOND = {"new_empty", "new_zeros", "new_ones", "new_full", "repeat"}
_NUMBERS = {"eye", "arange", "randperm", "linspace"}


class BoundedBuild(TorchDispatchMode):
    """Stops a build that makes more, or larger, tensors than those that a file has for it.

    A header of a few bytes can ask for a network that no memory holds. So what factories are asked for is
    looked at before they make it, and all that was made, views apart, is added up.

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
        asked = _asked(func._schema.name.removeprefix("aten::"), args)
        self._take(asked)
        made = func(*args, **(kwargs or {}))
        if not (asked or func.is_view or func._schema.is_mutable):
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
    """The number of values that a factory is asked for; 0 of what is none."""
    if name in _SHAPE_FIRST:
        shapes = [arg for arg in args if isinstance(arg, list | tuple | torch.Size)]
        return math.prod(shapes[0]) if shapes else 0
    if name in _SHAPE_SECOND:
        size = math.prod(args[1])
        return int(size * args[0].numel()) if name == "repeat" else size
    if name in _NUMBERS:
        numbers = [abs(arg) for arg in args if isinstance(arg, int | float)]
        if name == "eye":
            return int(numbers[0] * numbers[-1])
        return int(max(numbers, default=0))
    return 0
