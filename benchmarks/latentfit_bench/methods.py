"""Rows by name: systems of the table, and whatever methods are installed."""

import difflib
from collections.abc import Iterable, Sequence

from latentfit_bench.systems import SYSTEMS, System

AUTO = "auto"
ALL = "all"


def method_row(method: str) -> System:
    """Return the row of an installed method, fitted with its defaults to the autoencoder's latents."""
    description = (
        "the best of a short list of methods, by held-out latents"
        if method == AUTO
        else f"the method {method} with its defaults"
    )
    # Another's plugin may be called what a system is called; the results are keyed by row.
    name = f"{method} (method)" if method in SYSTEMS else method
    return System(name, "sampler", description, "AE", method)


def find_rows(names: Iterable[str]) -> list[System]:
    """Return systems (in any case) in the table's order, then methods in the order that is given.

    Raises:
        UnknownPluginError: A name that is neither's; the message lists both.
    """
    known = {name.lower(): name for name in SYSTEMS}
    systems, methods = set(), []
    for name in names:
        if name.lower() in known:
            systems.add(known[name.lower()])
        else:
            methods += find_methods([name])
    chosen = [system for system in SYSTEMS.values() if system.name in systems]
    return [*chosen, *map(method_row, dict.fromkeys(methods))]


def find_methods(names: Sequence[str]) -> list[str]:
    """Return installed methods in the order that is given, each once.

    Raises:
        UnknownPluginError: A name that no method has; the message lists methods and systems.
    """
    installed = _installed()
    for name in names:
        if name not in installed:
            _refuse(name, installed)
    return list(dict.fromkeys(names))


def all_methods() -> tuple[list[str], dict[str, str]]:
    """Return the installed methods that can be used, and those that can't with the reason."""
    from latentfit import list_samplers

    errors: dict[str, str] = {}
    names = []
    for info in list_samplers(check=True):
        if info.error is None:
            names.append(info.name)
        else:
            errors[info.name] = info.error
    # One that is registered for another version of the plugin API, too, stays usable.
    usable = list(dict.fromkeys(names))
    return usable, {name: text for name, text in errors.items() if name not in usable}


def check_methods(methods: Iterable[str], *, conditional: bool = False) -> None:
    """See to it that methods can be fitted, before anything is trained.

    They are fitted to latents that never vary: whatever is wrong with a method or with the request is
    told before such latents are refused.

    Args:
        methods: Their names.
        conditional: Whether they will be given classes to condition on.

    Raises:
        PluginLoadError: A plugin that can't be imported or used.
        DuplicatePluginError: Two plugins of one name.
        OptionError: A method that can't be conditioned on classes, or that has no defaults.
    """
    import torch

    from latentfit import fit_latent_sampler
    from latentfit.errors import DataError

    labels = torch.zeros(16, dtype=torch.int64) if conditional else None
    for method in methods:
        try:
            fit_latent_sampler(None, torch.zeros(16, 2), method=method, condition=labels)
        except DataError:
            continue


def _installed() -> list[str]:
    from latentfit import list_samplers

    return [*dict.fromkeys(info.name for info in list_samplers()), AUTO]


def _refuse(name: str, installed: Sequence[str]) -> None:
    from latentfit.errors import UnknownPluginError

    by_lower = {known.lower(): known for known in [*installed, *SYSTEMS]}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f" Did you mean {by_lower[close[0]]!r}?" if close else ""
    if by_lower.get(name.lower()) in SYSTEMS:
        hint = f" {by_lower[name.lower()]!r} is a system, for --systems."
    raise UnknownPluginError(
        f"unknown name {name!r}; systems: {', '.join(SYSTEMS)}; methods: {', '.join(installed)}.{hint}"
    )
