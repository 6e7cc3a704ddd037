"""What the command line's words mean: settings, objects to import, conditions."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import Tensor

    from latentfit import LatentStore

__all__ = [
    "import_object",
    "launched_accelerator",
    "option_class",
    "read_condition",
    "read_dataset",
    "read_latents",
    "settings_option",
    "split_settings",
]

settings_option = click.option(
    "-o",
    "--option",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the method; repeatable. `latentfit samplers METHOD` lists them.",
)


def split_settings(texts: Sequence[str]) -> dict[str, str]:
    """Split ``name=value`` texts; a name may be written with dashes."""
    from latentfit import fit_latent_sampler

    own = set(inspect.signature(fit_latent_sampler).parameters)
    settings: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise click.UsageError(f"Expected -o NAME=VALUE; got {text!r}.")
        if name in own:
            raise click.UsageError(f"{name!r} is no option of a method, but one of this command.")
        if name in settings:
            raise click.UsageError(f"Expected each -o once; got {name!r} twice.")
        settings[name] = value.strip()
    return settings


def option_class(method: str) -> type:
    """The class whose constructor has a method's options."""
    from latentfit.auto import AutoOptions, load_method

    return load_method(method) or AutoOptions


def import_object(name: str, what: str) -> Any:
    """Import ``module:attribute``, from the current folder too.

    Args:
        name: The module and the attribute.
        what: The command line's word for it, for the messages.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise click.UsageError(f"Expected {what} as MODULE:ATTRIBUTE; got {name!r}.")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except (
        Exception,
        SystemExit,
    ) as error:  # that of a script would end the command without a word
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise click.UsageError(
                f"Expected {what} to name a module that is installed or in {os.getcwd()}; "
                f"there is no {missing!r}."
            ) from error
        told = " ".join(str(error).split())
        raise click.ClickException(
            f"Expected {what} to name a module that can be imported; importing {module_name!r} raised "
            f"{type(error).__name__}: {told} (--debug shows where)"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise click.UsageError(f"Expected {what} {name}; {module_name} has no {attribute!r}.")
        found = getattr(found, part)
    return found


def launched_accelerator() -> Any:
    """Join the other processes, where torchrun or accelerate launch started several; else give None."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    try:
        from accelerate import Accelerator
    except ModuleNotFoundError as error:
        raise click.UsageError(
            "Expected accelerate to be installed for several processes: pip install 'latentfit[accelerate]'."
        ) from error
    import torch

    return Accelerator(cpu=not torch.cuda.is_available())


def read_latents(text: str) -> Tensor | LatentStore:
    """Read an array file, or open a store's folder."""
    from latentfit import LatentStore
    from latentfit.arguments import check_path
    from latentfit.arrays import read_array

    return LatentStore(text) if check_path("path", text).is_dir() else read_array(text)


def read_dataset(text: str) -> Any:
    """Read an array file, a .npy file as it is needed; or import a dataset."""
    from latentfit.arrays import SUFFIXES, map_array, read_array

    suffix = os.path.splitext(text)[1].lower()
    if suffix == ".npy":
        return map_array(text)
    if ":" in text and suffix not in SUFFIXES:
        return import_object(text, "--data")
    return read_array(text)


def read_condition(text: str) -> int | Tensor:
    """Read a condition: a class (``3``), a vector (``0.5,1.2``), or a file with one for each row."""
    import torch

    from latentfit.arrays import SUFFIXES, read_array

    parts = [part for part in text.split(",") if part.strip()]
    for kind in (int, float) if parts else ():
        try:
            numbers = [kind(part) for part in parts]
        except ValueError:
            continue
        return torch.tensor(numbers) if kind is float or "," in text else int(text)
    if not text.lower().endswith(SUFFIXES):
        raise click.UsageError(
            f"Expected --condition as a class (3), a vector (0.5,1.2) or a file ({', '.join(SUFFIXES)}); "
            f"got {text!r}."
        )
    return read_array(text)
