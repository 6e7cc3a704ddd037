"""The results of a run, ready for JSON, with all that is needed to tell what they were made with."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from latentfit_bench.measure import summary

if TYPE_CHECKING:
    from latentfit_bench.runner import Run

SCHEMA = 1
_LIBRARIES = ("latentfit", "torch", "numpy", "normflows", "nflows", "scikit-learn", "matplotlib")


def assemble(
    run: "Run",
    seeds: Sequence[int],
    systems: Mapping[str, Any],
    conditional: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Sequence[float]]],
    seconds: float,
) -> dict[str, Any]:
    """Put the results together.

    Args:
        run: What was run.
        seeds: With which seeds.
        systems: The rows' entries.
        conditional: The entries of the rows that were given the digit.
        models: Seconds and losses of the autoencoders, by model.
        seconds: The whole run's.
    """
    return {
        "schema": SCHEMA,
        "benchmark": run.data.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(_LIBRARIES),
        "device": str(run.device),
        "seeds": list(seeds),
        "classifier": {
            "sha256": run.classifier.sha256,
            "test_accuracy": run.classifier.provenance["test_accuracy"],
        },
        "systems": dict(systems),
        "conditional": dict(conditional),
        "models": {
            name: {key: summary(values) for key, values in record.items()}
            for name, record in models.items()
        },
        "data": {
            "train": len(run.data.train_images),
            "test": len(run.data.test_images),
            "binarize": run.how,
            "sha256": run.data.sha256,
        },
        "settings": asdict(run.settings),
        "machine": machine(),
        "seconds": seconds,
    }


def machine() -> dict[str, Any]:
    """The system and its size, and nothing that would tell whose it is."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of those libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in libraries:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def listed(found: dict[str, str]) -> str:
    """What :func:`versions` found, in one line."""
    return ", ".join(f"{name} {number}" for name, number in found.items())
