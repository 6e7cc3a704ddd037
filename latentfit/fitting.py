"""From latents and a sampler class to a fitted LatentSampler."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from latentfit._version import __version__
from latentfit.choosing import fit_transform, needs_covariance, to_rows
from latentfit.condition import Condition, fit_condition, kind_of
from latentfit.errors import DataError, DivergenceError, OptionError
from latentfit.loading import build_plugin
from latentfit.models import Model
from latentfit.moments import measure
from latentfit.options import resolve_options
from latentfit.progress import Bar
from latentfit.randomness import isolated_rng, plugin_defaults
from latentfit.sampler import LatentSampler
from latentfit.sampler_base import Sampler
from latentfit.training import Run
from latentfit.transforms import Transform

__all__ = ["Plan", "check_condition", "fit_class", "split"]


@dataclass(frozen=True)
class Plan:
    """How latents are fitted, whatever the method; ``fit_latent_sampler`` documents the arguments.

    Attributes:
        device: Where to fit.
        seed: Of the split and the fit.
        decoder: For the sampler's ``decode``.
    """

    transform: str | Transform = "auto"
    validation: float = 0.1
    batch_size: int = 512
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    seed: int = 0
    progress: bool | None = None
    max_seconds: float | None = None
    decoder: Model | None = None


@torch.inference_mode(False)  # under a caller's no_grad or inference_mode nothing could be trained
@torch.enable_grad()
def fit_class(
    cls: type[Sampler],
    latents: Tensor,
    *,
    method: str,
    options: dict[str, Any] | None = None,
    labels: Tensor | None = None,
    plan: Plan | None = None,
    distribution: str = "",
) -> LatentSampler:
    r"""Fit one sampler class to latents.

    Args:
        cls: The class; it need not be registered.
        latents: (N, \*shape), finite, on the CPU.
        method: The name for ``info``, files and messages.
        options: The method's options.
        labels: What to condition on, as :func:`latentfit.condition.as_labels` gives them.
        plan: How; None means by the defaults.
        distribution: Where the class is from, for ``info``.

    Raises:
        OptionError: An option that does not fit, or labels for a method that can't be conditioned on them.
        DataError: Too few latents, or latents that never vary.
        DivergenceError: Training left the finite numbers; its ``sampler`` has the last finite weights.
    """
    plan = plan or Plan()
    resolved = resolve_options(cls, options or {}, method=method)
    if labels is not None:
        check_condition(cls, kind_of(labels), method)
    _check_latents(latents)
    flat = latents.reshape(len(latents), -1)
    covariance = needs_covariance(plan.transform, cls, tuple(latents.shape[1:]))
    transform, mapping = fit_transform(
        plan.transform, cls, measure([latents], covariance=covariance)
    )
    if mapping.dim == 0:
        raise DataError(
            f"Expected latents that vary; all {len(flat)} are equal. Does the encoder ignore its input?"
        )
    condition = None if labels is None else fit_condition(labels)

    training, watched = split(len(flat), plan.validation, plan.seed, labels)
    rows = to_rows(mapping, flat).to(plan.device)
    training_rows, held_out = rows[training.to(plan.device)], rows[watched.to(plan.device)]
    plugin = build_plugin(
        cls,
        resolved,
        dim=mapping.dim,
        n=len(training),
        seed=plan.seed,
        condition=condition,
        layout=mapping.layout,
    )
    plugin.to(plan.device)
    failure: DivergenceError | None = None
    with (
        isolated_rng(plan.seed, plan.device) as generator,
        plugin_defaults(plan.device),
        Bar(method, plan.progress) as bar,
    ):
        run = Run(
            generator, batch_size=plan.batch_size, max_seconds=plan.max_seconds, show=bar.show
        )
        if condition is not None and labels is not None:
            context = condition.encode(labels, len(labels)).to(plan.device)
            run.context = context[training.to(plan.device)]
            run.held_out_context = context[watched.to(plan.device)]
        try:
            plugin.fit(training_rows, held_out, run)
        except DivergenceError as error:
            failure = error
        except Exception as error:
            error.add_note(f"in the fit of the sampler {method!r}{_from(distribution)}")
            raise

    sampler = LatentSampler(
        plugin,
        mapping,
        info=_info(method, resolved, latents, condition, run, plan, plugin, distribution)
        | {
            "n": len(training),
            "n_validation": len(watched),
            "transform": transform,
            "kept_dimensions": mapping.dim,
            "constant_dimensions": mapping.constant,
        },
        history=run.history,
        device=plan.device,
        decoder=plan.decoder,
        condition=condition,
    )
    if failure is not None:
        failure.sampler = sampler if run.history else None
        raise failure
    return sampler


def _from(distribution: str) -> str:
    return f" of {distribution}" if distribution else ""


def check_condition(cls: type[Sampler], kind: str, method: str) -> None:
    """Refuse a kind of condition that the class can't take.

    Raises:
        OptionError: With the kinds that it can.
    """
    if kind not in cls.conditions:
        able = ", ".join(map(repr, cls.conditions)) or "nothing"
        hint = (
            " Whole numbers are classes: y.long()."
            if kind == "vector" and able != "nothing"
            else ""
        )
        raise OptionError(
            f"Expected a condition that {method!r} can take ({able}); got {kind!r}.{hint} `latentfit "
            f"samplers {method}` tells what it can be conditioned on."
        )


def split(
    n: int, validation: float, seed: int, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose at random, by the seed, which of n rows to train on and which to hold out: two index tensors.

    The last row of a class is never held out: nothing could be learnt of that class.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu")
    held_out = min(n - 1, max(1, round(n * validation))) if validation else 0
    if labels is not None and kind_of(labels) == "classes" and held_out:
        _, classes = labels[order].unique(return_inverse=True)
        last = torch.zeros(int(classes.max()) + 1, dtype=torch.int64)
        last.scatter_reduce_(0, classes, torch.arange(n), "amax")
        keep = torch.zeros(n, dtype=torch.bool)
        keep[last] = True
        order = torch.cat((order[~keep], order[keep]))
        held_out = min(held_out, n - len(last))
    return order[held_out:], order[:held_out]


def _info(
    method: str,
    options: dict[str, Any],
    latents: Tensor,
    condition: Condition | None,
    run: Run,
    plan: Plan,
    plugin: Sampler,
    distribution: str,
) -> dict[str, Any]:
    return {
        "method": method,
        "options": options,
        "shape": list(latents.shape[1:]),
        "dim": latents[0].numel(),
        "dtype": str(latents.dtype).removeprefix("torch."),
        "condition": None if condition is None else condition.describe(),
        "batch_size": plan.batch_size,
        "seconds": time.monotonic() - run.started,
        "seed": plan.seed,
        "parameters": sum(p.numel() for p in plugin.parameters()),
        "fit": {name: _plain(value) for name, value in run.facts.items()},
        "versions": {
            "latentfit": __version__,
            "torch": version("torch"),
            "plugin": distribution,
        },
    }


def _plain(value: Any) -> Any:
    """Give what JSON can hold as it is, and anything else as text: a long fit must not fail at its end."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value


def _check_latents(latents: Tensor) -> None:
    if len(latents) < 2:
        raise DataError(f"Expected at least 2 latents; got {len(latents)}.")
    if latents.numel() == 0:
        raise DataError(
            f"Expected latents of at least one value; got shape {tuple(latents.shape)}."
        )
