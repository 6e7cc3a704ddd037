"""Load thousands of damaged, forged and hostile files, and count what comes out.

    python benchmarks/damage.py [--files 10000] [--seed 0] [--out FOLDER]

Each starts as a good file, most of them of the golden ones. Damage is of the bytes: bits flipped, pieces cut
out, repeated, swapped or taken from another file, and one file cut at each byte of its header. Forgeries are
of the header, of the table of tensors and of the tensors themselves, with the right digest, as whoever
forges a file computes it anew. Whatever is in a file, `load_sampler` gives a sampler that draws, or raises
one of latentfit's own errors; in little time and memory, running nothing. Writes damage.json to the folder.

A file that fails is kept in the working folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from forging import DAMAGE, FORGERIES
from latentfit import fit_latent_sampler, load_sampler
from latentfit.errors import LatentfitError

MOST_SECONDS = 10  # that one file may take
GOLDEN = Path(__file__).parents[1] / "tests" / "golden"


def outcome(path: Path) -> str:
    """Load a file and draw from what comes.

    Raises:
        BaseException: Whatever is none of latentfit's errors.
    """
    try:
        sampler = load_sampler(path)
    except LatentfitError as error:
        return type(error).__name__
    repr(sampler)
    described = sampler.info.get("condition") or {"kind": None}
    condition = {None: None, "classes": 0, "vector": [0.0] * described.get("dim", 0)}[
        described["kind"]
    ]
    try:
        drawn = sampler.sample(2, seed=0, condition=condition)
    except LatentfitError as error:
        return f"a sampler whose draws are a {type(error).__name__}"
    if drawn.shape != (2, *sampler.shape):
        raise AssertionError(f"drew {tuple(drawn.shape)}")
    return "a sampler"


def cases(golden: list[Path], n: int, seed: int, path: Path) -> Iterator[str]:
    """Write one file after the other to the path, and tell what kind it is."""
    whole = [file.read_bytes() for file in golden]
    first = whole[0]
    for end in range(8 + int.from_bytes(first[:8], "little") + 1):
        path.write_bytes(first[:end])
        yield "cut at each byte of the header"
    rng = random.Random(seed)
    for index in range(n):
        kinds: tuple[Any, ...] = DAMAGE if index % 2 else FORGERIES
        change = kinds[index // 2 % len(kinds)]
        if change in DAMAGE:
            source = rng.choice(whole)
            content = bytearray(source)
            while bytes(content) == source:
                change(content, rng, rng.choice(whole))
            path.write_bytes(content)
        else:
            change(path, rng.choice(golden), rng)
        yield change.__name__.replace("_", " ")


def good_files(folder: Path) -> list[Path]:
    """The golden files, and some with what these don't have: vectors as conditions, other transforms."""
    files = sorted(GOLDEN.glob("*.safetensors"))
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).cumsum(1)
    for method, transform in itertools.product(("gmm", "kde"), ("whiten", "standardize", "none")):
        files.append(folder / f"{method}-{transform}.safetensors")
        sampler = fit_latent_sampler(
            None, x, method=method, transform=transform, condition=x[:, :2].clone()
        )
        sampler.save(files[-1])
    return files


def too_long(*_: Any) -> None:
    """End what takes too long.

    Raises:
        TimeoutError: Always.
    """
    raise TimeoutError(f"longer than {MOST_SECONDS} s")


def measure(n: int, seed: int) -> dict[str, Any]:
    """Load them all."""
    before_us = signal.signal(signal.SIGALRM, too_long)
    outcomes: dict[str, Counter[str]] = {}
    failures, longest = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        path, golden = Path(folder, "file.safetensors"), good_files(Path(folder))
        for file in golden:
            if outcome(file) != "a sampler":
                raise AssertionError(f"{file} is no good file")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number, kind in enumerate(cases(golden, n, seed, path)):
            began = time.perf_counter()
            try:
                signal.alarm(MOST_SECONDS)
                found = outcome(path)
            except Exception:  # of any kind: this is what is looked for
                found = "another error"
                kept = Path(f"failure-{seed}-{number}.safetensors")
                kept.write_bytes(path.read_bytes())
                failures.append({"file": kept.name, "kind": kind, "error": traceback.format_exc()})
            finally:
                signal.alarm(0)
            longest = max(longest, time.perf_counter() - began)
            outcomes.setdefault(kind, Counter())[found] += 1
        ran = Path(folder, "canary").exists()
    signal.signal(signal.SIGALRM, before_us)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    damaged = {kind: found for kind, found in outcomes.items() if "forged" not in kind}
    return {
        "files": sum(sum(found.values()) for found in outcomes.values()),
        "seed": seed,
        "good_files": len(golden),
        "outcomes": {kind: dict(found) for kind, found in outcomes.items()},
        "damaged_files_taken": sum(found["a sampler"] for found in damaged.values()),
        "failures": failures,
        "code_that_ran": ran,
        "longest_seconds": longest,
        "memory_growth_mb": growth / 1024,
    }


def main() -> None:
    """Load, count and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000, help="beside those cut at each byte")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for damage.json")
    arguments = parser.parse_args()
    found = measure(arguments.files, arguments.seed)
    print(json.dumps(found, indent=1))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "damage.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
