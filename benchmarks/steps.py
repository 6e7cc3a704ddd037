"""Time latentfit's training steps and draws beside those of raw libraries with the same layers, in turns.

    python benchmarks/steps.py [--dim 10] [--batch 512] [--rounds 7] [--out benchmarks/results/steps]

A step of ours is one of a fit: minibatch, loss, gradient, clipping, Adam, the moving average of the weights,
the schedule and the log, but not the evaluations in between. A raw step is that of the libraries' own
examples: minibatch, loss, gradient, Adam. Blocks of both take turns in one process; ratios are of the
medians of each round, and the table gives the median and the range of the rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import normflows as nf
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms import (
    CompositeTransform,
    MaskedAffineAutoregressiveTransform,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    PiecewiseRationalQuadraticCouplingTransform,
    RandomPermutation,
    ReversePermutation,
)
from nflows.utils import create_alternating_binary_mask
from torch import Tensor, nn

from latentfit.plugin import Run, Sampler
from latentfit_bench.results import listed, provenance, read, write
from latentfit_nflows import Spline, SplineAR
from latentfit_normflows import MAF, RealNVP

ROWS, DRAWN, STEPS = 60_000, 10_000, 100
LONG = 4000  # steps of a run that is evaluated after STEPS for the first time
LAYERS, HIDDEN, BINS = 5, 128, 8


@dataclass(frozen=True)
class Pair:
    """A sampler of ours and the same of a raw library.

    Attributes:
        ours: Makes the sampler, for so many optimiser steps.
        raw: Makes the module for so many columns.
        score: Its log densities of rows.
        draw: Draws n rows.
        bar: The ratio that a step may have.
    """

    ours: Callable[[int], Sampler]
    raw: Callable[[int], Any]
    score: Callable[[Any, Tensor], Tensor] = lambda module, x: module.log_prob(x)
    draw: Callable[[Any, int], Any] = lambda module, n: module.sample(n)
    bar: float = 1.05


def normflows_realnvp(dim: int) -> nn.Module:
    """Couple affinely, as many layers as ours."""
    flows: list[nn.Module] = []
    for _ in range(LAYERS):
        network = nf.nets.MLP([(dim + 1) // 2, HIDDEN, 2 * (dim // 2)], init_zeros=True)
        flows += [nf.flows.AffineCouplingBlock(network), nf.flows.Permute(dim, mode="swap")]
    return nf.NormalizingFlow(nf.distributions.base.DiagGaussian(dim), flows)


def nflows_coupling(layers: int) -> Callable[[int], nn.Module]:
    """Couple rational-quadratic splines."""

    def build(dim: int) -> nn.Module:
        transforms: list[Any] = []
        for layer in range(layers):
            transforms += [RandomPermutation(dim)] if layer % 2 == 0 else []
            transforms.append(
                PiecewiseRationalQuadraticCouplingTransform(
                    create_alternating_binary_mask(dim, even=layer % 2 == 0),
                    lambda n_in, n_out: ResidualNet(n_in, n_out, HIDDEN, num_blocks=1),
                    num_bins=BINS,
                    tails="linear",
                    tail_bound=5.0,
                )
            )
        return Flow(CompositeTransform(transforms), StandardNormal([dim]))

    return build


def nflows_autoregressive(
    kind: Callable[..., nn.Module], layers: int
) -> Callable[[int], nn.Module]:
    """Stack autoregressive layers, affine or of splines, whose density takes one pass."""

    def build(dim: int) -> nn.Module:
        transforms: list[Any] = []
        for _ in range(layers):
            transforms += [ReversePermutation(dim), kind(dim, HIDDEN, num_blocks=1)]
        return Flow(CompositeTransform(transforms), StandardNormal([dim]))

    return build


SPLINES = {"num_bins": BINS, "tails": "linear", "tail_bound": 5.0}
PAIRS = {
    "realnvp, normflows": Pair(
        lambda n: RealNVP(layers=LAYERS, hidden=(HIDDEN,), base="normal", steps=n),
        normflows_realnvp,
    ),
    "maf, nflows": Pair(
        lambda n: MAF(layers=LAYERS, hidden=HIDDEN, base="normal", steps=n),
        nflows_autoregressive(MaskedAffineAutoregressiveTransform, LAYERS),
    ),
    "spline of 4 layers, nflows": Pair(
        lambda n: Spline(layers=4, hidden=HIDDEN, base="normal", steps=n), nflows_coupling(4)
    ),
    "spline of 6 layers, nflows": Pair(
        lambda n: Spline(layers=6, hidden=HIDDEN, base="normal", steps=n),
        nflows_coupling(6),
        bar=0.5,
    ),
    "spline-ar, nflows": Pair(
        lambda n: SplineAR(layers=3, hidden=HIDDEN, base="normal", steps=n),
        nflows_autoregressive(
            partial(MaskedPiecewiseRationalQuadraticAutoregressiveTransform, **SPLINES), 3
        ),
    ),
}


class _Enough(Exception):
    """Ends a fit."""


def our_steps(sampler: Sampler, rows: Tensor, batch: int) -> list[float]:
    """Fit for STEPS steps of a long run, and give the seconds of each."""
    times: list[float] = []

    def show(step: int, _: int, values: dict[str, float]) -> None:
        if not values:  # of a step, not of an evaluation
            times.append(time.perf_counter())
        if step == STEPS:
            raise _Enough

    generator = torch.Generator().manual_seed(0)
    sampler.train()
    with suppress(_Enough):
        sampler.fit(rows, rows[:0], Run(generator, batch_size=batch, show=show))
    return [after - before for before, after in pairwise(times)]


def raw_steps(pair: Pair, module: nn.Module, rows: Tensor, batch: int) -> list[float]:
    """Train a raw library's module as its examples do, and give the seconds of each step."""
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    times = [time.perf_counter()]
    for index in torch.randperm(len(rows))[: STEPS * batch].split(batch):
        optimiser.zero_grad()
        loss = -pair.score(module, rows[index]).mean()
        loss.backward()
        optimiser.step()
        times.append(time.perf_counter())
    return [after - before for before, after in pairwise(times)]


