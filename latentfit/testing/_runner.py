"""Running the checks on a class or a registered name: one by one, all at once, or under pytest."""

from __future__ import annotations

import os
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from latentfit.arguments import check_kind, check_listed, check_number, told
from latentfit.errors import OptionError, PluginLoadError
from latentfit.options import Interval, resolve_options
from latentfit.randomness import isolated_rng, plugin_defaults
from latentfit.registry import load_sampler_class
from latentfit.sampler_base import Sampler
from latentfit.testing._check import CheckFailed, CheckResult, Skipped, Violation
from latentfit.testing._lab import Lab
from latentfit.testing._laws import LAWS, Law
from latentfit.testing._state import IN_CHILD

__all__ = ["check_sampler", "list_checks", "parametrize_with_checks", "run_checks"]

_MAX_SECONDS = 20.0
_MOST_NAMED = 3  # in a message


def list_checks() -> dict[str, str]:
    """Tell the checks' names and what each is about, in the order in which they run."""
    return {law.__name__: _summary(law) for law in LAWS}


def run_checks(
    sampler: type[Sampler] | str,
    options: Mapping[str, Any] | None = None,
    *,
    max_seconds: float = _MAX_SECONDS,
    only: Iterable[str] | None = None,
) -> Iterator[CheckResult]:
    """Check a sampler; iterate to run one check after the other.

    Args:
        sampler: The class, which need not be registered, or a registered name.
        options: The options to check it with; few training steps make it quick.
        max_seconds: What a fit may take whose quality is judged; there are up to three.
        only: Names of the checks to run; None runs all.

    Returns:
        An iterator over the results, each of which is made when it is asked for.

    Raises:
        OptionError: No class derived from ``latentfit.plugin.Sampler``, and no name; options that the sampler
            does not have, or values that don't fit; or ``only`` names a check that there is not.
        UnknownPluginError: No sampler of the name is installed.
        PluginLoadError: It can't be imported, or is no sampler.
    """
    if IN_CHILD in os.environ:
        raise RuntimeError(
            "Checks at the top level of a script would start themselves again and again; put them under "
            "`if __name__ == '__main__':`."
        )
    lab = _lab(sampler, {} if options is None else options, max_seconds)
    return (_run(law, lab) for law in _chosen(only))


def check_sampler(
    sampler: type[Sampler] | str, *, max_seconds: float = _MAX_SECONDS, **options: Any
) -> None:
    """Run all checks, and raise if one fails.

    Args:
        sampler: The class, which need not be registered, or a registered name.
        max_seconds: What a fit may take whose quality is judged.
        **options: The options to check it with.

    Raises:
        CheckFailed: It names the checks that failed, each with what was expected and what came.
        LatentfitError: As for :func:`run_checks`.
    """
    results = list(run_checks(sampler, options, max_seconds=max_seconds))
    failures = [result for result in results if result.status == "failed"]
    if failures:
        raise CheckFailed(_name(sampler), failures)


def parametrize_with_checks(
    samplers: Iterable[type[Sampler] | str | tuple[type[Sampler] | str, Mapping[str, Any]]],
    *,
    max_seconds: float = _MAX_SECONDS,
) -> Any:
    """Decorate a pytest function with one argument ``check``: it is run once for each sampler and check.

    Args:
        samplers: Classes or registered names, or pairs of one and its options.
        max_seconds: What a fit may take whose quality is judged.

    Raises:
        LatentfitError: As for :func:`run_checks`.

    Example::

        @parametrize_with_checks([(MySampler, {"steps": 300})])
        def test_sampler(check):
            check()
    """
    import pytest

    parameters: list[Any] = []
    for entry in check_listed(
        "samplers", samplers, "an iterable of classes, names, or pairs with options"
    ):
        pair = entry if isinstance(entry, tuple) else (entry, {})
        if len(pair) != 2:
            raise OptionError(
                f"Expected samplers as classes, names, or pairs with options; got {told(entry)} among them."
            )
        sampler, options = pair
        lab = _lab(sampler, options, max_seconds)
        label = [_name(sampler), *(f"{k}={v}" for k, v in options.items())]
        parameters += [
            pytest.param(_Call(law, lab), id="-".join([*label, law.__name__])) for law in LAWS
        ]
    return pytest.mark.parametrize("check", parameters)


