"""A hash of what a model computes with: its code's name, its parameters and its settings.

It answers one question: would this model give the same latents as that one, in this process or another?
It is the SHA-256 of a canonical walk through the object, so it depends on no address, hash seed or device.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import io
import re
import struct
import sys
import types
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from latentfit.errors import OptionError, warn_caller

__all__ = ["fingerprint", "globals_read"]

_CHUNK = 1 << 26  # bytes that leave a tensor's device at once
_BOUND = types.MethodType | types.BuiltinFunctionType | types.MethodWrapperType
_OWN = {*vars(nn.Module()), "training"}  # attributes that torch gives every module
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_NUMBERS = nn.Module | Tensor | np.ndarray
# Where the code was found, and a hash that tells of it, too.
_NOT_OF_SCRIPTS = (".debug_pkl", "serialization_id")
_MANGLED = re.compile(rb"\.?_{2,3}torch_mangle_\d+")  # as many classes as the process had so far
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


def fingerprint(*parts: Any, covered: dict[int, nn.Module] | None = None) -> str:
    """Hash objects to 64 hexadecimal digits, alike in each process.

    What counts, by kind:

    - nn.Module: its class's name; its text, which tells the layers and their settings; the name, shape, dtype
      and bytes of each parameter and buffer, wherever it lies; each submodule's attributes, but lists, dicts
      and other objects only where the name does not begin with an underscore, as that of a cache does, or
      where they hold modules; and its forward hooks.
    - A module of TorchScript: what torch.jit.save would write, code and constants with it.
    - A function: its name, bytecode and constants; what it closes over and its defaults; and the globals that
      it reads, other functions, and what it reads of imported modules, among them; but of Python and of
      installed packages the name only. (A newer Python may compile it otherwise.)
    - Other objects: the class's name, and the state that pickle would keep: for scikit-learn the parameters
      and all that was fitted. What pickle can't keep counts by its class only, and is warned of.
    - The class of a module or an object: its attributes, and the globals that its methods read, by the same
      rules; but for classes of Python and of installed packages.

    Not seen is a change in the code of a class.

    Args:
        *parts: The objects.
        covered: Takes the modules that counted, by their id.

    Warns:
        LatentsWarning: Some object counts by its class only.
    """
    walk = _Walk(hashlib.sha256(), {} if covered is None else covered, set())
    for part in parts:
        walk.add(part)
    if walk.opaque:
        warn_caller(
            f"Expected an encoder of which a change can be seen; it holds {', '.join(sorted(walk.opaque))}, "
            "which pickle can't keep, and whose content nobody can tell. Delete the store when that changes."
        )
    digest: str = walk.hash.hexdigest()
    return digest


class _Walk:
    """A walk that hashes a function, module or other object once, and later mentions of it as such."""

    def __init__(self, digest: Any, covered: dict[int, nn.Module], opaque: set[str]) -> None:
        self.hash, self._covered = digest, covered
        self.opaque = opaque  # classes of objects that count by these only
        # Number and object by id; objects are kept, so that no temporary one leaves its id to another.
        self._seen: dict[int, tuple[int, Any]] = {}
        self._classes: set[type] = set()

    def add(self, value: Any) -> None:
        """Hash any object."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            self._put(type(value).__name__, _bytes(value))
        elif isinstance(value, type | types.ModuleType | np.ufunc):
            self._put("name", _name(value))
        elif isinstance(value, torch.dtype | torch.device | torch.Size | np.dtype | range | slice):
            self._put(type(value).__name__, str(value))
        elif isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, np.ndarray | np.generic):
            self._add_array(np.asarray(value))
        elif isinstance(value, types.CodeType):
            self._put("code", value.co_code)
            self._add_all((value.co_names, value.co_consts))
        elif isinstance(value, frozenset | set):  # without an order
            self._put(_name(type(value)), "".join(sorted(map(self._alone, value))))
        elif type(value) is tuple:  # constants may be shared or not: that says nothing
            self._put("tuple", str(len(value)))
            self._add_all(value)
        elif id(value) in self._seen:
            self._put("again", str(self._seen[id(value)][0]))
        else:
            self._seen[id(value)] = (len(self._seen), value)
            self._add_object(value)

    def _add_object(self, value: Any) -> None:
        if type(value) is list:
            self._put("list", str(len(value)))
            self._add_all(value)
        elif type(value) is dict:
            self._put("dict", str(len(value)))
            named = all(isinstance(key, str) for key in value)
            self._add_all(sorted(value.items(), key=_first) if named else value.items())
        elif isinstance(value, types.FunctionType):
            self._put("function", _name(value))
            self._add_all((value.__code__, value.__defaults__, value.__kwdefaults__))
            self._add_all(_captured(value))
        elif isinstance(value, _BOUND):
            self._put("method", value.__name__)
            self.add(value.__self__)
        elif isinstance(value, functools._lru_cache_wrapper):
            self._put("cached", "")
            self.add(value.__wrapped__)
        elif isinstance(value, functools.partial):
            self._put("partial", "")
            self._add_all((value.func, value.args, value.keywords))
        elif isinstance(value, torch.jit.ScriptModule):
            self._add_script(value)
        elif isinstance(value, nn.Module):
            self._add_module(value)
        else:
            self._put("object", _name(type(value)))
            state = _state(value)
            package = type(value).__module__.partition(".")[0]
            # Locks, generators, streams and the like say nothing of what is computed.
            if state is None and package not in (*sys.stdlib_module_names, "torch"):
                self.opaque.add(_name(type(value)))
            self._add_all(state or ())
            self._add_class(type(value))

    def _alone(self, value: Any) -> str:
        """Hash an object by itself, but for what has been seen; one that is too deep, by its class only."""
        walk = _Walk(hashlib.sha256(), self._covered, self.opaque)
        walk._seen, walk._classes = dict(self._seen), set(self._classes)
        try:
            walk.add(value)
        except RecursionError:
            return _name(type(value))
        digest: str = walk.hash.hexdigest()
        return digest

    def _add_all(self, values: Any) -> None:
        for value in values:
            self.add(value)

    def _add_class(self, cls: type) -> None:
        """Hash what a class's methods use that is no part of its instances; each class once."""
        for base in cls.__mro__:
            if base in self._classes or _is_installed(base.__module__.partition(".")[0]):
                continue
            self._classes.add(base)
            for name, value in sorted(_used_by(base).items()):
                self._put("used", name)
                if isinstance(value, _NUMBERS):
                    self.add(value)
                else:
                    self._put("value", self._alone(value))

    def _add_module(self, module: nn.Module) -> None:
        self._covered.update((id(part), part) for part in module.modules())
        self._put("module", _name(type(module)))
        self._put("text", _ADDRESS.sub("", repr(module)))
        for kind, tensors in (
            ("parameter", module.named_parameters()),
            ("buffer", module.named_buffers()),
        ):
            for name, tensor in tensors:
                self._put(kind, name)
                self._add_tensor(tensor)

        for name, part in module.named_modules():
            self._add_class(type(part))
            for key in _HOOKS:
                self._add_all(getattr(part, key).values())
            for key, value in sorted(vars(part).items()):
                if key in _OWN or isinstance(value, torch.device):
                    continue
                if _is_plain(value):
                    self._put("attribute", f"{name}.{key}")
                    self.add(value)
                elif not key.startswith("_") or _holds_modules(value):
                    self._put("attribute", f"{name}.{key}")
                    self._put("value", self._alone(value))

    def _add_script(self, module: torch.jit.ScriptModule) -> None:
        self._covered.update((id(part), part) for part in module.modules())
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is on its way out
            torch.jit.save(module, content)
        with zipfile.ZipFile(content) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(_NOT_OF_SCRIPTS):
                    continue
                for part in (name.partition("/")[2].encode(), archive.read(name)):
                    self._put("part", _MANGLED.sub(b"", part))

    def _add_tensor(self, tensor: Tensor) -> None:
        if is_lazy(tensor):
            raise OptionError(
                "Expected an encoder that has its weights, for store=; got one with a lazy module, which "
                "makes them when it is first called. Call it with a batch first."
            )
        tensor = tensor.detach()
        self._put("tensor", f"{tuple(tensor.shape)} {tensor.dtype}")
        if tensor.is_meta:
            return
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        raw = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        for part in raw.split(_CHUNK):
            self.hash.update(part.cpu().numpy().data)

    def _add_array(self, array: np.ndarray[Any, Any]) -> None:
        self._put("array", f"{array.shape} {array.dtype}")
        if array.dtype.hasobject:
            self._add_all(array.ravel().tolist())
        else:
            self.hash.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def _put(self, tag: str, content: str | bytes) -> None:
        """Hash a tagged text; its length keeps two neighbours apart."""
        data = content if isinstance(content, bytes) else content.encode()
        self.hash.update(f"{tag}:{len(data)}:".encode() + data)


