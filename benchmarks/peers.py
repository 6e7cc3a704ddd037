"""Compare latentfit with Pythae, scikit-learn and loops over raw libraries, on one autoencoder of MNIST.

    pip install -e '.[peers]'
    python benchmarks/peers.py --cache DIR [--data-dir DIR] [--repeats 3] [--jobs 2] [--only "realnvp;gmm"]
        [--out benchmarks/results/peers]

The paper's autoencoder is trained once and kept in the cache. Each fit runs in a process of its own, which
measures seconds, peak memory, and, of 10,000 decoded samples, the Fréchet classifier distances (FCD) to the
training images, density and coverage; and the NLL of the test images' latents, where there is a density. A
fit of the results that is there already is not measured again: delete results.json to start anew.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentfit.metrics import density_coverage
from latentfit_bench.classifier import load_classifier
from latentfit_bench.datasets import binarize, load_mnist
from latentfit_bench.measure import Ruler, plain, standardised_nll
from latentfit_bench.models import Autoencoder
from latentfit_bench.results import listed, provenance, read, write
from latentfit_bench.training import in_batches, train_autoencoder
from peer_contestants import (
    ADVERSARIAL,
    CONTESTANTS,
    FLOOR,
    FLOWS,
    OURS,
    PYTHAE,
    Fitted,
    Task,
    Watch,
    peak_mb,
)

SAMPLES = 10_000
LIBRARIES = ("latentfit", "torch", "numpy", "scikit-learn", "normflows", "nflows", "pythae", "zuko")
PEER = "Pythae MAF"
TAB20 = colormaps["tab20"]
MEASURES = (
    "fit_seconds",
    "sample_seconds",
    "nll",
    "fcd",
    "fcd_penultimate",
    "density",
    "coverage",
    "peak_mb",
)


def trained(path: Path, images: Tensor, seed: int = 0) -> Autoencoder:
    """Train the paper's autoencoder, as `latentfit bench mnist` does, or take it from the cache."""
    if path.exists():
        model = Autoencoder(images.shape[1], 10)
        model.load_state_dict(load_file(path))
        return model.eval().requires_grad_(False)
    made = train_autoencoder(
        lambda: Autoencoder(images.shape[1], 10), images, epochs=20, seed=seed
    ).model
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in made.state_dict().items()}, path)
    assert isinstance(made, Autoencoder)
    return made


