"""fit_latent_sampler: from an encoder and a dataset to a sampler."""

from __future__ import annotations

import math
import numbers
import time
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from latentfit._version import __version__
from latentfit.encoding import encode
from latentfit.errors import DataError, DivergenceError, OptionError
from latentfit.models import Model, decoder_of, encoder_of
from latentfit.options import resolve_options
from latentfit.progress import Bar
from latentfit.randomness import check_seed, isolated_rng, plugin_defaults
from latentfit.registry import load_sampler_class, sampler_distribution
from latentfit.sampler import LatentSampler, build_plugin, resolve_device
from latentfit.training import Run
from latentfit.transforms import make_transform

__all__ = ["fit_latent_sampler"]


@torch.inference_mode(False)  # under a caller's no_grad or inference_mode nothing could be trained
@torch.enable_grad()
def fit_latent_sampler(
    encoder: Any,
    dataset: Any,
    *,
    method: str = "realnvp",
    decoder: Any = None,
    transform: str = "standardize",
    validation: float = 0.1,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    seed: int | None = 0,
    progress: bool | None = None,
    max_seconds: float | None = None,
    **options: Any,
) -> LatentSampler:
    r"""Learn the distribution of a frozen encoder's latents.

    The encoder runs in inference and eval mode on its own device; its mode, parameters, gradients and
    device are the same afterwards, and so is the global random state. One seed gives one sampler on one
    machine, unless ``max_seconds`` ends the training.

    Args:
        encoder: An nn.Module, a callable, or an object with ``encode`` or (scikit-learn) ``transform``,
            which returns a tensor or array (n, \*shape), or a tuple, list or dict with exactly one. None:
            the dataset holds latents already.
        dataset: A tensor or array (N, ...), a torch Dataset, a DataLoader, or an iterable of batches; items
            are ``x``, ``(x, y)`` or dicts.
        method: The name of an installed sampler; ``latentfit samplers`` lists them.
        decoder: What ``decode`` and ``generate`` use: an nn.Module, a callable, or an object with ``decode``
            or ``inverse_transform``.
        transform: "standardize" (each dimension to mean 0 and deviation 1; constant ones are left out and
            put back) or "none".
        validation: The fraction of the latents that is held out to stop by, in [0, 1).
        batch_size: Rows in a call of the encoder and in a training minibatch.
        device: Where the sampler is trained and lives; None means where the encoder (or the dataset) is.
        seed: A whole number; None for a new one.
        progress: Whether to show progress on stderr; None means on a terminal.
        max_seconds: Ends the training after so many seconds, with the schedule annealed in time; encoding
            does not count.
        **options: The method's options.

    Returns:
        The fitted sampler.

    Raises:
        OptionError: An argument or a method's option that does not fit.
        UnknownPluginError: The method is not installed; the message lists those that are.
        DataError: A dataset or latents that can't be used; NonFiniteError for NaN and infinity.
        EncoderOutputError: The encoder returned no single tensor.
        DivergenceError: Training left the finite numbers; its ``sampler`` has the last finite weights.
    """
    _check_arguments(validation, batch_size, progress, max_seconds)
    validation, batch_size = float(validation), int(batch_size)
    seed = check_seed(seed)
    plugin_class = load_sampler_class(method)
    resolved = resolve_options(plugin_class, options, method=method)
    transform_class = make_transform(transform)
    model = None if encoder is None else encoder_of(encoder)
    decoding = None if decoder is None else decoder_of(decoder)
    origin = _device_of(model, dataset)
    target = resolve_device(origin if device is None else device)

    with isolated_rng(seed, origin), model.evaluating() if model else nullcontext():
        latents = encode(model, dataset, batch_size=batch_size, progress=progress)
    _check_latents(latents)
    flat = latents.reshape(len(latents), -1)
    mapping = transform_class.fit(flat)
    if mapping.dim == 0:
        raise DataError(
            f"Expected latents that vary; all {len(flat)} are equal. Does the encoder ignore its input?"
        )

    rows, held_out = _split(mapping.forward(flat).to(target), validation, seed)
    plugin = build_plugin(plugin_class, resolved, dim=mapping.dim, n=len(rows), seed=seed)
    plugin.to(target)
    failure: DivergenceError | None = None
    with (
        isolated_rng(seed, target) as generator,
        plugin_defaults(target),
        Bar(method, progress) as bar,
    ):
        run = Run(generator, batch_size=batch_size, max_seconds=max_seconds, show=bar.show)
        try:
            plugin.fit(rows, held_out, run)
        except DivergenceError as error:
            failure = error

    info = {
        "method": method,
        "options": resolved,
        "shape": list(latents.shape[1:]),
        "dim": flat.shape[1],
        "dtype": str(latents.dtype).removeprefix("torch."),
        "n": len(rows),
        "n_validation": len(held_out),
        "batch_size": batch_size,
        "seconds": time.monotonic() - run.started,
        "seed": seed,
        "transform": transform,
        "constant_dimensions": mapping.constant,
        "parameters": sum(p.numel() for p in plugin.parameters()),
        "versions": {
            "latentfit": __version__,
            "torch": version("torch"),
            "plugin": sampler_distribution(method),
        },
    }
    sampler = LatentSampler(
        plugin, mapping, info=info, history=run.history, device=target, decoder=decoding
    )
    if failure is not None:
        failure.sampler = sampler if run.history else None
        raise failure
    return sampler


def _check_latents(latents: Tensor) -> None:
    if len(latents) < 2:
        raise DataError(f"Expected at least 2 latents; got {len(latents)}.")
    if latents.numel() == 0:
        raise DataError(
            f"Expected latents of at least one value; got shape {tuple(latents.shape)}."
        )


def _check_arguments(validation: Any, batch_size: Any, progress: Any, max_seconds: Any) -> None:
    if not _is(validation, numbers.Real) or not 0 <= validation < 1:
        raise OptionError(f"Expected validation as a fraction in [0, 1); got {validation!r}.")
    if not _is(batch_size, numbers.Integral) or batch_size < 1:
        raise OptionError(f"Expected batch_size as a whole number >= 1; got {batch_size!r}.")
    if progress is not None and not isinstance(progress, bool):
        raise OptionError(f"Expected progress as True, False or None; got {progress!r}.")
    if max_seconds is not None and not (
        _is(max_seconds, numbers.Real) and 0 < max_seconds < math.inf
    ):
        raise OptionError(f"Expected max_seconds as a number > 0 or None; got {max_seconds!r}.")


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _device_of(model: Model | None, dataset: Any) -> torch.device:
    if model is not None and model.device is not None:
        return model.device
    if isinstance(dataset, Tensor):
        return dataset.device
    return torch.device("cpu")


def _split(rows: Tensor, validation: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split rows into those to train on and those held out, at random by the seed."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed), device="cpu")
    order = order.to(rows.device)
    held_out = min(len(rows) - 1, max(1, round(len(rows) * validation))) if validation else 0
    return rows[order[held_out:]], rows[order[:held_out]]
