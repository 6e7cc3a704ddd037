"""Random numbers that leave the caller's untouched."""

from __future__ import annotations

import os
import random
import secrets
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from numbers import Integral
from typing import Any

import numpy as np
import torch

from latentfit.arguments import scalar, told
from latentfit.errors import OptionError

__all__ = [
    "check_seed",
    "global_states",
    "importing",
    "in_turn",
    "isolated_rng",
    "plugin_defaults",
    "reseed",
    "restore_global_states",
    "without_autocast",
]


_ODD = 0x9E3779B97F4A7C15  # the golden ratio's digits, as in splitmix64
_OTHER = 0xBF58476D1CE4E5B9  # splitmix64's multiplier
_COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_turns: dict[int, threading.RLock] = {}  # by process: a fork's child has a lock that nobody holds


@contextmanager
def in_turn() -> Iterator[None]:
    """Wait until no other thread of this process is in such a block.

    The global generators, the default dtype and a module's mode belong to all threads: two that change them
    and give them back would leave each other's. A thread may enter again what it is in. The default dtype is
    given back here, as it is what models of others change in passing.
    """
    with _turns.setdefault(os.getpid(), threading.RLock()):
        dtype = torch.get_default_dtype()
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def importing() -> Iterator[None]:
    """Keep what is everybody's while libraries are imported, or import others in passing.

    That is Python's random state, from which scikit-learn draws, and the environment and the filters of
    warnings, which PyTorch's compiler sets.
    """
    state, environment = random.getstate(), dict(os.environ)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        random.setstate(state)
        if os.environ != environment:
            for name in os.environ.keys() - environment.keys():
                made = os.environ.pop(name)
                if name == _COMPILER_CACHE:  # which it makes when it is imported
                    with suppress(OSError):  # it is used
                        os.rmdir(made)
            os.environ.update(environment)


@contextmanager
def isolated_rng(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Seed torch, NumPy and random inside the block, and give their states back after it.

    Libraries that take no generator draw from the global ones; inside this block that is reproducible
    and nobody outside sees it. Threads take turns. The generator's numbers are others than the global
    ones: a plugin may add both up.

    Args:
        seed: A whole number in [0, 2**63).
        device: The device that the block draws on.

    Yields:
        A generator on the device.
    """
    devices = [device] if device.type == "cuda" else []
    with in_turn(), torch.random.fork_rng(devices=devices):
        python_state = random.getstate()
        numpy_state = np.random.get_state()  # noqa: NPY002 - the global state is what libraries use
        try:
            reseed(seed, 0, device)
            yield torch.Generator(device=device).manual_seed(seed)
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def reseed(seed: int, number: int, device: torch.device) -> None:
    """Seed torch, NumPy and random for one of many pieces of work, whatever was drawn before it.

    To be used inside :func:`isolated_rng` only.

    Args:
        seed: That of the whole.
        number: Which piece.
        device: The device that is drawn on, beside the CPU.
    """
    own = (seed * _ODD + number * _OTHER + 1) % 2**63  # an unlike stream for each seed and piece
    random.seed(own)
    np.random.seed(own % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(own)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(own)


def global_states(device: torch.device) -> dict[str, Any]:
    """Where the generators of torch, NumPy and random are, as tensors and JSON values by name."""
    version, numbers, gauss = random.getstate()
    numpys: Any = np.random.get_state()  # noqa: NPY002 - the global state is what libraries use
    kind, keys, *rest = numpys
    states: dict[str, Any] = {
        "python": {"version": version, "numbers": torch.tensor(numbers), "gauss": gauss},
        "numpy": {"kind": kind, "keys": torch.tensor(keys.tolist()), "rest": rest},
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_global_states(states: dict[str, Any], device: torch.device) -> None:
    """Put the generators where they were; to be used inside :func:`isolated_rng` only."""
    python, numpys = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(python["numbers"].tolist()), python["gauss"]))
    keys = np.array(numpys["keys"].tolist(), dtype=np.uint32)
    np.random.set_state((numpys["kind"], keys, *numpys["rest"]))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def plugin_defaults(device: torch.device) -> Iterator[None]:
    """Run a plugin under float32 as the default dtype and without autocast, whatever the caller has set.

    A default device that is neither the plugin's nor the CPU is replaced for the time, too. (Replacing it
    always would cost each small operation some two microseconds.)
    """
    with in_turn():
        foreign = torch.get_default_device().type not in ("cpu", device.type)
        torch.set_default_dtype(torch.float32)  # the turn's end gives the caller's back
        with device if foreign else nullcontext(), without_autocast(device):
            yield


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Let no autocast of the caller's change the precision of what runs on a device."""
    kinds = filter(torch.amp.is_autocast_available, {"cpu", device.type})
    halved = [kind for kind in kinds if torch.is_autocast_enabled(kind)]
    with ExitStack() as stack:
        for kind in halved:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def check_seed(seed: Any) -> int:
    """Give a seed as an int in [0, 2**63); None draws one from the operating system.

    Raises:
        OptionError: Anything else.
    """
    if seed is None:
        return secrets.randbits(63)
    plain: Any = scalar(seed)
    if isinstance(plain, bool) or not isinstance(plain, Integral) or not 0 <= int(plain) < 2**63:
        raise OptionError(
            f"Expected seed as a whole number in [0, 2**63) or None; got {told(seed)}."
        )
    return int(plain)
