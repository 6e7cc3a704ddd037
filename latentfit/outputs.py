"""From what an encoder or decoder returns to one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit.errors import EncoderOutputError

__all__ = ["from_array", "single_tensor"]


def single_tensor(output: Any, *, role: str = "encoder") -> Tensor:
    """Take the one tensor out of a tensor, an array, or a tuple, list or dict that holds exactly one.

    Args:
        output: What was returned.
        role: Who returned it, for the message.

    Raises:
        EncoderOutputError: There is none or more than one; the message lists what was seen.
    """
    if isinstance(output, Tensor | np.ndarray):
        return _tensor(output)
    if isinstance(output, Mapping):
        members = {repr(key): value for key, value in output.items()}
    elif isinstance(output, tuple | list):
        members = {str(index): value for index, value in enumerate(output)}
    else:
        raise EncoderOutputError(
            f"Expected the {role} to return a tensor, an array, or a tuple, list or dict that holds exactly "
            f"one; got {_describe(output)}. Wrap it: lambda x: {role}(x).the_tensor"
        )
    found = [value for value in members.values() if isinstance(value, Tensor | np.ndarray)]
    if len(found) != 1:
        seen = ", ".join(f"{key}: {_describe(value)}" for key, value in members.items())
        raise EncoderOutputError(
            f"Expected the {role} to return exactly one tensor; got a {type(output).__name__} with "
            f"{len(found)} of them ({seen or 'empty'}). Wrap it to choose: lambda x: {role}(x)[...]"
        )
    return _tensor(found[0])


def from_array(array: np.ndarray[Any, Any]) -> Tensor:
    """Give an array as a tensor; copies what tensors can't share: read-only, strided or byte-swapped memory.

    Raises:
        TypeError: torch has no such dtype.
    """
    native = array.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(array, native, ["C", "W", "E"]))


def _tensor(value: Tensor | np.ndarray[Any, Any]) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return from_array(value)
    except TypeError:
        raise EncoderOutputError(
            f"Expected an array of numbers; got one of dtype {value.dtype}."
        ) from None


def _describe(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} {tuple(value.shape)} {value.dtype}"
    return type(value).__name__
