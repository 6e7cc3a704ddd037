"""LatentSampler: what a user holds after a fit, and gets back from a file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit.encoding import check_finite
from latentfit.errors import (
    DataError,
    DecoderUnavailable,
    DensityUnavailable,
    FileFormatError,
    LatentfitError,
    OptionError,
)
from latentfit.models import Model, decoder_of
from latentfit.options import resolve_options
from latentfit.outputs import from_array
from latentfit.persistence import read_tensors, write_tensors
from latentfit.randomness import check_seed, isolated_rng, plugin_defaults
from latentfit.registry import load_sampler_class
from latentfit.sampler_base import Sampler
from latentfit.transforms import TRANSFORMS, Transform

__all__ = ["LatentSampler", "load_sampler"]

_CHUNK = 8192  # rows that a plugin sees at once; bounds the memory of large draws
_DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.float64, torch.float16)}
_DTYPES["bfloat16"] = torch.bfloat16


class LatentSampler:
    r"""A distribution over an encoder's latents: draws them, scores them, and can be saved.

    Made by :func:`latentfit.fit_latent_sampler` and :func:`latentfit.load_sampler`. Latents have the shape
    (n, \*shape), the dtype and the units of the encoder's own.

    Attributes:
        history: The training curves: lists of equal length by name, with "step" among them. Losses of
            methods with a density are in nats per standardised latent.
        info: What was fitted, how and on what: method, options, shape, dim, dtype, n (rows trained on),
            n_validation, seconds, seed, transform, constant_dimensions, parameters, versions.
    """

    def __init__(
        self,
        plugin: Sampler,
        transform: Transform,
        *,
        info: dict[str, Any],
        history: dict[str, list[float]],
        device: torch.device,
        decoder: Model | None = None,
    ) -> None:
        self._plugin = plugin.requires_grad_(False).eval()
        plugin.zero_grad(set_to_none=True)  # the training's last gradients
        self._transform = transform
        self._decoder = decoder
        self._device = device
        self.info = info
        self.history = history

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.info["method"])

    @property
    def options(self) -> dict[str, Any]:
        """All options of the method, defaults included."""
        return dict(self.info["options"])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one latent."""
        return tuple(self.info["shape"])

    @property
    def dim(self) -> int:
        """The number of values in one latent."""
        return int(self.info["dim"])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the latents that are drawn: the encoder's."""
        return _DTYPES[self.info["dtype"]]

    @property
    def device(self) -> torch.device:
        """Where latents are drawn and scored."""
        return self._device

    @property
    def has_density(self) -> bool:
        """Whether :meth:`log_prob` works."""
        return type(self._plugin).has_density

    def to(self, device: str | torch.device) -> LatentSampler:
        """Move to a device, and return itself."""
        self._device = resolve_device(device)
        self._plugin.to(self._device)
        return self

    def sample(self, n: int, *, seed: int | None = None) -> Tensor:
        r"""Draw latents.

        Args:
            n: How many, >= 0.
            seed: A whole number for the same latents each time, on the same kind of device; None for new
                ones. The global random state is neither used nor changed.

        Returns:
            Latents (n, \*shape).

        Raises:
            OptionError: n or seed is not such a number, or n latents do not fit in memory.
            NonFiniteError: The fitted method drew NaN or infinity.
        """
        n = _check_number(n)
        rows = self._empty_rows(n)
        with (
            isolated_rng(check_seed(seed), self.device) as generator,
            plugin_defaults(self.device),
            torch.no_grad(),
        ):
            for part in rows.split(_CHUNK) if n else ():
                drawn = self._plugin.sample(len(part), generator)
                part.copy_(drawn.reshape(part.shape))  # copy_ alone would broadcast
        check_finite(rows, "samples", "the fit is unstable: fit again with a lower learning_rate")
        return self._transform.inverse(rows, self.dtype).view(n, *self.shape)

    def log_prob(self, z: Tensor | np.ndarray[Any, Any]) -> Tensor:
        r"""Compute the exact log density of latents, differentiable in z.

        Where dimensions are constant in the data, the density is over the others, and minus infinity for
        a latent that departs from the constants.

        Args:
            z: Latents (n, \*shape) in the encoder's units.

        Returns:
            (n,) float32, in nats, in the encoder's units (the transform's determinant is included).

        Raises:
            DensityUnavailable: The method has no density; ``has_density`` tells beforehand.
            DataError: z has another shape.
            NonFiniteError: z holds NaN or infinity.
        """
        if not self.has_density:
            raise DensityUnavailable(
                f"{self.method!r} draws samples but has no density; choose a method with has_density."
            )
        latents = self._latents(z)
        if not len(latents):
            return torch.zeros(0, dtype=torch.float32, device=self.device)
        parts = []
        with plugin_defaults(self.device):
            for part in latents.reshape(len(latents), self.dim).split(_CHUNK):
                rows = self._plugin.log_prob(self._transform.forward(part))
                parts.append(rows + self._transform.log_determinant(part))
        return torch.cat(parts)

    def score_samples(self, z: Tensor | np.ndarray[Any, Any]) -> Tensor:
        """Do what :meth:`log_prob` does; scikit-learn's name for it."""
        return self.log_prob(z)

    def decode(self, z: Tensor | np.ndarray[Any, Any]) -> Tensor:
        r"""Decode latents (n, \*shape) with the decoder, in eval mode; differentiable in z.

        Raises:
            DecoderUnavailable: None was given.
            DataError: z has another shape.
        """
        if self._decoder is None:
            raise DecoderUnavailable(
                "This sampler has no decoder; pass decoder= to fit_latent_sampler or load_sampler."
            )
        latents = self._latents(z)
        with self._decoder.evaluating():
            if not len(latents):  # some decoders can't take none: decode one to learn the shape
                return self._decoder(latents.new_zeros(1, *self.shape))[:0]
            size = int(self.info["batch_size"])
            return torch.cat([self._decoder(part) for part in latents.split(size)])

    def generate(self, n: int, *, seed: int | None = None) -> Tensor:
        """Draw n latents and decode them; the seed counts for a decoder that draws, too.

        Raises:
            DecoderUnavailable: No decoder was given.
        """
        if self._decoder is None:
            return self.decode(torch.empty(0, *self.shape))  # raises, before anything is drawn
        seed = check_seed(seed)
        z = self.sample(n, seed=seed)
        device = self._decoder.device or self.device
        with isolated_rng(seed ^ 1, device), torch.no_grad():  # not the noise that made z
            return self.decode(z)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save to one safetensors file, atomically; the decoder is not saved.

        Raises:
            OSError: The file can't be written; what was there before is unchanged.
        """
        tensors = {f"sampler.{k}": v for k, v in self._plugin.state_dict().items()}
        tensors |= {f"transform.{k}": v for k, v in self._transform.state().items()}
        write_tensors(path, tensors, {"info": self.info, "history": self.history})

    def _empty_rows(self, n: int) -> Tensor:
        """Allocate for n rows at once, so that too many are refused before any is drawn."""
        try:
            return torch.empty(n, self._transform.dim, dtype=torch.float32, device=self.device)
        except (RuntimeError, TypeError, OverflowError) as error:
            raise OptionError(
                f"Expected n latents of {self.dim} values to fit in memory; got n={n}. Draw fewer at a time."
            ) from error

    def _latents(self, z: Tensor | np.ndarray[Any, Any]) -> Tensor:
        """Check latents and put them on the device."""
        try:
            latents = z if isinstance(z, Tensor) else from_array(np.asarray(z))
        except (TypeError, ValueError) as error:
            raise DataError(f"Expected latents as a tensor or an array; {error}.") from error
        if latents.ndim != len(self.shape) + 1 or tuple(latents.shape[1:]) != self.shape:
            raise DataError(
                f"Expected latents of shape (n, {', '.join(map(str, self.shape))}); "
                f"got {tuple(latents.shape)}."
            )
        if latents.is_complex():
            raise DataError(f"Expected real latents; got {latents.dtype}.")
        if not latents.is_floating_point():
            latents = latents.float()
        check_finite(latents.detach(), "latents", "leave these rows out")
        return latents.to(self.device)

    def __repr__(self) -> str:
        info = self.info
        chosen = ", ".join(f"{k}={v!r}" for k, v in info["options"].items())
        rows = f"{info['n']:,} latents + {info['n_validation']:,} held out"
        return (
            f"LatentSampler({self.method!r}, shape={self.shape}, dtype={self.info['dtype']}, "
            f"device={str(self.device)!r},\n"
            f"    has_density={self.has_density}, decoder={'yes' if self._decoder else 'no'}, "
            f"transform={info['transform']!r}, parameters={info['parameters']:,},\n"
            f"    fitted on {rows} in {info['seconds']:.1f} s,\n"
            f"    {chosen})"
        )


@torch.inference_mode(False)  # weights made in inference mode would allow no gradients later
def load_sampler(
    path: str | os.PathLike[str], *, device: str | torch.device | None = None, decoder: Any = None
) -> LatentSampler:
    """Load a sampler that :meth:`LatentSampler.save` wrote.

    Nothing in the file is run: it names a method, and the installed plugin of that name is used.

    Args:
        path: The file.
        device: Where to put it; None means the CPU.
        decoder: An nn.Module, a callable, or an object with ``decode`` or ``inverse_transform``.

    Raises:
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
        options, transform_class = info["options"], TRANSFORMS[info["transform"]]
        sizes = [*shape, dim, n]
        if not all(type(size) is int and size > 0 for size in sizes) or math.prod(shape) != dim:
            raise ValueError(f"shape {shape!r}, dim {dim!r}, n {n!r}")
        if dtype not in _DTYPES or not isinstance(options, dict):
            raise ValueError(f"dtype {dtype!r}, options {options!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{path}: expected a latentfit header; {type(error).__name__}: {error}."
        ) from error
    plugin_class = load_sampler_class(method)
    parts: dict[str, dict[str, Tensor]] = {"sampler": {}, "transform": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise FileFormatError(f"{path}: expected tensors of a sampler; got one called {key!r}.")
        parts[part][name] = tensor
    try:
        transform = transform_class.from_state(parts["transform"], dim)
        resolved = resolve_options(plugin_class, options, method=method)
        plugin = build_plugin(plugin_class, resolved, dim=transform.dim, n=n, seed=0)
        _load_state(plugin, parts["sampler"])
    except LatentfitError as error:
        raise FileFormatError(f"{path}: {error}") from error
    info = {**info, "options": resolved}
    return LatentSampler(
        plugin.to(target), transform, info=info, history=history, device=target, decoder=decoding
    )


def build_plugin(
    cls: Callable[..., Sampler], options: dict[str, Any], *, dim: int, n: int, seed: int
) -> Sampler:
    """Construct a plugin and create its tensors, on the CPU, by one seed."""
    cpu = torch.device("cpu")
    with isolated_rng(seed, cpu), plugin_defaults(cpu):
        plugin = cls(**options)
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


def _check_number(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0:
        raise OptionError(f"Expected n as a whole number >= 0; got {n!r}.")
    return int(n)


def resolve_device(device: str | torch.device) -> torch.device:
    """Check a device.

    Raises:
        OptionError: It is no device's name, or not on this machine.
    """
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).item()
    except (RuntimeError, TypeError, AssertionError) as error:
        raise OptionError(
            f"Expected a device that this machine has, such as 'cpu'; got {str(device)!r} "
            f"({str(error).splitlines()[0][:100]})."
        ) from error
    return resolved
