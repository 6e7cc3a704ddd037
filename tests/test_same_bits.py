"""Same input, same seed, same number of threads: the same bits, whatever the process did before."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latentfit import list_samplers

METHODS = [info.name for info in list_samplers() if info.distribution == "latentfit"]

# A script of its own, so that the fresh process does nothing else.
SCRIPT = """
import hashlib, json, sys
import torch
from latentfit import diagnose, fit_latent_sampler, load_sampler

options, threads, folder = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(threads)
x = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
x = (x + 0.3 * x.square()) @ torch.ones(4, 4).tril()
weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))

def digest(*tensors):
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()

found = {"diagnose": repr(diagnose(x).to_dict())}
for method, given in options.items():
    sampler = fit_latent_sampler(lambda x: x @ weights, x, method=method, seed=3, **given)
    path = f"{folder}/{method}-{threads}.safetensors"
    sampler.save(path)
    for name, one in (("fitted", sampler), ("loaded", load_sampler(path))):
        found[f"{method}, {name}, state"] = digest(*one._plugin.state_dict().values())
        found[f"{method}, {name}, samples"] = digest(one.sample(500, seed=0))
        if one.has_density:
            found[f"{method}, {name}, scores"] = digest(one.log_prob(x @ weights))
with open(f"{folder}/found-{threads}.json", "w") as file:
    json.dump(found, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_fresh_process_gives_the_bits_of_one_that_did_other_work(
    threads: int,
    tiny: Callable[[str], dict[str, Any]],
    run_python: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    found = []
    for place in ("fresh", "used"):
        (tmp_path / place).mkdir()
        options = {method: tiny(method) for method in METHODS}
        words = [str(script), json.dumps(options), str(threads), str(tmp_path / place)]
        if place == "fresh":
            run_python(*words)
        else:
            before = torch.get_num_threads()
            torch.randn(1001, 77) @ torch.randn(77, 3)
            monkeypatch.setattr(sys, "argv", words)
            try:
                runpy.run_path(words[0])
            finally:
                torch.set_num_threads(before)
        found.append(json.loads((tmp_path / place / f"found-{threads}.json").read_text()))
    fresh, used = found
    assert len(fresh) > 4 * len(METHODS)
    assert {name for name in fresh if fresh[name] != used[name]} == set()
    for method in METHODS:  # a file gives what was fitted
        for what in ("state", "samples", "scores"):
            assert fresh.get(f"{method}, fitted, {what}") == fresh.get(f"{method}, loaded, {what}")
