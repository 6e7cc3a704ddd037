"""Other people's encoders and decoders: how they are called, and left as they were found."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latentfit.errors import EncoderOutputError, OptionError
from latentfit.outputs import single_tensor

__all__ = ["Model", "decoder_of", "encoder_of"]


class Model:
    """An encoder or a decoder behind one call: a batch in, one tensor out.

    Args:
        role: "encoder" or "decoder", for messages.
        call: What is called with a batch.
        modules: The torch modules that the call may run.
        takes_arrays: Whether it is called with NumPy arrays instead of tensors.
    """

    def __init__(
        self, role: str, call: Callable[[Any], Any], modules: list[nn.Module], takes_arrays: bool
    ) -> None:
        self.role, self.modules = role, modules
        self._call, self._takes_arrays = call, takes_arrays

    @property
    def device(self) -> torch.device | None:
        """Where its parameters are; None if it has none."""
        tensor = self._first_tensor()
        return None if tensor is None else tensor.device

    def __call__(self, batch: Tensor) -> Tensor:
        """Call it with a batch on its own device and, for floating point, in its own precision.

        Raises:
            EncoderOutputError: It returned no single tensor, or not one row for each row of the batch.
        """
        if self._takes_arrays:
            output = self._call(batch.detach().cpu().numpy())
        else:
            tensor = self._first_tensor()
            if tensor is not None:
                floating = batch.is_floating_point() and tensor.is_floating_point()
                batch = batch.to(tensor.device, tensor.dtype if floating else batch.dtype)
            output = self._call(batch)
        result = single_tensor(output, role=self.role)
        if result.ndim == 0 or len(result) != len(batch):
            raise EncoderOutputError(
                f"Expected the {self.role} to return one row for each of the {len(batch)} rows of a batch; "
                f"got shape {tuple(result.shape)}."
            )
        return result

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put its modules in eval mode; give every submodule its own mode back at the end."""
        with ExitStack() as stack:
            for module in self.modules:
                for part in module.modules():
                    stack.callback(setattr, part, "training", part.training)
                module.eval()
            yield

    def _first_tensor(self) -> Tensor | None:
        for module in self.modules:
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    return tensor
        return None


def encoder_of(encoder: Any) -> Model:
    """Adapt an nn.Module, a callable, or an object with ``encode`` or (scikit-learn) ``transform``.

    Raises:
        OptionError: It is none of these.
    """
    return _adapt("encoder", encoder, "encode", "transform")


def decoder_of(decoder: Any) -> Model:
    """Adapt an nn.Module, a callable, or an object with ``decode`` or ``inverse_transform``.

    Raises:
        OptionError: It is none of these.
    """
    return _adapt("decoder", decoder, "decode", "inverse_transform")


def _adapt(role: str, model: Any, torch_method: str, sklearn_method: str) -> Model:
    if isinstance(model, type):
        raise OptionError(
            f"Expected {role} as an object; got the class {model.__name__}. Pass an instance of it."
        )
    if isinstance(model, str | bytes):  # these have .encode and .decode, too
        raise OptionError(f"Expected {role} as an object; got {model!r}. Load it first.")
    modules = _modules_of(model)
    own = getattr(model, torch_method, None)
    if callable(own):
        return Model(role, own, modules, takes_arrays=False)
    if not isinstance(model, nn.Module) and callable(getattr(model, sklearn_method, None)):
        return Model(role, getattr(model, sklearn_method), modules, takes_arrays=True)
    if callable(model):
        return Model(role, model, modules, takes_arrays=False)
    raise OptionError(
        f"Expected {role} as an nn.Module, a callable, or an object with .{torch_method} or "
        f".{sklearn_method}; got {type(model).__name__}."
    )


def _modules_of(model: Any, depth: int = 3) -> list[nn.Module]:
    """Find the torch modules that calling an object may run.

    A bound method, a partial, a closure or a wrapper object hides its module; left in training mode, that
    one would update its batch-norm statistics and draw dropout masks while it encodes.
    """
    if isinstance(model, nn.Module):
        return [model]
    if depth == 0:
        return []
    parts: list[Any]
    if isinstance(model, list | tuple | dict):
        members = model.values() if isinstance(model, dict) else model
        parts = [part for part in members if isinstance(part, nn.Module)]
    elif inspect.ismethod(model):
        parts = [model.__self__]
    elif isinstance(model, functools.partial):
        parts = [model.func, *model.args, *model.keywords.values()]
    elif inspect.isfunction(model):
        cells = [cell.cell_contents for cell in model.__closure__ or () if _is_filled(cell)]
        defaults = [*(model.__defaults__ or ()), *(model.__kwdefaults__ or {}).values()]
        named = [model.__globals__.get(name) for name in _names_in(model.__code__)]
        parts = cells + defaults + named
    elif hasattr(model, "__dict__") and not isinstance(model, type) and not inspect.ismodule(model):
        held = (nn.Module, list, tuple, dict)
        parts = [part for part in vars(model).values() if isinstance(part, held)]
    else:
        return []
    found: list[nn.Module] = []
    for part in parts:
        found += [m for m in _modules_of(part, depth - 1) if not any(m is other for other in found)]
    return found


def _names_in(code: types.CodeType) -> Iterator[str]:
    """The global names (and attributes) that a function reads, also in its comprehensions and lambdas."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - reading it is the test
    except ValueError:
        return False
    return True
