"""Put many encoders through all that a sampler does, and write what came out as a table.

    pip install -c constraints.txt -e '.[encoders]'
    python benchmarks/encoders.py --out benchmarks/results/encoders

Each encoder (encoder_cases.py) goes into `fit_latent_sampler` as it is; then the sampler draws, scores,
decodes, is saved, and is loaded in a fresh process. A cell holds what was measured, or the error:

- fit: seconds, the encoding included;
- sample: 1,000 finite latents of the encoder's shape, the same for the same seed; seconds;
- log_prob: of these, finite; seconds, and the largest difference of one by one from all at once, in nats;
- generate: 64 images, finite; seconds, and the largest difference from what the library decodes itself;
- save: seconds, and the file's size;
- load: seconds, and the largest difference of samples and log densities in a fresh process.

A difference of more than a ten-thousandth of the largest value is an error. MNIST comes from the folder that
LATENTFIT_DATA names, or is downloaded once. `--quick` takes scikit-learn's digits and token trainings: its
numbers are not to be quoted.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoder_cases import CASES, Case
from latentfit import LatentSampler, fit_latent_sampler, load_sampler
from latentfit_bench.datasets import load_digits, load_mnist
from latentfit_bench.files import write_atomically
from latentfit_bench.results import machine, versions

STEPS = ("fit", "sample", "log_prob", "generate", "save", "load")
LIBRARIES = (
    "latentfit",
    "torch",
    "numpy",
    "diffusers",
    "transformers",
    "pythae",
    "scikit-learn",
    "normflows",
)
SAMPLES, IMAGES, SEED = 1000, 64, 0
TOLERANCE = 1e-4  # of float32 sums over hundreds of values, in another order


def check(condition: bool, message: str) -> None:
    """Fail a cell, also under python -O."""
    if not condition:
        raise RuntimeError(message)


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference of two tensors that must agree."""
    check(one.shape == other.shape, f"shapes {tuple(one.shape)} and {tuple(other.shape)}")
    check(bool(one.isfinite().all() and other.isfinite().all()), "NaN or infinity")
    error = float((one.double() - other.double()).abs().max())
    check(error <= TOLERANCE * max(1.0, float(other.abs().max())), f"a difference of {error:g}")
    return error


class Row:
    """One encoder's way through all steps; a step's result is what its cell holds."""

    def __init__(self, case: Case, folder: Path, settings: argparse.Namespace) -> None:
        self.case, self.settings = case, settings
        self.file = folder / "sampler.safetensors"
        self.sampler: LatentSampler | None = None
        self.latents = torch.empty(0)

    @property
    def fitted(self) -> LatentSampler:
        """The sampler, which every step but the first needs."""
        if self.sampler is None:
            raise RuntimeError("not fitted")
        return self.sampler

    def fit(self) -> dict[str, Any]:
        """Encode and fit."""
        case, settings = self.case, self.settings
        self.sampler = fit_latent_sampler(
            case.encoder,
            case.images,
            decoder=None if case.decode is None else case.encoder,
            method=settings.method,
            max_seconds=settings.max_seconds,
            progress=False,
            **case.options,
        )
        return {}

    def sample(self) -> dict[str, Any]:
        """Draw."""
        self.latents = self.fitted.sample(SAMPLES, seed=SEED)
        check(self.latents.shape == (SAMPLES, *self.fitted.shape), "another shape")
        error = difference(self.latents, self.fitted.sample(SAMPLES, seed=SEED))
        check(error == 0, f"the same seed drew others: {error:g}")
        return {}

    def log_prob(self) -> dict[str, Any]:
        """Score."""
        scores = self.fitted.log_prob(self.latents)
        one_by_one = torch.cat([self.fitted.log_prob(z[None]) for z in self.latents[:50]])
        return {"max_error": difference(scores[:50], one_by_one), "mean": float(scores.mean())}

    def generate(self) -> dict[str, Any]:
        """Decode, and compare with the library's own decoding."""
        if self.case.decode is None:
            return {"none": "no decoder"}
        images = self.fitted.generate(IMAGES, seed=SEED)
        if isinstance(self.case.encoder, nn.Module):
            self.case.encoder.eval()
        with torch.inference_mode():
            own = self.case.decode(self.fitted.sample(IMAGES, seed=SEED))
        return {"max_error": difference(images, own), "shape": list(images.shape[1:])}

    def save(self) -> dict[str, Any]:
        """Write the file."""
        self.fitted.save(self.file)
        return {"kilobytes": self.file.stat().st_size / 1000}

    def load(self) -> dict[str, Any]:
        """Draw and score in a fresh process."""
        out = self.file.with_name("loaded.pt")
        subprocess.run([sys.executable, __file__, "--load", self.file, "--out", out], check=True)
        loaded = torch.load(out, weights_only=True)
        scores = self.fitted.log_prob(self.latents)
        errors = difference(self.latents, loaded["z"]), difference(scores, loaded["log_prob"])
        return {"max_error": max(errors)}


