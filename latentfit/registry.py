"""Finding and loading plugins through entry points; finding reads metadata and never imports.

The entry-point group tells which version of the plugin API a plugin was written for: ``latentfit.samplers``
is version 1, ``latentfit.samplers.v2`` would be 2. One distribution may register in several groups, for
several versions of latentfit.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from latentfit.arguments import check_flag, told
from latentfit.errors import (
    DuplicatePluginError,
    PluginLoadError,
    PluginVersionError,
    UnknownPluginError,
)
from latentfit.randomness import isolated_rng

if TYPE_CHECKING:
    import click

    from latentfit.sampler_base import Sampler

__all__ = [
    "API_VERSION",
    "NO_PLUGINS",
    "PluginInfo",
    "list_benchmarks",
    "list_samplers",
    "load_benchmark",
    "load_sampler_class",
]

API_VERSION = 1
"""The major version of the plugin API that this latentfit has."""

NO_PLUGINS = "LATENTFIT_NO_PLUGINS"
"""The environment variable that hides the plugins of all other distributions: any value but empty and 0."""

_SAMPLERS, _BENCHMARKS = "latentfit.samplers", "latentfit.benchmarks"
_KINDS = {_SAMPLERS: "sampler", _BENCHMARKS: "benchmark"}  # what messages call them
_OWN = "latentfit"  # the distribution
_VALUE = re.compile(r"\w+(\.\w+)*\s*:\s*\w+(\.\w+)*\s*(\[.*\])?")  # module:attribute


@dataclass(frozen=True)
class PluginInfo:
    """A plugin as its distribution's metadata tells it; nothing was imported.

    Attributes:
        name: What a user calls it by.
        value: Where it is, ``module:attribute``.
        distribution: The installed distribution that registered it.
        version: That distribution's version.
        error: Why it can't be used, as far as is known, else None.
    """

    name: str
    value: str
    distribution: str
    version: str
    error: str | None = None


def list_samplers(*, check: bool = False) -> list[PluginInfo]:
    """List the installed samplers by name, without importing any into this process.

    Args:
        check: Also import each in a child process, and tell what is wrong with those that can't be used;
            this takes seconds. Without it ``error`` tells what metadata shows: two plugins of one name, a
            module that is not there, another version of the plugin API.
    """
    check = check_flag("check", check)
    infos = _list(_SAMPLERS)
    if not check:
        return infos
    from latentfit.probe import probe_samplers

    errors = probe_samplers([info.name for info in infos if info.error is None])
    return [replace(info, error=info.error or errors.get(info.name)) for info in infos]


def list_benchmarks() -> list[PluginInfo]:
    """List the installed benchmarks by name, without importing any."""
    return _list(_BENCHMARKS)


def load_sampler_class(name: str) -> type[Sampler]:
    """Import the sampler registered under a name, and no other.

    Raises:
        UnknownPluginError: None is installed under the name; the message lists those that are.
        DuplicatePluginError: Two distributions registered the name.
        PluginVersionError: It was written for another version of the plugin API.
        PluginLoadError: It can't be imported, or is no whole subclass of ``latentfit.plugin.Sampler``.
    """
    from latentfit.sampler_base import Sampler

    plugin = _select(_SAMPLERS, name)
    with isolated_rng(0, torch.device("cpu")):  # a library may draw while it is imported
        loaded = plugin.load()
    if not (isinstance(loaded, type) and issubclass(loaded, Sampler)):
        plugin.refuse(f"expected a subclass of latentfit.plugin.Sampler; got {loaded!r}")
    if inspect.isabstract(loaded):
        missing = ", ".join(sorted(loaded.__abstractmethods__))
        plugin.refuse(f"{loaded.__name__} does not implement {missing}")
    return loaded


def load_benchmark(name: str) -> click.Command:
    """Import the benchmark registered under a name, and no other: a ``click.Command``.

    Raises:
        UnknownPluginError: None is installed under the name; the message lists those that are.
        DuplicatePluginError: Two distributions registered the name.
        PluginVersionError: It was written for another version of the plugin API.
        PluginLoadError: It can't be imported, or is no ``click.Command``.
    """
    import click

    plugin = _select(_BENCHMARKS, name)
    loaded = plugin.load()
    if not isinstance(loaded, click.Command):
        plugin.refuse(f"expected a click.Command; got {loaded!r}")
    return loaded


def sampler_distribution(name: str) -> str:
    """Name the distribution and version that a sampler comes from."""
    return _select(_SAMPLERS, name).owner


@dataclass(frozen=True)
class _Plugin:
    """An entry point, and who registered it for which version of the API."""

    kind: str
    entry: EntryPoint
    distribution: str
    version: str
    api: int
    damage: str | None = None

    @property
    def owner(self) -> str:
        return f"{self.distribution} {self.version}"

    @property
    def first_party(self) -> bool:
        return self.distribution.lower() == _OWN

    @property
    def problem(self) -> str | None:
        """What metadata shows to be wrong with it by itself."""
        return self.damage or self._version_problem() or self._value_problem() or self._absence()

    def load(self) -> Any:
        """Import it; whatever its modules raise is their own fault, but for Ctrl-C."""
        problem = self._version_problem()
        if problem:
            raise PluginVersionError(
                f"The {self.kind} {self.entry.name!r} of {self.owner} is {problem}. Install a release of "
                f"{self.distribution} for plugin API {API_VERSION}, or a latentfit for {self.api}."
            )
        problem = self.damage or self._value_problem()
        if problem:
            raise self._error(problem)
        try:
            return self.entry.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, and what test frameworks raise, too
            reason = f"importing {self.entry.value!r} raised {type(error).__name__}: {error}"
            raise self._error(reason) from error

    def refuse(self, reason: str) -> NoReturn:
        raise self._error(f"{self.entry.value}: {reason}")

    def _error(self, reason: str) -> PluginLoadError:
        error = PluginLoadError(
            f"The {self.kind} {self.entry.name!r} of {self.owner} can't be used: {reason}"
        )
        error.reason = reason
        return error

    def _version_problem(self) -> str | None:
        if self.api == API_VERSION:
            return None
        return f"written for plugin API {self.api}; this latentfit has plugin API {API_VERSION}"

    def _value_problem(self) -> str | None:
        if _VALUE.fullmatch(self.entry.value):
            return None
        return f"expected an entry point module:attribute; got {self.entry.value!r}"

    def _absence(self) -> str | None:
        package = re.split(r"[.:\s]", self.entry.value, maxsplit=1)[0]
        try:  # to find a name without dots imports nothing
            found = package in sys.modules or importlib.util.find_spec(package) is not None
        except Exception:  # another's finder
            found = False
        return None if found else f"there is no module {package!r}"


def _list(group: str) -> list[PluginInfo]:
    infos = []
    for name, plugins in _plugins(group).items():
        rivals = [p for p in plugins if p.api == API_VERSION]
        for p in plugins:
            clash = len(rivals) > 1 and p.api == API_VERSION
            error = _duplicate(name, rivals) if clash else p.problem
            infos.append(PluginInfo(name, p.entry.value, p.distribution, p.version, error))
    return infos


def _select(group: str, name: Any) -> _Plugin:
    """The one plugin of a name that is meant for this version of the API, or for another if there is none."""
    found = _plugins(group)
    if not isinstance(name, str) or name not in found:
        raise UnknownPluginError(_unknown(group, name, list(found)))
    plugins = [p for p in found[name] if p.api == API_VERSION] or found[name][:1]
    if len(plugins) > 1:
        raise DuplicatePluginError(f"The {_KINDS[group]} {_duplicate(name, plugins)}")
    return plugins[0]


def _duplicate(name: str, plugins: list[_Plugin]) -> str:
    owners = " and ".join(plugin.owner for plugin in plugins)
    others = [plugin.distribution for plugin in plugins if not plugin.first_party]
    if len(others) < len(plugins):  # one of them is latentfit's own
        return f"{name!r} is registered by {owners}; rename that of {others[0]}, or uninstall it."
    return f"{name!r} is registered by {owners}; uninstall one of them."


def _unknown(group: str, name: Any, installed: list[str]) -> str:
    close = difflib.get_close_matches(told(name).strip("'").lower(), installed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    message = (
        f"Unknown {_KINDS[group]} {told(name)}; installed: {', '.join(installed) or 'none'}.{hint}"
    )
    if _first_party_only():
        found = _plugins(group, hidden=True)
        hidden = {p.owner for p in found.get(name, ())} if isinstance(name, str) else set()
        whose = (
            f"{told(name)} of {', '.join(sorted(hidden))}" if hidden else "all plugins of others"
        )
        message += f" {NO_PLUGINS} is set and hides {whose}; unset it to use them."
    return message


def _first_party_only() -> bool:
    return os.environ.get(NO_PLUGINS, "") not in ("", "0")


def _plugins(group: str, *, hidden: bool = False) -> dict[str, list[_Plugin]]:
    """The plugins of a group in all versions of the API, by name and owner.

    What a distribution registers for this version hides what it registers under the same name for others.

    Args:
        group: The entry-point group of version 1.
        hidden: Whether to find those that the environment variable hides, too.
    """
    found: dict[str, list[_Plugin]] = {}
    for distribution in _installed():
        plugins = list(_of_distribution(distribution, group))
        if plugins and _first_party_only() and not hidden and not plugins[0].first_party:
            continue
        present = {p.entry.name for p in plugins if p.api == API_VERSION}
        for p in plugins:
            if p.api == API_VERSION or p.entry.name not in present:
                found.setdefault(p.entry.name, []).append(p)
    return {name: sorted(found[name], key=lambda p: (p.owner, p.api)) for name in sorted(found)}


def _of_distribution(distribution: Distribution, group: str) -> Iterator[_Plugin]:
    try:
        entries = list(distribution.entry_points)
    except Exception as error:  # it must not hide the plugins of other distributions
        with contextlib.suppress(Exception):
            if group in (distribution.read_text("entry_points.txt") or ""):
                owner, version = _identity(distribution)
                entry = EntryPoint(f"({owner})", "entry_points.txt", group)
                damage = f"its entry_points.txt can't be read: {type(error).__name__}: {error}"
                yield _Plugin(_KINDS[group], entry, owner, version, API_VERSION, damage)
        return
    seen = set()
    for entry in entries:
        base, _, suffix = entry.group.partition(f"{group}.v")
        numbered = not base and re.fullmatch("[0-9]{1,9}", suffix)
        api = 1 if entry.group == group else int(suffix) if numbered else 0
        if api and (api, entry.name, entry.value) not in seen:
            seen.add((api, entry.name, entry.value))
            yield _Plugin(_KINDS[group], entry, *_identity(distribution), api)


def _identity(distribution: Distribution) -> tuple[str, str]:
    """Name and version; some have no METADATA file, or an empty one."""
    with contextlib.suppress(Exception):  # the standard library means to raise for this one day
        if distribution.metadata["Name"]:
            return distribution.metadata["Name"], distribution.metadata["Version"] or "?"
    return "unknown distribution", "?"


def _installed() -> Iterator[Distribution]:
    """All distributions, the first of each name on the path: it is the one that is imported."""
    seen = set()
    for distribution in distributions():
        name = None
        with contextlib.suppress(Exception):  # of the folder: quicker than to read METADATA
            name = distribution._normalized_name  # type: ignore[attr-defined]
        if name is None or name not in seen:
            seen.add(name)
            yield distribution
