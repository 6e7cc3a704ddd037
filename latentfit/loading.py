"""load_sampler: from a file to a sampler; nothing in the file is run or followed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentfit.choosing import CUSTOM, TRANSFORMS, load_transform, saved_transform
from latentfit.condition import CONDITIONS, Condition
from latentfit.errors import FileFormatError, LatentfitError
from latentfit.models import decoder_of
from latentfit.options import resolve_options
from latentfit.persistence import read_tensors
from latentfit.randomness import isolated_rng, plugin_defaults
from latentfit.registry import load_sampler_class
from latentfit.sampler import DTYPES, LatentSampler, resolve_device
from latentfit.sampler_base import Sampler
from latentfit.transforms import Transform

__all__ = ["build_plugin", "load_sampler"]


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
        OptionError: A transform that is missing or not wanted, or an unknown device.
        FileFormatError: The file is damaged, of another kind or of a newer format.
        UnknownPluginError: The method's plugin is not installed.
        PluginLoadError: The method's plugin is broken.
        OSError: The file can't be read.
    """
    decoding = None if decoder is None else decoder_of(decoder)
    target = resolve_device("cpu" if device is None else device)
    tensors, header = read_tensors(path)
    try:
        info, history = header["info"], header["history"]
        method, dim = info["method"], info["dim"]
        shape, n, dtype = info["shape"], info["n"], info["dtype"]
        options, transform_name = info["options"], info["transform"]
        described = info.get("condition")
        condition_class = None if described is None else CONDITIONS[described["kind"]]
        sizes = [*shape, dim, n]
        if not all(type(size) is int and size > 0 for size in sizes) or math.prod(shape) != dim:
            raise ValueError(f"shape {shape!r}, dim {dim!r}, n {n!r}")
        if dtype not in DTYPES or not isinstance(options, dict):
            raise ValueError(f"dtype {dtype!r}, options {options!r}")
        if transform_name not in (CUSTOM, *TRANSFORMS):
            raise ValueError(f"transform {transform_name!r}")
        class_name = info.get("transform_class")
        if not isinstance(class_name, str | None):
            raise ValueError(f"transform_class {class_name!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{path}: expected a latentfit header; {type(error).__name__}: {error}."
        ) from error
    mapping = saved_transform(transform_name, transform, class_name)
    plugin_class = load_sampler_class(method)
    parts: dict[str, dict[str, Tensor]] = {"sampler": {}, "transform": {}, "condition": {}}
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
        if condition is not None and condition.kind not in plugin_class.conditions:
            raise FileFormatError(
                f"{method!r} can't be conditioned on {condition.kind!r}. Was it saved by another version?"
            )
        resolved = resolve_options(plugin_class, options, method=method)
        plugin = build_plugin(
            plugin_class,
            resolved,
            dim=mapping.dim,
            n=n,
            seed=0,
            condition=condition,
            layout=mapping.layout,
        )
        _load_state(plugin, parts["sampler"])
    except LatentfitError as error:
        raise FileFormatError(f"{path}: {error}") from error
    return LatentSampler(
        plugin.to(target),
        mapping,
        info={**info, "options": resolved},
        history=history,
        device=target,
        decoder=decoding,
        condition=condition,
    )


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
