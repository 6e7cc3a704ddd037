"""Checks of what a class declares: its options and its constructor."""

from __future__ import annotations

import inspect
import json
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import torch
from torch import Tensor

from latentfit.errors import DataError, DivergenceError, OptionError
from latentfit.fit import fit_latent_sampler
from latentfit.options import Interval, describe_options, resolve_options
from latentfit.testing import _data
from latentfit.testing._check import Violation, expect
from latentfit.testing._fitted import brief_fit
from latentfit.testing._lab import Lab
from latentfit.testing._world import expect_same, random_states

__all__ = ["constructor_only_stores", "options_are_declared", "options_work_within_their_ranges"]


def options_are_declared(lab: Lab) -> None:
    """Every option has a type, a default that fits it, and a line in the docstring's Args section."""
    name = lab.cls.__name__
    chosen = lab.options
    constructor: Any = cast(Any, lab.cls).__init__
    for parameter in inspect.signature(constructor).parameters.values():
        expect(
            parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD),
            f"Expected {name}.__init__ to name its options; it takes {parameter}, which nobody "
            "can list, check or save.",
        )
    options = describe_options(lab.cls)
    taken = set(inspect.signature(fit_latent_sampler).parameters) - {"options"}
    for option in options.values():
        what = f"the option {option.name!r} of {name}"
        expect(
            option.annotation is not Any,
            f"Expected {what} to have a type; write {option.name}: int, Annotated[float, "
            "Interval(0, 1)], ...",
        )
        expect(not option.required, f"Expected {what} to have a default.")
        expect(
            bool(option.help),
            f"Expected {what} to be described; add '{option.name}: ...' under 'Args:' in the "
            f"docstring of {name}.",
        )
        expect(
            option.name not in taken,
            f"Expected {what} under another name: fit_latent_sampler has an argument "
            f"{option.name!r} itself, so that nobody could set it.",
        )
    saved = json.loads(json.dumps(chosen, allow_nan=False))
    again = resolve_options(lab.cls, saved, method=lab.label)
    expect(
        again == chosen,
        f"Expected options that survive JSON, as files keep them; {chosen} became {again}.",
    )


def constructor_only_stores(lab: Lab) -> None:
    """__init__ stores each option under its name, and creates and draws nothing."""
    name = lab.cls.__name__
    before = random_states()
    plugin = lab.cls(**lab.options)
    expect_same(before, random_states(), f"{name}.__init__")
    for option, value in lab.options.items():
        expect(
            hasattr(plugin, option),
            f"Expected {name}.__init__ to store the option {option!r}: self.{option} = {option}; "
            "there is no such attribute.",
        )
        stored = getattr(plugin, option)
        expect(
            type(stored) is type(value) and stored == value,
            f"Expected {name}.__init__ to store the option {option!r} as it is, {value!r}; "
            f"self.{option} is {stored!r}. Work with it in build.",
        )
    made = [key for key, _ in (*plugin.named_parameters(), *plugin.named_buffers())]
    made += [key for key, _ in plugin.named_modules() if key]
    made += [key for key, value in vars(plugin).items() if isinstance(value, Tensor)]
    expect(
        not made,
        f"Expected {name}.__init__ to create nothing; it made {', '.join(made)}. Move that to build.",
    )


def options_work_within_their_ranges(lab: Lab) -> None:
    """What an option's type and range allow either works or is refused by an OptionError."""
    rows = _data.standardised(_data.correlated(72, 3, seed=8))
    given = lab.options
    for option in describe_options(lab.cls).values():
        for value in _extremes(option.annotation):
            chosen = {**given, option.name: value}
            what = f"{option.name}={value!r}"
            try:
                fitted = brief_fit(lab.cls, chosen, rows[:60], rows[60:], most=3)
            except (OptionError, DataError, DivergenceError):
                continue
            except Exception as error:
                raise Violation(
                    f"Expected {what}, which the option's type allows ({option.expects}), to work "
                    f"or to be refused by an OptionError; got {type(error).__name__}: {error}. "
                    "Narrow it, as with Annotated[..., Interval(...)], or check it in build."
                ) from error
            drawn = fitted.draw(8)
            expect(
                drawn.shape == (8, 3) and bool(drawn.isfinite().all()),
                f"Expected finite rows (8, 3) with {what}, which the option's type allows "
                f"({option.expects}); got {_told(drawn)}.",
            )


def _extremes(annotation: Any) -> list[Any]:
    """Values at the edges of what an annotation allows, as far as they are cheap to try."""
    interval = Interval()
    if get_origin(annotation) is Annotated:
        annotation, *extra = get_args(annotation)
        interval = next((e for e in extra if isinstance(e, Interval)), interval)
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return list(members)
    if origin is tuple and members[-1] is Ellipsis:
        return [(), *((value,) for value in _extremes(_with(members[0], interval)))]
    if origin in (Union, type(int | None)):
        return [value for m in members for value in _extremes(_with(m, interval))]
    if annotation is bool:
        return [True, False]
    if annotation in (None, type(None)):
        return [None]
    if annotation not in (int, float):
        return []
    candidates = [interval.low, interval.low + 1, -1, 0]
    if annotation is float:
        candidates = [interval.low, interval.high, -1, 0]
    values = {annotation(c) for c in candidates if abs(c) < 1e9}
    return sorted(value for value in values if value in interval)


def _with(annotation: Any, interval: Interval) -> Any:
    """Hand an interval around a union or a tuple on to a number in it."""
    return Annotated[annotation, interval] if annotation in (int, float) else annotation


def _told(rows: Tensor) -> str:
    bad = int((~torch.isfinite(rows)).sum())
    return f"{tuple(rows.shape)} with {bad} values NaN or infinite"
