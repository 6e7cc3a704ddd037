"""A method's options: read from its constructor's annotations, checked, and parsed from text."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from latentfit.arguments import check_flag, scalar, told
from latentfit.docstrings import describe_arguments
from latentfit.errors import OptionError, PluginLoadError

__all__ = ["Interval", "Option", "describe_options", "parse_option_strings", "resolve_options"]


@dataclass(frozen=True)
class Interval:
    """The numbers an option may take: ``Annotated[float, Interval(0, 1, open_high=True)]``."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __post_init__(self) -> None:
        for name, end in (("low", self.low), ("high", self.high)):
            plain = scalar(end)
            if isinstance(plain, bool) or not isinstance(plain, numbers.Real) or math.isnan(plain):
                raise OptionError(f"Expected {name} as a number or infinity; got {told(end)}.")
        if not self.low <= self.high:
            raise OptionError(
                f"Expected low <= high; got low={told(self.low)}, high={told(self.high)}."
            )
        check_flag("open_low", self.open_low)
        check_flag("open_high", self.open_high)

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and (isinstance(value, int) or math.isfinite(value))

    def __str__(self) -> str:
        if self.low == -math.inf and self.high == math.inf:
            return "finite"
        if self.high == math.inf:
            return f"{'>' if self.open_low else '>='} {self.low:g}"
        if self.low == -math.inf:
            return f"{'<' if self.open_high else '<='} {self.high:g}"
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {left}{self.low:g}, {self.high:g}{right}"


@dataclass(frozen=True)
class Option:
    """One keyword argument of a sampler's constructor.

    Attributes:
        name: What it is called.
        annotation: Its type, with an :class:`Interval` where it has one.
        default: Its default; ``inspect.Parameter.empty`` where it has to be given.
        help: What it does, from the class's docstring; empty where that says nothing.
    """

    name: str
    annotation: Any
    default: Any
    help: str = ""

    @property
    def required(self) -> bool:
        """Whether it has to be given."""
        return self.default is inspect.Parameter.empty

    @property
    def expects(self) -> str:
        """What values it takes, in words."""
        return _expects(self.annotation)


class _MismatchError(Exception):
    pass


def describe_options(cls: type) -> dict[str, Option]:
    """List the options of a sampler class by name, in the order of its constructor.

    Raises:
        PluginLoadError: The constructor's annotations can't be read, or an option is of a type, or has a
            default, that no option can have.
    """
    constructor: Any = cast(Any, cls).__init__
    try:
        hints = get_type_hints(constructor, include_extras=True)
        parameters = list(inspect.signature(constructor).parameters.values())[1:]  # without self
    except Exception as error:  # annotations are another's code: a name that is not there, ...
        raise PluginLoadError(
            f"The annotations of {cls.__name__}'s constructor can't be read: {type(error).__name__}: {error}"
        ) from error
    texts = describe_arguments(cls)
    options = {}
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        option = Option(p.name, hints.get(p.name, Any), p.default, texts.get(p.name, ""))
        problem = "is positional only" if p.kind is p.POSITIONAL_ONLY else _problem(option)
        if problem:
            raise PluginLoadError(f"The option {p.name!r} of {cls.__name__} {problem}.")
        options[p.name] = option
    return options


def resolve_options(cls: type, given: Mapping[str, Any], *, method: str) -> dict[str, Any]:
    """Check the given options against a class's annotations and fill in its defaults.

    Args:
        cls: The sampler class.
        given: Option values by name.
        method: The method's name, for the messages.

    Returns:
        All options, with plain Python values (lists become tuples, NumPy scalars numbers).

    Raises:
        OptionError: An unknown name, a missing one without default, or a value that does not fit.
    """
    known = describe_options(cls)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            listed = ", ".join(known) or "none"
            raise OptionError(f"{method!r} has no option {name!r}; its options: {listed}.{hint}")
    resolved = {}
    for name, option in known.items():
        value = given.get(name, option.default)
        if option.required and name not in given:
            raise OptionError(f"{method!r} needs the option {name!r}: {option.expects}.")
        try:
            resolved[name] = _coerce(option.annotation, value)
        except _MismatchError:
            raise OptionError(
                f"Option {name!r} of {method!r}: expected {option.expects}; got {told(value)}."
            ) from None
    return resolved


def parse_option_strings(cls: type, texts: Mapping[str, str]) -> dict[str, Any]:
    """Turn ``name=value`` texts from a command line into values, by the class's annotations.

    A tuple is written with commas (``hidden=256,256``). A name that the class does not have, or a text
    that does not fit, is passed on as it is: :func:`resolve_options` says what is wrong with it.
    """
    known = describe_options(cls)
    return {
        name: _parse(known[name].annotation, text) if name in known else text
        for name, text in texts.items()
    }


