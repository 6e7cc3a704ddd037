"""Ways to damage or forge a sampler's file, for benchmarks/damage.py and the tests of the loader."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from latentfit.persistence import read_tensors, write_tensors

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
    scalars = list(_leaves(header))

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


def _leaves(tree: Any) -> Iterator[Any]:
    """Yield the values in nested dicts and lists that are none of these."""
    if not isinstance(tree, dict | list):
        yield tree
        return
    for value in tree.values() if isinstance(tree, dict) else tree:
        yield from _leaves(value)
