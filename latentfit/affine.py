"""Transforms that know no directions: latents as they are, and each dimension or channel for itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from latentfit.em import widest
from latentfit.errors import DataError, FileFormatError, warn_caller
from latentfit.moments import Moments
from latentfit.transforms import Transform

__all__ = [
    "Identity",
    "Standardize",
    "by_piece",
    "check_state",
    "is_image",
    "narrowed",
    "rounding",
]


_SMALLEST = 1e-2  # mixtures widen their components to 1e-3
_LARGEST = 1e12  # its square, summed over rows, is far inside float32
_PIECE = 2**22  # values that are mapped together: 32 MB of float64


class Identity(Transform):
    """Latents as they are, in float32."""

    name = "none"

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()

    def fit(self, moments: Moments) -> Self:
        """Remember the shape.

        Raises:
            DataError: Values whose squares leave float32's range.
        """
        largest = float(torch.maximum(moments.low.abs(), moments.high.abs()).max())
        if largest > _LARGEST:
            raise DataError(
                f"Expected latents up to {_LARGEST:g} for transform='none'; got {largest:.3g}. Use "
                "transform='auto'."
            )
        deviation = float(moments.variance.max().sqrt())
        if deviation < _SMALLEST:
            warn_caller(
                f"Expected latents that deviate by {_SMALLEST:g} or more for transform='none', as most "
                f"methods widen their samples to 0.001; got {deviation:.3g}. Use transform='auto'."
            )
        return self.load_state({}, moments.shape)

    def forward(self, latents: Tensor) -> Tensor:
        """Convert to float32."""
        return latents.float()

    def inverse(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Convert to the dtype."""
        return narrowed(rows, dtype)

    def log_determinant(self, latents: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros(len(latents), dtype=torch.float32, device=latents.device)

    def state(self) -> dict[str, Tensor]:
        """No tensors."""
        return {}

    def load_state(self, state: dict[str, Tensor], shape: tuple[int, ...]) -> Self:
        """Remember the shape."""
        check_state(state, {})
        self._shape = shape
        return self

    @property
    def dim(self) -> int:
        """As many as the latents have."""
        return math.prod(self._shape)

    @property
    def layout(self) -> tuple[int, ...] | None:
        """The latents' own."""
        return self._shape if is_image(self._shape) else None


class Standardize(Transform):
    """Each dimension to mean 0 and standard deviation 1, or each channel of latents (C, H, W), H * W > 1.

    Dimensions that never vary are left out and put back. The map is computed in float64 (where the device
    has it): float32 latents of a large mean keep their small deviations.
    """

    name = "standardize"

    def fit(self, moments: Moments) -> Self:
        """Take means and standard deviations; a range within the dtype's rounding counts as constant."""
        varies, mean, variance = moments.varies, moments.center, moments.variance
        if is_image(moments.shape):
            mean, variance = _of_channels(mean, variance, varies, moments.shape[0])
        state = {
            "mean": torch.where(varies, mean, moments.center),
            "scale": torch.where(varies, variance.sqrt(), torch.zeros_like(variance)),
        }
        return self.load_state(state, moments.shape)

    def forward(self, latents: Tensor) -> Tensor:
        """Standardise and drop the constant dimensions."""
        return by_piece(self._forward, latents)

    def _forward(self, latents: Tensor) -> Tensor:
        x = latents.to(widest(latents.device))
        mean, scale = self.mean.to(x), self.scale.to(x)
        if not self._all_kept:
            kept = self._kept.to(latents.device)
            x, mean, scale = x[:, kept], mean[kept], scale[kept]
        return ((x - mean) / scale).float()

    def inverse(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Undo it; constant dimensions get their constant."""
        return by_piece(lambda part: narrowed(self._inverse(part), dtype), rows)

    def _inverse(self, rows: Tensor) -> Tensor:
        x = rows.to(widest(rows.device))
        mean, scale = self.mean.to(x), self.scale.to(x)
        if self._all_kept:
            return torch.addcmul(mean, x, scale)
        kept = self._kept.to(rows.device)
        latents = mean.repeat(len(rows), 1)
        latents[:, kept] = torch.addcmul(mean[kept], x, scale[kept])
        return latents

    def log_determinant(self, latents: Tensor) -> Tensor:
        """Minus the sum of the logs of the kept scales; minus infinity off the constant subspace."""
        value = -float(self.scale[self._kept].log().sum())
        result = torch.full((len(latents),), value, dtype=torch.float32, device=latents.device)
        if not self._all_kept:
            constant = ~self._kept.to(latents.device)
            x = latents.detach().to(widest(latents.device))[:, constant]
            target = self.mean.to(x)[constant]
            off = (x - target).abs() > 8 * rounding(latents.dtype) * target.abs()
            result[off.any(dim=1)] = -math.inf
        return result

    def state(self) -> dict[str, Tensor]:
        """Mean and standard deviation, (D,) float64; the deviation is 0 for a constant dimension."""
        return {"mean": self.mean, "scale": self.scale}

    def load_state(self, state: dict[str, Tensor], shape: tuple[int, ...]) -> Self:
        """Take means and scales."""
        dim = math.prod(shape)
        check_state(state, {"mean": (dim,), "scale": (dim,)})
        if bool((state["scale"] < 0).any()):
            raise FileFormatError("Expected scales >= 0; the file has others.")
        self.mean, self.scale = state["mean"].double().cpu(), state["scale"].double().cpu()
        self._kept = self.scale > 0
        self._all_kept = bool(self._kept.all())
        self._layout = self._image(shape)
        return self

    def _image(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape of rows that hold whole channels, each mapped as one."""
        if not is_image(shape):
            return None
        mean, scale = self.mean.view(shape[0], -1), self.scale.view(shape[0], -1)
        kept = scale[:, 0] > 0
        same = (scale == scale[:, :1]).all() and (mean == mean[:, :1])[kept].all()
        return (int(kept.sum()), *shape[1:]) if bool(same) else None

    @property
    def dim(self) -> int:
        """The dimensions that vary."""
        return int(self._kept.sum())

    @property
    def layout(self) -> tuple[int, ...] | None:
        """The channels that vary, if no position of theirs is left out."""
        return self._layout

    @property
    def constant(self) -> list[int]:
        """The dimensions with scale 0."""
        return [int(i) for i in (~self._kept).nonzero()[:, 0]]


def _of_channels(
    mean: Tensor, variance: Tensor, varies: Tensor, channels: int
) -> tuple[Tensor, Tensor]:
    """Give each position the mean and variance of what varies in its channel; all are (D,)."""
    mean, variance = mean.view(channels, -1), variance.view(channels, -1)
    weight = varies.view(channels, -1).double()
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1)
    center = (weight * mean).sum(1, keepdim=True)  # (C, 1)
    spread = (weight * (variance + (mean - center).square())).sum(1, keepdim=True)
    return center.expand_as(mean).flatten(), spread.expand_as(mean).flatten()


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether it is (C, H, W) with more than one position."""
    return len(shape) == 3 and shape[1] * shape[2] > 1


def by_piece(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Apply a function of rows (n, D) to some MB at a time: what it needs in between is bounded."""
    size = max(1, _PIECE // max(1, rows.shape[1]))
    if len(rows) <= size:
        return function(rows)
    return torch.cat([function(part) for part in rows.split(size)])


def rounding(dtype: torch.dtype) -> float:
    """The relative step of a dtype; at least float32's, which rows have."""
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert; what a narrow dtype would turn to infinity becomes its largest number."""
    largest = min(torch.finfo(dtype).max, torch.finfo(x.dtype).max)
    return x.clamp(-largest, largest).to(dtype)


def check_state(state: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse tensors other than finite float32 or float64 ones of these shapes.

    Raises:
        FileFormatError: With both.
    """
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != shapes:
        raise FileFormatError(f"Expected transform tensors of shapes {shapes}; got {found}.")
    for name, tensor in state.items():
        wide = tensor.dtype in (torch.float32, torch.float64)
        if not wide or not bool(tensor.isfinite().all()):
            raise FileFormatError(f"Expected finite numbers as transform.{name}; got others.")
