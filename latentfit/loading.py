"""load_sampler: from a file to a sampler; nothing in the file is run or followed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentfit.arguments import check_path
from latentfit.choosing import CUSTOM, TRANSFORMS, load_transform, saved_transform
from latentfit.condition import CONDITIONS, Condition
from latentfit.custom import check_probe
from latentfit.errors import FileFormatError, LatentfitError
from latentfit.guard import BoundedBuild
from latentfit.models import decoder_of
from latentfit.options import resolve_options
from latentfit.persistence import read_tensors
from latentfit.randomness import isolated_rng, plugin_defaults
from latentfit.registry import load_sampler_class
from latentfit.sampler import DTYPES, LatentSampler, resolve_device
from latentfit.sampler_base import Sampler
from latentfit.transforms import Transform

__all__ = ["build_plugin", "load_sampler"]

_INFO: dict[str, tuple[type, ...]] = {  # what users of a sampler rely on
    "method": (str,),
    "options": (dict,),
    "shape": (list,),
    "dtype": (str,),
    "n_validation": (int,),
    "seconds": (int, float),
    "seed": (int,),
    "parameters": (int,),
    "transform": (str,),
    "transform_class": (str,),
    "condition": (dict,),
    "encoder": (dict,),
    "fit": (dict,),
    "versions": (dict,),
}
_MOST_DIMENSIONS = 64
_OPTIONAL = ("transform_class", "condition", "encoder")


@torch.inference_mode(False)  # weights made in inference mode would allow no gradients later
def load_sampler(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    decoder: Any = None,
    transform: Transform | None = None,
) -> LatentSampler:
    """Load a sampler that :meth:`LatentSampler.save` wrote.

    Nothing in the file is run: it names a method, and the installed plugin of that name is used.

    Args:
        path: The file.
        device: Where to put it; None means the CPU.
        decoder: An nn.Module, a callable, or an object with ``decode`` or ``inverse_transform``.
        transform: For a sampler that was fitted with an object as ``transform``: one of the same class.

    Raises:
        OptionError: A transform that is missing, not wanted or another map than that of the fit, an unknown
            device, or no path.
        FileFormatError: The file is damaged, of another kind or of a newer format.
        UnknownPluginError: The method's plugin is not installed.
        PluginLoadError: The method's plugin is broken.
        OSError: The file can't be read.
    """
    path = check_path("path", path)
    decoding = None if decoder is None else decoder_of(decoder)
    target = resolve_device("cpu" if device is None else device)
    tensors, header = read_tensors(path)
    info, history = _checked_header(header, path)
    method, shape, n = info["method"], info["shape"], info["n"]
    options, transform_name = info["options"], info["transform"]
    described, class_name = info.get("condition"), info.get("transform_class")
    condition_class = None if described is None else CONDITIONS[described["kind"]]
    mapping = saved_transform(transform_name, transform, class_name)
    plugin_class = load_sampler_class(method)
    parts: dict[str, dict[str, Tensor]] = {"sampler": {}, "transform": {}, "condition": {}}
    if transform_name == CUSTOM:
        parts["probe"] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise FileFormatError(f"{path}: expected tensors of a sampler; got one called {key!r}.")
        parts[part][name] = tensor
    try:
        load_transform(mapping, parts["transform"], tuple(shape))
        if condition_class is None and parts["condition"]:
            raise FileFormatError("expected no condition's tensors; the header has no condition.")
        condition = condition_class.from_state(parts["condition"]) if condition_class else None
        if condition is not None and {**(described or {}), **condition.describe()} != described:
            raise FileFormatError(
                f"expected a condition as the header describes it, {described!r:.200}; got "
                f"{condition.describe()!r:.200}."
            )
        if condition is not None and condition.kind not in plugin_class.conditions:
            raise FileFormatError(
                f"{method!r} can't be conditioned on {condition.kind!r}. Was it saved by another version?"
            )
        resolved = resolve_options(plugin_class, options, method=method)
        state = parts["sampler"]
        values = sum(tensor.numel() for tensor in state.values())
        try:
            with BoundedBuild(values, len(state)):
                plugin = build_plugin(
                    plugin_class,
                    resolved,
                    dim=mapping.dim,
                    n=n,
                    seed=0,
                    condition=condition,
                    layout=mapping.layout,
                )
        except LatentfitError:
            raise
        except Exception as error:  # the numbers are the file's
            raise FileFormatError(
                f"expected what {method!r} can be built with; {type(error).__name__}: {error}."
            ) from error
        _load_state(plugin, state)
    except LatentfitError as error:
        raise FileFormatError(f"{path}: {error}") from error
    check_probe(mapping, parts.get("probe", {}), str(path))
    return LatentSampler(
        plugin.to(target),
        mapping,
        info={**info, "options": resolved},
        history=history,
        device=target,
        decoder=decoding,
        condition=condition,
        file=str(path),
    )


def _checked_header(
    header: dict[str, Any], path: str | os.PathLike[str]
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Check what a sampler's file tells of itself: its info, and its training curves.

    Raises:
        FileFormatError: Something is missing, or is no such thing.
    """
    try:
        info, history = header["info"], header["history"]
        shape, dim = info["shape"], info["dim"]
        if len(shape) > _MOST_DIMENSIONS:
            raise ValueError(f"shape of {len(shape)} numbers")
        sizes = [*shape, dim, info["n"], info["batch_size"]]
        if not all(type(size) is int and size > 0 for size in sizes) or math.prod(shape) != dim:
            raise ValueError(
                f"shape {shape!r}, dim {dim!r}, n {info['n']!r}, batch_size {info['batch_size']!r}"
            )
        for name, kinds in _INFO.items():
            value = info.get(name) if name in _OPTIONAL else info[name]
            is_right = isinstance(value, kinds) and not isinstance(value, bool)
            if not is_right and not (value is None and name in _OPTIONAL):
                raise TypeError(f"{name} {value!r}")
        if info["dtype"] not in DTYPES or info["transform"] not in (CUSTOM, *TRANSFORMS):
            raise ValueError(f"dtype {info['dtype']!r}, transform {info['transform']!r}")
        if info.get("condition") is not None and info["condition"]["kind"] not in CONDITIONS:
            raise ValueError(f"condition {info['condition']!r}")
        if len({len(curve) for curve in history.values()}) > 1:
            raise ValueError("curves of different lengths")
        for name, curve in history.items():
            if not all(type(value) in (int, float) for value in curve):
                raise TypeError(f"curve {name!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(
            f"{path}: expected a latentfit header; {type(error).__name__}: {error}."
        ) from error
    return info, history


def build_plugin(
    cls: Callable[..., Sampler],
    options: dict[str, Any],
    *,
    dim: int,
    n: int,
    seed: int,
    condition: Condition | None = None,
    layout: tuple[int, ...] | None = None,
) -> Sampler:
    """Construct a plugin and create its tensors, on the CPU, by one seed."""
    cpu = torch.device("cpu")
    with isolated_rng(seed, cpu), plugin_defaults(cpu):
        plugin = cls(**options)
        plugin.layout = layout
        if condition is not None:
            plugin.context_dim, plugin.context_kind = condition.dim, condition.kind
        plugin.build(dim, n)
    return plugin


def _load_state(plugin: Sampler, state: dict[str, Tensor]) -> None:
    """Load a state dict that must match what the plugin built, name by name."""
    expected = {k: (tuple(v.shape), v.dtype) for k, v in plugin.state_dict().items()}
    found = {k: (tuple(v.shape), v.dtype) for k, v in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise FileFormatError(
                f"tensor {name!r}: expected {expected.get(name, 'none')}; got {found.get(name, 'none')}. Was "
                "it saved by another version of the plugin?"
            )
    plugin.load_state_dict(state)
