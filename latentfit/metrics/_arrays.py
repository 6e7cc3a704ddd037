"""What the metrics share: checks of what they are given, and distances in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from latentfit.arguments import reason, told
from latentfit.errors import DataError, NonFiniteError

__all__ = [
    "FloatArray",
    "check_numbers",
    "check_rows",
    "check_sets",
    "distances",
    "pieces",
    "twice_below",
]

FloatArray = npt.NDArray[np.float64]

_PIECE = 2**22  # values of a matrix that are there at once: 32 MB


def distances(a: FloatArray, b: FloatArray) -> FloatArray:
    """Euclidean distances (n, m) between the rows of a and those of b."""
    from scipy.spatial.distance import cdist

    found: FloatArray = cdist(a, b)
    return found


def twice_below(numbers: FloatArray, others: FloatArray) -> npt.NDArray[np.int64]:
    """Count how many numbers (n,) are below each of the others (m,), times two: equal ones count half."""
    ordered = np.sort(numbers)
    below: npt.NDArray[np.int64] = np.searchsorted(ordered, others, "left")
    return below + np.searchsorted(ordered, others, "right")


def pieces(n: int, m: int) -> Iterator[slice]:
    """Cut n rows so that what each piece makes with m others takes some MB."""
    size = max(1, _PIECE // m)
    for start in range(0, n, size):
        yield slice(start, start + size)


def check_sets(*, least: int = 2, **given: Any) -> list[FloatArray]:
    """Check sets of features, given by the arguments' names: as many columns each, and no fewer rows.

    Raises:
        DataError: They are none, or don't match.
        NonFiniteError: NaN or infinity.
    """
    sets = {name: check_rows(value, name) for name, value in given.items()}
    if len({rows.shape[1] for rows in sets.values()}) > 1 or min(map(len, sets.values())) < least:
        number = {2: "two", 3: "three"}[len(sets)]
        *most, last = (f"{name} of {rows.shape}" for name, rows in sets.items())
        raise DataError(
            f"Expected {number} sets of at least {least} rows with as many columns; got {', '.join(most)} "
            f"and {last}."
        )
    return list(sets.values())


def check_numbers(value: Any, name: str, what: str) -> FloatArray:
    """Give what an argument holds as float64.

    Raises:
        DataError: It holds no real numbers.
    """
    plain = value
    try:
        if hasattr(value, "detach"):  # a tensor, which may be on another device or of bfloat16
            plain = value.detach().cpu()
            plain = plain if plain.is_complex() else plain.double().numpy()
        # NumPy would read texts as numbers, and drop imaginary parts.
        if np.asarray(plain).dtype.kind not in "buifO":
            raise TypeError("these are no real numbers")
        numbers = np.asarray(plain, dtype=np.float64)
        if numbers.ndim == 0:
            raise TypeError("that has no rows")
        return numbers
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"Expected {what} for {name}; got {told(value)} ({reason(error)})."
        ) from error


def check_rows(x: Any, name: str) -> FloatArray:
    """Check features and give them as a float64 matrix (n, d).

    Raises:
        DataError: They are none, or fewer than two rows.
        NonFiniteError: NaN or infinity.
    """
    rows = check_numbers(x, name, "features of shape (n, d)")
    if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] < 1:
        raise DataError(
            f"Expected features of shape (n, d) for {name}, n >= 2 and d >= 1; got {rows.shape}."
        )
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise NonFiniteError(
            f"Expected finite features for {name}; got {int(bad.sum())} of {len(rows)} rows with NaN or "
            f"infinity, the first at index {int(bad.argmax())}."
        )
    return rows
