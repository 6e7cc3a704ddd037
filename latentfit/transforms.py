"""Invertible maps from latents in the encoder's units to the rows that samplers see, and back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from latentfit.errors import DataError, FileFormatError, OptionError

__all__ = ["TRANSFORMS", "Identity", "Standardize", "Transform", "make_transform"]


_LARGEST = 1e12  # its square, summed over rows, is far inside float32


class Transform(ABC):
    """A map between latents (n, D) in the encoder's units and rows (n, d) of float32, d <= D.

    Its tensors are what a file keeps; they stay on the CPU and follow the data.
    """

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit(cls, latents: Tensor) -> Transform:
        """Learn the map from latents (N, D)."""

    @abstractmethod
    def forward(self, latents: Tensor) -> Tensor:
        """Map latents (n, D) to float32 rows (n, d)."""

    @abstractmethod
    def inverse(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Map rows (n, d) to latents (n, D) of the dtype."""

    @abstractmethod
    def log_determinant(self, latents: Tensor) -> Tensor:
        """Log absolute Jacobian determinant of :meth:`forward`, (n,), at latents (n, D).

        Minus infinity where a latent lies off the subspace that the map keeps: the density there is zero.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Give the tensors that determine the map."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Tensor], dim: int) -> Transform:
        """Rebuild the map for latents of dim columns.

        Raises:
            FileFormatError: Tensors that are missing or of a wrong shape.
        """

    @property
    @abstractmethod
    def dim(self) -> int:
        """The number of columns of the rows, d."""

    @property
    def constant(self) -> list[int]:
        """The dimensions that never vary in the data and that samplers don't see."""
        return []