def _is_plain(value: Any) -> bool:
    """Whether a module's attribute is a setting, whatever its name."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(
        value,
        bool | int | float | complex | str | Tensor | np.ndarray | torch.dtype | torch.ScriptObject,
    )


def _holds_modules(value: Any) -> bool:
    members = value.values() if isinstance(value, dict) else value
    return isinstance(value, list | tuple | dict) and any(isinstance(m, nn.Module) for m in members)


def globals_read(code: types.CodeType) -> Iterator[str]:
    """The names of the globals that a function reads, also in its comprehensions and lambdas."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from globals_read(constant)


def _captured(function: types.FunctionType) -> Iterator[Any]:
    """What a function closes over, and the globals that it reads; installed functions by name."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            yield None
    for name in dict.fromkeys(globals_read(function.__code__)):
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType) and not _is_installed(
            value.__name__.partition(".")[0]
        ):
            yield _read_of(value, function.__code__)
        elif inspect.isfunction(value) and _is_installed(
            (value.__module__ or "").partition(".")[0]
        ):
            yield _name(value)
        else:
            yield value


def _read_of(module: types.ModuleType, code: types.CodeType) -> dict[str, Any]:
    """What a function may read of a module that it names."""
    return {name: vars(module)[name] for name in _attributes_read(code) if name in vars(module)}


def _attributes_read(code: types.CodeType) -> set[str]:
    """The names that stand in a function's code, also in its comprehensions and lambdas."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_attributes_read, inner))


