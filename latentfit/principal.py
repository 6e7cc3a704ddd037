"""Transforms along the principal axes of the latents: one scale for all of them, or one for each."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from latentfit.affine import by_piece, check_state, narrowed, rounding
from latentfit.em import widest
from latentfit.errors import FileFormatError, OptionError
from latentfit.moments import Moments
from latentfit.transforms import Transform

__all__ = ["MOST_DIMENSIONS", "Scale", "Whiten", "check_size"]

MOST_DIMENSIONS = 4096  # the axes of so many take a minute on two cores, and 128 MB
_NOISE = 16  # float32 steps by which an encoder's sums may miss a linear dependency
_SLACK = 16  # dtype's steps by which a latent may miss the subspace


class _Principal(Transform):
    """Centre, rotate to the principal axes and divide; directions without variance are left out and put back.

    A direction counts as one without variance if what there is of it could be rounding: of the latents to
    their dtype, of an encoder's sums to float32, or of the eigenvalues, relative to the largest. What is
    kept is an affine subspace of d dimensions, and densities are over it: per unit of its own volume,
    and zero off it. A latent counts as off it if it is further away than rounding and than any latent
    of the fit could be.
    """

    needs_covariance = True

    def fit(self, moments: Moments) -> Self:
        """Find the principal axes, the widest first, each with its largest component positive.

        Raises:
            OptionError: More than 4,096 dimensions.
        """
        check_size(self.name, moments.shape)
        assert moments.covariance is not None
        varies = moments.varies
        covariance = moments.covariance
        if not bool(varies.all()):
            covariance = covariance[varies][:, varies]
        values, axes = _axes(covariance)
        noise = _rounding_variance(moments)[varies] @ axes.square()
        eps = torch.finfo(torch.float64).eps
        largest = float(values[:1].sum())  # of none: 0
        kept = values > noise.clamp_min(4 * len(values) * eps * largest)
        rotation = values.new_zeros(len(varies), int(kept.sum()))
        rotation[varies] = axes[:, kept]
        missed = values[~kept].clamp_min(eps * largest).sum() + moments.variance[~varies].sum()
        state = {
            "mean": moments.center,
            "rotation": rotation,
            "scale": self._scale(values[kept]),
            # The furthest of n latents is at most as far as the root of the sum of all squares.
            "slack": torch.stack(
                (missed.new_tensor(_SLACK * rounding(moments.dtype)), (moments.n * missed).sqrt())
            ),
        }
        return self.load_state(state, moments.shape)

    def _scale(self, variances: Tensor) -> Tensor:
        """What to divide the coordinates along axes of these variances (d,) by: (d,) or (1,)."""
        raise NotImplementedError

    def _scales(self, d: int) -> int:
        """How many numbers that are."""
        raise NotImplementedError

    def forward(self, latents: Tensor) -> Tensor:
        """Give the coordinates along the axes, scaled."""
        return by_piece(self._forward, latents)

    def _forward(self, latents: Tensor) -> Tensor:
        x = latents.to(widest(latents.device))
        return (((x - self.mean.to(x)) @ self.rotation.to(x)) / self.scale.to(x)).float()

    def inverse(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Undo it; the latents lie in the subspace."""
        return by_piece(lambda part: narrowed(self._inverse(part), dtype), rows)

    def _inverse(self, rows: Tensor) -> Tensor:
        x = rows.to(widest(rows.device))
        return torch.addmm(self.mean.to(x), x * self.scale.to(x), self.rotation.to(x).T)

    def log_determinant(self, latents: Tensor) -> Tensor:
        """Minus the sum of the logs of the scales of d axes; minus infinity off the subspace."""
        value = -float(self.scale.log().expand(self.dim).sum())
        result = torch.full((len(latents),), value, dtype=torch.float32, device=latents.device)
        if self.dim < len(self.mean):
            result[by_piece(self._is_off, latents.detach())] = -math.inf
        return result

    def _is_off(self, latents: Tensor) -> Tensor:
        x = latents.to(widest(latents.device))
        mean, rotation = self.mean.to(x), self.rotation.to(x)
        centred = x - mean
        distance = (centred - (centred @ rotation) @ rotation.T).norm(dim=1)
        steps, furthest = self.slack.tolist()
        relative = max(steps, _SLACK * rounding(latents.dtype))
        off: Tensor = distance > furthest + relative * (x.norm(dim=1) + mean.norm())
        return off

    def state(self) -> dict[str, Tensor]:
        """Mean (D,), rotation (D, d), scale (d,) or (1,), and slack (2,), relative and absolute; float64."""
        return {
            "mean": self.mean,
            "rotation": self.rotation,
            "scale": self.scale,
            "slack": self.slack,
        }

    def load_state(self, state: dict[str, Tensor], shape: tuple[int, ...]) -> Self:
        """Take the tensors."""
        dim = math.prod(shape)
        shape_of_rotation = state["rotation"].shape if "rotation" in state else ()
        d = shape_of_rotation[1] if len(shape_of_rotation) == 2 else 0
        shapes = {"mean": (dim,), "rotation": (dim, d), "scale": (self._scales(d),), "slack": (2,)}
        check_state(state, shapes)
        if d > dim:
            raise FileFormatError(f"Expected at most {dim} columns in transform.rotation; got {d}.")
        state = {name: tensor.double().cpu() for name, tensor in state.items()}
        rotation = state["rotation"]
        gram = rotation.T @ rotation  # (d, d); in place from here, as it may be large
        gram.diagonal().sub_(1)
        if d and float(gram.abs_().max()) > 1e-6:
            raise FileFormatError("Expected orthonormal columns in transform.rotation; got others.")
        if bool((state["scale"] <= 0).any() | (state["slack"] < 0).any()):
            raise FileFormatError("Expected scales > 0 and slack >= 0; the file has others.")
        self.mean, self.rotation = state["mean"], rotation
        self.scale, self.slack = state["scale"], state["slack"]
        return self

    @property
    def dim(self) -> int:
        """The directions that vary."""
        return self.rotation.shape[1]

    @property
    def constant(self) -> list[int]:
        """The dimensions that no direction moves."""
        return [int(i) for i in (self.rotation == 0).all(1).nonzero()[:, 0]]


