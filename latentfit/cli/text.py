"""What the command line prints: tables, values, facts, errors."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from latentfit.errors import LatentfitError

if TYPE_CHECKING:
    from latentfit.registry import PluginInfo

__all__ = [
    "facts_lines",
    "one_line",
    "origin",
    "printable",
    "table_lines",
    "text_of",
    "wrapped",
    "wrapped_table",
]

_LEAST = 24  # columns that a table's last column gets, however narrow the terminal
_MOST = 24  # columns that another one gets


def table_lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Align the columns of a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def wrapped_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Align the columns of a table, the cells wrapped so that it fits the terminal; 80 columns in a pipe."""
    widths = [min(_MOST, max(map(len, column))) for column in zip(*rows, strict=True)]
    taken = sum(widths[:-1]) + 2 * (len(widths) - 1)
    widths[-1] = max(_LEAST, _terminal() - taken)
    for row in rows:
        cells = [
            textwrap.wrap(cell, width, break_on_hyphens=False) or [""]
            for cell, width in zip(row, widths, strict=True)
        ]
        for line in zip_longest(*cells, fillvalue=""):
            parts = (part.ljust(width) for part, width in zip(line, widths, strict=True))
            yield "  ".join(parts).rstrip()


def wrapped(text: str, indent: str = "") -> str:
    """Wrap a text to the terminal's width."""
    return textwrap.fill(
        text,
        max(_LEAST, _terminal()),
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def facts_lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Write nested facts, one a line: the method, the others, then those that have facts under them."""
    facts = dict(sorted(facts.items(), key=lambda fact: (fact[0] != "method", _nests(fact[1]))))
    width = max((len(name) for name, value in facts.items() if not _nests(value)), default=0)
    for name, value in facts.items():
        if not _nests(value):
            yield f"{indent}{printable(name).ljust(width)}  {printable(text_of(value))}"
            continue
        yield f"{indent}{printable(name)}"
        if isinstance(value, Mapping):
            yield from facts_lines(value, f"{indent}  ")
        else:
            yield from (f"{indent}  {line}" for line in table_lines(_records(value)))


def text_of(value: Any) -> str:
    """Write a value as ``-o NAME=VALUE`` takes it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={text_of(member)}" for key, member in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ",".join(map(text_of, value)) or "none"
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def origin(info: PluginInfo) -> str:
    """Where a plugin comes from, or why it can't be used."""
    text = f"{info.distribution} {info.version}" if info.error is None else f"broken: {info.error}"
    return printable(text)


def one_line(error: Exception, debug: str) -> str:
    """Tell an error in one line."""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    text = printable(" ".join(f"{error}{notes}".split()))
    if isinstance(error, LatentfitError):
        return text
    if isinstance(error, OSError):
        told = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        return printable(told or text)
    return f"{type(error).__name__}: {text} ({debug} shows where)"


def _nests(value: Any) -> bool:
    """Whether a fact takes lines of its own: facts, or a list of such."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(member, Mapping) for member in value)
    return isinstance(value, Mapping) and bool(value)


def _records(records: list[Mapping[str, Any]]) -> list[list[str]]:
    """A table, with its header, of facts about several things."""
    names = sorted(
        {name for record in records for name in record}, key=lambda n: (n != "method", n)
    )
    rows = [[text_of(r[name]) if name in r else "" for name in names] for r in records]
    return [[printable(cell) for cell in row] for row in [names, *rows]]


def printable(text: str) -> str:
    """Escape what would steer a terminal: a file may come from anyone."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _terminal() -> int:
    return shutil.get_terminal_size((80, 24)).columns
