"""Kill processes that write, at random instants, and see what is left.

    python benchmarks/kills.py [saves] [checkpoints] [stores] [--kills 200] [--seed 0] [--out FOLDER]

- saves: a process saves two samplers onto one file in turns. After each kill the file is one of them, whole.
- checkpoints: a process fits and writes its checkpoint at every step. After each kill the same call goes on;
  what it comes to, any number of kills later, is bit for bit the fit that nobody killed.
- stores: a process encodes into a new store, then another encoder into the same one. After each kill the
  store is complete, of the encoder before or of this one, or says that it is not; when it is complete, it
  is what the encoder makes.

A kill is SIGKILL. Between two that hit the same piece of work, the process starts anew and goes on. Writes
kills.json to the folder.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentfit import LatentStore, checkpoint, fit_latent_sampler, load_sampler
from latentfit.encoding import encode
from latentfit.errors import FileFormatError
from latentfit.models import encoder_of
from latentfit.persistence import CHECKPOINT, read_tensors
from latentfit.storing import fill_store

ROWS = torch.randn(40_000, 8, generator=torch.Generator().manual_seed(0)).cumsum(1)
FIT = {"method": "realnvp", "steps": 1500, "layers": 2, "hidden": (16,), "components": 4}


def run_and_kill(work: Callable[..., None], words: tuple[Any, ...], seconds: float) -> bool:
    """Run work in a process of its own and kill it after so long; tell whether it was over before.

    Raises:
        RuntimeError: It failed by itself.
    """
    # A fork has all modules there already, so that most instants are those of the work.
    ready, child_ready = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_child, args=(work, words, child_ready)
    )
    process.start()
    ready.recv()
    process.join(seconds)
    if process.exitcode is None:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    ready.close()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{work.__name__} ended with {process.exitcode}")
    return process.exitcode == 0


def _child(work: Callable[..., None], words: tuple[Any, ...], ready: Any) -> None:
    ready.send(True)
    work(*words)


# --- saves ---


def save_in_turns(samplers: list[Any], path: Path) -> None:
    """Save one sampler after the other onto a file, without an end."""
    while True:
        for sampler in samplers:
            sampler.save(path)


def kill_saves(kills: int, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Kill saves; count the files that are whole."""
    path = folder / "s.safetensors"
    samplers = [
        fit_latent_sampler(None, ROWS, method="kde", seed=0),
        fit_latent_sampler(None, ROWS[:9000], method="gaussian", seed=1),
    ]
    contents = []
    for sampler in samplers:
        sampler.save(path)
        contents.append(path.read_bytes())
    whole = between = 0
    for _ in range(kills):
        run_and_kill(save_in_turns, (samplers, path), rng.uniform(0, 0.2))
        whole += path.read_bytes() in contents and load_sampler(path).sample(1).shape == (1, 8)
        litter = list(folder.glob(".*.tmp"))
        between += bool(litter)
        for file in litter:
            file.unlink()
    return {"kills": kills, "kills_within_a_write": between, "files_whole": whole}


# --- checkpoints ---


def fit_with_checkpoint(folder: Path, target: Path) -> None:
    """Fit, and write the checkpoint as often as can be."""
    checkpoint.SECONDS = 0.0
    fit_latent_sampler(None, ROWS[:4000], checkpoint=folder, seed=0, **FIT).save(target)


def kill_checkpoints(kills: int, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Kill fits; count the ends that are those of the fit that nobody killed."""
    target, files = folder / "s.safetensors", folder / "checkpoints"
    expected = fit_latent_sampler(None, ROWS[:4000], seed=0, **FIT).sample(50, seed=0)
    done = readable = fits = equal = between = 0
    while done < kills or target.exists():
        over = run_and_kill(fit_with_checkpoint, (files, target), rng.uniform(0, 1.5))
        done += not over
        for file in files.glob("*.safetensors"):
            read_tensors(file, CHECKPOINT)
            readable += not over
        between += bool(list(files.glob(".*.tmp")))
        if over:
            fits += 1
            equal += torch.equal(load_sampler(target).sample(50, seed=0), expected)
            target.unlink()
            for file in files.iterdir():
                file.unlink()
    return {
        "kills": done,
        "kills_with_a_checkpoint_there_which_was_whole": readable,
        "kills_within_a_write": between,
        "fits_that_ended": fits,
        "equal_bit_for_bit": equal,
    }


# --- stores ---


class Encoder(nn.Module):
    """A linear map, slow enough to be killed."""

    def __init__(self, number: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(number)
        self.weight = nn.Parameter(torch.randn(8, 5, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Encode rows (n, 8) to (n, 5)."""
        time.sleep(0.003)
        encoded: Tensor = x @ self.weight
        return encoded


def fill(store: Path, number: int) -> None:
    """Fill the store with what the encoder of this number makes."""
    fill_store(store, encoder_of(Encoder(number)), ROWS, batch_size=512, progress=False)


def kill_stores(kills: int, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Kill fillings; count the stores that are whole."""
    store = folder / "latents"
    made = {
        encoder_of(Encoder(number)).fingerprint(): encode(
            encoder_of(Encoder(number)), ROWS, batch_size=512, progress=False
        )[0]
        for number in range(2)
    }
    counts = {"complete": 0, "incomplete_and_says_so": 0, "right": 0, "fillings_that_ended": 0}
    done = number = 0
    while done < kills:
        over = run_and_kill(fill, (store, number % 2), rng.uniform(0, 0.3))
        done += not over
        counts["fillings_that_ended"] += over
        try:
            found = LatentStore(store)
            found.verify()
        except FileFormatError:
            if over:
                raise
            counts["incomplete_and_says_so"] += 1
        else:
            counts["complete"] += 1
            counts["right"] += torch.equal(found.read(0, len(found)), made[found.encoder])
        number += over
        if over and number % 2 == 0:
            shutil.rmtree(store)
    return {"kills": done, **counts}


PARTS = {"saves": kill_saves, "checkpoints": kill_checkpoints, "stores": kill_stores}


def main() -> None:
    """Kill, count and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS) + "; all by default")
    parser.add_argument("--kills", type=int, default=200, help="of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for kills.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads must not fork
    target = arguments.out and arguments.out / "kills.json"
    found: dict[str, Any] = json.loads(target.read_text()) if target and target.exists() else {}
    for part in arguments.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            found[part] = PARTS[part](arguments.kills, random.Random(arguments.seed), Path(folder))
        print(part, found[part], flush=True)
        if target:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
