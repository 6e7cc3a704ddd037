"""What users give as arrays, as NumPy's float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from latentfit.arguments import reason, told
from latentfit.errors import DataError, NonFiniteError

__all__ = ["array_of"]


def array_of(value: Any, name: str, what: str, *, kinds: str = "buif") -> npt.NDArray[Any]:
    """Give an argument as an array of finite numbers with rows.

    Args:
        value: A tensor, or what NumPy reads as an array.
        name: The argument's.
        what: What it should be.
        kinds: The kinds of dtypes that it may have, by NumPy's letters.

    Raises:
        DataError: It is none.
        NonFiniteError: NaN or infinity.
    """
    try:
        plain = value
        if hasattr(value, "detach"):  # a tensor, which may be on another device or of bfloat16
            plain = value.detach().cpu()
            plain = plain.double().numpy() if plain.is_floating_point() else plain.numpy()
        array = np.asarray(plain)
        if array.dtype.kind not in kinds:
            raise TypeError(f"these are of dtype {array.dtype}")
        if not array.ndim or not array.size:
            raise TypeError("that has no rows")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(
            f"Expected {what} for {name}; got {told(value)} ({reason(error)})."
        ) from error
    if not np.isfinite(array).all():
        raise NonFiniteError(f"Expected finite numbers for {name}; got {told(value)}.")
    return array
