"""What latents are conditioned on: labels of the user's, and the context rows that samplers see."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from latentfit.arguments import told
from latentfit.errors import DataError, FileFormatError, OptionError
from latentfit.outputs import as_array, from_array

__all__ = ["CONDITIONS", "Classes", "Condition", "Vector", "as_labels", "fit_condition", "kind_of"]

_ROWS_PER_CLASS = 2  # on average, at least: fewer look like identifiers or counts, not classes


class Condition(ABC):
    """A map from labels in the user's own values to float32 context rows (n, C).

    Its tensors are what a file keeps; they stay on the CPU.
    """

    kind: ClassVar[Literal["classes", "vector"]]

    @property
    @abstractmethod
    def dim(self) -> int:
        """The number of columns of a context, C."""

    @abstractmethod
    def encode(self, value: Any, n: int) -> Tensor:
        """Turn one label for all, or one for each of n rows, into contexts (n, C) on the CPU.

        Raises:
            OptionError: A label that was not fitted, or of a wrong type or shape.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Give the tensors that determine the map."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Tensor]) -> Condition:
        """Rebuild the map.

        Raises:
            FileFormatError: Tensors that are missing or of a wrong shape.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Say what it is, for ``info``."""

    @abstractmethod
    def expected(self, n: int) -> str:
        """Say what :meth:`encode` takes for n rows."""


class Classes(Condition):
    """Whole numbers, each a class of its own; contexts are one-hot.

    Args:
        values: The classes (C,), int64, ascending.
    """

    kind = "classes"

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def fit(cls, labels: Tensor) -> Classes:
        """Find the classes among labels (N,).

        Raises:
            DataError: Nearly as many classes as rows.
        """
        values = labels.long().unique()
        if len(values) * _ROWS_PER_CLASS > max(len(labels), 2 * _ROWS_PER_CLASS):
            raise DataError(
                f"Expected integer labels to be classes of several rows each; got {len(values):,} different "
                f"ones among {len(labels):,}. Pass floats to condition on their values."
            )
        return cls(values)

    @property
    def dim(self) -> int:
        """A column for each class."""
        return len(self.values)

    def encode(self, value: Any, n: int) -> Tensor:
        """Turn a class, or n of them, into one-hot rows (n, C)."""
        labels = _numbers(value, self.expected(n))
        floating = labels.is_floating_point() and labels.numel() > 0  # NumPy makes [] a float
        if labels.ndim == 2 and labels.shape[1] == 1:  # as a fit takes them
            labels = labels[:, 0]
        if labels.dtype == torch.bool and not set(self.values.tolist()) <= {0, 1}:
            raise OptionError(  # a fit takes flags as the classes 0 and 1; among others they are a mistake
                f"Expected condition as {self.expected(n)}; got {told(value)}, a flag. Pass the class itself."
            )
        if floating or labels.shape not in ((), (n,)):
            raise OptionError(f"Expected condition as {self.expected(n)}; got {told(value)}.")
        labels = labels.long().expand(n)
        index = torch.searchsorted(self.values, labels.contiguous()).clamp_max(self.dim - 1)
        unknown = self.values[index] != labels
        if bool(unknown.any()):
            first = int(labels[unknown][0])
            raise OptionError(f"Expected condition as {self.expected(n)}; got {first}.")
        return torch.nn.functional.one_hot(index, self.dim).float()

    def state(self) -> dict[str, Tensor]:
        """The classes."""
        return {"classes": self.values}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Classes:
        """Rebuild it."""
        values = state.get("classes", torch.zeros(0))
        plain = set(state) == {"classes"} and values.dtype == torch.int64 and values.ndim == 1
        if not plain or not len(values) or bool((values.diff() <= 0).any()):
            raise FileFormatError("Expected condition tensors: ascending int64 classes.")
        return cls(values)

    def describe(self) -> dict[str, Any]:
        """Its kind and classes."""
        return {"kind": self.kind, "classes": self.values.tolist()}

    def expected(self, n: int) -> str:
        """Say what :meth:`encode` takes."""
        listed = [str(v) for v in self.values[:20].tolist()]
        more = f", ... ({self.dim} in all)" if self.dim > len(listed) else ""
        return f"one of the classes {', '.join(listed)}{more}, or {n} of them"


