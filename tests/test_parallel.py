"""Several processes on accelerate: what one process does, shared; and what happens when one of them dies."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentfit import LatentStore, fit_latent_sampler, load_sampler
from latentfit.errors import OptionError

pytest.importorskip("accelerate")

MODELS = """
    import glob, os, signal, time
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            with torch.no_grad():
                self.linear.weight.copy_(torch.eye(4))
                self.linear.bias.zero_()
            self.batches = 0

        def forward(self, x):
            self.batches += 1
            if os.environ.get("DIES") == os.environ.get("RANK", "alone") and self.batches == 12:
                while len(glob.glob("store/*.safetensors")) < 2:  # that the other has written
                    time.sleep(0.05)
                os.kill(os.getpid(), signal.SIGKILL)
            with open(f"rows-{os.environ.get('RANK', 'alone')}", "a") as log:
                log.write(f"{len(x)}\\n")
            return self.linear(x)

    encoder = Encoder()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30_000, 4, generator=generator) + 8 * (torch.arange(30_000) % 3)[:, None]
    loader = DataLoader(TensorDataset(x, torch.arange(30_000) % 3), batch_size=256)
"""

SCRIPT = """
    import sys
    import torch
    from accelerate import Accelerator
    from latentfit import fit_latent_sampler
    from models import encoder, loader, x

    accelerator = Accelerator(cpu=True)
    for method, options in (
        ("realnvp", {"steps": 60}),
        ("flow-matching", {"steps": 60}),
        ("r3gan", {"steps": 20}),
        ("gmm", {}),
    ):
        sampler = fit_latent_sampler(
            encoder, loader, method=method, condition="labels", accelerator=accelerator, **options
        )
        rank = accelerator.process_index
        sampler.save(f"{method}-{rank}.safetensors")
    sampler = fit_latent_sampler(
        encoder, (part for part in x.split(100)), method="gaussian", seed=None, max_seconds=9.0,
        accelerator=accelerator
    )
    sampler.save(f"unseeded-{rank}.safetensors")
    accelerator.end_training()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(textwrap.dedent(MODELS))
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    return tmp_path


