"""Other people's encoders and decoders: how they are called, and left as they were found."""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
import types
import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from latentfit.arguments import told
from latentfit.errors import EncoderOutputError, LatentfitError, OptionError, warn_caller
from latentfit.fingerprint import fingerprint, globals_read
from latentfit.outputs import Choice, check_choice, single_tensor
from latentfit.randomness import in_turn

__all__ = ["Model", "decoder_of", "encoder_of", "extractor_of", "rows_with_nan", "warn_of_nan"]

# What is looked into where an object has it as an attribute or member.
_HOLDING = (nn.Module, list, tuple, dict, types.FunctionType, types.MethodType, functools.partial)
# By id, as a user's class may have an equality of its own.
_Known = weakref.WeakValueDictionary[int, nn.Module]
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Model:
    """An encoder, a decoder or a feature extractor behind one call: a batch in, one tensor out.

    Args:
        role: "encoder", "decoder" or "feature extractor", for messages.
        model: The user's object.
        method: Which of its methods is called with a batch; "" for the object itself.
        takes_arrays: Whether it is called with NumPy arrays instead of tensors.
        output: What to take of what it returns: see :func:`latentfit.outputs.single_tensor`.
        autocast: The precision to run it in under ``torch.autocast``: "bfloat16" or "float16"; None for
            its own.
    """

    def __init__(
        self,
        role: str,
        model: Any,
        method: str = "",
        *,
        takes_arrays: bool = False,
        output: Choice = None,
        autocast: str | torch.dtype | None = None,
    ) -> None:
        self.role, self.modules = role, _modules_of(model)
        self._covered: dict[int, nn.Module] = {}  # those that the fingerprint tells of, by id
        self._uncovered: nn.Module | None = None  # one that ran and has a state, beyond these
        self._model, self._method, self._takes_arrays = model, method, takes_arrays
        self._call = getattr(model, method) if method else model
        if isinstance(autocast, torch.dtype):
            autocast = str(autocast).removeprefix("torch.")
        self._output, self._autocast = check_choice(output), autocast
        if autocast is not None:
            self._check_autocast(autocast)

    @property
    def device(self) -> torch.device | None:
        """Where its parameters are; None if it has none."""
        tensor = self._first_tensor()
        return None if tensor is None else tensor.device

    @property
    def draws(self) -> bool:
        """Whether what it returns is drawn at random, as ``output="sample"`` says."""
        return isinstance(self._output, str) and self._output == "sample"

    def describe(self) -> dict[str, Any]:
        """Name the object's class, what is taken of what it returns, and its precision, for JSON."""
        cls, output = type(self._model), self._output
        return {
            "class": f"{cls.__module__}.{cls.__qualname__}",
            "output": output if isinstance(output, str | int | None) else "a callable",
            "autocast": self._autocast,
        }

    def fingerprint(self) -> str:
        """Hash what it computes with to 64 hexadecimal digits, alike in each process.

        The name and state of the object, whatever the kind (:func:`latentfit.fingerprint.fingerprint` tells
        what counts), the parameters and buffers of the modules that it may run, ``output`` and ``autocast``.
        """
        return fingerprint(
            self._model,
            self._method,
            self.modules,
            self._output,
            self._autocast or "",
            covered=self._covered,
        )

    def check_fingerprint(self) -> None:
        """Check that the fingerprint tells of each module that has run so far.

        Raises:
            OptionError: It does not.
        """
        if self._uncovered is not None:
            raise OptionError(
                f"Expected {self.role} as an object that holds all modules that it runs, for store=, as only "
                f"so a change in one is seen; it ran a {type(self._uncovered).__name__} that it does not "
                "hold. Make that an attribute of it, or pass a function that reads it by its name."
            )

    def __call__(self, batch: Tensor) -> Tensor:
        """Call it with a batch on its own device and, for floating point, in its own precision.

        Returns:
            What it returned, in its dtype; float32 after autocast.

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
            if self._autocast is None:
                output = self._call(batch)
            else:
                with torch.autocast(batch.device.type, AUTOCAST[self._autocast]):
                    output = self._call(batch)
        result = single_tensor(output, role=self.role, choice=self._output)
        if result.ndim == 0 or len(result) != len(batch):
            raise EncoderOutputError(
                f"Expected the {self.role} to return one row for each of the {len(batch)} rows of a batch; "
                f"got shape {tuple(result.shape)}."
            )
        return result.float() if self._autocast else result

    def in_parts(self, batch: Tensor, size: int) -> Tensor:
        """Call it in eval mode with copies of parts of a batch (n, ...), n >= 1, and join what it returns.

        Raises:
            EncoderOutputError: As a call does. Its own errors get a note of what it was given.
        """
        with self.evaluating():
            return torch.cat([self._noted(part.clone()) for part in batch.split(size)])

    def _noted(self, batch: Tensor) -> Tensor:
        shape, dtype = tuple(batch.shape), batch.dtype
        try:
            return self(batch)
        except LatentfitError:
            raise
        except Exception as error:
            error.add_note(f"while the {self.role} was given {shape} {dtype}")
            raise

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put its modules in eval mode, and let none mask its input; give all its own back at the end.

        A module that the object does not show, one that a function that it calls reads from the globals, say,
        is put in eval mode when it is called first.
        """
        with in_turn(), ExitStack() as stack:
            known: _Known = weakref.WeakValueDictionary()
            for module in self.modules:
                _evaluate(module, known, stack)
            thread = threading.get_ident()

            def when_called(module: nn.Module, _: Any) -> None:
                if id(module) in known or threading.get_ident() != thread:
                    return
                _evaluate(module, known, stack)
                if id(module) not in self._covered and _has_state(module):
                    self._uncovered = module

            # torch.compile warns of hooks on what it compiled, whose parts are no secret anyway
            if not any(hasattr(part, "_orig_mod") for part in known.values()):
                handle = nn.modules.module.register_module_forward_pre_hook(when_called)
                stack.callback(handle.remove)
            yield

    def _first_tensor(self) -> Tensor | None:
        for module in self.modules:
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    return tensor
        return None

    def _check_autocast(self, autocast: Any) -> None:
        device = (self.device or torch.device("cpu")).type
        if not isinstance(autocast, str) or autocast not in AUTOCAST or self._takes_arrays:
            why = ", as it takes arrays" if self._takes_arrays else ""
            raise OptionError(
                f"Expected autocast as {' or '.join(map(repr, AUTOCAST))} for an encoder in PyTorch, or None"
                f"{why}; got {told(autocast)}."
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                torch.autocast(device, AUTOCAST[autocast])
        except (RuntimeError, UserWarning) as error:
            raise OptionError(
                f"Expected autocast as a precision that the device {device!r} has; got {autocast!r} "
                f"({str(error).splitlines()[0][:100]})."
            ) from error


def encoder_of(
    encoder: Any, *, output: Choice = None, autocast: str | torch.dtype | None = None
) -> Model:
    """Adapt an nn.Module, a callable, or an object with ``encode`` or (scikit-learn) ``transform``.

    Of a whole autoencoder that has no ``encode``, but submodules ``encoder`` and ``decoder`` (as pythae's),
    it is the ``encoder`` that encodes.

    Args:
        encoder: The object.
        output: What to take where it returns more than one tensor, or a posterior: "mean" or "sample", a key
            or attribute path, an index, or a callable.
        autocast: "bfloat16" or "float16" to run it under ``torch.autocast``; its latents are float32 then.

    Raises:
        OptionError: It is none of these; or a choice or a precision that there is not.
    """
    return _adapt("encoder", encoder, "encode", "transform", output=output, autocast=autocast)


def decoder_of(decoder: Any) -> Model:
    """Adapt an nn.Module, a callable, or an object with ``decode`` or ``inverse_transform``.

    Of a whole autoencoder that has no ``decode`` it is the ``decoder`` that decodes.

    Raises:
        OptionError: It is none of these.
    """
    return _adapt("decoder", decoder, "decode", "inverse_transform")


def extractor_of(features: Any) -> Model:
    """Adapt what makes features of images: what :func:`encoder_of` takes.

    Raises:
        OptionError: It is none of these.
    """
    return _adapt("feature extractor", features, "encode", "transform")


def rows_with_nan(decoded: Tensor) -> int:
    """Count the rows (n, ...) that hold NaN."""
    values = decoded.detach()
    # One quick pass; infinities of both signs add up to NaN, too.
    if not bool(values.sum().isnan()):
        return 0
    return int(values.reshape(len(values), -1).isnan().any(1).sum())


def warn_of_nan(bad: int, rows: int) -> None:
    """Warn that a decoder made NaN of some rows, if it did."""
    if not bad:
        return
    warn_caller(
        f"Expected numbers from the decoder; {bad} of {rows} rows hold NaN. If it runs in half "
        "precision, run it in float32."
    )


def _adapt(role: str, model: Any, torch_method: str, sklearn_method: str, **how: Any) -> Model:
    if isinstance(model, type):
        raise OptionError(
            f"Expected {role} as an object; got the class {model.__name__}. Pass an instance of it."
        )
    if isinstance(model, str | bytes | bytearray):  # these have .encode and .decode, too
        raise OptionError(f"Expected {role} as an object; got {told(model)}. Load it first.")
    if callable(getattr(model, torch_method, None)):
        return Model(role, model, torch_method, **how)
    if all(callable(getattr(model, half, None)) for half in ("encoder", "decoder")):
        half = "decoder" if role == "decoder" else "encoder"
        return _adapt(role, getattr(model, half), torch_method, sklearn_method, **how)
    if not isinstance(model, nn.Module) and callable(getattr(model, sklearn_method, None)):
        return Model(role, model, sklearn_method, takes_arrays=True, **how)
    if isinstance(model, nn.Module) and _lacks_forward(model):
        raise OptionError(
            f"Expected {role} as an nn.Module with a forward method; got {type(model).__name__}, which has "
            f"none. Give it one, or pass a function that calls its parts."
        )
    if callable(model):
        return Model(role, model, **how)
    raise OptionError(
        f"Expected {role} as an nn.Module, a callable, or an object with .{torch_method} or "
        f".{sklearn_method}; got {type(model).__name__}."
    )


def _evaluate(module: nn.Module, known: _Known, stack: ExitStack) -> None:
    """Put a module and its parts in eval mode; ``stack`` gives those that are left their own back.

    That is their mode, and their buffers, which a forward may write over or replace.
    """
    for part in module.modules():
        if id(part) not in known:
            known[id(part)] = part
            # What torch.jit.freeze has made has no mode.
            stack.callback(_set_mode, weakref.ref(part), getattr(part, "training", None))
            if not isinstance(part, torch.jit.ScriptModule):
                stack.callback(_set_buffers, weakref.ref(part), _buffers_of(part))
            _unmask(part, stack)
    # What torch.export has made refuses to be put in a mode, and is in that of its export.
    with suppress(AttributeError, NotImplementedError):
        module.eval()


def _set_mode(module: weakref.ref[nn.Module], training: bool | None) -> None:
    found = module()
    if found is not None and training is not None and found.training != training:
        found.training = training


def _buffers_of(module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """A module's own buffers, each with a copy of what is in it; but for those that hold nothing yet."""
    return {
        name: (buffer, buffer.detach().clone())
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer) and not buffer.is_meta
    }


@torch.no_grad()
def _set_buffers(module: weakref.ref[nn.Module], buffers: dict[str, tuple[Tensor, Tensor]]) -> None:
    found = module()
    if found is None:
        return
    for name, (buffer, content) in buffers.items():
        if name not in found._buffers:  # given away meanwhile
            continue
        if torch.equal(buffer, content):
            found._buffers[name] = buffer
        elif buffer.is_inference():  # which can't be written to any more
            found._buffers[name] = content
        else:
            found._buffers[name] = buffer.copy_(content)


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in itertools.chain(module.parameters(), module.buffers()))


