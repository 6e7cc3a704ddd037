"""Checks of arguments, one for each kind; their errors name the argument, what was expected and what came."""

from __future__ import annotations

import numbers
import os
import reprlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from latentfit.errors import DataError, LatentfitError, OptionError

if TYPE_CHECKING:
    from latentfit.options import Interval

__all__ = [
    "check_callable",
    "check_flag",
    "check_kind",
    "check_listed",
    "check_number",
    "check_path",
    "check_rows",
    "check_text",
    "check_whole",
    "reason",
    "scalar",
    "told",
]

_MOST_CHARACTERS = 100  # of a value, in a message
_MOST_PATH_BYTES = 2**15  # more than any system can open

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = _MOST_CHARACTERS


def told(value: Any) -> str:
    """Tell a value in a line, however large it is: of an array its dtype and shape."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        return f"an array of {value.dtype} {tuple(value.shape)}"
    try:
        text = _short.repr(value)
    except Exception:  # a whole number of too many digits for Python, another's __repr__
        return f"{type(value).__name__} that can't be shown"
    line = " ".join(text.split())  # modules and frames have several
    return line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 3]}..."


def reason(error: Exception) -> str:
    """Tell an error of others in a line; some repeat all that they were given."""
    return str(error).strip().partition("\n")[0][:_MOST_CHARACTERS]


def scalar(value: Any) -> Any:
    """Give a real number or a flag of NumPy's or torch's, of no dimension, as Python's; the rest as it is."""
    if isinstance(value, np.generic | np.ndarray):
        return value.item() if value.ndim == 0 and value.dtype.kind in "biuf" else value
    if isinstance(value, Tensor) and value.ndim == 0 and not (value.is_complex() or value.is_meta):
        return value.item()
    return value


def check_whole(
    name: str,
    value: Any,
    low: int,
    high: int | None = None,
    *,
    optional: bool = False,
    error: type[LatentfitError] = OptionError,
) -> Any:
    """Give a whole number as an int; None, where that is one of the choices, as None.

    Args:
        name: The argument's.
        value: What came for it.
        low: The least that it may be.
        high: The most.
        optional: Whether it may be None.
        error: What is raised for anything else.
    """
    if optional and value is None:
        return None
    plain = scalar(value)
    whole = isinstance(plain, numbers.Integral) and not isinstance(plain, bool)
    if not whole or not low <= plain or (high is not None and plain > high):
        span = f">= {low}" if high is None else f"from {low} to {high}"
        raise error(
            f"Expected {name} as a whole number {span}{_or_none(optional)}; got {told(value)}."
        )
    return int(plain)


def check_number(
    name: str, value: Any, interval: Interval, *, optional: bool = False, noun: str = "number"
) -> Any:
    """Give a finite number as a float; None, where that is one of the choices, as None.

    Args:
        name: The argument's.
        value: What came for it.
        interval: Where it has to lie.
        optional: Whether it may be None.
        noun: What it is called in the message.

    Raises:
        OptionError: It is something else.
    """
    if optional and value is None:
        return None
    plain = scalar(value)
    if not isinstance(plain, bool) and isinstance(plain, numbers.Real):
        try:
            number = float(plain)
        except OverflowError:  # a whole number that no float can be
            number = float("inf")
        if number in interval:
            return number
    raise OptionError(
        f"Expected {name} as a {noun} {interval}{_or_none(optional)}; got {told(value)}."
    )


def check_flag(name: str, value: Any, *, optional: bool = False) -> Any:
    """Give True or False as a bool; None, where that is one of the choices, as None.

    Raises:
        OptionError: It is something else.
    """
    if optional and value is None:
        return None
    plain = scalar(value)
    if not isinstance(plain, bool):
        choices = "True, False or None" if optional else "True or False"
        raise OptionError(f"Expected {name} as {choices}; got {told(value)}.")
    return plain


def check_text(name: str, value: Any, what: str = "a text", *, optional: bool = False) -> None:
    """Refuse what is no text, or has no words in it.

    Args:
        name: The argument's.
        value: What came for it.
        what: What the text tells.
        optional: Whether None is one of the choices.

    Raises:
        OptionError: It is none.
    """
    if (optional and value is None) or (isinstance(value, str) and value.strip()):
        return
    raise OptionError(f"Expected {name} as {what}{_or_none(optional)}; got {told(value)}.")


def check_kind(name: str, value: Any, kind: type | tuple[type, ...], what: str) -> None:
    """Refuse what is no object of a class.

    Args:
        name: The argument's.
        value: What came for it.
        kind: The class, or several.
        what: What that is, in words.

    Raises:
        OptionError: It is none.
    """
    if not isinstance(value, kind):
        raise OptionError(f"Expected {name} as {what}; got {told(value)}.")


def check_listed(name: str, value: Any, what: str) -> list[Any]:
    """Give what can be iterated over as a list; texts are refused, whose letters would be taken one by one.

    Args:
        name: The argument's.
        value: What came for it.
        what: What it should be.

    Raises:
        OptionError: It is something else.
    """
    if not isinstance(value, str | bytes | bytearray):
        with suppress(TypeError):  # arrays of no dimension only look as if they could be
            return list(value)
    raise OptionError(f"Expected {name} as {what}; got {told(value)}.")


def check_callable(name: str, value: Any) -> None:
    """Refuse what can't be called, and classes, which are called by mistake only.

    Raises:
        OptionError: It is such.
    """
    if not callable(value) or isinstance(value, type):
        raise OptionError(f"Expected {name} as a callable; got {told(value)}.")


def check_rows(name: str, value: Any, *, least: int = 0) -> None:
    """Refuse what is no tensor of floating-point rows.

    Args:
        name: The argument's.
        value: What came for it.
        least: How many there have to be.

    Raises:
        DataError: It is none.
    """
    fits = isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point()
    if not fits or len(value) < least:
        raise DataError(
            f"Expected {name} as a floating-point tensor of shape (n, D), n >= {least}; got {told(value)}."
        )


def check_path(name: str, value: Any, what: str = "a file") -> Path:
    r"""Give what can be a path as one, whether anything is there or not; "~" is the user's home.

    Refused are what open() would take for something else (a number is a file descriptor to it), bytes, the
    empty text, which would be the working folder, and texts that no system can have as a path: with "\0", or
    longer than any may be.

    Args:
        name: The argument's.
        value: What came for it.
        what: What the path should be of.

    Raises:
        OptionError: It can be none.
    """
    text: Any = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if isinstance(text, str) and text and "\0" not in text and _size(text) < _MOST_PATH_BYTES:
        return Path(os.path.expanduser(text))
    raise OptionError(f"Expected {name} as the path of {what}; got {told(value)}.")


def _size(path: str) -> int:
    try:
        return len(os.fsencode(path))
    except UnicodeEncodeError:  # a lone surrogate
        return _MOST_PATH_BYTES


def _or_none(optional: bool) -> str:
    return " or None" if optional else ""