@functools.cache
def _is_installed(package: str) -> bool:
    """Whether a package is Python's, or in a folder of installed ones: alike for all who have its version."""
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    installed = {"site-packages", "dist-packages"}.intersection(Path(file).parts)
    return package in sys.stdlib_module_names or bool(installed)


def _used_by(cls: type) -> dict[str, Any]:
    """A class's own attributes, and what its methods read from outside, by name.

    Left out is what only tells how the class is made, and under names of an underscore all that is neither a
    module nor numbers: caches and the like.
    """
    used: dict[str, Any] = {}
    for name, member in vars(cls).items():
        function = _function_of(member)
        if function is not None:
            named = dict.fromkeys(globals_read(function.__code__))
            used |= dict(
                zip((*function.__code__.co_freevars, *named), _captured(function), strict=True)
            )
        elif isinstance(member, _NUMBERS | bool | int | float | str | list | tuple | dict):
            used[name] = member
    return {
        name: value
        for name, value in used.items()
        if not name.startswith("_") or isinstance(value, _NUMBERS) or _holds_modules(value)
    }


def _function_of(member: Any) -> types.FunctionType | None:
    """The function that an attribute of a class runs, if it runs one."""
    if isinstance(member, property):
        member = member.fget
    elif isinstance(member, functools.cached_property | functools.partialmethod):
        member = member.func
    elif isinstance(member, staticmethod | classmethod):
        member = member.__func__
    elif isinstance(member, functools._lru_cache_wrapper):
        member = member.__wrapped__
    return inspect.unwrap(member) if isinstance(member, types.FunctionType) else None


def _state(value: Any) -> tuple[Any, ...] | None:
    """What pickle would keep of an object, None if nothing: how it is made, with what, and its state."""
    if isinstance(value, torch.ScriptObject):  # packed weights of a quantised layer
        return (value.__getstate__(),)
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # an object may refuse in any way that it likes
        return None
    if isinstance(reduced, str):
        return (reduced,)
    made, arguments, state, *items = (*reduced, None)[:5]
    return (
        _name(made),
        arguments,
        state,
        *(None if part is None else list(part) for part in items),
    )


def _first(item: tuple[str, Any]) -> str:
    return item[0]


def _bytes(value: Any) -> bytes:
    if isinstance(value, float):
        return struct.pack("<d", value)
    return value if isinstance(value, bytes) else repr(value).encode()


def _name(value: Any) -> str:
    qualified = getattr(value, "__qualname__", None) or getattr(
        value, "__name__", repr(type(value))
    )
    return f"{getattr(value, '__module__', None) or ''}.{qualified}"
