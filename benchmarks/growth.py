"""How the cost of a fit grows with the number of latents and with their dimensions, for each method.

    python benchmarks/growth.py [--only realnvp,gmm] [--jobs 1] [--out benchmarks/results/growth]

Each fit runs in a process of its own, on latents from ten Gaussians. What trains by steps is run with its
defaults up to the first evaluation of held-out latents: the time of a whole fit is that of what precedes the
first step, and of all steps and evaluations by default, which early stopping may cut short; the search of
flow-matching for its guidance is left out. What has no steps is fitted to the end. Peak memory is that of the
process, less that before the fit. A fit of the results that is there already is not measured again.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from latentfit import list_samplers
from latentfit.plugin import Run
from latentfit.registry import load_sampler_class
from latentfit_bench.results import listed, provenance, read, write
from peer_contestants import peak_mb

NUMBERS = (1_000, 10_000, 100_000, 1_000_000)  # at DIM dimensions
DIM = 10
DIMS = (2, 8, 32, 128, 512)  # with NUMBER latents
NUMBER = 20_000
DRAWN = 10_000
LIMIT = 300  # seconds of a process


class _Enough(Exception):
    """Ends a fit."""


def latents(n: int, dim: int) -> Tensor:
    """Draw (n, dim) from ten Gaussians."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(10, dim, generator=generator)
    rows = torch.randn(n, dim, generator=generator)
    return rows.add_(centres[torch.randint(10, (n,), generator=generator)])


