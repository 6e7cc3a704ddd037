"""benchmarks/advae.py: its rows can be built and fitted, and what is made of results."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from latentfit.plugin import Run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
advae = importlib.import_module("advae")
sys.path.pop(0)


@pytest.mark.parametrize("name", advae.ROWS)
def test_each_row_is_a_sampler_that_fits(name: str) -> None:
    torch.manual_seed(0)
    rows = torch.randn(600, 4)
    plugin = advae.ROWS[name]()
    if hasattr(plugin, "steps"):
        plugin.steps = 2
    plugin.build(4, 500)
    plugin.fit(rows[:500], rows[500:], Run(torch.Generator().manual_seed(0), batch_size=100))
    drawn = plugin.sample(50, torch.Generator().manual_seed(0))
    assert drawn.shape == (50, 4)
    assert drawn.isfinite().all()


def test_the_direct_generator_does_not_begin_with_the_mixture() -> None:
    plugin = advae.Direct(base="mixture")
    plugin.build(4, 500)
    noise = plugin.mixture.sample(50, torch.Generator().manual_seed(0))
    drawn = plugin.sample(50, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, plugin.generator(noise))
    assert drawn.std() > 0


def test_results_become_a_table() -> None:
    def row(seed: int, fcd: float, **more: float) -> dict[str, Any]:
        return {"seed": seed, "fcd": fcd, "fcd_penultimate": fcd, **more}

    results = {
        "rows": {
            "Resample": [row(0, 1.0), row(1, 2.0)],
            "realnvp": [
                row(1, 4.0, c2st=0.52, fit_seconds=10.0),
                row(0, 1.5, c2st=0.5, fit_seconds=20.0),
            ],
        },
        "seeds": [0, 1],
        "created": "2026-01-01",
        "machine": {"jobs": 1, "torch_threads": 1, "cpus": 2},
        "versions": {"torch": "2"},
    }
    lines = advae.table(results).splitlines()
    (line,) = [line for line in lines if line.startswith("| realnvp")]
    assert line == "| realnvp | 2.75 | 1.75 | 1.50, 2.00 | 1.75 | 0.510 | 15 |"
