"""What belongs to the whole process and a sampler must leave as it was."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import sys
import warnings
from typing import Any

import numpy as np
import torch

from latentfit.testing._check import expect

__all__ = ["expect_same", "random_states", "settings"]


def settings() -> dict[str, Any]:
    """Tell the process-wide settings that code is tempted to change, by name."""
    found: dict[str, Any] = {
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.get_default_device()": str(torch.get_default_device()),
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "torch.is_anomaly_enabled()": torch.is_anomaly_enabled(),
        "torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision(),
        "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
        "numpy.geterr()": np.geterr(),
        "warnings.filters": list(warnings.filters),
        "os.getcwd()": os.getcwd(),
        "files in os.getcwd()": sorted(os.listdir()),
        "sys.path": list(sys.path),
        "sys.stdout": sys.stdout,
        "sys.stderr": sys.stderr,
        "sys.excepthook": sys.excepthook,
        "the SIGINT handler": signal.getsignal(signal.SIGINT),
        "logging.root.handlers": list(logging.root.handlers),
        "logging.root.level": logging.root.level,
    }
    return found | {f"os.environ[{key!r}]": value for key, value in os.environ.items()}


def random_states() -> dict[str, Any]:
    """Digest the states of the global random number generators, by name."""
    return {
        "random's global state": _digest(repr(random.getstate()).encode()),
        "NumPy's global random state": _digest(_numpy_state()),
        "torch's global random state": _digest(bytes(torch.get_rng_state().tolist())),
    }


def expect_same(before: dict[str, Any], after: dict[str, Any], culprit: str) -> None:
    """Expect that nothing differs.

    Raises:
        Violation: It names what changed, from what to what, and the culprit.
    """
    missing = "(not set)"
    changed = [
        f"{name} from {_short(before.get(name, missing))} to {_short(after.get(name, missing))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name, missing) != after.get(name, missing)
    ]
    expect(
        not changed,
        f"Expected {culprit} to leave the process as it was; it changed {'; '.join(changed)}. Put "
        "it back, in a finally clause or with a context manager.",
    )


def _numpy_state() -> bytes:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global state is what is meant
    return np.asarray(keys).tobytes() + repr((kind, *rest)).encode()


def _digest(state: bytes) -> str:
    return hashlib.sha256(state).hexdigest()[:12]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
