"""From latents and a sampler class to a fitted LatentSampler."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from latentfit._version import __version__
from latentfit.checkpoint import Checkpoint, checkpoint_path
from latentfit.choosing import CUSTOM, fit_transform, needs_covariance
from latentfit.condition import Condition, fit_condition, kind_of
from latentfit.custom import ROWS, check_transform_object
from latentfit.errors import DataError, DivergenceError, OptionError, warn_caller
from latentfit.loading import build_plugin
from latentfit.models import Model
from latentfit.moments import Moments, measure
from latentfit.options import resolve_options
from latentfit.parallel import SOLO, Workers
from latentfit.preparing import Prepared, prepare, shape_of
from latentfit.progress import Bar
from latentfit.randomness import isolated_rng, plugin_defaults
from latentfit.rows import Rows
from latentfit.sampler import LatentSampler
from latentfit.sampler_base import Sampler
from latentfit.store import LatentStore
from latentfit.training import Run, plain
from latentfit.transforms import Transform

__all__ = ["Plan", "check_condition", "fit_class", "fitted_transform"]

_DROWNED = 2e-3  # of the scale: as narrow as that, a dimension gets noticeably wider


@dataclass(frozen=True)
class Plan:
    """How latents are fitted, whatever the method; ``fit_latent_sampler`` documents the arguments.

    Attributes:
        device: Where to fit.
        seed: Of the split and the fit.
        encoder: What made the latents, for ``info``; None if nobody knows.
        decoder: For the sampler's ``decode``.
        workers: The processes that share the fit.
        checkpoint: The folder that keeps what is done of a fit, or None.
    """

    transform: str | Transform = "auto"
    validation: float = 0.1
    batch_size: int = 512
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    seed: int = 0
    progress: bool | None = None
    max_seconds: float | None = None
    encoder: dict[str, Any] | None = None
    decoder: Model | None = None
    workers: Workers = SOLO
    checkpoint: Path | None = None


@torch.inference_mode(False)  # under a caller's no_grad or inference_mode nothing could be trained
@torch.enable_grad()
def fit_class(
    cls: type[Sampler],
    latents: Tensor | LatentStore,
    *,
    method: str,
    options: dict[str, Any] | None = None,
    labels: Tensor | None = None,
    plan: Plan | None = None,
    distribution: str = "",
    left_out: Tensor | None = None,
    name: str = "",
) -> LatentSampler:
    r"""Fit one sampler class to latents.

    Args:
        cls: The class; it need not be registered.
        latents: (N, \*shape), finite, on the CPU; or a store of them, which is read in parts where it is
            larger than memory should be.
        method: The name for ``info``, files and messages.
        options: The method's options.
        labels: What to condition on, as :func:`latentfit.condition.as_labels` gives them.
        plan: How; None means by the defaults.
        distribution: Where the class is from, for ``info``.
        left_out: Latents of a store that the fit must not see: an index (m,), ascending.
        name: The checkpoint's; empty means the method's.

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
    transform, mapping = fitted_transform(cls, latents, plan)
    if mapping.dim == 0:
        raise DataError(
            f"Expected latents that vary; all {len(latents)} are equal, or as good as equal in "
            f"{str(latents.dtype).removeprefix('torch.')}. Does the encoder ignore its input? If they do "
            "vary, subtract their mean, or scale them up, in float64 before the fit."
        )
    condition = None if labels is None else fit_condition(labels)
    data = prepare(cls, latents, mapping, labels, condition, plan, left_out, method=method)
    plugin = build_plugin(
        cls,
        resolved,
        dim=mapping.dim,
        n=len(data.rows),
        seed=plan.seed,
        condition=condition,
        layout=mapping.layout,
    )
    plugin.to(plan.device)
    checkpoint = None
    if plan.checkpoint is not None:
        checkpoint = _open_checkpoint(
            checkpoint_path(plan.checkpoint, name or method),
            data,
            plan,
            method=method,
            options=resolved,
            distribution=distribution,
        )
    failure: DivergenceError | None = None
    with (
        isolated_rng(plan.seed, plan.device) as generator,
        plugin_defaults(plan.device),
        Bar(method, plan.progress) as bar,
    ):
        run = Run(
            generator,
            batch_size=plan.batch_size,
            max_seconds=plan.max_seconds,
            show=bar.show,
            context=data.context,
            held_out_context=data.held_out_context,
            workers=plan.workers,
            checkpoint=checkpoint,
        )
        try:
            plugin.fit(cast(Tensor, data.rows), data.held_out, run)
        except DivergenceError as error:
            failure = error
        except Exception as error:
            error.add_note(f"in the fit of the sampler {method!r}{_from(distribution)}")
            raise
        if run.elapsed() >= 1:
            run.facts["stopped_by"] = "max_seconds"
    plan.workers.share(plugin)

    sampler = LatentSampler(
        plugin,
        mapping,
        info=_info(method, resolved, latents, condition, run, plan, plugin, distribution)
        | {
            "n": len(data.rows),
            "n_validation": len(data.held_out),
            "transform": transform,
            "kept_dimensions": mapping.dim,
            "constant_dimensions": mapping.constant,
        },
        history=run.history,
        device=plan.device,
        decoder=plan.decoder,
        condition=condition,
    )
    if transform == CUSTOM:
        sampler.info["transform_class"] = type(
            mapping
        ).__qualname__  # no module: a name, not a path
    if failure is not None:
        failure.sampler = sampler if run.history else None
        raise failure
    return sampler


