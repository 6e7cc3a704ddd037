"""Random numbers that leave the caller's untouched."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from latentfit.errors import OptionError

__all__ = ["check_seed", "isolated_rng"]


@contextmanager
def isolated_rng(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Seed torch, NumPy and random inside the block, and give their states back after it.

    Libraries that take no generator draw from the global ones; inside this block that is reproducible
    and nobody outside sees it. The default dtype is float32 inside, as the rows that samplers see are.

    Args:
        seed: A whole number in [0, 2**63).
        device: The device that the block draws on.

    Yields:
        A generator on the device, seeded alike.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    dtype = torch.get_default_dtype()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            torch.set_default_dtype(torch.float32)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - the global state is what libraries use
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed(seed)
            yield torch.Generator(device=device).manual_seed(seed)
        finally:
            torch.set_default_dtype(dtype)
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def check_seed(seed: Any) -> int:
    """Give a seed as an int in [0, 2**63); None draws one from the operating system.

    Raises:
        OptionError: Anything else.
    """
    if seed is None:
        return secrets.randbits(63)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise OptionError(f"Expected seed as a whole number in [0, 2**63) or None; got {seed!r}.")
    return int(seed)
