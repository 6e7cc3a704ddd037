"""Measure what size costs: memory of a fit from disk, throughput of the encoding, two processes against one.

    python benchmarks/scale.py [memory] [encoding] [processes] [--rows 20000000] [--out FOLDER]

- memory: so many float32 latents of 64 values, synthetic, are written to a store, then a sampler is fitted to
  them; each in a process of its own, whose largest resident memory is told. Their distribution is known, so
  the fit's negative log likelihood can be compared with the best there is.
- encoding: images of MNIST's size through encoders of three sizes, by a bare ``for batch in loader:
  encoder(batch)`` under inference mode, and by latentfit in memory and into a store; in turns.
- processes: a store is filled by one process and by two, a thread each.

Give it a quiet machine. Writes results.json and table.md to the folder, where there is one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from latentfit import LatentStore, __version__, fit_latent_sampler

DIM, CLUSTERS, PART = 64, 10, 4096


def mixture() -> torch.distributions.MixtureSameFamily:
    """The known distribution of the synthetic latents."""
    generator = torch.Generator().manual_seed(0)
    factors = 0.3 * torch.randn(CLUSTERS, DIM, DIM, generator=generator) / math.sqrt(DIM)
    covariances = factors @ factors.mT + 0.05 * torch.eye(DIM)
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(CLUSTERS)),
        torch.distributions.MultivariateNormal(
            torch.randn(CLUSTERS, DIM, generator=generator), covariances
        ),
    )


def latents(n: int, seed: int = 0) -> Iterator[Tensor]:
    """Draw n latents in parts, so that they are never in memory as a whole."""
    drawn = mixture().component_distribution
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, n, PART):
        part = torch.randn(min(PART, n - start), DIM, generator=generator)
        component = torch.randint(CLUSTERS, (len(part),), generator=generator)
        for k in range(CLUSTERS):
            own = component == k
            part[own] = drawn.mean[k] + part[own] @ drawn.scale_tril[k].T
        yield part


def memory_child(task: str, store: str, n: int, method: str) -> dict[str, Any]:
    """Fill the store, or fit from it, and tell what that took."""
    before = peak_megabytes()
    began = time.perf_counter()
    told: dict[str, Any] = {}
    if task == "fill":
        fit_latent_sampler(None, latents(n), store=store, method=method, max_seconds=1e-3)
    else:
        sampler = fit_latent_sampler(None, LatentStore(store), method=method)
        told["seconds"] = time.perf_counter() - began
        (held_out,) = latents(PART, seed=1)
        told["nll"] = -float(sampler.log_prob(held_out).mean())
        told["best_nll"] = -float(mixture().log_prob(held_out).mean())
        told["options"], told["fit"] = sampler.options, sampler.info["fit"]
    told.setdefault("seconds", time.perf_counter() - began)
    return told | {"peak_mb": peak_megabytes(), "peak_mb_after_import": before}


def peak_megabytes() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_memory(n: int, folder: Path) -> dict[str, Any]:
    """Fill a store and fit from it, in processes of their own."""
    store = folder / "latents"
    rows = {"fill": child("memory", "fill", str(store), str(n), "realnvp")}
    for method in ("realnvp", "flow-matching"):
        rows[method] = child("memory", "fit", str(store), str(n), method)
        print(method, rows[method], flush=True)
    size = sum(file.stat().st_size for file in store.iterdir())
    return {"n": n, "dim": DIM, "bytes": size, "rows": rows}


def child(*words: str) -> dict[str, Any]:
    """Run a part of this script in a process of its own."""
    command = [sys.executable, __file__, "--child", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def encoders() -> dict[str, nn.Module]:
    """Encoders of three sizes, with random weights."""
    torch.manual_seed(0)
    return {
        "MLP 784-512-256-10": nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 512),
            nn.ELU(),
            nn.Linear(512, 256),
            nn.ELU(),
            nn.Linear(256, 10),
        ),
        "small convolutions, 4x4x4": nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(32, 4, 4, 1, 0),
        ),
        "convolutions, 64 wide": convolutions(),
    }


def convolutions() -> nn.Module:
    """An encoder that is some work."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1),
        nn.SiLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.SiLU(),
        nn.Conv2d(64, 64, 3, 2, 1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(64 * 49, 16),
    )


def measure_encoding(repeats: int) -> dict[str, Any]:
    """Time a bare loop and latentfit in turns: medians of the ratios of neighbours."""
    from latentfit.encoding import encode
    from latentfit.models import encoder_of
    from latentfit.storing import fill_store

    rows = {}
    for name, encoder in encoders().items():
        n = 20_000 if "64 wide" in name else 120_000
        images = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        loader = DataLoader(TensorDataset(images), batch_size=512)
        encoder.eval()
        model = encoder_of(encoder)

        def bare(loader: Any = loader, encoder: nn.Module = encoder) -> None:
            with torch.inference_mode():
                for (batch,) in loader:
                    encoder(batch)

        def in_memory(loader: Any = loader, model: Any = model) -> None:
            encode(model, loader, batch_size=512, progress=False)

        def stored(loader: Any = loader, model: Any = model) -> None:
            with tempfile.TemporaryDirectory() as folder:
                fill_store(folder, model, loader, batch_size=512, progress=False)

        ways: dict[str, Callable[[], None]] = {
            "bare": bare,
            "in memory": in_memory,
            "into a store": stored,
        }
        bare()
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, run in ways.items():
                began = time.perf_counter()
                run()
                times[way].append(time.perf_counter() - began)
        ratios = {
            way: [b / t for b, t in zip(times["bare"], times[way], strict=True)]
            for way in ("in memory", "into a store")
        }
        rows[name] = {
            "n": n,
            "images_per_second": n / statistics.median(times["bare"]),
            "throughput_over_bare": {way: statistics.median(r) for way, r in ratios.items()},
            "ratios": ratios,
        }
        print(name, rows[name], flush=True)
    return rows


