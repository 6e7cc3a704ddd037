"""The results of a run, ready for JSON, with all that is needed to tell what they were made with."""

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentfit_bench.files import write_atomically
from latentfit_bench.measure import summary

if TYPE_CHECKING:
    from latentfit_bench.runner import Run

SCHEMA = 1
LIBRARIES = ("latentfit", "torch", "numpy", "normflows", "nflows", "scikit-learn", "matplotlib")


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
        **provenance(LIBRARIES),
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
        "seconds": seconds,
    }


def provenance(
    libraries: Iterable[str] = ("latentfit", "torch", "numpy"), **used: Any
) -> dict[str, Any]:
    """When results were made, on what kind of machine, of which more may be said, and with which versions."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine() | used,
        "versions": versions(libraries),
    }


def read(folder: Path) -> dict[str, Any]:
    """The results of a study in its folder, to be continued; empty where there are none."""
    path = folder / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return results


def write(folder: Path, results: Mapping[str, Any], table: Callable[[dict[str, Any]], str]) -> None:
    """Write the results of a study, and the table that is made of them, to its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    write_atomically(folder / "table.md", table(dict(results)).encode())


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