def fitted_transform(
    cls: type[Sampler], latents: Tensor | LatentStore, plan: Plan
) -> tuple[str, Transform]:
    """Choose the transform of a fit, fit it, and try it if it is the user's own: its name and the object.

    Raises:
        OptionError: A fault of the user's.
        DataError: Latents that it can't take.
    """
    covariance = needs_covariance(plan.transform, cls, shape_of(latents))
    if isinstance(latents, Tensor):
        moments = measure([latents], covariance=covariance)
    else:
        moments = latents.moments(covariance=covariance)
    name, mapping = fit_transform(plan.transform, cls, moments)
    if (
        name in ("scale", "none")
        and mapping.dim == int(moments.varies.sum())
        and plan.workers.is_first
    ):
        _warn_of_drowned(moments, name)
    if isinstance(plan.transform, Transform):
        check_transform_object(mapping, plan.transform, _some(latents), moments, plan.device)
    return name, mapping


def _warn_of_drowned(moments: Moments, name: str) -> None:
    """Warn of a dimension that is next to nothing on the one scale that all have under a transform."""
    deviation = torch.where(moments.varies, moments.variance.sqrt(), torch.inf)
    whole = float(moments.variance.mean().sqrt())
    if not float(deviation.min()) < _DROWNED * whole:
        return
    warn_caller(
        f"Expected dimensions that deviate by at least a {1 / _DROWNED:.0f}th of all dimensions' root mean "
        f"square, {whole:.3g}, for transform={name!r}, as most methods widen their samples to a thousandth "
        f"of that; dimension {int(deviation.argmin())} deviates by {float(deviation.min()):.3g}, and will "
        "be drawn too wide. If it matters, use transform='standardize'; latentfit.diagnose tells more."
    )


def _some(latents: Tensor | LatentStore) -> Tensor:
    n = min(ROWS, len(latents))
    some = latents[:n] if isinstance(latents, Tensor) else latents.read(0, n)
    return some.reshape(n, -1)


def _open_checkpoint(
    path: Path,
    data: Prepared,
    plan: Plan,
    *,
    method: str,
    options: dict[str, Any],
    distribution: str,
) -> Checkpoint:
    """Open the checkpoint of a fit; the file's, if there is one, has to be of this very fit.

    Raises:
        ForeignCheckpoint: It is another's.
        DamagedCheckpoint: It is damaged.
    """
    workers = plan.workers
    fit = {
        "method": method,
        "options": options,
        "seed": plan.seed,
        "batch_size": plan.batch_size,
        "processes": workers.count,
        "device": plan.device.type,
        "latents": list(data.rows.shape),
        "versions": {
            "latentfit": __version__,
            "torch": version("torch"),
            "plugin": distribution,
        },
        "latents' SHA-256": workers.first(_digest(data) if workers.is_first else None),
    }
    return Checkpoint(path, json.loads(json.dumps(fit)), workers)  # tuples are lists in a file


def _digest(data: Prepared) -> str:
    """Give the SHA-256 of what a plugin is fitted to."""
    digest = hashlib.sha256()
    rows = data.rows.parts() if isinstance(data.rows, Rows) else [(data.rows, data.context)]
    for parts in (*rows, (data.held_out, data.held_out_context)):
        for part in parts:
            if part is not None:
                digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()


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


def _info(
    method: str,
    options: dict[str, Any],
    latents: Tensor | LatentStore,
    condition: Condition | None,
    run: Run,
    plan: Plan,
    plugin: Sampler,
    distribution: str,
) -> dict[str, Any]:
    return {
        "method": method,
        "options": options,
        "shape": list(shape_of(latents)),
        "dim": math.prod(shape_of(latents)),
        "dtype": str(latents.dtype).removeprefix("torch."),
        "encoder": plan.encoder,
        "condition": None if condition is None else condition.describe(),
        "batch_size": plan.batch_size,
        "seconds": run.seconds(),
        "seed": plan.seed,
        "parameters": sum(p.numel() for p in plugin.parameters()),
        "fit": {name: plain(value) for name, value in run.facts.items()},
        "versions": {
            "latentfit": __version__,
            "torch": version("torch"),
            "plugin": distribution,
        },
    }


def _check_latents(latents: Tensor | LatentStore) -> None:
    if len(latents) < 2:
        raise DataError(f"Expected at least 2 latents; got {len(latents)}.")
    shape = shape_of(latents)
    if math.prod(shape) == 0:
        raise DataError(
            f"Expected latents of at least one value; got shape {(len(latents), *shape)}."
        )
