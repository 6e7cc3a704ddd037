"""Finding tensors that would be on the CPU while the rows are on a GPU, on a machine without one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["MixedDevices"]

_FACTORIES = [torch.zeros, torch.ones, torch.empty, torch.full, torch.eye, torch.tensor]
_FACTORIES += [
    torch.arange,
    torch.linspace,
    torch.logspace,
]
_FACTORIES += [torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal]
# These take tensors of two devices.
_TOLERANT = [Tensor.copy_, Tensor.__getitem__, Tensor.__setitem__, Tensor.index_select]
_MARK = "_made_without_device"


class MixedDevices(TorchFunctionMode):
    """Follow tensors that were made without a device, and note where they meet others.

    What a plugin is given counts as being on another device than the default one. A tensor that a factory
    made without ``device=`` is marked, and so is what is computed from marked ones; moving it takes the
    mark off. A call that takes a marked tensor and one without a mark would fail on a GPU, and so would
    one that draws a marked tensor from the generator, and ``.numpy()`` without ``.cpu()``. Single numbers,
    and indices, may be anywhere. What torch's own modules and ``from_numpy`` make is not seen.

    Attributes:
        places: What was noted, in words, with file and line.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = list(_tensors((*args, *kwargs.values())))
        marked = [t for t in given if hasattr(t, _MARK)]
        if func in (Tensor.cpu, Tensor.to, Tensor.cuda):
            if not _moves(func, args, kwargs):
                return _mark(result, _origin(marked[0])) if marked else result
            for tensor in (*marked, *_tensors([result])):
                _unmark(tensor)
            if func is Tensor.cpu or "cpu" in args:
                result = result.view(result.shape)  # not the one that it was called on
                _mark(result, _place("to the CPU"))
        elif func in (Tensor.numpy, Tensor.__array__):
            if not marked:
                self._note(f"{_place('.numpy()')} without .cpu()")
        elif func in _FACTORIES and not given:
            if kwargs.get("device") is None and not _is_torch(sys._getframe(1)):
                if kwargs.get("generator") is not None:
                    self._note(
                        f"{_place(f'torch.{func.__name__}')} with a generator but without device"
                    )
                _mark(result, _place(f"torch.{func.__name__}"))
        elif marked and func not in _TOLERANT:
            if any(t.ndim and not hasattr(t, _MARK) for t in given) or kwargs.get("generator"):
                self._note(f"{_origin(marked[0])}, used at {_place(func.__name__)}")
            else:
                _mark(result, _origin(marked[0]))
        return result

    def _note(self, text: str) -> None:
        if text not in self.places:
            self.places.append(text)


def _moves(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call of ``to``, ``cpu`` or ``cuda`` names a device, be it by a tensor that is there."""
    if func is not Tensor.to or kwargs.get("device") is not None:
        return True
    return any(
        isinstance(a, str | torch.device) or (isinstance(a, Tensor) and not hasattr(a, _MARK))
        for a in args[1:]
    )


def _mark(result: Any, place: str) -> Any:
    for tensor in _tensors([result]):
        if tensor.ndim:
            setattr(tensor, _MARK, place)
    return result


def _origin(tensor: Tensor) -> str:
    return str(getattr(tensor, _MARK))


def _unmark(tensor: Tensor) -> None:
    if hasattr(tensor, _MARK):
        delattr(tensor, _MARK)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among values and in their lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _place(what: str) -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and _is_torch(frame):
        frame = frame.f_back
    return f"{what} at {frame.f_code.co_filename}:{frame.f_lineno}"


def _is_torch(frame: Any) -> bool:
    return bool(frame.f_globals.get("__name__", "").partition(".")[0] == "torch")
