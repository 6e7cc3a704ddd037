"""fit_latent_sampler: from an encoder and a dataset to a sampler."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from latentfit._version import __version__
from latentfit.encoding import encode
from latentfit.errors import DataError, DivergenceError, OptionError
from latentfit.models import encoder_of
from latentfit.options import resolve_options
from latentfit.progress import Bar
from latentfit.randomness import check_seed, isolated_rng
from latentfit.registry import load_sampler_class, sampler_distribution
from latentfit.sampler import LatentSampler, build_plugin, resolve_device
from latentfit.training import Run
from latentfit.transforms import make_transform

__all__ = ["fit_latent_sampler"]


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
    """Learn the distribution of a frozen encoder's latents.

    The encoder runs in inference and eval mode on its own device; its mode, parameters, gradients and
    device are the same afterwards, and so is the global random state. One seed gives one sampler on one
    machine, unless ``max_seconds`` ends the training.

    Args:
        encoder: An nn.Module, a callable, or an object with ``encode`` or (scikit-learn) ``transform``,
            which returns a tensor or array (n, \\*shape), or a tuple, list or dict with exactly one. None: the
            dataset holds latents already.
        dataset: A tensor or array (N, ...), a torch Dataset, a DataLoader, or an iterable of batches; items
            are ``x``, ``(x, y)`` or dicts.
        method: The name of an installed sampler; ``latentfit samplers`` lists them.
        decoder: What ``decode`` and ``generate`` use: an nn.Module, a callable, or an object with ``decode`` or
            ``inverse_transform``.
        transform: "standardize" (each dimension to mean 0 and deviation 1; constant ones are left out and put
            back) or "none".
        validation: The fraction of the latents that is held out to stop by, in [0, 1).
        batch_size: Rows in a call of the encoder and in a training minibatch.
        device: Where the sampler is trained and lives; None means where the encoder (or the dataset) is.
        seed: A whole number; None for a new one.
        progress: Whether to show progress on stderr; None means on a terminal.
        max_seconds: Ends the training after so many seconds, with the schedule annealed in time; encoding does
            not count.
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
    seed = check_seed(seed)
    plugin_class = load_sampler_class(method)
    resolved = resolve_options(plugin_class, options, method=method)
    transform_class = make_transform(transform)
    model = None if encoder is None else encoder_of(encoder)
    target = resolve_device(device or _device_of(model, dataset))

    with isolated_rng(seed, target), model.evaluating() if model else nullcontext():
        latents = encode(model, dataset, batch_size=batch_size, progress=progress)
    if len(latents) < 2:
        raise DataError(f"Expected at least 2 latents; got {len(latents)}.")
    shape, dtype = tuple(latents.shape[1:]), latents.dtype
    latents = latents.flatten(1)
    mapping = transform_class.fit(latents)
    if mapping.dim == 0:
        raise DataError(
            f"Expected latents that vary; all {len(latents)} are equal. Does the encoder ignore its input?"
        )
    started = time.monotonic()
    plugin = build_plugin(
        plugin_class, resolved, dim=mapping.dim, n=_n_training(len(latents), validation), seed=seed
    ).to(target)
    failure: DivergenceError | None = None
    with isolated_rng(seed, target) as generator, Bar(method, progress) as bar:
        rows, held_out = _split(mapping.forward(latents).to(target), validation, seed)
        run = Run(generator, batch_size=batch_size, max_seconds=max_seconds, show=bar.show)
        try:
            plugin.fit(rows, held_out, run)
        except DivergenceError as error:
            failure = error
    info = {
        "method": method,
        "options": resolved,
        "shape": list(shape),
        "dim": latents.shape[1],
        "dtype": str(dtype).removeprefix("torch."),
        "n": len(rows),
        "n_validation": len(held_out),
        "batch_size": batch_size,
        "seconds": time.monotonic() - started,
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
        plugin, mapping, info=info, history=run.history, device=target, decoder=decoder
    )
    if failure is not None:
        failure.sampler = sampler if run.history else None
        raise failure
    return sampler


def _check_arguments(
    validation: Any, batch_size: Any, progress: Any, max_seconds: Any
) -> None:
    if isinstance(validation, bool) or not isinstance(validation, int | float) or not 0 <= validation < 1:
        raise OptionError(f"Expected validation as a fraction in [0, 1); got {validation!r}.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise OptionError(f"Expected batch_size as a whole number >= 1; got {batch_size!r}.")
    if progress not in (None, True, False):
        raise OptionError(f"Expected progress as True, False or None; got {progress!r}.")
    if max_seconds is not None and not (
        isinstance(max_seconds, int | float) and 0 < max_seconds < math.inf
    ):
        raise OptionError(f"Expected max_seconds as a number > 0 or None; got {max_seconds!r}.")


def _device_of(model: Any, dataset: Any) -> torch.device:
    if model is not None and model.device is not None:
        return model.device
    if isinstance(dataset, Tensor):
        return dataset.device
    return torch.device("cpu")


def _n_training(n: int, validation: float) -> int:
    held_out = min(n - 1, max(1, round(n * validation))) if validation else 0
    return n - held_out


def _split(rows: Tensor, validation: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split rows into those to train on and those held out, at random by the seed."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    order = order.to(rows.device)
    n = _n_training(len(rows), validation)
    return rows[order[:n]], rows[order[n:]]
