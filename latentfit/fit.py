"""fit_latent_sampler: from an encoder and a dataset to a sampler."""

from __future__ import annotations

import math
import numbers
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from latentfit.auto import AUTO, AutoOptions, fit_best, load_candidates
from latentfit.condition import as_labels, kind_of
from latentfit.diagnosis import warn_about
from latentfit.encoding import encode
from latentfit.errors import OptionError
from latentfit.fitting import Plan, check_condition, fit_class
from latentfit.models import Model, decoder_of, encoder_of
from latentfit.options import resolve_options
from latentfit.randomness import check_seed, isolated_rng
from latentfit.registry import load_sampler_class, sampler_distribution
from latentfit.sampler import LatentSampler, resolve_device
from latentfit.transforms import make_transform

__all__ = ["fit_latent_sampler"]


def fit_latent_sampler(
    encoder: Any,
    dataset: Any,
    *,
    method: str = "realnvp",
    condition: Any = None,
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
        method: The name of an installed sampler; ``latentfit samplers`` lists them. "auto" fits a short list
            within one time budget and keeps the best by held-out data; see ``info["ranking"]``.
        condition: What to condition on, for methods that can: "labels" takes y from the dataset's items
            ``(x, y)`` or dicts; or the labels themselves. Whole numbers (N,) are classes; floats (N,) or
            (N, C) are vectors.
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
        **options: The method's options. Those of "auto" are ``methods``, a tuple of names, and ``metric``,
            "c2st" or "energy".

    Returns:
        The fitted sampler.

    Raises:
        OptionError: An argument or a method's option that does not fit, or a method that can't take the
            condition; told before anything is encoded where that is possible.
        UnknownPluginError: The method is not installed; the message lists those that are.
        DataError: A dataset or latents that can't be used; NonFiniteError for NaN and infinity.
        EncoderOutputError: The encoder returned no single tensor.
        DivergenceError: Training left the finite numbers; its ``sampler`` has the last finite weights.
    """
    _check_arguments(validation, batch_size, progress, max_seconds)
    seed = check_seed(seed)
    plugin_class = None if method == AUTO else load_sampler_class(method)
    resolved = resolve_options(plugin_class or AutoOptions, options, method=method)
    candidates = {} if plugin_class else load_candidates(resolved["methods"])
    make_transform(transform)
    from_dataset = isinstance(condition, str)
    if from_dataset and condition != "labels":
        raise OptionError(f"Expected condition as 'labels', labels or None; got {condition!r}.")
    given = None if condition is None or from_dataset else as_labels(condition)
    if plugin_class and given is not None:
        check_condition(plugin_class, kind_of(given), method)
    elif plugin_class and from_dataset and not plugin_class.conditions:
        check_condition(plugin_class, "labels", method)  # of whatever kind they will be
    model = None if encoder is None else encoder_of(encoder)
    decoding = None if decoder is None else decoder_of(decoder)
    origin = _device_of(model, dataset)
    plan = Plan(
        transform=transform,
        validation=float(validation),
        batch_size=int(batch_size),
        device=resolve_device(origin if device is None else device),
        seed=seed,
        progress=progress,
        max_seconds=max_seconds,
        decoder=decoding,
    )

    with isolated_rng(seed, origin), model.evaluating() if model else nullcontext():
        latents, labels = encode(
            model, dataset, batch_size=plan.batch_size, progress=progress, labels=from_dataset
        )
    if given is not None:
        labels = as_labels(given, len(latents))
    warn_about(latents, stacklevel=3)
    if plugin_class is None:
        return fit_best(latents, candidates, labels=labels, plan=plan, metric=resolved["metric"])
    return fit_class(
        plugin_class,
        latents,
        method=method,
        options=resolved,
        labels=labels,
        plan=plan,
        distribution=sampler_distribution(method),
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
