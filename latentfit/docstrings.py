"""What a class's docstring says in Google style: its summary, and a line or two on each argument."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

__all__ = ["describe_arguments", "summarise"]

_HEADINGS = {"Args:", "Arguments:"}
_ITEM = re.compile(r"\*{0,2}(\w+)(?: ?\([^)]*\))?:\s*(.*)")


def summarise(cls: type) -> str:
    """Give the first paragraph of a class's own docstring on one line; empty where it has none."""
    paragraph = inspect.cleandoc(vars(cls).get("__doc__") or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def describe_arguments(cls: type) -> dict[str, str]:
    """Collect what the docstrings of a class, its bases and their constructors say on arguments.

    Of several descriptions of one argument the most derived class's is taken, so that a subclass need not
    repeat what its base says.

    Returns:
        Texts on one line each, by the arguments' names.
    """
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for holder in (base, vars(base).get("__init__")):
            texts |= dict(_arguments(inspect.cleandoc(getattr(holder, "__doc__", None) or "")))
    return texts


def _arguments(doc: str) -> Iterator[tuple[str, str]]:
    """The items of a docstring's ``Args:`` section; a deeper line goes on with the item above it."""
    name, text, indent = "", "", None
    inside = False
    for line in doc.splitlines():
        depth = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if depth == 0:
            inside = line.strip() in _HEADINGS
            continue
        if not inside:
            continue
        indent = depth if indent is None else indent
        item = _ITEM.match(line.strip()) if depth == indent else None
        if item is None:
            text += f" {line.strip()}"
            continue
        if name:
            yield name, text.strip()
        name, text = item.groups()
    if name:
        yield name, text.strip()