class Identity(Transform):
    """Latents as they are, in float32."""

    name = "none"

    def __init__(self, dim: int) -> None:
        self._dim = dim

    @classmethod
    def fit(cls, latents: Tensor) -> Identity:
        """Remember the number of columns.

        Raises:
            DataError: Values whose squares leave float32's range.
        """
        largest = float(latents.abs().max())
        if largest > _LARGEST:
            raise DataError(
                f"Expected latents up to {_LARGEST:g} for transform='none'; got {largest:.3g}. Use "
                "transform='standardize'."
            )
        return cls(latents.shape[1])

    def forward(self, latents: Tensor) -> Tensor:
        """Convert to float32."""
        return latents.float()

    def inverse(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Convert to the dtype."""
        return _narrowed(rows, dtype)

    def log_determinant(self, latents: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros(len(latents), dtype=torch.float32, device=latents.device)

    def state(self) -> dict[str, Tensor]:
        """No tensors."""
        return {}

    @classmethod
    def from_state(cls, state: dict[str, Tensor], dim: int) -> Identity:
        """Rebuild it."""
        _check_state(state, {})
        return cls(dim)

    @property
    def dim(self) -> int:
        """As many as the latents have."""
        return self._dim


class Standardize(Transform):
    """Each dimension to mean 0 and standard deviation 1; constant dimensions are left out and put back.

    Moments and maps are computed in float64 (where the device has it): float32 latents of a large mean
    keep their small deviations.

    Args:
        mean: (D,) float64.
        scale: (D,) float64 standard deviations; 0 for a constant dimension.
    """

    name = "standardize"

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self.mean, self.scale = mean.double().cpu(), scale.double().cpu()
        self._kept = self.scale > 0
        self._all_kept = bool(self._kept.all())

    @classmethod
    def fit(cls, latents: Tensor) -> Standardize:
        """Measure means and standard deviations; a range within the dtype's rounding counts as constant.

        Raises:
            DataError: Values whose squares leave float64's range.
        """
        wide = latents.to(_wide(latents.device))
        mean, scale = wide.mean(0), wide.std(0, correction=0)
        low, high = wide.aminmax(dim=0)
        if not bool((mean.isfinite() & scale.isfinite()).all()):
            raise DataError(
                f"Expected latents whose squares are finite; got values from {float(low.min()):.3g} to "
                f"{float(high.max()):.3g}. Scale them down."
            )
        eps = torch.finfo(wide.dtype if latents.dtype == wide.dtype else torch.float32).eps
        varies = high - low > 4 * eps * torch.maximum(low.abs(), high.abs())
        mean = torch.where(low == high, low, mean)  # a mean of equal numbers may be off by rounding
        return cls(mean, torch.where(varies, scale, torch.zeros_like(scale)))

    def forward(self, latents: Tensor) -> Tensor:
        """Standardise and drop the constant dimensions."""
        wide = latents.to(_wide(latents.device))
        mean, scale = self.mean.to(wide), self.scale.to(wide)
        if not self._all_kept:
            kept = self._kept.to(latents.device)
            wide, mean, scale = wide[:, kept], mean[kept], scale[kept]
        return ((wide - mean) / scale).float()

    def inverse(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Undo it; constant dimensions get their constant."""
        wide = rows.to(_wide(rows.device))
        mean, scale = self.mean.to(wide), self.scale.to(wide)
        if self._all_kept:
            return _narrowed(torch.addcmul(mean, wide, scale), dtype)
        kept = self._kept.to(rows.device)
        latents = mean.repeat(len(rows), 1)
        latents[:, kept] = torch.addcmul(mean[kept], wide, scale[kept])
        return _narrowed(latents, dtype)

    def log_determinant(self, latents: Tensor) -> Tensor:
        """Minus the sum of the logs of the kept scales; minus infinity off the constant subspace."""
        value = -float(self.scale[self._kept].log().sum())
        result = torch.full((len(latents),), value, dtype=torch.float32, device=latents.device)
        if not self._all_kept:
            constant = ~self._kept.to(latents.device)
            wide = latents.detach().to(_wide(latents.device))[:, constant]
            target = self.mean.to(wide)[constant]
            eps = max(torch.finfo(dtype).eps for dtype in (latents.dtype, torch.float32))
            result[((wide - target).abs() > 8 * eps * target.abs()).any(dim=1)] = -math.inf
        return result

    def state(self) -> dict[str, Tensor]:
        """Mean and scale."""
        return {"mean": self.mean, "scale": self.scale}

    @classmethod
    def from_state(cls, state: dict[str, Tensor], dim: int) -> Standardize:
        """Rebuild it."""
        _check_state(state, {"mean": (dim,), "scale": (dim,)})
        if not all(t.isfinite().all() for t in state.values()) or bool((state["scale"] < 0).any()):
            raise FileFormatError("Expected finite means and scales >= 0; the file has others.")
        return cls(state["mean"], state["scale"])

    @property
    def dim(self) -> int:
        """The dimensions that vary."""
        return int(self._kept.sum())

    @property
    def constant(self) -> list[int]:
        """The dimensions with scale 0."""
        return [int(i) for i in (~self._kept).nonzero()[:, 0]]


TRANSFORMS: dict[str, type[Transform]] = {t.name: t for t in (Standardize, Identity)}


def make_transform(name: Any) -> type[Transform]:
    """Find a transform's class by name.

    Raises:
        OptionError: There is none of that name; the message lists them.
    """
    if not isinstance(name, str) or name not in TRANSFORMS:
        listed = ", ".join(repr(n) for n in TRANSFORMS)
        raise OptionError(f"Expected transform as one of {listed}; got {name!r}.")
    return TRANSFORMS[name]


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # mps has no float64


def _narrowed(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert; what a narrow dtype would turn to infinity becomes its largest number."""
    largest = min(torch.finfo(dtype).max, torch.finfo(wide.dtype).max)
    return wide.clamp(-largest, largest).to(dtype)


def _check_state(state: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != shapes:
        raise FileFormatError(f"Expected transform tensors of shapes {shapes}; got {found}.")