def load_in_this_process(file: Path, out: Path) -> None:
    """Draw and score with a saved sampler: what the fresh process does."""
    sampler = load_sampler(file)
    z = sampler.sample(SAMPLES, seed=SEED)
    torch.save({"z": z, "log_prob": sampler.log_prob(z)}, out)


def attempt(step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Time a step, and keep its error instead of ending the run."""
    started = time.perf_counter()
    try:
        return {"ok": True, **step(), "seconds": time.perf_counter() - started}
    except Exception as error:
        return {"ok": False, "error": " ".join(f"{type(error).__name__}: {error}".split())}


def run(name: str, images: Tensor, settings: argparse.Namespace) -> dict[str, Any]:
    """Build an encoder with weights by a seed, and take it through all steps."""
    torch.manual_seed(SEED)
    case = CASES[name](images)
    with tempfile.TemporaryDirectory() as folder:
        row = Row(case, Path(folder), settings)
        cells = {step: attempt(getattr(row, step)) for step in STEPS}
    shape = list(row.sampler.shape) if row.sampler else []
    return {"note": case.note, "latent_shape": shape, "cells": cells}


def cell(result: dict[str, Any]) -> str:
    """Write a result as a cell of the table."""
    if not result["ok"]:
        return result["error"].replace("|", "\\|")
    if "none" in result:
        return str(result["none"])
    size = f", {result['kilobytes']:,.0f} kB" if "kilobytes" in result else ""
    error = f", max error {result['max_error']:.1g}" if "max_error" in result else ""
    return f"ok, {result['seconds']:.2f} s{size}{error}"


def table(results: dict[str, Any]) -> str:
    """Return the Markdown document."""
    lines = [
        "# Encoders as they are",
        "",
        f"| Encoder | Weights | Latents | {' | '.join(STEPS[:-1])} | load in a fresh process |",
        "| --- " * 3 + "| ---: " * len(STEPS) + "|",
    ]
    for name, row in results["rows"].items():
        shape = "x".join(map(str, row["latent_shape"]))
        cells = " | ".join(cell(row["cells"][step]) for step in STEPS)
        lines.append(f"| {name} | {row['note']} | {shape} | {cells} |")
    made_with = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    made = (
        f"Each encoder went into `fit_latent_sampler(encoder, images, decoder=encoder)` as it is: "
        f"{results['images']:,} images of {results['data']} (the last one with all that it was trained on), "
        f"method `{results['method']}`, at most {results['max_seconds']:g} s of training. Of {SAMPLES:,} "
        f"samples and {IMAGES} images; "
        "`benchmarks/encoders.py` tells what is checked. Random weights make no good latents: the table is "
        "about whether each encoder goes through."
    )
    quick = " A **quick** run: not to be quoted." if results["quick"] else ""
    provenance = (
        f"`{results['command']}` at commit `{results['commit']}`, {results['created']}, on "
        f"{results['device']} (threads: {results['threads']}), in {results['seconds']:.0f} s, with "
        f"{made_with}."
    )
    return "\n".join([*lines, "", made + quick, "", provenance, ""])


def commit() -> str | None:
    """Return the checkout's commit, marked if files differ from it; None outside of one."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or None


def main() -> int:
    """Run all rows, and write the table and the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--method", default="realnvp", help="a sampler with a density")
    parser.add_argument("--max-seconds", type=float, default=20, help="of training, for each")
    parser.add_argument("--images", type=int, default=5000, help="how many are encoded")
    parser.add_argument("--only", default="", help="a part of the rows' names")
    parser.add_argument("--quick", action="store_true", help="digits and token trainings")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.load:
        load_in_this_process(settings.load, settings.out)
        return 0
    if settings.quick:
        small = load_digits().train_images.view(-1, 1, 8, 8)
        images = nn.functional.interpolate(small, 28, mode="bilinear").flatten(1)
        settings.images, settings.max_seconds = 500, 1.0
    else:
        images = load_mnist().train_images
    started, revision = time.perf_counter(), commit()
    rows = {}
    for name in (name for name in CASES if settings.only in name):
        data = images if name == "convolutional autoencoder" else images[: settings.images]
        rows[name] = run(name, data, settings)
        cells = "; ".join(f"{step} {cell(rows[name]['cells'][step])}" for step in STEPS)
        print(f"{name}: {cells}", flush=True)
    results = {
        "rows": rows,
        "data": "digits" if settings.quick else "MNIST",
        "images": settings.images,
        "method": settings.method,
        "max_seconds": settings.max_seconds,
        "quick": settings.quick,
        "command": " ".join(["python", "benchmarks/encoders.py", *sys.argv[1:]]),
        "commit": revision,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "versions": versions(LIBRARIES),
        "seconds": time.perf_counter() - started,
    }
    settings.out.mkdir(parents=True, exist_ok=True)
    write_atomically(settings.out / "results.json", json.dumps(results, indent=2).encode() + b"\n")
    write_atomically(settings.out / "table.md", table(results).encode())
    return int(not all(c["ok"] for row in rows.values() for c in row["cells"].values()))


if __name__ == "__main__":
    sys.exit(main())
