"""Which transform latents get: the one that is named, the user's object, or the one that suits the method."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from latentfit.affine import Identity, Standardize, is_image
from latentfit.arguments import told
from latentfit.custom import told_of
from latentfit.encoding import check_finite
from latentfit.errors import FileFormatError, LatentfitError, OptionError
from latentfit.moments import Moments
from latentfit.principal import MOST_DIMENSIONS, Scale, Whiten, check_size
from latentfit.sampler_base import Sampler
from latentfit.transforms import Transform

__all__ = [
    "AUTO",
    "CUSTOM",
    "TRANSFORMS",
    "check_transform",
    "fit_transform",
    "load_transform",
    "needs_covariance",
    "saved_transform",
    "to_rows",
]

AUTO = "auto"
CUSTOM = Transform.name
TRANSFORMS: dict[str, type[Transform]] = {t.name: t for t in (Scale, Standardize, Whiten, Identity)}


def check_transform(transform: Any) -> None:
    """Refuse what is neither a name nor an object of the base class.

    Raises:
        OptionError: With what there is.
    """
    if isinstance(transform, Transform):
        if transform.name in TRANSFORMS and type(transform) is not TRANSFORMS[transform.name]:
            raise OptionError(
                f"Expected a transform of a class with a name of its own; got {type(transform).__name__}, "
                f"whose name is {transform.name!r}. Use transform={transform.name!r}, or set name = 'custom' "
                "in the class."
            )
        return
    if isinstance(transform, str) and transform in (AUTO, *TRANSFORMS):
        return
    listed = ", ".join(repr(name) for name in (AUTO, *TRANSFORMS))
    raise OptionError(
        f"Expected transform as one of {listed}, or an object of a class derived from "
        f"latentfit.transforms.Transform; got {told(transform)}."
    )


def needs_covariance(
    transform: str | Transform, cls: type[Sampler], shape: tuple[int, ...]
) -> bool:
    r"""Whether :func:`fit_transform` will want the covariance of latents (n, \*shape): (D, D) numbers.

    Raises:
        OptionError: A named transform that can't be fitted to so many dimensions.
    """
    if isinstance(transform, Transform):
        return transform.needs_covariance
    if transform != AUTO:
        wanted = TRANSFORMS[transform].needs_covariance
        if wanted:
            check_size(transform, shape)
        return wanted
    if _is_spatial(shape, cls):
        return False
    return math.prod(shape) <= MOST_DIMENSIONS and (
        cls.has_density or TRANSFORMS[cls.preferred_transform].needs_covariance
    )


def _is_spatial(shape: tuple[int, ...], cls: type[Sampler]) -> bool:
    return cls.spatial and is_image(shape) and math.prod(shape[1:]) >= cls.least_positions


def fit_transform(
    transform: str | Transform, cls: type[Sampler], moments: Moments
) -> tuple[str, Transform]:
    """Choose a transform and fit it; give its name and the fitted object.

    "auto" means what the class prefers, but "standardize" for images where the class is spatial, and for
    more dimensions than principal axes can be found of; and "whiten" for a density of latents that depend
    on each other linearly, which have none otherwise.

    Args:
        transform: As :func:`check_transform` lets it through.
        cls: The sampler class that will be fitted.
        moments: With the covariance if :func:`needs_covariance` says so.

    Raises:
        OptionError: An object whose ``fit`` returns something else.
        DataError: Latents that the transform can't take.
    """
    if isinstance(transform, Transform):
        with told_of(transform, "fit"):
            fitted = copy.deepcopy(transform).fit(moments)
        if not isinstance(fitted, Transform):
            raise OptionError(
                f"Expected {type(transform).__name__}.fit to return the transform itself; got {fitted!r}."
            )
        return fitted.name if fitted.name in TRANSFORMS else CUSTOM, fitted
    if transform != AUTO:
        return transform, TRANSFORMS[transform]().fit(moments)
    preferred = TRANSFORMS[cls.preferred_transform]()
    if preferred.needs_covariance and moments.covariance is None:
        preferred = Standardize()
    if moments.covariance is None:
        return preferred.name, preferred.fit(moments)
    rank = varying = int(moments.varies.sum())
    keeps_dimensions = cls.has_density and not preferred.needs_covariance
    if keeps_dimensions:
        rank = _rank(moments)
        preferred = Whiten() if rank < varying else preferred
    fitted = preferred.fit(moments)
    if fitted.dim < varying and not keeps_dimensions:
        rank = _rank(moments)
    if fitted.dim < rank:  # on one scale a dimension would drown in another
        fitted = Standardize().fit(moments)
    return fitted.name, fitted


def _rank(moments: Moments) -> int:
    """The number of directions that vary, with each dimension in units of its own deviation."""
    assert moments.covariance is not None
    unit = moments.variance.sqrt()
    unit = torch.where(moments.varies & (unit > 0), unit, torch.ones_like(unit))
    scaled = replace(
        moments,
        mean=moments.mean / unit,
        variance=moments.variance / unit.square(),
        low=moments.low / unit,
        high=moments.high / unit,
        covariance=moments.covariance / unit / unit[:, None],
    )
    return Whiten().fit(scaled).dim


def saved_transform(name: str, given: Transform | None, class_name: str | None) -> Transform:
    """Make the transform, not fitted yet, that a file names.

    Args:
        name: What the file says, "custom" or a name of TRANSFORMS.
        given: The user's object, for a file of a sampler that was fitted with one.
        class_name: That of the object which the sampler was fitted with; None if the file does not tell.

    Raises:
        OptionError: An object that is missing, not wanted, of another class, or no transform.
    """
    if given is not None and not isinstance(given, Transform):
        raise OptionError(
            "Expected transform as an object of a class derived from latentfit.transforms.Transform; got "
            f"{told(given)}."
        )
    if name == CUSTOM:
        if given is None:
            raise OptionError(
                "Expected the transform that the sampler was fitted with, as its file holds the transform's "
                "tensors, not its code; got none. Use load_sampler(path, transform=...) with an object of "
                "the same class."
            )
        names = [cls.__name__ for cls in type(given).__mro__]
        # Of a class in a class or in a function, without the name of that.
        own = (class_name or "").rpartition(".")[2]
        if own and own not in names:
            raise OptionError(
                f"Expected transform as an object of {own}, with which the sampler was fitted; got one of "
                f"{names[0]}. If that is its new name, derive a class {own} from it."
            )
        return copy.deepcopy(given)
    if given is not None:
        raise OptionError(
            f"Expected no transform, as the sampler was fitted with {name!r}; got {told(given)}."
        )
    return TRANSFORMS[name]()


def load_transform(transform: Transform, state: dict[str, Tensor], shape: tuple[int, ...]) -> None:
    r"""Give a transform the state that a file holds, for latents (n, \*shape).

    Raises:
        FileFormatError: A state that does not fit, or any error of a user's object.
    """
    try:
        transform.load_state(state, shape)
    except LatentfitError:
        raise
    except Exception as error:
        raise FileFormatError(
            f"Expected a transform that can load the tensors {sorted(state)} of latents of shape {shape}; "
            f"got {type(transform).__name__}, which raised {type(error).__name__}: {error}. Pass an object "
            "of the class that the sampler was fitted with."
        ) from error


def to_rows(transform: Transform, latents: Tensor) -> Tensor:
    """Map latents (n, D) to rows (n, d), and check them, since a user's object may have made them.

    Raises:
        OptionError: They are no float32 rows.
        NonFiniteError: They hold NaN or infinity.
    """
    rows = transform.forward(latents)
    expected = (len(latents), transform.dim)
    if tuple(rows.shape) != expected or rows.dtype != torch.float32:
        raise OptionError(
            f"Expected {type(transform).__name__}.forward to give float32 rows of shape {expected}; got "
            f"{rows.dtype}, {tuple(rows.shape)}."
        )
    check_finite(rows, "transformed latents", "the transform does not suit these latents")
    return rows
