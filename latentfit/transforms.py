"""The base class of transforms: maps from latents in the encoder's units to the rows that samplers see.

``fit_latent_sampler(transform=...)`` takes the name of one that latentfit has, or an object of a class
derived from :class:`Transform`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor

from latentfit.moments import Moments

__all__ = ["Moments", "Transform"]


class Transform(ABC):
    r"""A map between latents (n, D), flattened, in the encoder's units and rows (n, d) of float32, d <= D.

    A new object is not fitted; :meth:`fit` or :meth:`load_state` makes it so. latentfit works on copies of
    the object that it is given. Latents may be on any device, where the map works, too.

    Attributes:
        name: What ``info["transform"]`` says of latentfit's own; of all others it says "custom".
        needs_covariance: Whether :meth:`fit` wants ``moments.covariance``, (D, D) numbers.
    """

    name: ClassVar[str] = "custom"
    needs_covariance: ClassVar[bool] = False

    @abstractmethod
    def fit(self, moments: Moments) -> Self:
        """Choose the map by what is known of the latents, and return the object itself."""

    @abstractmethod
    def forward(self, latents: Tensor) -> Tensor:
        """Map latents (n, D) of any floating-point dtype to float32 rows (n, d), differentiably."""

    @abstractmethod
    def inverse(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Map rows (n, d) to latents (n, D) of the dtype."""

    @abstractmethod
    def log_determinant(self, latents: Tensor) -> Tensor:
        """Log absolute Jacobian determinant of :meth:`forward`, (n,) float32, at latents (n, D).

        Where d < D it is that of the map between the rows and the surface that :meth:`inverse` makes of
        them, half of log det(J J^T). Minus infinity where a latent lies off that surface: the density
        there is zero.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Give the tensors that determine the map, on the CPU: what a file keeps."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor], shape: tuple[int, ...]) -> Self:
        r"""Become the map that gave the state, for latents (n, \*shape), and return the object itself.

        Raises:
            FileFormatError: Tensors that are missing or of a wrong shape.
        """

    @property
    @abstractmethod
    def dim(self) -> int:
        """The number of columns of the rows, d."""

    @property
    def layout(self) -> tuple[int, ...] | None:
        """The shape (C, H, W) of a row, whose product is d, if it is an image like the latent; or None."""
        return None

    @property
    def constant(self) -> list[int]:
        """The dimensions that never vary in the data and that samplers don't see."""
        return []
