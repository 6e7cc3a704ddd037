"""What the check of a saved sampler runs in a fresh process: build, load, draw, score, write."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import reduce
from typing import Any

import torch

from latentfit.loading import load_sampler
from latentfit.options import resolve_options
from latentfit.persistence import read_tensors, write_tensors
from latentfit.testing._fitted import Fitted, build

__all__ = ["main"]


def main(given: str, answer: str) -> None:
    """Read a state and its header from the file given, and write what the sampler draws and scores."""
    tensors, header = read_tensors(given)
    torch.set_num_threads(header["threads"])
    cls, n = _find(header), header["draws"]
    options = resolve_options(cls, header["options"], method=cls.__name__)  # lists are tuples again
    results = {}
    for index, case in enumerate(header["cases"]):
        plugin = build(
            cls,
            options,
            case["dim"],
            case["n"],
            context_dim=case["context_dim"],
            kind=case["kind"],
        )
        prefix = f"{index}.state."
        plugin.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
        plugin.requires_grad_(False).eval()
        rows, context = tensors[f"{index}.rows"], tensors.get(f"{index}.context")
        fitted = Fitted(plugin, rows, rows[:0], {}, {}, [])
        results[f"{index}.draws"] = fitted.draw(n, seed=3, context=context)
        if cls.has_density:
            results[f"{index}.scores"] = fitted.score(rows, context)
    if header["sampler"] is not None:
        sampler = load_sampler(header["sampler"])
        results["user.draws"] = sampler.sample(n, seed=3)
        if sampler.has_density:
            results["user.scores"] = sampler.log_prob(tensors["latents"])
    write_tensors(answer, results, {})


def _find(header: dict[str, Any]) -> Any:
    """Import the class; from its file, where its module is not on the path (a test's, or __main__)."""
    name = header["module"]
    try:
        module = importlib.import_module(name if name != "__main__" else "")
        return reduce(getattr, header["qualname"].split("."), module)
    except (ImportError, ValueError, AttributeError):
        spec = importlib.util.spec_from_file_location("latentfit_checked", header["path"])
        if spec is None or spec.loader is None:
            raise
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return reduce(getattr, header["qualname"].split("."), module)


if __name__ == "__main__":
    main(*sys.argv[1:])