class Scale(_Principal):
    """One scale for all axes, under which their variances are 1 in the mean: distances keep their ratios."""

    name = "scale"

    def _scale(self, variances: Tensor) -> Tensor:
        return variances.mean().sqrt().view(1) if len(variances) else variances.new_ones(1)

    def _scales(self, d: int) -> int:  # noqa: ARG002 - the base's
        return 1


class Whiten(_Principal):
    """A scale for each axis, under which its variance is 1: the covariance becomes the identity."""

    name = "whiten"

    def _scale(self, variances: Tensor) -> Tensor:
        return variances.sqrt()

    def _scales(self, d: int) -> int:
        return d


def check_size(name: str, shape: tuple[int, ...]) -> None:
    """Refuse latents whose axes would take too long to find.

    Raises:
        OptionError: With what to do instead.
    """
    dim = math.prod(shape)
    if dim > MOST_DIMENSIONS:
        raise OptionError(
            f"Expected latents of at most {MOST_DIMENSIONS} dimensions for transform={name!r}; got {dim}. "
            "Use transform='standardize'."
        )


def _axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (D,), largest first, and eigenvectors in columns, each with its largest component positive.

    Of components that are equal but for rounding the first decides, so that rounding does not.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    if not len(values):
        return values, vectors
    size = vectors.abs()
    first = (size >= (1 - 1e-6) * size.amax(0)).byte().argmax(0, keepdim=True)
    return values, vectors * vectors.gather(0, first).sign()


def _rounding_variance(moments: Moments) -> Tensor:
    """The variance (D,) that rounding could add to each dimension: to the dtype, and of an encoder's sums."""
    half_step = torch.finfo(moments.dtype).eps / 2
    double = moments.dtype == torch.float64
    summing = _NOISE * torch.finfo(torch.float64 if double else torch.float32).eps
    square = moments.mean.square() + moments.variance
    return half_step**2 * square + summing**2 * moments.variance
