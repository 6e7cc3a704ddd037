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
import copy
import hashlib
import itertools
import json
import os
import pickle
import random
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from latentfit import fit_latent_sampler, load_sampler
from latentfit.errors import LatentfitError
from latentfit.persistence import read_tensors, write_tensors

MOST_SECONDS = 10  # that one file may take
GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
HOSTILE = [
    *(
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        2**64,
        10**30,
        0.5,
        -1e308,
        1e308,
        "",
        "../../etc/passwd",
    ),
    *(
        "os.system",
        "\0",
        "x" * 10_000,
        [],
        {},
        [[]],
        [0],
        [-1, 2**62],
        {"__class__": "x"},
        [1] * 1000,
    ),
]
DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "U8",
    "BOOL",
    "F8_E4M3",
    "C64",
    "",
    "X" * 99,
    5,
    None,
]


# --- damage of the bytes ---


def flip(content: bytearray, rng: random.Random, _: bytes) -> None:
    """Flip one to eight bits."""
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def overwrite(content: bytearray, rng: random.Random, _: bytes) -> None:
    """Write random bytes over a piece."""
    at = rng.randrange(len(content))
    content[at : at + 64] = rng.randbytes(len(content[at : at + 64]))


def cut_off(content: bytearray, rng: random.Random, _: bytes) -> None:
    """Cut off the end."""
    del content[rng.randrange(len(content)) :]


def cut_out(content: bytearray, rng: random.Random, _: bytes) -> None:
    """Cut out a piece."""
    at = rng.randrange(len(content))
    del content[at : at + rng.randint(1, 512)]


def insert(content: bytearray, rng: random.Random, _: bytes) -> None:
    """Insert random bytes."""
    at = rng.randrange(len(content))
    content[at:at] = rng.randbytes(rng.randint(1, 512))


def repeat(content: bytearray, rng: random.Random, _: bytes) -> None:
    """Repeat a piece."""
    at = rng.randrange(len(content))
    content[at:at] = content[at : at + rng.randint(1, 512)]


def swap(content: bytearray, rng: random.Random, _: bytes) -> None:
    """Swap two pieces."""
    size = rng.randint(1, 64)
    a, b = sorted(rng.randrange(len(content) - size) for _ in range(2))
    if b - a >= size:
        content[a : a + size], content[b : b + size] = (
            content[b : b + size],
            content[a : a + size],
        )


def splice(content: bytearray, rng: random.Random, other: bytes) -> None:
    """Go on with another file."""
    at = rng.randrange(len(content))
    content[at:] = other[rng.randrange(len(other)) :]


def length(content: bytearray, rng: random.Random, _: bytes) -> None:
    """Claim another length of the header."""
    size = int.from_bytes(content[:8], "little")
    claimed = rng.choice([0, 1, 2, size - 1, size + 1, len(content), 2**31, 2**63 - 1, 2**64 - 1])
    content[:8] = claimed.to_bytes(8, "little")


DAMAGE = (flip, overwrite, cut_off, cut_out, insert, repeat, swap, splice, length)


# --- forgeries, with the right digest ---


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the places of all values in nested dicts and lists."""
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield (*at, key)
        yield from places(value, (*at, key))


def forge(tree: Any, rng: random.Random, value: Callable[[Any], Any]) -> None:
    """Change, or take away, one to three of a tree's values."""
    for _ in range(rng.randint(1, 3)):
        *at, last = rng.choice(list(places(tree)))
        part = tree
        for key in at:
            part = part[key]
        if rng.random() < 0.2:
            del part[last]
        else:
            part[last] = value(part[last])


def forged_header(path: Path, source: Path, rng: random.Random) -> None:
    """Change values of latentfit's own header."""
    tensors, header = read_tensors(source)
    scalars = [value for _, value in _leaves(header)]

    def value(old: Any) -> Any:
        if isinstance(old, int | float) and abs(old) < 1e200 and rng.random() < 0.4:
            return old * rng.choice([-1, 0, 2, 1000, 10**9]) + rng.choice([0, 1, -1])
        return copy.deepcopy(rng.choice(HOSTILE if rng.random() < 0.7 else scalars))

    forge(header, rng, value)
    write_tensors(path, tensors, header)