def measure(method: str, n: int, dim: int) -> dict[str, Any]:
    """Fit a method in this process."""
    rows = latents(n, dim)
    rows = rows / rows.std()
    held_out, rows = rows[: n // 10], rows[n // 10 :]
    plugin = load_sampler_class(method)()
    plugin.build(dim, len(rows))
    starts: list[float] = []
    evaluated, total = 0.0, 0

    def show(step: int, steps: int, values: dict[str, float]) -> None:
        nonlocal evaluated, total
        total = steps
        if not values:
            starts.append(time.perf_counter())
        elif step and starts:  # not before the first step, nor of what has no steps
            evaluated = time.perf_counter()
            raise _Enough

    plugin.train()
    before, started = peak_mb(), time.perf_counter()
    with suppress(_Enough):
        plugin.fit(rows, held_out, Run(torch.Generator().manual_seed(0), show=show))
    ended = time.perf_counter()
    result: dict[str, Any] = {"fit_seconds": ended - started, "fit_mb": peak_mb() - before}
    if evaluated:
        result |= projected(started, starts, evaluated, total)
    plugin.eval()
    started = time.perf_counter()
    with torch.no_grad():
        plugin.sample(DRAWN, torch.Generator().manual_seed(0))
    return result | {"draw_seconds": time.perf_counter() - started}


def projected(
    started: float, starts: list[float], evaluated: float, total: int
) -> dict[str, float]:
    """Seconds of a whole fit and of its parts, of one that ended after its first evaluation.

    Args:
        started: When the fit began.
        starts: When each of its steps did, as many as lie between two evaluations.
        evaluated: When it had been evaluated.
        total: The steps of a whole fit.
    """
    step = statistics.median(after - early for early, after in pairwise(starts))
    evaluation = max(0.0, evaluated - starts[-1] - step)
    setup = starts[0] - started
    return {
        "setup_seconds": setup,
        "step_seconds": step,
        "evaluation_seconds": evaluation,
        "steps": total,
        "steps_between": len(starts),
        "fit_seconds": setup + total * (step + evaluation / len(starts)),
    }


def in_a_process(method: str, n: int, dim: int) -> dict[str, Any]:
    """Measure in a new process; what fails or takes too long is told in the row."""
    command = [sys.executable, __file__, "--child", method, str(n), str(dim)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {LIMIT} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def order(points: list[tuple[int, dict[str, Any]]], key: str) -> str:
    """The exponent of growth over the last two points; empty where there are none."""
    known = [(x, row[key]) for x, row in points if row.get(key)]
    if len(known) < 2:
        return ""
    (x0, y0), (x1, y1) = known[-2:]
    return f"{math.log(y1 / y0) / math.log(x1 / x0):.1f}"


def axes_of(rows: dict[str, Any], method: str) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """A method's measurements along each axis."""
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {"N": [], "D": []}
    for axis, values in (("N", NUMBERS), ("D", DIMS)):
        for value in values:
            key = f"{method}, {value}, {DIM}" if axis == "N" else f"{method}, {NUMBER}, {value}"
            if key in rows:
                found[axis].append((value, rows[key]))
    return found


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown document."""
    rows = results["rows"]
    methods = list(dict.fromkeys(key.split(",")[0] for key in rows))
    parts = ["# How the cost grows\n"]
    for axis, values, fixed in (
        ("N", NUMBERS, f"{DIM} dimensions"),
        ("D", DIMS, f"{NUMBER:,} latents"),
    ):
        heads = " | ".join(f"{value:,}" for value in values)
        for key, what, digits in (
            ("fit_seconds", "seconds of a fit", 1),
            ("fit_mb", "MB of a fit", 0),
            ("draw_seconds", f"seconds to draw {DRAWN:,}", 2),
        ):
            parts.append(
                f"\n## {axis}: {what}, {fixed}\n\n| method | {heads} | exponent |\n| --- |"
                + " ---: |" * (len(values) + 1)
                + "\n"
            )
            for method in methods:
                points = axes_of(rows, method)[axis]
                by_value = dict(points)
                cells = [method]
                for value in values:
                    row = by_value.get(value, {})
                    cells.append(f"{row[key]:,.{digits}f}" if key in row else row.get("error", ""))
                cells.append(order(points, key))
                parts.append("| " + " | ".join(cells) + " |\n")
    used = results["machine"]
    made_with = listed(results["versions"])
    parts.append(
        f"\nBy `python benchmarks/growth.py`, on {used['torch_threads']} threads of {used['cpus']} cores, "
        f"with {made_with}; {results['created']}. The exponent is of growth between the last two columns: "
        f"1 is linear. Fits by steps are projected from those before the first evaluation, and that.\n"
    )
    return "".join(parts)


def figure(results: dict[str, Any], path: Path) -> None:
    """Draw seconds and memory against N and D."""
    drawn = Figure(figsize=(11, 8), layout="constrained")
    panels = drawn.subplots(2, 2, sharey="row", sharex="col")
    methods = list(dict.fromkeys(key.split(",")[0] for key in results["rows"]))
    for number, method in enumerate(methods):
        style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
        for column, points in enumerate(axes_of(results["rows"], method).values()):
            for line, key in enumerate(("fit_seconds", "fit_mb")):
                known = [(x, max(row[key], 0.01)) for x, row in points if key in row]
                xs, ys = zip(*known, strict=True) if known else ((), ())
                panels[line, column].plot(xs, ys, "o", markersize=3, label=method, **style)
    for panel in panels.flat:
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.grid(alpha=0.25, which="both", linewidth=0.5)
    panels[0, 0].set_ylabel("seconds of a fit, with defaults")
    panels[1, 0].set_ylabel("MB of a fit")
    panels[1, 0].set_xlabel(f"N, latents of {DIM} dimensions")
    panels[1, 1].set_xlabel(f"D, dimensions of {NUMBER:,} latents")
    drawn.legend(*panels[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    drawn.savefig(path, dpi=110)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "growth")
    parser.add_argument("--only", help="methods, separated by commas; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="fits at a time")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        method, n, dim = arguments.child
        print(json.dumps(measure(method, int(n), int(dim))))
        return
    every = [info.name for info in list_samplers() if info.distribution == "latentfit"]
    methods = arguments.only.split(",") if arguments.only else every
    sizes = [(n, DIM) for n in NUMBERS] + [(NUMBER, dim) for dim in DIMS]
    results = read(arguments.out)
    results.setdefault("rows", {})
    todo = [(method, *size) for method in methods for size in sizes]
    todo = [one for one in todo if ", ".join(map(str, one)) not in results["rows"]]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for one, row in zip(todo, pool.map(lambda one: in_a_process(*one), todo), strict=True):
            key = ", ".join(map(str, one))
            results["rows"][key] = row
            print(key, row, file=sys.stderr, flush=True)
            results |= provenance()
            write(arguments.out, results, table)
    if results["rows"]:
        write(arguments.out, results, table)
        figure(results, arguments.out / "growth.png")


if __name__ == "__main__":
    main()