def _split(annotation: Any) -> tuple[Any, Interval | None]:
    """Separate ``Annotated[type, Interval]``."""
    if get_origin(annotation) is Annotated:
        base, *extra = get_args(annotation)
        return base, next((e for e in extra if isinstance(e, Interval)), None)
    return annotation, None


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union or a tuple; an interval around it goes to those that hold numbers."""
    base, interval = _split(annotation)
    if interval is None:
        return get_args(base)
    return tuple(
        Annotated[member, interval] if _holds_numbers(member) else member
        for member in get_args(base)
    )


def _holds_numbers(annotation: Any) -> bool:
    base, _ = _split(annotation)
    if _is_union(base) or get_origin(base) is tuple:
        return any(map(_holds_numbers, get_args(base)))
    return base in (int, float)


def _problem(option: Option) -> str | None:
    """What is wrong with an option that its author declared."""
    unknown = _unsupported(option.annotation)
    if unknown is not None:
        return (
            f"has the type {unknown}; expected int, float, bool, str, Literal, tuple[X, ...], unions of them "
            "with None, and Interval around numbers"
        )
    if not option.required:
        try:
            _coerce(option.annotation, option.default)
        except _MismatchError:
            return f"expects {option.expects}, but its default is {option.default!r}"
    return None


def _unsupported(annotation: Any) -> str | None:
    """The part of an annotation that no option can have, or None."""
    base, interval = _split(annotation)
    if interval is not None and not _holds_numbers(base):
        return f"{getattr(base, '__name__', base)} with an Interval"
    if _is_union(base) or (get_origin(base) is tuple and get_args(base)):
        found = (_unsupported(m) for m in get_args(base) if m is not Ellipsis)
        return next((text for text in found if text is not None), None)
    if get_origin(base) is Literal:
        known = all(isinstance(choice, str | int) for choice in get_args(base))
    else:
        known = base in (Any, None, type(None), bool, str, int, float)
    return (
        None if known else str(base) if get_origin(base) else getattr(base, "__name__", str(base))
    )


def _coerce(annotation: Any, value: Any) -> Any:
    """Give the value as the annotated type, or raise _MismatchError."""
    base, interval = _split(annotation)
    if _is_union(base):
        for member in _members(annotation):
            try:
                return _coerce(member, value)
            except _MismatchError:
                continue
        raise _MismatchError
    if base is Any:
        return value
    if base is None or base is type(None):
        return _require(value is None, value)
    if get_origin(base) is Literal:
        return _require(isinstance(value, str | int) and value in get_args(base), value)
    if get_origin(base) is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _MismatchError
        members = _members(annotation)
        if members[-1] is not Ellipsis:
            _require(len(value) == len(members), value)
            return tuple(_coerce(m, v) for m, v in zip(members, value, strict=True))
        return tuple(_coerce(members[0], v) for v in value)
    if base is str:
        return str(_require(isinstance(value, str), value))
    value = scalar(value)
    if base is bool:
        return _require(isinstance(value, bool), value)
    if isinstance(value, bool):
        raise _MismatchError  # True is no number here
    if base is int:
        number: float = int(_require(isinstance(value, numbers.Integral), value))
    elif base is float:
        try:
            number = float(_require(isinstance(value, numbers.Real), value))
        except OverflowError:
            raise _MismatchError from None
    else:
        raise TypeError(f"Options can't have the type {base!r}.")
    return _require(number in (interval or Interval()), number)


def _require(condition: bool, value: Any) -> Any:
    if not condition:
        raise _MismatchError
    return value


def _parse(annotation: Any, text: str) -> Any:
    """Read a text as the annotated type; a text that does not fit is returned as it is."""
    base, _ = _split(annotation)
    if _is_union(base):
        for member in _members(annotation):
            value = _parse(member, text)
            try:
                return _coerce(member, value)
            except _MismatchError:
                continue
        return text
    if base is None or base is type(None):
        return None if text.lower() == "none" else text
    if get_origin(base) is Literal:
        return next((choice for choice in get_args(base) if str(choice) == text), text)
    if get_origin(base) is tuple:
        parts = [part.strip() for part in text.strip("()").split(",") if part.strip()]
        members = _members(annotation)
        if members[-1] is Ellipsis:
            members = members[:1] * len(parts)
        if len(parts) != len(members):
            return text
        return tuple(map(_parse, members, parts))
    if base is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if base in (int, float):
        try:
            return base(text)
        except ValueError:
            return text
    return text


def _expects(annotation: Any) -> str:
    base, interval = _split(annotation)
    if _is_union(base):
        return " or ".join(_expects(member) for member in _members(annotation))
    if base is None or base is type(None):
        return "None"
    if get_origin(base) is Literal:
        return " or ".join(repr(choice) for choice in get_args(base))
    if get_origin(base) is tuple:
        members = _members(annotation)
        if members[-1] is Ellipsis:
            return f"a tuple of {_expects(members[0])}"
        return f"a tuple of {len(members)}: {', '.join(_expects(m) for m in members)}"
    name = getattr(base, "__name__", str(base))
    return f"{name} {interval}" if interval else name