def launch(folder: Path, processes: int, *words: str, **environment: str) -> Any:
    many = f"-m torch.distributed.run --standalone --nproc-per-node {processes}".split()
    return subprocess.run(
        [sys.executable, *(many if processes > 1 else []), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def fit(folder: Path, processes: int, store: str, out: str, **environment: str) -> Any:
    words = "-m latentfit fit --encoder models:encoder --data models:loader -o steps=60 -o layers=3"
    return launch(folder, processes, *words.split(), "--store", store, "--out", out, **environment)


def content(store: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in store.iterdir() if p.name != ".lock"}


def encoded(folder: Path, rank: int | str) -> int:
    return sum(int(n) for n in (folder / f"rows-{rank}").read_text().split())


def test_two_processes_make_the_store_and_the_sampler_of_one(folder: Path) -> None:
    both, one = fit(folder, 2, "both", "both.safetensors"), fit(folder, 1, "one", "one.safetensors")
    assert (both.returncode, one.returncode) == (0, 0), both.stderr + one.stderr
    assert content(folder / "both") == content(folder / "one")
    assert encoded(folder, "alone") == 30_000
    assert (
        encoded(folder, 0) + encoded(folder, 1) == 30_000 + 2 * 256
    )  # the first batch, to compare
    assert min(encoded(folder, 0), encoded(folder, 1)) > 13_000
    assert both.stdout.count("LatentSampler(") == 1  # one of them speaks
    assert "Traceback" not in both.stderr
    samples = [
        load_sampler(folder / name).sample(500, seed=0)
        for name in ("both.safetensors", "one.safetensors")
    ]
    # The same steps on the same minibatches, added up in another order.
    assert torch.allclose(*samples, atol=0.05)


def test_a_process_that_dies_ends_the_run_and_the_store_can_be_resumed(folder: Path) -> None:
    dead = fit(folder, 2, "store", "s.safetensors", DIES="1")
    assert dead.returncode != 0
    assert not (folder / "s.safetensors").exists()
    before = encoded(folder, 0) + encoded(folder, 1)
    alive = fit(folder, 2, "store", "s.safetensors")
    assert alive.returncode == 0, alive.stderr
    assert len(LatentStore(folder / "store")) == 30_000
    again = encoded(folder, 0) + encoded(folder, 1) - before
    assert again < 30_000 - 4096  # what had been written was not encoded again
    assert load_sampler(folder / "s.safetensors").info["n"] == 27_000


def test_from_python_all_processes_return_one_sampler(folder: Path) -> None:
    done = launch(folder, 2, "script.py")
    assert done.returncode == 0, done.stderr
    for method in ("realnvp", "flow-matching", "r3gan", "gmm", "unseeded"):
        one, other = (load_sampler(folder / f"{method}-{rank}.safetensors") for rank in (0, 1))
        condition = None if method == "unseeded" else 1
        drawn = one.sample(2000, seed=0, condition=condition)
        assert torch.equal(drawn, other.sample(2000, seed=0, condition=condition))
        if condition is not None:
            assert torch.allclose(drawn.mean(0), torch.full((4,), 8.0), atol=0.7)


def test_auto_and_the_search_for_the_guidance_agree_in_all_processes(folder: Path) -> None:
    """Of many dimensions, so that flow matching seeks its guidance, in too little time for it to be done."""
    (folder / "auto.py").write_text(
        textwrap.dedent("""
            import torch
            from accelerate import Accelerator
            from latentfit import fit_latent_sampler

            accelerator = Accelerator(cpu=True)
            generator = torch.Generator().manual_seed(0)
            z = torch.randn(6000, 20, generator=generator)
            z = z + 4 * (torch.arange(6000) % 2)[:, None]
            for methods in (("gaussian", "flow-matching"), ("flow-matching",)):
                sampler = fit_latent_sampler(
                    None, z, method="auto", methods=methods, max_seconds=8.0,
                    accelerator=accelerator,
                )
                sampler.save(f"{len(methods)}-{accelerator.process_index}.safetensors")
            accelerator.end_training()
        """)
    )
    done = launch(folder, 2, "auto.py")
    assert done.returncode == 0, done.stderr
    for number in (1, 2):
        one, other = (load_sampler(folder / f"{number}-{rank}.safetensors") for rank in range(2))
        assert one.method == other.method
        assert one.info["ranking"] == other.info["ranking"]
        assert not any("error" in row for row in one.info["ranking"])
        assert any(row["stopped"] for row in one.info["ranking"])
        assert torch.equal(one.sample(100, seed=0), other.sample(100, seed=0))
        if number == 1:
            assert one.info["fit"]["c2st"] == other.info["fit"]["c2st"]
            assert one.info["fit"]["c2st"]


def test_processes_with_other_arguments_are_told(folder: Path) -> None:
    (folder / "differ.py").write_text(
        textwrap.dedent(
            """
            import sys
            import torch
            from accelerate import Accelerator
            from latentfit import fit_latent_sampler

            accelerator = Accelerator(cpu=True)
            rank = accelerator.process_index
            calls = [
                ({}, {"method": ("gmm", "gaussian")[rank]}),
                ({"layers": 2 + rank}, {}),
                ({}, {"transform": ("scale", "none")[rank]}),
            ]
            for options, arguments in calls:
                try:
                    x = torch.randn(90, 2)
                    fit_latent_sampler(None, x, accelerator=accelerator, **options, **arguments)
                except ValueError as error:
                    print(f"{error}\\n", end="", flush=True)
            try:
                fit_latent_sampler(None, torch.randn(90 + rank, 2), accelerator=accelerator)
            except ValueError as error:
                print(f"{error}\\n", end="", flush=True)
            accelerator.end_training()
            """
        )
    )
    done = launch(folder, 2, "differ.py")
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert lines[::2] == lines[1::2]  # both say the same
    rest = " in all processes; got "
    assert lines[::2] == [
        f"Expected the same dataset{rest}Tensor of length 90 in the first and Tensor of length 91 in that "
        "of rank 1.",
        f"Expected the same layers{rest}2 in the first and 3 in that of rank 1.",
        f"Expected the same method{rest}'gmm' in the first and 'gaussian' in that of rank 1.",
        f"Expected the same transform{rest}'scale' in the first and 'none' in that of rank 1.",
    ]


MIXED = """
    import torch
    from accelerate import Accelerator
    from torch import nn
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
    from latentfit import fit_latent_sampler
    from latentfit.errors import LatentfitError

    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    x = torch.randn(1200, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(rank)
    own, same = nn.Linear(8, 3), nn.Linear(8, 3)
    same.load_state_dict({"weight": torch.eye(3, 8), "bias": torch.zeros(3)})
    loader = DataLoader(TensorDataset(x), batch_size=100)
    halves = DataLoader(TensorDataset(x), batch_size=100, sampler=DistributedSampler(x, shuffle=False))
    cases = {
        "prepared": (same, accelerator.prepare(loader), {}),
        "prepared, store": (same, accelerator.prepare(loader), {"store": "prepared"}),
        "sampler": (same, halves, {}),
        "half": (same, x[rank::2], {}),
        "encoder": (own, x, {}),
        "encoder, store": (own, x, {"store": "encoders"}),
        "data": (same, x + rank, {}),
        "data, store": (same, x + rank, {"store": "data"}),
        "all well": (same, loader, {}),
        "all well, store": (same, loader, {"store": "well"}),
    }
    for name, (encoder, data, how) in cases.items():
        try:
            sampler = fit_latent_sampler(
                encoder, data, method="gaussian", accelerator=accelerator, batch_size=100, **how
            )
            told = str(sampler.info["n"] + sampler.info["n_validation"])
        except LatentfitError as error:
            told = str(error)
        with open(f"told-{rank}", "a") as file:
            file.write(f"{name}: {told}\\n")
    accelerator.end_training()
"""


def test_processes_with_other_data_or_another_encoder_are_told(folder: Path) -> None:
    (folder / "mixed.py").write_text(textwrap.dedent(MIXED))
    done = launch(folder, 2, "mixed.py")
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        lines = (folder / f"told-{rank}").read_text().splitlines()
        told = dict(line.split(": ", 1) for line in lines)
        for name in ("prepared", "prepared, store", "sampler"):
            assert told[name].startswith("Expected the whole dataset in each process")
        for name in ("half", "data", "data, store"):
            assert told[name].startswith("Expected the same dataset in all processes")
        for name in ("encoder", "encoder, store"):
            assert told[name].startswith("Expected the same encoder in all processes")
        assert told["all well"] == told["all well, store"] == "1200"
    assert not list((folder / "encoders").glob("*.safetensors"))


def test_what_is_no_accelerator_is_refused() -> None:
    latents = np.random.default_rng(0).normal(size=(50, 2))
    for wrong in (2, "accelerate", object):
        with pytest.raises(OptionError, match="accelerator"):
            fit_latent_sampler(None, latents, accelerator=wrong)


CHECKPOINTED = """
    import os, sys, time
    import torch
    from accelerate import Accelerator
    from latentfit import checkpoint, fit_latent_sampler
    from models import x

    accelerator = Accelerator(cpu=True)
    method, folder, writes = sys.argv[1], sys.argv[2] or None, int(sys.argv[3])
    checkpoint.SECONDS = 0.0
    write, count = checkpoint.Checkpoint.write, [0]

    def counting(self):
        write(self)
        count[0] += 1
        if count[0] == writes:
            time.sleep(0.5)  # the other one may be in the middle of anything
            os._exit(9)

    checkpoint.Checkpoint.write = counting
    few = {} if method == "gmm" else {"steps": 150, "batch_size": 600}
    sampler = fit_latent_sampler(
        None, x[:1800], method=method, checkpoint=folder, accelerator=accelerator, **few
    )
    if accelerator.is_main_process:
        sampler.save(f"{method}-{bool(folder)}.safetensors")
    accelerator.wait_for_everyone()
    accelerator.end_training()
"""


@pytest.mark.parametrize("method, writes", [("realnvp", 2), ("r3gan", 5), ("gmm", 3)])
def test_two_processes_go_on_where_both_were(method: str, writes: int, folder: Path) -> None:
    (folder / "checkpointed.py").write_text(textwrap.dedent(CHECKPOINTED))
    whole = launch(folder, 2, "checkpointed.py", method, "", "0")
    assert whole.returncode == 0, whole.stderr
    ended = launch(folder, 2, "checkpointed.py", method, "kept", str(writes))
    assert ended.returncode != 0
    assert (folder / "kept" / f"{method}.checkpoint.safetensors").exists()
    again = launch(folder, 2, "checkpointed.py", method, "kept", "0")
    assert again.returncode == 0, again.stderr
    samplers = [load_sampler(folder / f"{method}-{kept}.safetensors") for kept in (False, True)]
    assert torch.equal(*(sampler.sample(500, seed=0) for sampler in samplers))
    assert samplers[0].history == samplers[1].history
