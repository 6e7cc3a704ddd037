"""Finding and loading plugins through entry points; finding never imports."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from latentfit.errors import DuplicatePluginError, PluginLoadError, UnknownPluginError

if TYPE_CHECKING:
    import click

    from latentfit.sampler_base import Sampler

__all__ = [
    "PluginInfo",
    "list_benchmarks",
    "list_samplers",
    "load_benchmark",
    "load_sampler_class",
]

_SAMPLERS, _BENCHMARKS = "latentfit.samplers", "latentfit.benchmarks"


@dataclass(frozen=True)
class PluginInfo:
    """A plugin as its distribution's metadata tells it; nothing was imported.

    Attributes:
        name: What a user calls it by.
        value: Where it is, ``module:attribute``.
        distribution: The installed distribution that registered it.
        version: That distribution's version.
        error: Why it can't be used, where the metadata shows that, else None.
    """

    name: str
    value: str
    distribution: str
    version: str
    error: str | None = None


def list_samplers() -> list[PluginInfo]:
    """List the installed samplers by name, without importing any."""
    return _list(_SAMPLERS)


def list_benchmarks() -> list[PluginInfo]:
    """List the installed benchmarks by name, without importing any."""
    return _list(_BENCHMARKS)


def load_sampler_class(name: str) -> type[Sampler]:
    """Import the sampler registered under a name, and no other.

    Raises:
        UnknownPluginError: None is installed under the name; the message lists those that are.
        DuplicatePluginError: Two distributions registered the name.
        PluginLoadError: It can't be imported, or is no subclass of ``latentfit.plugin.Sampler``.
    """
    from latentfit.sampler_base import Sampler

    loaded = _load(_SAMPLERS, "sampler", name)
    if not (isinstance(loaded, type) and issubclass(loaded, Sampler)):
        raise _wrong_type(_SAMPLERS, name, loaded, "a subclass of latentfit.plugin.Sampler")
    return loaded


def load_benchmark(name: str) -> click.Command:
    """Import the benchmark registered under a name, and no other: a ``click.Command``.

    Raises:
        UnknownPluginError: None is installed under the name; the message lists those that are.
        DuplicatePluginError: Two distributions registered the name.
        PluginLoadError: It can't be imported, or is no ``click.Command``.
    """
    import click

    loaded = _load(_BENCHMARKS, "benchmark", name)
    if not isinstance(loaded, click.Command):
        raise _wrong_type(_BENCHMARKS, name, loaded, "a click.Command")
    return loaded


def sampler_distribution(name: str) -> str:
    """Name the distribution and version that a sampler comes from."""
    info = next(info for info in list_samplers() if info.name == name)
    return f"{info.distribution} {info.version}"


def _entries(group: str) -> dict[str, list[EntryPoint]]:
    """Entry points by name; the same one seen through two path entries counts once."""
    named: dict[str, list[EntryPoint]] = {}
    for entry in sorted(entry_points(group=group), key=lambda e: (e.name, _distribution(e))):
        others = named.setdefault(entry.name, [])
        if not any(_distribution(entry)[0] == _distribution(other)[0] for other in others):
            others.append(entry)
    return named


def _distribution(entry: EntryPoint) -> tuple[str, str]:
    if entry.dist is None or not entry.dist.metadata["Name"]:  # no METADATA file, or an empty one
        return "unknown distribution", "?"
    return entry.dist.name, entry.dist.metadata["Version"] or "?"


def _list(group: str) -> list[PluginInfo]:
    infos = []
    for name, entries in _entries(group).items():
        error = _duplicate(name, entries) if len(entries) > 1 else None
        infos += [PluginInfo(name, e.value, *_distribution(e), error) for e in entries]
    return infos


def _duplicate(name: str, entries: list[EntryPoint]) -> str:
    owners = " and ".join(" ".join(_distribution(entry)) for entry in entries)
    return f"{name!r} is registered by {owners}; uninstall one of them."


def _load(group: str, kind: str, name: Any) -> Any:
    entries = _entries(group)
    if not isinstance(name, str) or name not in entries:
        close = difflib.get_close_matches(str(name).lower(), entries, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        listed = ", ".join(entries) or "none"
        raise UnknownPluginError(f"Unknown {kind} {name!r}; installed: {listed}.{hint}")
    if len(entries[name]) > 1:
        raise DuplicatePluginError(f"The {kind} {_duplicate(name, entries[name])}")
    entry = entries[name][0]
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # whatever another's module raises is its own fault
        owner = " ".join(_distribution(entry))
        raise PluginLoadError(
            f"The {kind} {name!r} of {owner} can't be imported from {entry.value!r}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _wrong_type(group: str, name: str, loaded: Any, expected: str) -> PluginLoadError:
    entry = _entries(group)[name][0]
    return PluginLoadError(
        f"Expected {entry.value!r}, registered as {name!r} by {' '.join(_distribution(entry))}, to be "
        f"{expected}; got {loaded!r}."
    )