def processes_child(store: str) -> dict[str, Any]:
    """Fill a store in as many processes as were launched, and tell how long it took."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = convolutions()
    images = torch.rand(40_000, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    encoder(images[:512])
    accelerator.wait_for_everyone()
    began = time.perf_counter()
    fit_latent_sampler(
        encoder,
        images,
        store=store,
        method="gaussian",
        batch_size=256,
        accelerator=accelerator,
        progress=False,
    )
    told = {"seconds": time.perf_counter() - began}
    first: bool = accelerator.is_main_process
    accelerator.end_training()
    return told if first else {}


def measure_processes(repeats: int, folder: Path) -> dict[str, Any]:
    """Time one process and two in turns."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(repeats):
        for count, times in seconds.items():
            launcher = f"-m torch.distributed.run --standalone --nproc-per-node {count}".split()
            store = folder / f"processes-{count}-{repeat}"
            command = [sys.executable, *launcher, __file__, "--child", "processes", str(store)]
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            told = [json.loads(line) for line in done.stdout.splitlines() if "seconds" in line]
            times.append(told[0]["seconds"])
            print(count, times, flush=True)
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    return {"n": 40_000, "seconds": seconds, "ratios": ratios, "speedup": statistics.median(ratios)}


def table(results: dict[str, Any]) -> str:
    """Say it in Markdown."""
    lines = ["# Large datasets", ""]
    if "memory" in results:
        found = results["memory"]
        lines += [
            f"{found['n']:,} latents of {found['dim']} float32 values, "
            f"{found['bytes'] / 2**30:.2f} GiB on disk:",
            "",
            "| | seconds | peak resident memory, MB | of which imports | NLL, nats | best possible |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name, row in found["rows"].items():
            scores = f"{row['nll']:.2f} | {row['best_nll']:.2f}" if "nll" in row else " | "
            what = "fill the store" if name == "fill" else f"fit `{name}`"
            lines.append(
                f"| {what} | {row['seconds']:.0f} | {row['peak_mb']:.0f} | {row['peak_mb_after_import']:.0f} "
                f"| {scores} |"
            )
    if "encoding" in results:
        lines += [
            "",
            "Throughput over that of a bare loop under inference mode, medians:",
            "",
            "| encoder | images/s, bare | in memory | into a store |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name, row in results["encoding"].items():
            over = row["throughput_over_bare"]
            lines.append(
                f"| {name} | {row['images_per_second']:,.0f} | {over['in memory']:.3f} "
                f"| {over['into a store']:.3f} |"
            )
    if "processes" in results:
        found = results["processes"]
        one, two = (statistics.median(found["seconds"][count]) for count in (1, 2))
        lines += [
            "",
            f"Two processes fill a store {found['speedup']:.2f} times as fast as one ({one:.1f} s and "
            f"{two:.1f} s; a thread each).",
        ]
    provenance = results["provenance"]
    lines += ["", "Made " + ", ".join(f"{k} {v}" for k, v in provenance.items()) + "."]
    return "\n".join(lines).lstrip("\n") + "\n"


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="memory, encoding, processes; all by default")
    parser.add_argument("--rows", type=int, default=20_000_000, help="latents on disk")
    parser.add_argument("--repeats", type=int, default=5, help="of the timings")
    parser.add_argument("--scratch", type=Path, help="where the stores go  [a temporary folder]")
    parser.add_argument("--out", type=Path, help="folder for results.json and table.md")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        part, *words = arguments.child
        if part == "memory":
            print(json.dumps(memory_child(words[0], words[1], int(words[2]), words[3])))
        else:
            told = processes_child(words[0])
            print(json.dumps(told) if told else "")
        return
    parts = arguments.parts or ["memory", "encoding", "processes"]
    results: dict[str, Any] = {}
    target = arguments.out and arguments.out / "results.json"
    if target and target.exists():
        results = json.loads(target.read_text())
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        if "encoding" in parts:
            results["encoding"] = measure_encoding(arguments.repeats)
        if "processes" in parts:
            results["processes"] = measure_processes(arguments.repeats, Path(scratch))
        if "memory" in parts:
            results["memory"] = measure_memory(arguments.rows, Path(scratch))
    results["provenance"] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "latentfit": __version__,
        "torch": torch.__version__,
    }
    results = json.loads(json.dumps(results))  # as it is read again
    if "processes" in results:
        seconds = results["processes"]["seconds"]
        results["processes"]["seconds"] = {int(count): times for count, times in seconds.items()}
    print(table(results))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(results, indent=1) + "\n")
        (arguments.out / "table.md").write_text(table(results))


if __name__ == "__main__":
    main()