def _lacks_forward(module: nn.Module) -> bool:
    """Whether it has torch's own placeholder only, as nn.Module() and nn.ModuleList have."""
    return getattr(module.forward, "__func__", None) is nn.Module.forward


def _unmask(part: nn.Module, stack: ExitStack) -> None:
    """Let transformers' ViTMAE keep all patches, in order: it masks and shuffles in eval mode, too.

    Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", 2021, arXiv:2111.06377.
    """
    masking = getattr(part, "random_masking", None)
    config: Any = getattr(part, "config", None)
    if not callable(masking) or not hasattr(config, "mask_ratio"):
        return

    def in_order(sequence: Tensor, noise: Tensor | None = None) -> Any:  # (n, patches, dim)
        if noise is None:  # it sorts the patches by their noise
            noise = torch.arange(sequence.shape[1], device=sequence.device, dtype=torch.float32)
            noise = noise.expand(len(sequence), -1)
        return masking(sequence, noise)

    stack.callback(setattr, config, "mask_ratio", config.mask_ratio)
    config.mask_ratio = 0.0
    attributes = vars(part)  # a method of the class, unless somebody replaced it
    if "random_masking" in attributes:
        stack.callback(attributes.__setitem__, "random_masking", masking)
    else:
        stack.callback(attributes.pop, "random_masking")
    attributes["random_masking"] = in_order


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
        parts = [part for part in members if isinstance(part, _HOLDING)]
    elif inspect.ismethod(model):
        parts = [model.__self__]
    elif isinstance(model, functools.partial):
        parts = [model.func, *model.args, *model.keywords.values()]
    elif inspect.isfunction(model):
        cells = [cell.cell_contents for cell in model.__closure__ or () if _is_filled(cell)]
        defaults = [*(model.__defaults__ or ()), *(model.__kwdefaults__ or {}).values()]
        named = [model.__globals__.get(name) for name in globals_read(model.__code__)]
        parts = cells + defaults + named
    elif hasattr(model, "__dict__") and not isinstance(model, type) and not inspect.ismodule(model):
        parts = [part for part in vars(model).values() if isinstance(part, _HOLDING)]
    else:
        return []
    found: list[nn.Module] = []
    for part in parts:
        found += [m for m in _modules_of(part, depth - 1) if not any(m is other for other in found)]
    return found


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - reading it is the test
    except ValueError:
        return False
    return True
