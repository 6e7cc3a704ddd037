"""A user's transform, tried on a few latents before anything is fitted to what it makes of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from latentfit.errors import OptionError
from latentfit.moments import Moments
from latentfit.transforms import Transform

__all__ = ["check_transform_object", "told_of"]

ROWS = 16  # latents that it is tried on
_MOST_JACOBIAN = 64  # dimensions up to which the determinant is computed
_SHARE = 0.01  # of a dimension's range that a latent may move there and back


@contextmanager
def told_of(transform: Transform, method: str) -> Iterator[None]:
    """Say of an error that comes from a user's transform where it does."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in {type(transform).__name__}.{method}, the transform= of the fit")
        raise


def check_transform_object(
    transform: Transform, given: Transform, latents: Tensor, moments: Moments
) -> None:
    """Try a user's fitted transform on some of the latents that it was fitted to.

    What would come to light hours later, or never, is told here: wrong shapes and dtypes, a state that can't
    be saved or does not make the same map again, an inverse that is none, and a determinant that is another
    one's.

    Args:
        transform: The fitted object.
        given: The user's own, not fitted.
        latents: Some latents (n, D), n >= 1.
        moments: Those that it was fitted to.

    Raises:
        OptionError: With the method that is wrong, what was expected of it and what came.
    """
    tried = _Trial(transform)
    _check_numbers(transform, latents.shape[1])
    rows = tried.call("forward", latents)
    tried.expect("forward", rows, (len(latents), transform.dim), torch.float32)
    back = tried.call("inverse", rows, latents.dtype)
    tried.expect("inverse", back, tuple(latents.shape), latents.dtype)
    determinant = tried.call("log_determinant", latents)
    tried.expect("log_determinant", determinant, (len(latents),), torch.float32)
    if not rows.isfinite().all():
        return  # told where all rows are looked at
    if transform.dim == latents.shape[1]:
        _check_inverse(transform, latents, back, moments)
        _check_determinant(transform, latents[:1], float(determinant[0]))
    _check_state(tried, given, latents, rows, moments.shape)


class _Trial:
    """Calls to a transform, and what they gave."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform
        self.name = type(transform).__name__

    @torch.no_grad()
    def call(self, method: str, *arguments: Any) -> Any:
        """Call one of its methods."""
        with told_of(self.transform, method):
            return getattr(self.transform, method)(*arguments)

    def expect(self, method: str, found: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Refuse what is no tensor of this shape and dtype."""
        if isinstance(found, Tensor) and tuple(found.shape) == shape and found.dtype == dtype:
            return
        got = f"{found.dtype}, {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        raise OptionError(
            f"Expected {self.name}.{method} to give a tensor of {dtype} and shape {shape}; got {got}."
        )


def _check_numbers(transform: Transform, most: int) -> None:
    name = type(transform).__name__
    with told_of(transform, "dim"):
        dim: Any = transform.dim
    if type(dim) is not int or not 0 <= dim <= most:
        raise OptionError(
            f"Expected {name}.dim as a whole number of columns, at most {most}; got {dim!r}."
        )
    with told_of(transform, "layout"):
        layout: Any = transform.layout
    if layout is not None and (len(layout) != 3 or math.prod(layout) != dim):
        raise OptionError(
            f"Expected {name}.layout as None or (C, H, W) of {dim} values; got {layout!r}."
        )
    with told_of(transform, "constant"):
        constant: Any = transform.constant
    if not isinstance(constant, list) or any(type(i) is not int for i in constant):
        raise OptionError(f"Expected {name}.constant as a list of dimensions; got {constant!r}.")


def _check_inverse(transform: Transform, latents: Tensor, back: Tensor, moments: Moments) -> None:
    latents, back = latents.double(), back.double()
    rounding = 16 * torch.finfo(moments.dtype).eps * latents.abs()
    room = _SHARE * (moments.high - moments.low).to(latents) + rounding
    off = ~((back - latents).abs() <= room)
    if off.any():
        i, j = (int(index) for index in off.nonzero()[0])
        raise OptionError(
            f"Expected {type(transform).__name__}.inverse to undo its forward; of "
            f"{latents[i, j]:.6g} (latent {i}, dimension {j}) it made {back[i, j]:.6g}."
        )


def _check_determinant(transform: Transform, latent: Tensor, told: float) -> None:
    dim = latent.shape[1]
    if dim > _MOST_JACOBIAN:
        return
    jacobian = None
    with suppress(Exception):  # a forward without derivatives: then there is none to compare with
        jacobian = torch.autograd.functional.jacobian(
            lambda x: transform.forward(x[None])[0], latent[0].double()
        )
    if jacobian is None or not jacobian.isfinite().all() or not jacobian.any():
        return
    found = float(torch.linalg.slogdet(jacobian.double())[1])
    if not abs(told - found) <= 0.01 * (1 + dim / 8) + 1e-4 * abs(found):
        raise OptionError(
            f"Expected {type(transform).__name__}.log_determinant to be that of its forward, {found:.4f} at "
            f"the first latent; got {told:.4f}. All densities would be wrong."
        )


def _check_state(
    tried: _Trial, given: Transform, latents: Tensor, rows: Tensor, shape: tuple[int, ...]
) -> None:
    state = tried.call("state")
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise OptionError(
            f"Expected {tried.name}.state to give a dict of tensors by name; got {state!r}."
        )
    saved = {key: value.detach().cpu().clone() for key, value in state.items()}
    loaded = copy.deepcopy(given)
    with told_of(loaded, "load_state"):
        loaded.load_state(saved, shape)
    with told_of(loaded, "forward"), torch.no_grad():
        again = loaded.forward(latents)
    if not torch.equal(again, rows):
        raise OptionError(
            f"Expected {tried.name}.load_state to make the map again that {tried.name}.state describes; rows "
            "differ. Does the state hold all that fit chose?"
        )
