"""Several at once: processes that write one file, threads that fit, a store whose holder is killed."""

import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentfit import LatentSampler, LatentStore, fit_latent_sampler, load_sampler
from latentfit.randomness import in_turn, isolated_rng, plugin_defaults

X = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")

# --- threads ---

JOBS = [("maf", 0), ("kde", 1), ("gan", 2)]


@pytest.fixture
def encoder() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(3))
        network[0].bias.zero_()
    return network


def test_threads_that_fit_at_once_give_what_each_gives_alone(
    encoder: nn.Module, tiny: Callable[[str], dict[str, Any]]
) -> None:
    def fit(job: tuple[str, int]) -> tuple[LatentSampler, Tensor, Tensor]:
        method, seed = job
        options = {**tiny(method), "decoder": encoder, "batch_size": 16}
        sampler = fit_latent_sampler(encoder, X, method=method, seed=seed, **options)
        return sampler, sampler.sample(50, seed=1), sampler.generate(50, seed=1)

    alone = [fit(job) for job in JOBS]
    torch.set_default_dtype(torch.float64)
    try:
        before = torch.get_rng_state()
        with ThreadPoolExecutor(len(JOBS)) as pool:
            together = list(pool.map(fit, JOBS))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(part.training for part in encoder.modules())
    for (one, *drawn), (other, *again) in zip(alone, together, strict=True):
        states = one._plugin.state_dict(), other._plugin.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert all(map(torch.equal, drawn, again))


@pytest.mark.parametrize(
    "block", [in_turn, lambda: isolated_rng(0, CPU), lambda: plugin_defaults(CPU)]
)
def test_a_thread_waits_for_another_but_not_for_itself(block: Callable[[], Any]) -> None:
    inside, let_go, entered = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with block(), block():
            inside.set()
            assert let_go.wait(60)

    def enter() -> None:
        with block():
            entered.set()

    threads = [threading.Thread(target=hold), threading.Thread(target=enter)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    try:
        assert not entered.wait(0.2)
    finally:
        let_go.set()
    assert entered.wait(60)
    for thread in threads:
        thread.join(60)


def test_a_turn_ends_with_an_exception() -> None:
    with pytest.raises(KeyboardInterrupt), in_turn():
        raise KeyboardInterrupt
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: list(_numbers())).result(60) == [0]


def _numbers() -> Iterator[int]:
    with in_turn():
        yield 0


@pytest.mark.filterwarnings("ignore:.*fork")  # of a process with threads, which is the point
def test_a_forked_process_does_not_wait_for_a_thread_that_it_does_not_have() -> None:
    inside, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with in_turn():
            inside.set()
            let_go.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(60)
    child = multiprocessing.get_context("fork").Process(target=lambda: list(_numbers()))
    try:
        child.start()
        child.join(30)
        assert child.exitcode == 0
    finally:
        let_go.set()
        holder.join(60)
        child.kill()


# --- processes ---

SAVING = """
import sys
from latentfit import load_sampler

sampler, target = load_sampler(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(150):
    sampler.save(target)
"""


def test_two_processes_that_save_to_one_path_leave_one_whole_file(tmp_path: Path) -> None:
    samplers = [
        fit_latent_sampler(None, X * scale, method="gmm", components=3) for scale in (1, 100)
    ]
    target = tmp_path / "target.safetensors"
    writers = []
    for number, sampler in enumerate(samplers):
        sampler.save(tmp_path / f"{number}.safetensors")
        words = [sys.executable, "-c", SAVING, str(tmp_path / f"{number}.safetensors"), str(target)]
        writers.append(
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    expected = [sampler.sample(5, seed=0) for sampler in samplers]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("\n")
            writer.stdin.flush()
        seen = []
        while any(writer.poll() is None for writer in writers):
            if target.exists():  # whole at any instant, and of one of the two
                drawn = load_sampler(target).sample(5, seed=0)
                seen.append([torch.equal(drawn, one) for one in expected].index(True))
        assert seen
        assert [writer.returncode for writer in writers] == [0, 0]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    drawn = load_sampler(target).sample(5, seed=0)
    assert [torch.equal(drawn, one) for one in expected].count(True) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["0.safetensors", "1.safetensors", "target.safetensors"]
    )


HOLDING = """
import sys, time
import torch
from latentfit import fit_latent_sampler

def encoder(x):
    print("holding", flush=True)
    time.sleep(600)

fit_latent_sampler(encoder, torch.zeros(40, 3), method="gaussian", store=sys.argv[1])
"""


def test_who_waits_for_a_store_goes_on_when_its_holder_is_killed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(store)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(
                fit_latent_sampler, nn.Identity(), X, method="gaussian", store=store
            )
            time.sleep(1)
            assert not waiting.done()
            holder.send_signal(signal.SIGKILL)
            assert waiting.result(60).info["n"] == 360
    finally:
        holder.kill()
        holder.communicate()
    assert torch.equal(LatentStore(store).read(0, 400), X)
