"""A user's transform, tried on a few latents before anything is fitted to what it makes of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from latentfit.arguments import reason
from latentfit.errors import FileFormatError, OptionError
from latentfit.moments import Moments
from latentfit.transforms import Transform

__all__ = ["check_probe", "check_transform_object", "probe_of", "told_of"]

ROWS = 16  # latents that it is tried on
_MOST_JACOBIAN = 64  # dimensions up to which the determinant is computed
_DETERMINANTS = 3  # latents at which it is
_PROBED = 4  # rows of which a file keeps what the map makes
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
    transform: Transform,
    given: Transform,
    latents: Tensor,
    moments: Moments,
    device: torch.device,
) -> None:
    """Try a user's fitted transform on some of the latents that it was fitted to.

    What would come to light hours later, or never, is told here: wrong shapes and dtypes, tensors on the
    wrong device, a state that can't be saved or does not make the same map again, an inverse that is none,
    and a determinant that is another one's.

    Args:
        transform: The fitted object.
        given: The user's own, not fitted.
        latents: Some latents (n, D), n >= 1; they are not changed.
        moments: Those that it was fitted to.
        device: Where the sampler will draw and score.

    Raises:
        OptionError: With the method that is wrong, what was expected of it and what came.
    """
    _check_numbers(transform, latents.shape[1])
    tried = _Trial(transform, latents)
    if not tried.rows.isfinite().all():
        return  # told where all rows are looked at
    if transform.dim == latents.shape[1]:
        _check_inverse(tried, latents, moments)
        _check_determinant(tried, latents)
    else:
        _check_projection(tried)
    _check_state(tried, given, latents, moments.shape)
    if device.type != "cpu":
        _Trial(transform, latents.to(device))


def probe_of(transform: Transform) -> dict[str, Tensor]:
    """Give a few rows and what a transform makes of them: what a file keeps, to know the map again.

    Nothing where the transform can't take such rows, standard normal ones.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(
        _PROBED, transform.dim, generator=generator, dtype=torch.float32, device="cpu"
    )
    with suppress(Exception), torch.no_grad():  # saving must not fail for it
        latents = transform.inverse(rows.clone(), torch.float64)
        again = transform.forward(latents.clone())
        determinant = transform.log_determinant(latents.clone())
        return {"rows": rows, "latents": latents, "again": again, "log_determinant": determinant}
    return {}


@torch.no_grad()
def check_probe(transform: Transform, probe: dict[str, Tensor], path: str) -> None:
    """Compare what a user's transform makes of a file's rows with what it made of them when it was saved.

    Args:
        transform: The object with the file's state.
        probe: What :func:`probe_of` gave, or nothing, as in older files.
        path: The file.

    Raises:
        OptionError: It is another map, which would draw and score wrongly without a word.
        FileFormatError: The file's tensors are no probe.
    """
    if not probe:
        return
    name, none = type(transform).__name__, torch.zeros(0, 0)
    rows, latents = probe.get("rows", none), probe.get("latents", none)
    n, shapes = len(rows), {key: tuple(tensor.shape) for key, tensor in probe.items()}
    expected = {"rows": (n, transform.dim), "latents": (n, *latents.shape[1:])}
    expected |= {"again": (n, transform.dim), "log_determinant": (n,)}
    if shapes != expected or latents.ndim != 2 or not n:
        raise FileFormatError(
            f"{path}: expected a transform's probe of shapes {expected}; got {shapes}."
        )
    finite = torch.where(latents.isfinite(), latents, torch.zeros_like(latents))
    spread = finite.amax(0) - finite.amin(0)
    room = 1e-3 * spread + _rounding() * finite.norm(dim=1, keepdim=True)
    trials: list[tuple[str, tuple[Any, ...], Tensor, Tensor]] = [
        ("inverse", (rows.clone(), torch.float64), latents, room)
    ]
    for method, key in (("forward", "again"), ("log_determinant", "log_determinant")):
        trials.append((method, (latents.clone(),), probe[key], 1e-3 * (1 + probe[key].abs())))
    for method, arguments, there, room in trials:
        problem, cause = "", None
        try:
            here = getattr(transform, method)(*arguments)
            same = (here == there) | (here.isnan() & there.isnan()) | ((here - there).abs() <= room)
            if here.shape != there.shape or not bool(same.all()):
                problem = "gives other numbers than it gave then"
        except Exception as error:
            problem, cause = f"raises {type(error).__name__}: {reason(error)}", error
        if problem:
            raise OptionError(
                "Expected transform as an object with the map that the sampler was saved with; "
                f"{name}.{method} {problem}, of the rows that {path} keeps. Pass an object of the class as "
                "it was."
            ) from cause


