"""Checks of samplers that can be conditioned, and of those that can't."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from latentfit.errors import OptionError
from latentfit.testing import _data
from latentfit.testing._check import Skipped, Violation, expect
from latentfit.testing._fitted import Fitted, Kind
from latentfit.testing._integral import integral
from latentfit.testing._lab import Lab

__all__ = [
    "classes_are_honoured",
    "conditional_log_prob_integrates_to_one",
    "conditions_are_declared",
    "vectors_are_honoured",
]

_KINDS = ("classes", "vector")


def conditions_are_declared(lab: Lab) -> None:
    """The kinds in conditions are known, sample and log_prob take a context then, others are refused."""
    name = lab.cls.__name__
    declared: Any = lab.cls.conditions
    expect(
        isinstance(declared, tuple)
        and all(kind in _KINDS for kind in declared)
        and len(set(declared)) == len(declared),
        f"Expected {name}.conditions to be a tuple of 'classes' and 'vector', or (); got {declared!r}.",
    )
    methods = ["sample", "log_prob"] if lab.cls.has_density else ["sample"]
    for method in methods:
        function = getattr(lab.cls, method)
        parameter = inspect.signature(function).parameters.get("context")
        if declared:
            expect(
                parameter is not None and parameter.default is None,
                f"Expected {name}.{method} to take a last argument context: Tensor | None = None, "
                f"because conditions is {declared}; its signature is {inspect.signature(function)}.",
            )
        elif not function.__module__.startswith(
            "latentfit."
        ):  # FlowSampler serves both kinds of flow
            expect(
                parameter is None,
                f"Expected {name}.{method} without an argument 'context', because conditions is "
                "(), and nobody would ever pass one; declare conditions = ('classes', 'vector') "
                "or one of them.",
            )
    for kind in _KINDS:
        if kind in declared:
            continue
        latents, labels = _data.blobs(60, 1) if kind == "classes" else _data.line(60, 1)
        try:
            lab.fit_as_user(latents, labels, max_seconds=0.1)
        except OptionError:
            continue
        raise Violation(
            f"Expected a fit of {name} with a condition of kind {kind!r}, which it does not "
            "declare, to be refused by an OptionError; it went through."
        )


def classes_are_honoured(lab: Lab) -> None:
    """Samples of a class lie at that class's rows, row by row, and the density knows the classes."""
    fitted = _conditioned(lab, "classes")
    centres = _centres()
    n = 900
    asked = torch.arange(n) % len(centres)
    for order in (asked, asked.sort().values):
        drawn = fitted.draw(n, seed=1, context=torch.eye(len(centres))[order])
        nearest = torch.cdist(drawn, centres).argmin(dim=1)
        share = float((nearest == order).float().mean())
        expect(
            share > 0.9,
            "Expected rows drawn for a class to lie at that class (three blobs, eight deviations "
            f"apart), row i by row i of the context; {share:.0%} of {lab.cls.__name__}'s do, "
            "expected above 90 %.",
        )
        spread = float((drawn - centres[order]).std(0).min())
        expect(
            spread > 0.3 * float(_scale_of_blobs().min()),
            "Expected rows drawn for a class to spread as the class does; their deviation is "
            f"{spread:.3g} of the data's {float(_scale_of_blobs().min()):.3g}.",
        )
    if lab.cls.has_density:
        context = torch.eye(len(centres))
        right = fitted.score(centres, context)
        wrong = fitted.score(centres, context.roll(1, dims=0))
        expect(
            bool((right > wrong + 1).all()),
            f"Expected {lab.cls.__name__}.log_prob to be higher for a row of the class than for "
            f"one of another; got {right.tolist()} for the right classes and {wrong.tolist()} for "
            "others.",
        )


def vectors_are_honoured(lab: Lab) -> None:
    """The mean of samples follows a condition of real numbers, row by row."""
    fitted = _conditioned(lab, "vector")
    latents, condition = _data.line(2400, seed=4)
    values = torch.tensor([-1.5, 0.0, 1.5])
    n = 900
    asked = values[torch.arange(n) % 3][:, None]
    context = (asked - condition.mean()) / condition.std(correction=0)
    expected = (values[:, None] @ _data.SLOPE - latents.mean(0)) / latents.std(0, correction=0)
    drawn = fitted.draw(n, seed=1, context=context)
    for k, value in enumerate(values.tolist()):
        gap = float((drawn[k::3].mean(0) - expected[k]).abs().max())
        expect(
            gap < 0.35,
            f"Expected the mean of rows drawn under the condition {value:g} at "
            f"{_listed(expected[k])}; that of {lab.cls.__name__} is "
            f"{_listed(drawn[k::3].mean(0))} (in deviations of the data, "
            "within 0.35).",
        )


def conditional_log_prob_integrates_to_one(lab: Lab) -> None:
    """Under each condition the density's integral over the plane is 1, within 2 %."""
    if not lab.cls.has_density:
        raise Skipped(f"{lab.label} has no density.")
    if not lab.kinds:
        raise Skipped(f"{lab.label} can't be conditioned.")
    for kind in lab.kinds:
        fitted = _conditioned(lab, kind)
        contexts = torch.eye(3) if kind == "classes" else torch.tensor([[-1.3], [0.0], [1.3]])
        for context in contexts:
            near = None if kind == "classes" else fitted.rows[_is_near(context)]
            mass = integral(fitted, context, near)
            expect(
                0.98 < mass < 1.02,
                f"Expected the density of {lab.cls.__name__} under each condition to integrate to "
                f"1, within 0.02; got {mass:.4f} under {context.tolist()} ({kind}).",
            )


def _conditioned(lab: Lab, kind: Kind) -> Fitted:
    if kind not in lab.kinds:
        raise Skipped(f"{lab.label} can't be conditioned on {kind!r}.")
    return lab.by_class() if kind == "classes" else lab.by_vector()


def _centres() -> Tensor:
    """The blobs' centres, as standardised for the fit."""
    latents, _ = _data.blobs(2400, seed=3)
    return (_data.CENTRES - latents.mean(0)) / latents.std(0, correction=0)


def _scale_of_blobs() -> Tensor:
    latents, labels = _data.blobs(2400, seed=3)
    rows = _data.standardised(latents)
    return (rows - _centres()[labels]).std(0)


def _is_near(context: Tensor) -> Tensor:
    """Which rows of Lab.by_vector have about a context, (n,)."""
    _, condition = _data.line(2400, seed=4)
    near: Tensor = (_data.standardised(condition)[:, 0] - context).abs() < 0.2
    return near


def _listed(values: Tensor) -> str:
    return "(" + ", ".join(f"{v:.2f}" for v in values.tolist()) + ")"
