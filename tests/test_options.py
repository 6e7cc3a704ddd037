"""Options: types, ranges, choices, texts from a command line, and what errors say."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from latentfit.docstrings import summarise
from latentfit.errors import OptionError, PluginLoadError
from latentfit.options import Interval, describe_options, parse_option_strings, resolve_options


class Method:
    def __init__(
        self,
        *,
        steps: Annotated[int, Interval(1)] = 10,
        rate: Annotated[float, Interval(0, 1, open_low=True)] = 0.5,
        hidden: tuple[Annotated[int, Interval(1)], ...] = (8,),
        betas: tuple[float, float] = (0.0, 0.9),
        base: Literal["normal", "mixture"] = "normal",
        components: Annotated[int, Interval(1)] | None = None,
        flag: bool = False,
        name: str = "a",
        anything: Any = None,
    ) -> None:
        pass


class Needy:
    def __init__(self, *, size: int) -> None:
        pass


def resolve(**given: Any) -> dict[str, Any]:
    return resolve_options(Method, given, method="m")


def parse(**texts: str) -> dict[str, Any]:
    return resolve_options(Method, parse_option_strings(Method, texts), method="m")


def test_defaults_fill_in() -> None:
    resolved = resolve()
    assert list(resolved) == list(describe_options(Method))
    assert resolved["hidden"] == (8,)
    assert resolved["components"] is None


@pytest.mark.parametrize(
    "name, given, kept",
    [
        ("steps", 3, 3),
        ("steps", np.int64(3), 3),
        ("steps", np.uint8(3), 3),
        ("rate", 1, 1.0),
        ("rate", np.float32(0.25), 0.25),
        ("rate", Fraction(1, 4), 0.25),
        ("hidden", [1, 2], (1, 2)),
        ("hidden", (np.int32(7),), (7,)),
        ("hidden", (), ()),
        ("betas", [0, 0.5], (0.0, 0.5)),
        ("base", "mixture", "mixture"),
        ("components", None, None),
        ("components", np.int16(5), 5),
        ("flag", True, True),
        ("flag", np.True_, True),
        ("name", np.str_("b"), "b"),
        ("anything", {"x": 1}, {"x": 1}),
    ],
)
def test_values_become_plain_python(name: str, given: object, kept: object) -> None:
    value = resolve(**{name: given})[name]
    assert value == kept
    assert type(value) is type(kept)
    if isinstance(kept, tuple):
        assert [type(v) for v in value] == [type(k) for k in kept]


@pytest.mark.parametrize(
    "name, wrong, expects",
    [
        ("steps", 0, "int >= 1"),
        ("steps", 1.0, "int >= 1"),
        ("steps", True, "int >= 1"),
        ("steps", np.True_, "int >= 1"),
        ("steps", "3", "int >= 1"),
        ("steps", None, "int >= 1"),
        ("rate", 0, r"float in \(0, 1\]"),
        ("rate", 1.1, r"float in \(0, 1\]"),
        ("rate", math.nan, r"float in \(0, 1\]"),
        ("rate", 10**400, r"float in \(0, 1\]"),
        ("rate", 1j, r"float in \(0, 1\]"),
        ("hidden", 128, "a tuple of int >= 1"),
        ("hidden", "128", "a tuple of int >= 1"),
        ("hidden", (4, 0), "a tuple of int >= 1"),
        ("hidden", {4}, "a tuple of int >= 1"),
        ("betas", (0.1,), "a tuple of 2: float, float"),
        ("betas", (0.1, math.inf), "a tuple of 2: float, float"),
        ("base", "gauss", "'normal' or 'mixture'"),
        ("base", ["normal"], "'normal' or 'mixture'"),
        ("components", 0, "int >= 1 or None"),
        ("components", "none", "int >= 1 or None"),
        ("flag", 1, "bool"),
        ("flag", "true", "bool"),
        ("name", 1, "str"),
        ("name", np.True_, "str"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    name: str, wrong: object, expects: str
) -> None:
    with pytest.raises(OptionError, match=f"Option '{name}' of 'm': expected {expects}; got "):
        resolve(**{name: wrong})


def test_an_unknown_name_lists_the_options_and_the_closest() -> None:
    with pytest.raises(
        OptionError, match=r"no option 'step'; its options: steps, rate, .*'steps'\?"
    ):
        resolve(step=3)
    with pytest.raises(OptionError, match="its options: size"):
        resolve_options(Needy, {"zzz": 1}, method="needy")


def test_an_option_without_default_is_asked_for() -> None:
    with pytest.raises(OptionError, match="'needy' needs the option 'size': int"):
        resolve_options(Needy, {}, method="needy")


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("steps", "300", 300),
        ("rate", "1e-3", 1e-3),
        ("hidden", "256", (256,)),
        ("hidden", "256,128", (256, 128)),
        ("hidden", "(256, 128,)", (256, 128)),
        ("betas", "0,0.9", (0.0, 0.9)),
        ("base", "mixture", "mixture"),
        ("components", "none", None),
        ("components", "None", None),
        ("components", "7", 7),
        ("flag", "true", True),
        ("flag", "0", False),
        ("name", "1", "1"),
    ],
)
def test_texts_are_read_by_the_annotations(name: str, text: str, value: object) -> None:
    assert parse(**{name: text})[name] == value


@pytest.mark.parametrize(
    "name, text",
    [
        ("steps", "1e3"),
        ("steps", "ten"),
        ("rate", "nan"),
        ("rate", ""),
        ("hidden", "8,x"),
        ("hidden", "8;9"),
        ("betas", "0.5"),
        ("base", "Mixture"),
        ("components", "many"),
        ("flag", "maybe"),
        ("stepz", "3"),
    ],
)
def test_texts_that_do_not_fit_are_refused(name: str, text: str) -> None:
    with pytest.raises(OptionError, match=name):
        parse(**{name: text})


@pytest.mark.parametrize(
    "interval, inside, outside, words",
    [
        (Interval(), [0, -1e300], [math.inf, math.nan], "finite"),
        (Interval(0), [0, 10**400], [-1e-9, math.inf], ">= 0"),
        (Interval(0, open_low=True), [1e-300], [0], "> 0"),
        (Interval(high=2), [2], [2.1, -math.inf], "<= 2"),
        (Interval(high=2, open_high=True), [1.9], [2], "< 2"),
        (Interval(0, 1, open_high=True), [0, 0.9], [1], "in [0, 1)"),
    ],
)
def test_an_interval_knows_its_ends(
    interval: Interval, inside: Sequence[float], outside: Sequence[float], words: str
) -> None:
    assert all(value in interval for value in inside)
    assert not any(value in interval for value in outside)
    assert str(interval) == words


class Base:
    """What both have.

    Args:
        steps: Steps at most,
            counted from one.
        rate: The base's words.
    """

    def __init__(self, *, steps: int = 1, rate: float = 0.1) -> None:
        pass


class Derived(Base):
    """A method that is described
    on two lines.

    And this is more of it.

    Args:
        size (int): Where: colons
            and ``code`` stay.
        rate: The derived class's words.
        **rest: No option.

    Returns:
        steps: Not this section.
    """

    def __init__(
        self, *, size: int, steps: int = 1, rate: float = 0.1, bare: bool = False, **rest: Any
    ) -> None:
        """Start.

        Args:
            bare: Described at the constructor.
        """


class Undescribed:
    def __init__(self, *, size: int = 1) -> None:
        pass


def test_options_are_described_by_the_docstrings_of_the_class_and_its_bases() -> None:
    assert {o.name: o.help for o in describe_options(Derived).values()} == {
        "size": "Where: colons and ``code`` stay.",
        "steps": "Steps at most, counted from one.",
        "rate": "The derived class's words.",
        "bare": "Described at the constructor.",
    }
    assert [o.required for o in describe_options(Derived).values()] == [True, False, False, False]
    assert [o.help for o in describe_options(Undescribed).values()] == [""]


def test_a_summary_is_a_class_s_own_first_paragraph() -> None:
    assert summarise(Derived) == "A method that is described on two lines."
    assert summarise(Undescribed) == ""
    assert summarise(type("Heir", (Derived,), {})) == ""


def declares(annotation: Any, *default: Any) -> type:
    """A class with one option x."""

    def start(self, *, x=None): ...

    start.__annotations__ = {"x": annotation}
    start.__kwdefaults__ = {"x": default[0]} if default else None
    return type("Method", (), {"__init__": start})


@pytest.mark.parametrize(
    "annotation, told",
    [
        (list[int], "list[int]"),
        (dict, "dict"),
        (tuple, "tuple"),
        (np.ndarray, "ndarray"),
        (int | list[str], "list[str]"),
        (tuple[int, bytes], "bytes"),
        (Literal[b"x"], "typing.Literal[b'x']"),
        (Annotated[str, Interval(0)], "str with an Interval"),
    ],
)
def test_a_type_that_no_option_can_have_is_told_to_its_author(annotation: Any, told: str) -> None:
    with pytest.raises(PluginLoadError) as e:
        describe_options(declares(annotation))
    assert f"option 'x' of Method has the type {told}; expected int, float, bool" in str(e.value)


@pytest.mark.parametrize(
    "annotation, default",
    [
        (int, None),
        (Annotated[int, Interval(1)], 0),
        (Literal["a"], "b"),
        (tuple[int, ...], 3),
        (float, math.nan),
    ],
)
def test_a_default_that_does_not_fit_is_told_to_its_author(annotation: Any, default: Any) -> None:
    with pytest.raises(PluginLoadError, match="option 'x' of Method expects .*, but its default"):
        describe_options(declares(annotation, default))
    assert describe_options(declares(annotation))["x"].required


def test_an_option_by_position_only_and_annotations_that_lead_nowhere_are_told() -> None:
    class Positional:
        def __init__(self, size: int = 1, /) -> None: ...

    class Lost:
        def __init__(self, *, size: "Nowhere" = 1) -> None: ...  # noqa: F821

    with pytest.raises(PluginLoadError, match="option 'size' of Positional is positional only"):
        describe_options(Positional)
    with pytest.raises(PluginLoadError, match="Lost's constructor can't be read: NameError"):
        describe_options(Lost)


@pytest.mark.parametrize(
    "annotation, inside, outside, words",
    [
        (Annotated[int | None, Interval(1)], [1, None], [0], "int >= 1 or None"),
        (Annotated[tuple[int, ...], Interval(1)], [(1, 2), ()], [(1, 0)], "a tuple of int >= 1"),
        (
            Annotated[tuple[Annotated[int, Interval(3)], float], Interval(1)],
            [(3, 1.0)],
            [(2, 1.0), (3, 0.5)],
            "a tuple of 2: int >= 3, float >= 1",
        ),
    ],
)
def test_an_interval_around_a_union_or_a_tuple_holds_for_its_numbers(
    annotation: Any, inside: list[Any], outside: list[Any], words: str
) -> None:
    cls = declares(annotation)
    assert describe_options(cls)["x"].expects == words
    for value in inside:
        assert resolve_options(cls, {"x": value}, method="m") == {"x": value}
    for value in outside:
        with pytest.raises(OptionError):
            resolve_options(cls, {"x": value}, method="m")


def test_a_tuple_of_fixed_length_is_read_member_by_member() -> None:
    cls = declares(tuple[int, float, str])
    assert parse_option_strings(cls, {"x": "1, 2, three"}) == {"x": (1, 2.0, "three")}
    assert parse_option_strings(cls, {"x": "1,2"}) == {"x": "1,2"}
