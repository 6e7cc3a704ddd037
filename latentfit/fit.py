"""fit_latent_sampler: from an encoder and a dataset to a sampler."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentfit.arguments import check_flag, check_number, check_path, check_whole, told
from latentfit.auto import AutoOptions, fit_best, load_candidates, load_method
from latentfit.batches import Batches
from latentfit.choosing import check_transform
from latentfit.condition import as_labels, kind_of
from latentfit.diagnosis import warn_about
from latentfit.encoding import device_of, encode
from latentfit.errors import LatentsWarning, OptionError
from latentfit.fitting import Plan, check_condition, fit_class
from latentfit.models import Model, decoder_of, encoder_of
from latentfit.options import Interval, resolve_options
from latentfit.outputs import Choice
from latentfit.parallel import Workers, workers_of
from latentfit.preparing import in_memory
from latentfit.randomness import check_seed, in_turn, without_autocast
from latentfit.registry import sampler_distribution
from latentfit.sampler import LatentSampler, resolve_device
from latentfit.store import LatentStore
from latentfit.storing import fill_store
from latentfit.transforms import Transform

__all__ = ["fit_latent_sampler"]


def fit_latent_sampler(
    encoder: Any,
    dataset: Any,
    *,
    method: str = "realnvp",
    condition: Any = None,
    decoder: Any = None,
    output: Choice = None,
    autocast: str | torch.dtype | None = None,
    transform: str | Transform = "auto",
    validation: float = 0.1,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    seed: int | None = 0,
    progress: bool | None = None,
    max_seconds: float | None = None,
    store: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    accelerator: Any = None,
    **options: Any,
) -> LatentSampler:
    r"""Learn the distribution of a frozen encoder's latents.

    The encoder runs in inference and eval mode on its own device; its mode, parameters, gradients and
    device are the same afterwards, and so is the global random state. One seed gives one sampler on one
    machine, unless ``max_seconds`` ends the training.

    Args:
        encoder: An nn.Module, a callable, or an object with ``encode`` or (scikit-learn) ``transform``,
            which returns a tensor or array (n, \*shape), a posterior, or what holds one: ``output`` chooses
            where there is a choice. None: the dataset holds latents already.
        dataset: A tensor or array (N, ...), a torch Dataset, a DataLoader, or an iterable of batches; items
            are ``x``, ``(x, y)`` or dicts.
        method: The name of an installed sampler; ``latentfit samplers`` lists them. "auto" fits a short list
            within one time budget and keeps the best by held-out data; see ``info["ranking"]``.
        condition: What to condition on, for methods that can: "labels" takes y from the dataset's items
            ``(x, y)`` or dicts; or the labels themselves. Whole numbers (N,) are classes; floats (N,) or
            (N, C) are vectors.
        decoder: What ``decode`` and ``generate`` use: an nn.Module, a callable, or an object with ``decode``
            or ``inverse_transform``.
        output: What to take of what the encoder returns: "mean" (the default) or "sample" of a posterior, a
            key or attribute path ("last_hidden_state", "a.b"), an index, or a callable. None takes the only
            tensor, or what diffusers, transformers and pythae call their latents.
        autocast: "bfloat16" or "float16" (or torch's dtype) runs the encoder under ``torch.autocast``; its
            latents are float32.
        transform: What is done to the latents before the fit, and undone after it: "auto" (what suits the
            method; ``info["transform"]`` tells), "scale" (rotated to the principal axes, one scale for all),
            "standardize" (each dimension, or each channel of latents (C, H, W), to mean 0 and deviation 1),
            "whiten" (each principal axis to deviation 1), "none", or an object of a class derived from
            :class:`latentfit.transforms.Transform`. What does not vary is left out and put back.
        validation: The fraction of the latents that is held out to stop by, in [0, 1).
        batch_size: Rows in a call of the encoder and in a training minibatch.
        device: Where the sampler is trained and lives; None means where the encoder (or the dataset) is.
        seed: A whole number; None for a new one.
        progress: Whether to show progress on stderr; None means on a terminal.
        max_seconds: Ends the training after so many seconds, with the schedule annealed in time; encoding
            does not count, nor does the transform, which takes half a minute of 4,096 dimensions.
        store: A folder that keeps the latents: what an encoder made of the same data is not encoded again,
            a run that was ended goes on where it was, and latents beyond memory are read as they are needed.
        checkpoint: A folder that keeps what is done of the fit, written every minute. The same call finds it
            there after whatever ended it, goes on, and gives what it would have given, bit for bit on one
            machine without ``max_seconds``. Delete it when the sampler is saved.
        accelerator: An ``accelerate.Accelerator``: its processes share the encoding and the training, and
            each returns the same sampler. All have to call this with the same arguments.
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
    workers = workers_of(accelerator)
    if workers.count > 1:
        workers.agree(
            method=method,
            condition=condition,
            output=output,
            autocast=autocast,
            transform=transform,
            validation=validation,
            batch_size=batch_size,
            seed=seed,
            store=store,
            checkpoint=checkpoint,
            encoder=encoder,
            dataset=dataset,
            **options,
        )
        max_seconds = workers.first(max_seconds)
    if seed is None and checkpoint is not None:
        raise OptionError(
            "Expected a seed with checkpoint=, as the same call has to be the same fit; got seed=None."
        )
    seed = workers.first(check_seed(seed))
    validation = check_number(
        "validation", validation, Interval(0, 1, open_high=True), noun="fraction"
    )
    batch_size = check_whole("batch_size", batch_size, 1)
    progress = check_flag("progress", progress, optional=True)
    max_seconds = check_number(
        "max_seconds", max_seconds, Interval(0, open_low=True), optional=True
    )
    plugin_class = load_method(method)
    resolved = resolve_options(plugin_class or AutoOptions, options, method=method)
    candidates = {} if plugin_class else load_candidates(resolved["methods"])
    check_transform(transform)
    if isinstance(dataset, LatentStore) and (encoder is not None or store is not None):
        raise OptionError(
            "Expected a LatentStore as dataset without an encoder and without store=: it holds latents; got "
            f"encoder={type(encoder).__name__}, store={told(store)}."
        )
    keeps = None if checkpoint is None else check_path("checkpoint", checkpoint, "a folder")
    if keeps is not None:
        _check_apart(keeps, dataset.path if isinstance(dataset, LatentStore) else store)
    if encoder is None and not (output is None and autocast is None):
        raise OptionError(
            "Expected output=None and autocast=None, as there is no encoder (the dataset holds latents); got "
            f"output={told(output)}, autocast={told(autocast)}."
        )
    from_dataset = isinstance(condition, str)
    if from_dataset and condition != "labels":
        raise OptionError(f"Expected condition as 'labels', labels or None; got {told(condition)}.")
    given = None if condition is None or from_dataset else as_labels(condition, name="condition")
    if plugin_class and given is not None:
        check_condition(plugin_class, kind_of(given), method)
    elif plugin_class and from_dataset and not plugin_class.conditions:
        check_condition(plugin_class, "labels", method)  # of whatever kind they will be
    model = None if encoder is None else encoder_of(encoder, output=output, autocast=autocast)
    decoding = None if decoder is None else decoder_of(decoder)
    origin = device_of(model, dataset)
    plan = Plan(
        transform=transform,
        validation=validation,
        batch_size=batch_size,
        device=resolve_device(origin if device is None else device),
        seed=seed,
        progress=progress if workers.is_first else False,
        max_seconds=max_seconds,
        encoder=None if model is None else model.describe(),
        decoder=decoding,
        workers=workers,
        checkpoint=None if keeps is None else _made(keeps, workers),
    )

    if given is not None and not isinstance(dataset, LatentStore):
        Batches(dataset, batch_size).check_labels_apart("condition=")
    latents, labels = _encoded(model, dataset, plan, store, from_dataset)
    if given is not None:
        labels = as_labels(given, len(latents), name="condition")
    if workers.is_first:
        warn_about(latents, stacklevel=3)
    if plugin_class is None:
        sampler = fit_best(latents, candidates, labels=labels, plan=plan, **resolved)
    else:
        sampler = fit_class(
            plugin_class,
            latents,
            method=method,
            options=resolved,
            labels=labels,
            plan=plan,
            distribution=sampler_distribution(method),
        )
    done = sampler.info["fit"]
    if workers.is_first and "stopped_by" in done and done.get("best_step") == 0:
        warnings.warn(
            f"The time for the fit of {sampler.method!r} was up before any step had made it better: it is as "
            "it was before its training. Give it more max_seconds.",
            LatentsWarning,
            stacklevel=2,
        )
    return sampler


def _check_apart(checkpoint: Path, store: str | os.PathLike[str] | None) -> None:
    """Refuse a checkpoint in a store's folder, which the next call would not take for a store.

    Raises:
        OptionError: It is that folder, or one in it.
    """
    if store is None:
        return
    inner = Path(os.path.realpath(checkpoint))
    outer = Path(os.path.realpath(check_path("store", store, "a folder of its own")))
    if outer in (inner, *inner.parents):
        raise OptionError(
            "Expected checkpoint as a folder outside the store's, which holds nothing but latents; got "
            f"checkpoint={told(str(checkpoint))} and the store {told(str(store))}. Name another folder."
        )


def _made(folder: Path, workers: Workers) -> Path:
    """Make the folder of a checkpoint.

    Raises:
        OptionError: It can't be made, in whichever process.
    """
    problem = ""
    try:
        if workers.is_first:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"; {error}"
    if problem := workers.first(problem):
        raise OptionError(
            f"Expected checkpoint as the path of a folder; got {told(str(folder))}{problem}."
        )
    return folder


def _encoded(
    model: Model | None,
    dataset: Any,
    plan: Plan,
    store: str | os.PathLike[str] | None,
    labelled: bool,
) -> tuple[Tensor | LatentStore, Tensor | None]:
    """Give a dataset's latents, in memory or in a store, and its labels if they are asked for."""
    if isinstance(dataset, LatentStore):
        filled = dataset
        filled.verify()
    else:
        settings: dict[str, Any] = {
            "batch_size": plan.batch_size,
            "labels": labelled,
            "seed": plan.seed,
            "progress": plan.progress,
            "workers": plan.workers,
        }
        with (
            without_autocast(device_of(model, dataset)),
            model.evaluating() if model else in_turn(),
        ):
            if store is None:
                return encode(model, dataset, **settings)
            filled = fill_store(store, model, dataset, **settings)
    return in_memory(filled), filled.labels() if labelled else None