class _Trial:
    """What a transform makes of latents, each method called with copies of its own.

    Args:
        transform: The fitted object.
        latents: (n, D), on the device where it is tried.

    Attributes:
        rows: Its forward's, (n, d).
        back: Its inverse's of these, (n, D).
        determinant: (n,).
    """

    def __init__(self, transform: Transform, latents: Tensor) -> None:
        self.transform, self.device = transform, latents.device
        self.name = type(transform).__name__
        n, dtype = len(latents), latents.dtype
        self.rows = self.call("forward", latents)
        self.expect("forward", self.rows, (n, transform.dim), torch.float32)
        self.back = self.call("inverse", self.rows, dtype)
        self.expect("inverse", self.back, tuple(latents.shape), dtype)
        self.determinant = self.call("log_determinant", latents)
        self.expect("log_determinant", self.determinant, (n,), torch.float32)

    @torch.no_grad()
    def call(self, method: str, *arguments: Any) -> Any:
        """Call one of its methods."""
        copies = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
        with told_of(self.transform, method):
            result = getattr(self.transform, method)(*copies)
        for copied, argument in zip(copies, arguments, strict=True):
            if isinstance(argument, Tensor) and not _same(copied, argument):
                raise OptionError(
                    f"Expected {self.name}.{method} to leave what it is given as it is; it wrote over it. "
                    "Use operations that make new tensors."
                )
        return result

    def expect(self, method: str, found: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Refuse what is no tensor of this shape and dtype on the device."""
        where = self.device.type
        got = repr(found)
        if isinstance(found, Tensor):
            if (found.dtype, tuple(found.shape), found.device.type) == (dtype, shape, where):
                return
            got = f"{found.dtype}, {tuple(found.shape)}, on {found.device.type!r}"
        raise OptionError(
            f"Expected {self.name}.{method} to give a tensor of {dtype} and shape {shape} on {where!r}; got "
            f"{got}."
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


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


def _rounding(*dtypes: torch.dtype) -> float:
    """A few units of the coarsest precision on the way: rows are float32 at best."""
    return 64 * max(torch.finfo(dtype).eps for dtype in (torch.float32, *dtypes))


def _check_inverse(tried: _Trial, latents: Tensor, moments: Moments) -> None:
    there, back = latents.double(), tried.back.double()
    # A rotation spreads the rounding of the largest dimension over all.
    rounding = _rounding(moments.dtype) * there.norm(dim=1, keepdim=True)
    room = _SHARE * (moments.high - moments.low).to(there) + rounding
    off = ~((back - there).abs() <= room)
    if off.any():
        i, j = (int(index) for index in off.nonzero()[0])
        raise OptionError(
            f"Expected {tried.name}.inverse to undo its forward; of {there[i, j]:.9g} (latent {i}, "
            f"dimension {j}) it made {back[i, j]:.9g}."
        )


def _check_projection(tried: _Trial) -> None:
    """Of a map to fewer columns, rows have to come back: what it keeps of a latent, it keeps."""
    again = tried.call("forward", tried.back)
    room = _SHARE * (1 + tried.rows.abs().amax())
    off = ~((again - tried.rows).abs() <= room)
    if off.any():
        i, j = (int(index) for index in off.nonzero()[0])
        raise OptionError(
            f"Expected {tried.name}.forward to give the rows again that {tried.name}.inverse was given; of "
            f"{tried.rows[i, j]:.9g} (row {i}, column {j}) they made {again[i, j]:.9g}."
        )


def _check_determinant(tried: _Trial, latents: Tensor) -> None:
    dim = latents.shape[1]
    if dim > _MOST_JACOBIAN:
        return
    for i in range(min(_DETERMINANTS, len(latents))):
        jacobian = None
        with suppress(
            Exception
        ):  # a forward without derivatives: then there is none to compare with
            jacobian = torch.autograd.functional.jacobian(
                lambda x: tried.transform.forward(x[None])[0], latents[i].double()
            )
        if jacobian is None or not jacobian.isfinite().all() or not jacobian.any():
            return
        found, told = float(torch.linalg.slogdet(jacobian.double())[1]), float(tried.determinant[i])
        if found != told and not abs(told - found) <= 0.01 * (1 + dim / 8) + 1e-4 * abs(found):
            raise OptionError(
                f"Expected {tried.name}.log_determinant to be that of its forward, {found:.4f} at latent "
                f"{i}; got {told:.4f}. All densities would be wrong."
            )


def _check_state(tried: _Trial, given: Transform, latents: Tensor, shape: tuple[int, ...]) -> None:
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
    for name in ("dim", "layout", "constant"):
        with told_of(loaded, name):
            found, expected = getattr(loaded, name), getattr(tried.transform, name)
        if found != expected:
            raise OptionError(
                f"Expected {tried.name}.load_state to restore {name}, {expected!r}; got {found!r}. Does the "
                "state hold all that fit chose?"
            )
    with told_of(loaded, "forward"), torch.no_grad():
        again = loaded.forward(latents.clone())
    room = 1e-3 * (1 + tried.rows.abs())  # a state may be rounded, or worked out anew
    if again.shape != tried.rows.shape or not ((again - tried.rows).abs() <= room).all():
        raise OptionError(
            f"Expected {tried.name}.load_state to make the map again that {tried.name}.state describes; rows "
            "differ. Does the state hold all that fit chose, and is forward free of chance?"
        )