@torch.no_grad()
def seconds_to_draw(draw: Callable[..., Any], *arguments: Any) -> float:
    """The seconds of a call."""
    started = time.perf_counter()
    draw(*arguments)
    return time.perf_counter() - started


def measure(pair: Pair, dim: int, batch: int, rounds: int) -> dict[str, Any]:
    """Time both in turns."""
    torch.manual_seed(0)
    rows = torch.randn(ROWS, dim) @ torch.randn(dim, dim) / dim**0.5
    ours, raw = pair.ours(LONG), pair.raw(dim)
    ours.build(dim, ROWS)
    measured: dict[str, list[float]] = {key: [] for key in ("ours", "raw", "our_draw", "raw_draw")}
    for _ in range(rounds + 1):
        measured["ours"].append(statistics.median(our_steps(ours, rows, batch)))
        measured["raw"].append(statistics.median(raw_steps(pair, raw.train(), rows, batch)))
        generator = torch.Generator().manual_seed(0)
        ours.eval()
        raw.eval()
        measured["our_draw"].append(seconds_to_draw(ours.sample, DRAWN, generator))
        measured["raw_draw"].append(seconds_to_draw(pair.draw, raw, DRAWN))
    of = {key: values[1:] for key, values in measured.items()}  # the first round warms up
    step = [a / b for a, b in zip(of["ours"], of["raw"], strict=True)]
    draw = [a / b for a, b in zip(of["our_draw"], of["raw_draw"], strict=True)]
    return of | {"step_ratio": step, "draw_ratio": draw, "bar": pair.bar}


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown document."""
    lines = [
        "# Steps and draws beside the raw libraries\n",
        "| | ours, ms | raw, ms | ratio of a step | range | bar | draw 10,000: ratio | range |",
        "| --- |" + " ---: |" * 7,
    ]
    for name, row in results["rows"].items():
        step, draw = row["step_ratio"], row["draw_ratio"]
        cells = [name, *(f"{1e3 * statistics.median(row[key]):.2f}" for key in ("ours", "raw"))]
        cells += [f"{statistics.median(step):.3f}", f"{min(step):.3f} to {max(step):.3f}"]
        cells += [f"{row['bar']:g}"]
        cells += [f"{statistics.median(draw):.3f}", f"{min(draw):.3f} to {max(draw):.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    used = results["machine"]
    made_with = listed(results["versions"])
    lines += [
        "",
        f"By `python benchmarks/steps.py`: {results['dim']} columns, batches of {results['batch']}, medians "
        f"of {STEPS} steps, {results['rounds']} rounds, on {used['torch_threads']} threads of {used['cpus']} "
        f"cores, with {made_with}; {results['created']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "steps")
    parser.add_argument("--dim", type=int, default=10)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="a part of the rows' names")
    arguments = parser.parse_args()
    rows = read(arguments.out).get("rows", {}) if arguments.only else {}
    for name, pair in PAIRS.items():
        if arguments.only in name:
            rows[name] = measure(pair, arguments.dim, arguments.batch, arguments.rounds)
            step, draw = (
                statistics.median(rows[name][key]) for key in ("step_ratio", "draw_ratio")
            )
            print(f"{name}: step {step:.3f}, draw {draw:.3f}", flush=True)
    results = {
        "rows": rows,
        "dim": arguments.dim,
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        **provenance(("latentfit", "torch", "normflows", "nflows")),
    }
    write(arguments.out, results, table)


if __name__ == "__main__":
    main()