class _Call:
    """A check of a sampler, to be called in a test."""

    def __init__(self, law: Law, lab: Lab) -> None:
        self._law, self._lab = law, lab

    def __call__(self) -> None:
        __tracebackhide__ = True  # pytest shows the message, not this
        import pytest

        failure: Violation | Skipped
        try:
            _apply(self._law, self._lab)
        except (Violation, Skipped) as raised:
            if raised.__cause__ is not None:  # the sampler's own error, with its traceback
                raise
            failure = raised
        else:
            return
        if isinstance(failure, Skipped):
            pytest.skip(str(failure))
        pytest.fail(str(failure), pytrace=False)

    def __repr__(self) -> str:
        return f"<{self._law.__name__} of {self._lab.label}>"


def _run(law: Law, lab: Lab) -> CheckResult:
    started = time.monotonic()

    def result(status: Any, message: str = "") -> CheckResult:
        return CheckResult(law.__name__, status, time.monotonic() - started, message)

    try:
        _apply(law, lab)
    except Skipped as reason:
        return result("skipped", str(reason))
    except Violation as violation:
        return result("failed", str(violation))
    except Exception as error:
        return result("failed", f"{type(error).__name__}: {error} ({_place(error)})")
    return result("passed")


def _apply(law: Law, lab: Lab) -> None:
    """Apply a law, whatever the caller has set: gradients, defaults, warnings as errors."""
    cpu = torch.device("cpu")
    with (
        warnings.catch_warnings(),
        isolated_rng(0, cpu),  # some laws draw between two fits
        plugin_defaults(cpu),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")  # one check is about them, and it catches them itself
        law(lab)


def _place(error: Exception) -> str:
    """Where an exception came from: the innermost line that is neither torch's nor this package's."""
    own = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    outside = [
        f
        for f in frames
        if not f.filename.startswith(own) and "torch" not in Path(f.filename).parts
    ]
    frame = (outside or list(frames))[-1]
    return f"{frame.filename}:{frame.lineno}, in {frame.name}"


def _lab(sampler: type[Sampler] | str, options: Mapping[str, Any], max_seconds: float) -> Lab:
    registered = isinstance(sampler, str)
    cls: Any = load_sampler_class(sampler) if isinstance(sampler, str) else sampler
    if not (isinstance(cls, type) and issubclass(cls, Sampler)):
        raise OptionError(
            "Expected sampler as a subclass of latentfit.plugin.Sampler, or a registered name; got "
            f"{told(sampler)}."
        )
    check_kind("options", options, Mapping, "a dict of the sampler's options")
    max_seconds = check_number("max_seconds", max_seconds, Interval(0, open_low=True))
    with suppress(PluginLoadError):  # options that the class declares badly are for a check to tell
        resolve_options(cls, options, method=_name(sampler))
    return Lab(cls, options, max_seconds=max_seconds, name=_name(sampler) if registered else None)


def _summary(law: Law) -> str:
    return (law.__doc__ or "").strip().splitlines()[0]


def _chosen(only: Iterable[str] | None) -> list[Law]:
    if only is None:
        return list(LAWS)
    names = check_listed("only", only, "an iterable of checks' names, or None")
    known = {law.__name__: law for law in LAWS}
    unknown = [name for name in names if not isinstance(name, str) or name not in known]
    if unknown:
        listed = ", ".join(told(name).strip("'") for name in unknown[:_MOST_NAMED])
        raise OptionError(f"Unknown checks {listed}; there are {', '.join(known)}.")
    return [known[name] for name in known if name in names]


def _name(sampler: type[Sampler] | str) -> str:
    return sampler if isinstance(sampler, str) else sampler.__name__
