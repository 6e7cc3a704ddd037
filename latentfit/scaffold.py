"""``latentfit new-plugin``: a project for a sampler of one's own, that works as it stands."""

from __future__ import annotations

import importlib.resources
import importlib.util
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from latentfit.auto import AUTO
from latentfit.errors import DataError, OptionError
from latentfit.registry import list_samplers

__all__ = ["write_project"]

_PREFIX = "latentfit-"
_LONGEST = 60
_RESERVED = {AUTO, "latentfit", "sampler", "flow-sampler"}
"""Names that mean something else: the choice among methods, and base classes."""


@dataclass(frozen=True)
class _Names:
    """All names of a project that follow from a method's."""

    folder: str
    method: str

    @property
    def replacements(self) -> dict[str, str]:
        """What stands for what in the template."""
        words = self.method.split("-")
        suffix = "" if words[-1] == "sampler" else "Sampler"
        return {
            "{method}": self.method,
            "{project}": f"{_PREFIX}{self.method}",
            "{module}": self.module,
            "{class}": "".join(word.capitalize() for word in words) + suffix,
        }

    @property
    def module(self) -> str:
        """A name of its own at the top of site-packages, where all projects' modules meet."""
        return f"{_PREFIX}{self.method}".replace("-", "_")


def write_project(name: str, folder: str | os.PathLike[str] = ".") -> Path:
    """Write the project of a new sampler, whole or not at all.

    Args:
        name: The method's name, in lower case with hyphens. The distribution, and with underscores the
            module, are called ``latentfit-`` and that, so that they clash with nobody else's.
        folder: Where to put the project's folder, which is called ``name``.

    Returns:
        The project's folder.

    Raises:
        OptionError: No such name can be given, or it is taken.
        DataError: There is no such folder, or it holds something of that name already.
    """
    names = _check_name(name)
    parent = Path(folder)
    target = parent / names.folder
    if not parent.is_dir():
        raise DataError(f"Expected a folder to write {names.folder} into; there is no {parent}.")
    if os.path.lexists(target):
        raise DataError(f"Expected a new folder; {target} is there already. Choose another name.")
    scratch = Path(tempfile.mkdtemp(prefix=f".{names.folder}-", dir=parent))
    try:
        project = scratch / names.folder  # made anew: mkdtemp's folder is closed to others
        _copy(importlib.resources.files("latentfit") / "template", project, names)
        project.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _copy(source: Traversable, target: Path, names: _Names) -> None:
    """Write the template's files, with its names replaced."""
    target.mkdir()
    for item in source.iterdir():
        if item.is_dir():
            _copy(item, target / item.name, names)
        elif item.name.endswith(".txt"):  # so that no tool takes the template for code of latentfit
            text = item.read_text("utf-8")
            for word, meant in names.replacements.items():
                text = text.replace(word, meant)
            name = item.name.removesuffix(".txt").replace("module", names.module)
            (target / name).write_text(text, "utf-8")


def _check_name(name: str) -> _Names:
    method = name.removeprefix(_PREFIX)
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", method) or len(name) > _LONGEST:
        words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "-", method).lower())
        proposal = "-".join(words).lstrip("0123456789-")[:_LONGEST].rstrip("-")
        hint = f", such as {proposal!r}" if proposal else ", such as 'my-sampler'"
        raise OptionError(
            f"Expected a name of lower-case letters, digits and single hyphens that begins with a letter, at "
            f"most {_LONGEST} long{hint}; got {name!r}."
        )
    if re.fullmatch("con|prn|aux|nul|(com|lpt)[0-9]", name):
        raise OptionError(
            f"Expected a folder's name that no system keeps for itself; {name!r} is a device on Windows."
        )
    if method in _RESERVED:
        raise OptionError(f"Expected a name that is free; {method!r} has a meaning in latentfit.")
    for info in list_samplers():
        if info.name == method:
            raise OptionError(
                f"Expected a name that is free; {method!r} is a sampler of {info.distribution} "
                f"{info.version}. Choose another."
            )
    names = _Names(name, method)
    if importlib.util.find_spec(names.module) is not None:
        raise OptionError(
            f"Expected a name that is free; for {name!r} the module {names.module} is installed already. "
            "Choose another."
        )
    return names