class Vector(Condition):
    """Real values; contexts are these values, standardised.

    Args:
        mean: (C,) float64.
        scale: (C,) float64 standard deviations; 1 where the values don't vary.
    """

    kind = "vector"

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self.mean, self.scale = mean, scale

    @classmethod
    def fit(cls, labels: Tensor) -> Vector:
        """Measure the values' means and standard deviations, of labels (N, C)."""
        wide = labels.double()
        if labels.shape[1] == 1 and bool((wide == wide.round()).all()):
            warnings.warn(
                "The labels are whole numbers of a floating dtype: they are taken as a vector of one value. "
                "For classes pass integers, such as y.long().",
                stacklevel=2,
            )
        scale = wide.std(0, correction=0)
        varies = scale > 1e-12 * wide.abs().amax(0)
        return cls(wide.mean(0), torch.where(varies, scale, torch.ones_like(scale)))

    @property
    def dim(self) -> int:
        """A column for each value."""
        return len(self.mean)

    def encode(self, value: Any, n: int) -> Tensor:
        """Turn a vector (C,) for all, or one for each row (n, C), into contexts (n, C)."""
        expected = self.expected(n)
        numbers = _numbers(value, expected).double()
        if self.dim == 1 and numbers.ndim < 2:
            numbers = numbers.reshape(-1, 1)  # a number, or one for each row
        if numbers.shape == (1, self.dim):
            numbers = numbers[0]
        if numbers.shape not in ((self.dim,), (n, self.dim)):
            raise OptionError(f"Expected condition as {expected}; got {told(value)}.")
        bad = int((~numbers.isfinite()).sum())
        if bad:
            raise OptionError(
                f"Expected condition as finite numbers; got {bad} that are NaN or infinite in {told(value)}."
            )
        return ((numbers - self.mean) / self.scale).float().expand(n, self.dim).contiguous()

    def state(self) -> dict[str, Tensor]:
        """Mean and scale."""
        return {"mean": self.mean, "scale": self.scale}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Vector:
        """Rebuild it."""
        none = torch.zeros(0)
        mean, scale = state.get("mean", none), state.get("scale", none)
        plain = set(state) == {"mean", "scale"} and {mean.dtype, scale.dtype} == {torch.float64}
        if not plain or mean.ndim != 1 or not len(mean) or mean.shape != scale.shape:
            raise FileFormatError("Expected condition tensors: float64 mean and scale (C,).")
        if not bool((mean.isfinite() & scale.isfinite() & (scale > 0)).all()):
            raise FileFormatError("Expected condition tensors: finite mean and scale > 0 (C,).")
        return cls(mean, scale)

    def describe(self) -> dict[str, Any]:
        """Its kind and size."""
        return {"kind": self.kind, "dim": self.dim}

    def expected(self, n: int) -> str:
        """Say what :meth:`encode` takes."""
        return f"a vector of {self.dim} numbers, or an array of them ({n}, {self.dim})"


CONDITIONS: dict[str, type[Condition]] = {c.kind: c for c in (Classes, Vector)}


def as_labels(value: Any, n: int | None = None, name: str = "") -> Tensor:
    """Check labels of n rows: whole numbers (n,) are classes, floats (n,) or (n, C) vectors.

    Args:
        value: A tensor, an array or a list.
        n: How many there have to be; None if that is not known yet.
        name: The argument that they came as, for messages.

    Returns:
        Labels on the CPU: int64 (n,), or floats (n, C).

    Raises:
        DataError: Another shape or type, or values that are not finite.
    """
    size, of = "N" if n is None else n, f" as {name}" if name else ""
    expected = f"{size} labels{of}: whole numbers ({size},) for classes, or floats ({size},) or ({size}, C)"
    try:
        labels = value if isinstance(value, Tensor) else from_array(as_array(value))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Expected {expected}; got {told(value)}. Number names with "
            "np.unique(names, return_inverse=True)[1]."
        ) from error
    labels = labels.detach().cpu()
    whole = not labels.is_floating_point()
    if whole and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    fits = labels.ndim in ((1,) if whole else (1, 2)) and n in (None, len(labels))
    if labels.is_complex() or not fits:
        hint = " Of one-hot rows take argmax(1)." if whole and labels.ndim == 2 else ""
        raise DataError(f"Expected {expected}; got {labels.dtype} {tuple(labels.shape)}.{hint}")
    if whole:
        return labels.long()
    bad = int((~labels.isfinite()).sum())
    if bad or math.prod(labels.shape) == 0:
        what = f"{bad} that are NaN or infinite" if bad else f"shape {tuple(labels.shape)}"
        raise DataError(f"Expected {expected}, finite; got {what}.")
    return labels.reshape(len(labels), -1)


def kind_of(labels: Tensor) -> Literal["classes", "vector"]:
    """Tell which kind of condition labels are, as :func:`as_labels` gives them."""
    return "vector" if labels.is_floating_point() else "classes"


def fit_condition(labels: Tensor) -> Condition:
    """Learn a condition from labels as :func:`as_labels` gives them."""
    return Vector.fit(labels) if kind_of(labels) == "vector" else Classes.fit(labels)


def _numbers(value: Any, expected: str) -> Tensor:
    try:
        numbers = value.detach() if isinstance(value, Tensor) else from_array(as_array(value))
    except (TypeError, ValueError) as error:
        raise OptionError(f"Expected condition as {expected}; got {told(value)}.") from error
    if numbers.is_complex():
        raise OptionError(f"Expected condition as {expected}; got {told(value)}.")
    return numbers.cpu()
