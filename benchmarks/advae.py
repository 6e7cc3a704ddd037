"""What each ingredient buys an AdvAE: adversarial samplers of one autoencoder, one change at a time.

    python benchmarks/advae.py --cache DIR [--data-dir DIR] [--seeds 0,1,2] [--only "a;b"] [--jobs 2]
        [--out benchmarks/results/advae]

Each row is fitted to the latents of the paper's autoencoder of MNIST, one for each seed, kept in the cache,
and measured as in `latentfit bench mnist`: the Fréchet classifier distance (FCD) of 10,000 decoded samples,
over that of Resample. A fit of the results that is there already is not measured again.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentfit.metrics import c2st
from latentfit.moments import measure as measure_moments
from latentfit.plugin import Run, Sampler
from latentfit.principal import Scale
from latentfit_bench.classifier import load_classifier
from latentfit_bench.datasets import binarize, load_mnist
from latentfit_bench.measure import Ruler, plain
from latentfit_bench.results import listed, provenance, read, write
from latentfit_bench.training import in_batches
from latentfit_gan import GAN, R3GAN, WGANGP
from latentfit_gmm import GMM
from latentfit_normflows import RealNVP
from peers import trained

SAMPLES = 10_000
HELD_OUT = 6_000  # rows, for the early stopping of the flow and for the C2ST
FLOOR = "Resample"


class Direct(WGANGP):
    """A WGAN-GP on mixture noise whose generator maps the noise instead of adding to it."""

    def build(self, dim: int, n: int) -> None:
        """Create the generator, its last layer not at zero."""
        super().build(dim, n)
        self.generator[-1].reset_parameters()

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        """Draw n rows, (n, D)."""
        del context
        rows: Tensor = self.generator(self.mixture.sample(n, generator))
        return rows


_PUBLISHED = {
    "base": "normal",
    "learning_rate": 2e-4,
    "betas": (0.5, 0.9),
    "ema": 0.0,
    "penalty": 10.0,
    "critic_steps": 5,
    "steps": 3000,
}
_RATE = _PUBLISHED | {"learning_rate": 1e-3, "betas": (0.0, 0.9)}
_PENALTY = _RATE | {"penalty": 0.1}
_EMA = _PENALTY | {"ema": 0.999}
_MIXED = _EMA | {"base": "mixture"}
_PAIRED = {"base": "normal", "learning_rate": 1e-3, "steps": 8000, "critic_steps": 1}
_ALONE = {"base": "mixture", "learning_rate": 1e-9, "steps": 1}  # what the generator begins with

# What is added in each row, in the order of the table.
ROWS: dict[str, Callable[[], Sampler]] = {
    "WGAN-GP, published settings": partial(WGANGP, **_PUBLISHED),  # type: ignore[arg-type]
    "+ learning rate, betas": partial(WGANGP, **_RATE),  # type: ignore[arg-type]
    "+ penalty 0.1": partial(WGANGP, **_PENALTY),  # type: ignore[arg-type]
    "+ EMA": partial(WGANGP, **_EMA),  # type: ignore[arg-type]
    "+ mixture noise": partial(Direct, **_MIXED),  # type: ignore[arg-type]
    "+ residual generator": partial(WGANGP, **_MIXED),  # type: ignore[arg-type]
    "+ 1,000 steps at 3e-4: the default": WGANGP,
    "non-saturating, normal noise: the default": GAN,
    "non-saturating, mixture": partial(GAN, **_PAIRED | {"base": "mixture"}),  # type: ignore[arg-type]
    "relativistic, normal noise": partial(R3GAN, **_PAIRED),  # type: ignore[arg-type]
    "relativistic, mixture": partial(R3GAN, **_PAIRED | {"base": "mixture"}),  # type: ignore[arg-type]
    "relativistic, mixture, no EMA": partial(
        R3GAN,
        **_PAIRED | {"base": "mixture", "ema": 0.0},  # type: ignore[arg-type]
    ),
    "relativistic, mixture, penalty 0": partial(
        R3GAN,
        **_PAIRED | {"base": "mixture", "penalty": 0.0},  # type: ignore[arg-type]
    ),
    "relativistic, mixture, 4,000 steps at 3e-4: the default": R3GAN,
    "the mixture alone": partial(WGANGP, **_ALONE),  # type: ignore[arg-type]
    "gmm": GMM,
    "realnvp": RealNVP,
}


def fit(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit a row, draw and measure."""
    torch.set_num_threads(1)
    data = load_mnist(arguments.data_dir)
    train = binarize(data.train_images, "threshold")
    model = trained(arguments.cache / f"autoencoder-{seed}.safetensors", data.train_images, seed)
    latents = in_batches(model.encode, train)
    ruler = Ruler(load_classifier("mnist"), train)
    generator = torch.Generator().manual_seed(seed)
    result: dict[str, Any] = {}
    if name == FLOOR:
        z = latents[torch.randint(len(latents), (SAMPLES,), generator=generator)]
    else:
        order = torch.randperm(len(latents), generator=generator)
        held_out, known = latents[order[:HELD_OUT]], latents[order[HELD_OUT:]]
        transform = Scale().fit(measure_moments([known], covariance=True))
        torch.manual_seed(seed)  # of the networks' first weights
        started = time.perf_counter()
        plugin = ROWS[name]()
        plugin.build(transform.dim, len(known))
        run = Run(generator)
        plugin.fit(transform.forward(known), transform.forward(held_out), run)
        result = {"fit_seconds": time.perf_counter() - started, "facts": run.facts}
        plugin.eval()
        with torch.no_grad():
            z = transform.inverse(plugin.sample(SAMPLES, generator), latents.dtype)
        result["c2st"] = c2st(held_out, z, seed=seed)
    return result | ruler.measure((in_batches(model.decode, z) >= 0.5).float())


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown document."""
    rows = results["rows"]
    floor = {row["seed"]: row for row in rows.get(FLOOR, ())}
    lines = [
        "# Ingredients of an adversarial sampler\n",
        "| | FCD | / Resample | each seed | penultimate, / Resample | C2ST | fit, s |",
        "| --- |" + " ---: |" * 6,
    ]
    for name in (FLOOR, *ROWS):
        known = [row for row in rows.get(name, ()) if row["seed"] in floor]
        of = sorted(known, key=lambda row: row["seed"])
        if not of:
            continue
        over = [row["fcd"] / floor[row["seed"]]["fcd"] for row in of]
        deep = [row["fcd_penultimate"] / floor[row["seed"]]["fcd_penultimate"] for row in of]
        cells = [name, f"{statistics.median(row['fcd'] for row in of):.2f}"]
        cells += [f"{statistics.median(over):.2f}", ", ".join(f"{ratio:.2f}" for ratio in over)]
        cells.append(f"{statistics.median(deep):.2f}")
        for key, digits in (("c2st", 3), ("fit_seconds", 0)):
            values = [row[key] for row in of if key in row]
            cells.append(f"{statistics.median(values):.{digits}f}" if values else "")
        lines.append("| " + " | ".join(cells) + " |")
    used = results["machine"]
    made_with = listed(results["versions"])
    lines += [
        "",
        f"By `python benchmarks/advae.py`: medians of the seeds {results['seeds']}; {SAMPLES:,} samples; "
        f"{used['jobs']} fits at a time, of one thread each, on {used['cpus']} cores; {made_with}; "
        f"{results['created']}. C2ST tells samples from held-out latents: 0.5 is ideal.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="keeps the trained autoencoders")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "advae")
    parser.add_argument("--data-dir", type=Path, help="a folder with a sub-folder mnist/")
    parser.add_argument("--seeds", default="0,1,2", help="of the autoencoders and the fits")
    parser.add_argument("--only", help="rows, separated by semicolons; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="fits at a time")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    names = [FLOOR, *(arguments.only.split(";") if arguments.only else ROWS)]
    if unknown := [name for name in names[1:] if name not in ROWS]:
        parser.error(f"Expected rows of {'; '.join(ROWS)}; got {'; '.join(unknown)}.")
    data = load_mnist(arguments.data_dir)
    for seed in seeds:
        path = arguments.cache / f"autoencoder-{seed}.safetensors"
        trained(path, data.train_images, seed)
    results = read(arguments.out)
    results.setdefault("rows", {})
    todo = [
        (name, seed)
        for seed in seeds
        for name in names
        if all(row["seed"] != seed for row in results["rows"].get(name, ()))
    ]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        waiting = {pool.submit(fit, *one, arguments): one for one in todo}
        for future in as_completed(waiting):
            name, seed = waiting[future]
            row = future.result()
            results["rows"].setdefault(name, []).append(plain({"seed": seed, **row}))
            print(f"{name}, seed {seed}: FCD {row['fcd']:.2f}", file=sys.stderr, flush=True)
            results |= {
                "seeds": sorted({row["seed"] for of in results["rows"].values() for row in of}),
                "samples": SAMPLES,
                "data_sha256": data.sha256,
                **provenance(torch_threads=1, jobs=arguments.jobs),
            }
            write(arguments.out, results, table)


if __name__ == "__main__":
    main()