def measure(name: str, repeat: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit a contestant in this process, and measure what it gives."""
    data = load_mnist(arguments.data_dir)
    train, test = (
        binarize(images, "threshold") for images in (data.train_images, data.test_images)
    )
    model = trained(arguments.cache / "autoencoder.safetensors", data.train_images)
    latents = in_batches(model.encode, train)
    before = peak_mb()
    watch = Watch()
    fitted = CONTESTANTS[name](Task(model, train, latents, repeat), watch)
    result: dict[str, Any] = {
        "fit_seconds": watch.seconds,
        "peak_mb": watch.peak_mb or peak_mb(),
        "before_mb": before,  # with imports, images and latents
    }
    started = time.perf_counter()
    z = fitted.sample(SAMPLES)
    result["sample_seconds"] = time.perf_counter() - started

    classifier = load_classifier("mnist")
    ruler = Ruler(classifier, train)
    held_out = in_batches(model.encode, test)

    def judge(fitted: Fitted, z: Tensor) -> tuple[dict[str, Any], Tensor]:
        images = (in_batches(model.decode, z) >= 0.5).float()
        measured: dict[str, Any] = ruler.measure(images)
        measured["nll"] = (
            standardised_nll(fitted.log_prob, latents, held_out) if fitted.log_prob else None
        )
        return measured, images

    measured, images = judge(fitted, z)
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(repeat))[:SAMPLES]
    real, fake = (classifier.model.features(x)[0] for x in (train[some], images))
    measured["density"], measured["coverage"] = density_coverage(real, fake)
    curve = []
    for state, seconds, early in watch.curve:
        if early is not fitted:
            row = judge(early, early.sample(SAMPLES))[0]
            curve.append({"state": state, "seconds": seconds, **row})
    return result | measured | {"curve": curve}


def in_a_process(name: str, repeat: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, __file__, "--cache", str(arguments.cache), "--out", str(out)]
        command += ["--child", name, str(repeat)]
        command += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise RuntimeError(f"{name}, repeat {repeat}:\n{done.stderr[-2000:]}")
        row: dict[str, Any] = json.loads(out.read_text())
        return row


def median(rows: list[dict[str, Any]], key: str) -> float | None:
    """The median over the repeats; None where a value is missing."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.median(values) if len(values) == len(rows) and rows else None


def time_to_reach(rows: list[dict[str, Any]], fcd: float, nll: float) -> float | None:
    """The median seconds after which both are as good; None if in any repeat they never are."""
    needed = []
    for row in rows:
        states = [*row["curve"], row | {"seconds": row["fit_seconds"]}]
        good = [
            s["seconds"]
            for s in states
            if s["nll"] is not None and s["fcd"] <= fcd and s["nll"] <= nll
        ]
        if not good:
            return None
        needed.append(min(good))
    return statistics.median(needed)


def bars(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Compute what the project promises, of medians; None where something has not been measured."""
    medians = {name: {key: median(of, key) for key in MEASURES} for name, of in rows.items()}
    floor = medians.get(FLOOR, {})
    over = {
        name: value["fcd"] / floor["fcd"]
        for name, value in medians.items()
        if floor.get("fcd") and value["fcd"]
    }
    found: dict[str, Any] = {"fcd_over_floor": {name: over[name] for name in OURS if name in over}}
    flows, adversarial = ([n for n in names if n in over] for names in (FLOWS, ADVERSARIAL))
    if flows and adversarial:
        flow, other = (min(names, key=lambda n: over[n]) for names in (flows, adversarial))
        found["best_adversarial_over_best_flow"] = {
            "fcd": over[other] / over[flow],
            "fit_seconds": medians[other]["fit_seconds"] / medians[flow]["fit_seconds"],
            "of": [other, flow],
        }
    measured = [medians[name] for name in OURS if name in medians]
    for key in ("density", "coverage"):
        if floor.get(key) and measured:
            found[f"best_{key}_over_floor"] = max(value[key] / floor[key] for value in measured)
    peers = [n for n in PYTHAE if n in medians and medians[n]["nll"] is not None]
    if peers and medians.get(PEER, {}).get("fit_seconds"):
        fcd, nll = (min(medians[n][key] for n in peers) for key in ("fcd", "nll"))
        of_peer = medians[PEER]
        found["seconds_to_beat"] = {
            name: {
                PEER: time_to_reach(rows[name], of_peer["fcd"], of_peer["nll"]),
                "the best of Pythae": time_to_reach(rows[name], fcd, nll),
            }
            for name in OURS
            if name in rows
        }
        first = found["seconds_to_beat"].get("realnvp", {}).get(PEER)
        found["default_to_beat_over_peers_fit"] = (
            None if first is None else first / of_peer["fit_seconds"]
        )
    return found


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown document."""
    rows = results["rows"]
    floor = median(rows[FLOOR], "fcd") if FLOOR in rows else None
    parts = [
        "# Peers\n\nMedians of the repeats, and for FCD its range. FCD is of 10,000 decoded samples, NLL of "
        "the test images' latents, in nats of standardised latents; density and coverage are in the "
        "penultimate layer.\n\n| | fit, s | draw 10,000, s | NLL | FCD | range | / floor | penultimate "
        "| density | coverage | peak, MB |\n"
        "| --- |" + " ---: |" * 10 + "\n"
    ]
    for name in CONTESTANTS:
        if name not in rows:
            continue
        of = rows[name]
        values = {key: median(of, key) for key in MEASURES}
        fcds = [row["fcd"] for row in of]
        over = values["fcd"] / floor if floor else math.nan

        def shown(key: str, digits: int) -> str:
            return "" if values[key] is None else f"{values[key]:,.{digits}f}"  # noqa: B023

        cells = [
            name,
            shown("fit_seconds", 1),
            shown("sample_seconds", 2),
            shown("nll", 2),
            shown("fcd", 2),
        ]
        cells += [f"{min(fcds):.2f} to {max(fcds):.2f}", f"{over:.2f}", shown("fcd_penultimate", 2)]
        cells += [shown("density", 3), shown("coverage", 3), shown("peak_mb", 0)]
        parts.append("| " + " | ".join(cells) + " |\n")
    made_with = listed(results["versions"])
    used = results["machine"]
    counts = sorted({len(of) for of in rows.values()})
    repeats = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    parts.append(
        f"\nBy `python benchmarks/peers.py`, {repeats} repeats, {used['jobs']} fits at a time with "
        f"{used['torch_threads']} threads each on {used['cpus']} cores, with {made_with}; "
        f"{results['created']}. Seconds of latentfit and Pythae, which are given images, have "
        "the encoding in them; peak memory has that of imports and data.\n"
    )
    return "".join(parts)


def figure(results: dict[str, Any], path: Path) -> None:
    """Draw FCD against seconds, the floor as a line."""
    drawn = Figure(figsize=(10.5, 6), layout="constrained")
    axes = drawn.subplots()
    rows = results["rows"]
    for number, (name, of) in enumerate(
        (n, rows[n]) for n in CONTESTANTS if n in rows and n != FLOOR
    ):
        states = [{s["state"]: s for s in row["curve"]} for row in of]
        common = [name for name in states[0] if all(name in other for other in states)]
        points = [[other[name] for other in states] for name in common]
        points.append([row | {"seconds": row["fit_seconds"]} for row in of])
        seconds = [statistics.median(state["seconds"] for state in states) for states in points]
        fcd = [statistics.median(state["fcd"] for state in states) for states in points]
        order = sorted(range(len(seconds)), key=seconds.__getitem__)
        axes.plot(
            [seconds[i] for i in order],
            [fcd[i] for i in order],
            "o-" if name in OURS else "s:",
            color=TAB20(number),
            markersize=4,
            linewidth=1.6 if name in OURS else 1.0,
            label=name,
        )
    if FLOOR in rows:
        axes.axhline(
            median(rows[FLOOR], "fcd") or math.nan, color="black", linewidth=1, label="floor"
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("seconds of fitting")
    axes.set_ylabel("FCD of 10,000 decoded samples")
    axes.grid(alpha=0.25, which="both", linewidth=0.5)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    drawn.savefig(path, dpi=110)


def log(line: str) -> None:
    """Tell on stderr."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="keeps the trained autoencoder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "peers")
    parser.add_argument("--data-dir", type=Path, help="a folder with a sub-folder mnist/")
    parser.add_argument("--repeats", type=int, default=3, help="the seeds 0, 1, ...")
    parser.add_argument("--jobs", type=int, default=1, help="fits at a time")
    parser.add_argument("--only", help="names, separated by semicolons; all by default")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "REPEAT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.cache = arguments.cache.resolve()
    if arguments.child:
        name, repeat = arguments.child
        arguments.out.write_text(json.dumps(plain(measure(name, int(repeat), arguments))))
        return
    if arguments.data_dir:
        arguments.data_dir = arguments.data_dir.resolve()
    names = arguments.only.split(";") if arguments.only else list(CONTESTANTS)
    if unknown := [name for name in names if name not in CONTESTANTS]:
        parser.error(f"Expected names of {', '.join(CONTESTANTS)}; got {', '.join(unknown)}.")
    data = load_mnist(arguments.data_dir, log=log)
    trained(arguments.cache / "autoencoder.safetensors", data.train_images)
    results = read(arguments.out)
    results.setdefault("rows", {})
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // arguments.jobs)))
    todo = [
        (name, repeat)
        for repeat in range(arguments.repeats)
        for name in names
        if all(row["repeat"] != repeat for row in results["rows"].get(name, ()))
    ]
    failed = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = {
            pool.submit(in_a_process, name, repeat, arguments): (name, repeat)
            for name, repeat in todo
        }
        for future in as_completed(waiting):
            name, repeat = waiting[future]
            if future.exception():
                failed += 1
                log(str(future.exception()))
                continue
            used = {"torch_threads": int(os.environ["OMP_NUM_THREADS"]), "jobs": arguments.jobs}
            made = provenance(LIBRARIES, **used)
            row = {"repeat": repeat, "created": made["created"], **used, **future.result()}
            results["rows"].setdefault(name, []).append(row)
            log(f"{name}, repeat {repeat}: FCD {row['fcd']:.2f} in {row['fit_seconds']:.1f} s")
            results |= {
                "samples": SAMPLES,
                "classifier_sha256": load_classifier("mnist").sha256,
                "data_sha256": data.sha256,
                "bars": bars(results["rows"]),
                **made,
            }
            write(arguments.out, results, table)
    if results["rows"]:
        results["bars"] = bars(results["rows"])
        write(arguments.out, results, table)
        figure(results, arguments.out / "quality.png")
        log(json.dumps(results["bars"], indent=1))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
