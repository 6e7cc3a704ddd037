"""Checks of how a sampler behaves in the process that runs it."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from latentfit.testing import _data
from latentfit.testing._check import Violation, expect
from latentfit.testing._devices import MixedDevices
from latentfit.testing._fitted import Fitted, brief_fit
from latentfit.testing._lab import Lab
from latentfit.testing._world import expect_same, random_states, settings

__all__ = [
    "fit_ends_near_max_seconds",
    "history_and_facts_can_be_saved",
    "interruption_leaves_nothing_half_made",
    "nothing_is_warned_of",
    "process_is_left_as_it_was",
    "tensors_of_one_device_are_used_together",
]

_BUDGET = 0.5  # what Lab.hurried gives
_SLACK = 2.5


def process_is_left_as_it_was(lab: Lab) -> None:
    """Threads, defaults, environment, working directory and global random numbers are left alone."""
    name = lab.cls.__name__
    fitted = (
        lab.brief()
    )  # a library that is imported at its first use may change things: not counted
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        _fit_again(lab, watch := _Watch())
        expect_same(watch.before, watch.after, f"{name}.fit")
        before = settings()
        with torch.no_grad():
            drawn = fitted.draw(5)
        expect_same(before, settings(), f"{name}.sample")
        if lab.cls.has_density:
            # Around fit and sample latentfit gives the random states back itself.
            before = settings() | random_states()
            fitted.score(drawn)
            expect_same(before, settings() | random_states(), f"{name}.log_prob")


def interruption_leaves_nothing_half_made(lab: Lab) -> None:
    """Ctrl-C comes out of a fit, changes nothing outside it, and the next fit is whole."""
    name, whole = lab.cls.__name__, lab.brief()
    _fit_again(lab, counted := _Calls())
    for fraction in (0.2, 0.9):
        _interrupt(lab, max(1, int(counted.calls * fraction)))
        try:
            again = lab.fit_briefly()
        except Exception as error:
            raise Violation(
                f"Expected a fit of {name} to work after another was interrupted; got "
                f"{type(error).__name__}: {error}. What does fit leave on the class or the module?"
            ) from error
        differing = [k for k in whole.state if not torch.equal(whole.state[k], again.state[k])]
        expect(
            not differing,
            f"Expected a fit of {name} after an interrupted one to be like the first; they differ in "
            f"{', '.join(differing)}. What does fit leave on the class or the module?",
        )


def _interrupt(lab: Lab, call: int) -> None:
    """Press Ctrl-C in a fit, and expect it to come out and the process to be as it was."""
    name = lab.cls.__name__
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        watch, calls = _Watch(), _Calls(stop_at=call)
        try:
            with watch:
                _fit_again(lab, calls)
        except KeyboardInterrupt:
            if not calls.stopped:  # somebody's own
                raise
        else:
            expect(
                not calls.stopped,
                f"Expected a KeyboardInterrupt in the middle of {name}.fit to come out of it; it was "
                "swallowed. Catch Exception, not BaseException, and use finally to tidy up.",
            )
        expect_same(watch.before, watch.after, f"an interrupted {name}.fit")


def fit_ends_near_max_seconds(lab: Lab) -> None:
    """A fit that is given half a second ends soon after it."""
    _, seconds = lab.hurried()
    expect(
        seconds < _BUDGET + _SLACK,
        f"Expected {lab.cls.__name__}.fit to end near max_seconds={_BUDGET:g} on 4,000 rows; it "
        f"took {seconds:.1f} s of processor time. Count training steps with run.steps(total), and ask "
        "run.elapsed() >= 1 in other loops.",
    )


def history_and_facts_can_be_saved(lab: Lab) -> None:
    """run.log got finite numbers, as many of each, and run.facts holds JSON values."""
    name = lab.cls.__name__
    for kind in (None, *lab.kinds):
        fitted = lab.brief(kind)
        lengths = {key: len(values) for key, values in fitted.history.items()}
        expect(
            len(set(lengths.values())) <= 1,
            f"Expected {name}.fit to log the same names each time; the curves have lengths {lengths}.",
        )
        curves: dict[str, list[Any]] = dict(fitted.history)
        for key, values in curves.items():
            wrong = [v for v in values if not isinstance(v, float | int) or not math.isfinite(v)]
            expect(
                not wrong,
                f"Expected {name}.fit to log finite floats; {key!r} holds {wrong[:1]}. Convert "
                "with float(), and raise DivergenceError where training leaves the finite numbers.",
            )
        try:
            json.dumps(fitted.facts, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Violation(
                f"Expected {name}.fit to put JSON values into run.facts; got {fitted.facts} ({error})."
            ) from error


def nothing_is_warned_of(lab: Lab) -> None:
    """On ordinary rows, neither fit nor sample nor log_prob warns."""
    fitted, name = lab.brief(), lab.cls.__name__
    expect(
        not fitted.warnings,
        f"Expected {name} to fit ordinary rows without a warning; got {'; '.join(fitted.warnings[:3])}.",
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn = fitted.draw(20)
        if lab.cls.has_density:
            fitted.score_with_gradients(drawn)
    expect(
        not caught,
        f"Expected {name} to draw and score without a warning; got "
        f"{'; '.join(f'{w.category.__name__}: {w.message} ({w.filename}:{w.lineno})' for w in caught[:3])}.",
    )


def tensors_of_one_device_are_used_together(lab: Lab) -> None:
    """On a GPU, fit, sample and log_prob would mix no tensors of the CPU with the rows."""
    name = lab.cls.__name__
    fitted = lab.brief()
    uses: dict[str, Callable[[TorchFunctionMode], object]] = {
        "fit": lambda mode: _fit_again(lab, mode),
        "sample": lambda mode: _within(mode, lambda: fitted.draw(5)),
    }
    if lab.cls.has_density:
        uses["log_prob"] = lambda mode: _within(
            mode, lambda: fitted.score_with_gradients(fitted.rows[:5])
        )
    for what, use in uses.items():
        use(mode := MixedDevices())
        expect(
            not mode.places,
            f"Expected {name}.{what} to work with rows on a GPU; it would mix them with tensors of the CPU: "
            f"{'; '.join(mode.places[:3])}. Make tensors where the rows or the generator are: "
            "device=rows.device, rows.new_zeros, zeros_like.",
        )
    if torch.cuda.is_available():
        sampler = lab.fit_as_user(
            _data.mixed_scales(1000, seed=5), max_seconds=2, device=torch.device("cuda")
        )
        drawn = sampler.sample(5, seed=0)
        if sampler.has_density:
            sampler.log_prob(drawn)


class _Watch:
    """Note the process's settings on the way in and out."""

    def __enter__(self) -> None:
        self.before = settings()

    def __exit__(self, *_: object) -> None:
        self.after = settings()


class _Calls(TorchFunctionMode):
    """Count calls of torch, and press Ctrl-C at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.calls, self.stop_at, self.stopped = 0, stop_at, False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        if self.calls == self.stop_at:
            self.stopped = True
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


def _within(mode: TorchFunctionMode, action: Callable[[], object]) -> None:
    with mode:
        action()


def _fit_again(lab: Lab, around: Any) -> Fitted:
    """Fit as lab.brief() was fitted, with the plugin's fit inside a context manager."""
    fitted = lab.brief()
    return brief_fit(
        lab.cls, lab.options, fitted.rows.clone(), fitted.held_out.clone(), around=around
    )