def forged_tensors(path: Path, source: Path, rng: random.Random) -> None:
    """Drop, rename, reshape, convert or fill some tensors."""
    tensors, header = read_tensors(source)
    for _ in range(rng.randint(1, 3)):
        if not tensors:
            break
        name = rng.choice(sorted(tensors))
        tensor = tensors.pop(name)
        change = rng.randrange(6)
        if change == 1:
            tensors[name[: rng.randrange(len(name))] + rng.choice(["", ".", "x", "\0"])] = tensor
        elif change == 2:
            shape = [rng.randrange(5) for _ in range(rng.randrange(5))]
            tensors[name] = torch.zeros(shape, dtype=tensor.dtype)
        elif change == 3:
            kinds = [torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8]
            tensors[name] = tensor.to(rng.choice(kinds))
        elif change == 4:
            number = rng.choice([float("nan"), float("inf"), -1.0, 0.0, 1e38])
            tensors[name] = torch.full_like(tensor.float(), number).to(tensor.dtype)
        elif change == 5:
            tensors[name] = tensor.reshape(-1)[:: rng.choice([1, 2])].clone()
    write_tensors(path, tensors, header)


def forged_table(path: Path, source: Path, rng: random.Random) -> None:
    """Change safetensors' own table: offsets that overlap or lead out of the file, shapes, dtypes."""
    content = source.read_bytes()
    size = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + size])
    data, end = content[8 + size :], len(content) - 8 - size
    for _ in range(rng.randint(1, 3)):
        entry = table[rng.choice([name for name in table if name != "__metadata__"])]
        change = rng.randrange(3)
        if change == 0:
            edges = [0, 1, end, end + 1, 2**40, 2**63, 2**64, -1, *entry["data_offsets"]]
            entry["data_offsets"] = [rng.choice(edges), rng.choice(edges)]
        elif change == 1:
            entry["dtype"] = rng.choice(DTYPES)
        else:
            sizes = [0, 1, 3, 2**20, 2**31, 2**62, 2**64, -1, None, "3"]
            entry["shape"] = [rng.choice(sizes) for _ in range(rng.randrange(4))]
    write_signed(path, table, data)


def hostile(path: Path, source: Path, rng: random.Random) -> None:
    """Make the table itself hostile: deep, doubled, of other types, or a pickle in disguise."""
    content = source.read_bytes()
    size = int.from_bytes(content[:8], "little")
    table, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    harmful = pickle.dumps(Canary(path.with_name("canary")), rng.randrange(6)).decode("latin-1")
    change = rng.randrange(6)
    if change == 0:
        text = b"[" * rng.choice([10, 1000, 100_000])
    elif change == 1:
        plain = json.dumps(table)
        text = (plain[:-1] + "," + plain[1:]).encode()
    elif change == 2:
        table["__metadata__"]["latentfit"] = harmful
        text = json.dumps(table).encode()
    elif change == 3:
        tensors, header = read_tensors(source)
        header["info"]["options"] = nested = {}
        for _ in range(rng.choice([1, 10, 500])):
            nested["x"] = {}
            nested = nested["x"]
        write_tensors(path, tensors, header)
        return
    elif change == 4:
        table["__metadata__"] = rng.choice(HOSTILE)
        text = json.dumps(table).encode()
    else:
        path.write_bytes(harmful.encode("latin-1") + content)
        return
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


FORGERIES = (forged_header, forged_tensors, forged_table, hostile)


def write_signed(path: Path, table: dict[str, Any], data: bytes) -> None:
    """Write a file with this table, and with the digest that it then has."""
    told = json.loads(table["__metadata__"]["latentfit"])
    blank = "0" * 64
    table["__metadata__"]["latentfit"] = json.dumps({**told, "sha256": blank})
    text = json.dumps(table).encode()
    content = len(text).to_bytes(8, "little") + text + data
    digest = hashlib.sha256(content).hexdigest()
    path.write_bytes(content.replace(blank.encode(), digest.encode(), 1))


def _leaves(tree: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for at in places(tree):
        value = tree
        for key in at:
            value = value[key]
        if not isinstance(value, dict | list):
            yield at, value


# --- what comes out ---


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
