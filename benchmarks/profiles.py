"""Where the time of a fit goes: samples of the call stack while a method trains, sorted into its parts.

    pip install py-spy
    python benchmarks/profiles.py [--methods "realnvp;spline"] [--seconds 20]
        [--out benchmarks/results/profiles]

Each method is fitted with defaults to 60,000 synthetic latents of ten dimensions, in a process and on a
thread of its own, which py-spy looks at from outside a hundred times a second. A sample counts for the first
part of which some function is on its stack.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentfit_bench.results import listed, provenance, read, write

METHODS = "realnvp;spline;maf;flow-matching;wgan-gp;r3gan"
FIT = """
import sys, torch
from latentfit import fit_latent_sampler
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
clusters = 3 * torch.randn(50, 10, generator=generator)
rows = torch.randint(50, (60_000,), generator=generator)
latents = clusters[rows] + torch.randn(60_000, 10, generator=generator)
fit_latent_sampler(None, latents, method=sys.argv[1], max_seconds=float(sys.argv[2]))
"""
REST = "loop and log"
# The parts of a training, and what is on the stack in each; in the order in which they are asked for.
PARTS = {
    "evaluation": ("stop_after_evaluation", "Watched.measure", "_Watch.evaluate"),
    "gradient": ("Tensor.backward (", "grad (torch/autograd/"),
    "clipping": ("clip_grad",),
    "optimiser": ("(torch/optim/",),
    "average": ("ParameterAverage.",),
    "minibatch": ("Batches.__next__",),
    "loss": ("Module._call_impl", "loss", "<lambda>", ".sample ("),
}


def part_of(stack: list[str]) -> str | None:
    """Tell which part of a training a stack, outermost function first, is in; None if in none."""
    if any("_find_and_load" in frame for frame in stack):
        return None  # imports, which only the first fit of a process pays for
    start = next((at for at, frame in enumerate(stack) if _trains(frame)), None)
    if start is None:
        return None
    inner = stack[start + 1 :]
    found = (part for part, marks in PARTS.items() if any(m in f for f in inner for m in marks))
    return next(found, REST)


def _trains(frame: str) -> bool:
    return frame.startswith(("train (latentfit/training", "train_adversarially ("))


def stacks(method: str, seconds: float) -> Iterator[tuple[list[str], int]]:
    """Fit, and give each stack that was seen, with how often."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stacks"
        look = ["py-spy", "record", "--rate", "100", "--format", "raw", "--output", str(file), "--"]
        fit = [sys.executable, "-c", FIT, method, str(seconds)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*look, *fit], check=True, env=environment, stdout=subprocess.DEVNULL)
        for line in file.read_text("utf-8").splitlines():
            stack, _, count = line.rpartition(" ")
            yield stack.split(";"), int(count)


def profile(method: str, seconds: float) -> dict[str, int]:
    """Count the samples of each part."""
    counts: Counter[str] = Counter()
    for stack, count in stacks(method, seconds):
        part = part_of(stack)
        if part is not None:
            counts[part] += count
    if not counts:
        raise SystemExit(f"Expected samples of a training by {method}; got none.")
    return {part: counts[part] for part in (*PARTS, REST)}


def shares(results: dict[str, Any]) -> list[str]:
    """Return a Markdown table's lines: each part's share of a method's samples."""
    parts = ("loss", "gradient", *(p for p in (*PARTS, REST) if p not in ("loss", "gradient")))
    lines = [f"| method | {' | '.join(parts)} |", "| --- |" + " ---: |" * len(parts)]
    for method, counts in results["rows"].items():
        total = sum(counts.values())
        told = (f"{100 * counts[part] / total:.1f} %" for part in parts)
        lines.append(f"| `{method}` | {' | '.join(told)} |")
    return lines


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown document."""
    lines = ["# Where the time of a training goes\n", *shares(results)]
    used = results["machine"]
    lines += [
        "",
        f"By `python benchmarks/profiles.py`: py-spy, 100 samples a second of the first "
        f"{results['seconds']:g} s on one of {used['cpus']} cores; {listed(results['versions'])}; "
        f"{results['created']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "profiles")
    parser.add_argument("--methods", default=METHODS, help="separated by semicolons")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each fit")
    arguments = parser.parse_args()
    rows = read(arguments.out).get("rows", {})
    for method in arguments.methods.split(";"):
        rows[method] = profile(method, arguments.seconds)
        print(method, rows[method], flush=True)
        versions = ("latentfit", "torch", "py-spy")
        results = {"rows": rows, "seconds": arguments.seconds}
        write(arguments.out, results | provenance(versions, torch_threads=1), table)


if __name__ == "__main__":
    main()
