"""A report that has everything, with names that mean harm, and a browser to look at its page."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentfit.reporting import (
    Curves,
    Exhibits,
    Neighbours,
    Picture,
    draw_grid,
    exhibits_to,
    find_neighbours,
    map_latents,
)

HOSTILE = "\"><img src=x onerror=alert(1)><script>alert(1)</script>'&amp;{{ 7*7 }}"
LONG = "long" * 60
FCD = {
    "Real": [0.1, 0.1],
    "Resample": [0.9, 1.0],
    "flow": [1.2, 1.4],
    "gan": [3.0, 9.0],
    HOSTILE: [2.0, 2.2],
    LONG: [20.0, 21.0],
}


def summary(values: list[float]) -> dict[str, Any]:
    return {"mean": None, "std": None, "values": values}


def results(**changed: Any) -> dict[str, Any]:
    """Results as a benchmark writes them, of a few rows and two seeds."""
    systems = {
        name: {
            "description": f"what {name} is",
            "paper_fcd": {"Real": 0.2, "flow": 4.0, "gan": 6.0}.get(name),
            "options": {} if name in ("Real", "Resample") else {"method": name, "x": HOSTILE},
            "errors": [{"seed": 1, "error": f"Oops: {HOSTILE}"}] if name == HOSTILE else [],
            "fcd": summary(values),
            "nll": summary([] if name in ("Real", "gan") else [10.0, 11.0]),
            "fit_seconds": summary([] if name in ("Real", "Resample") else [len(name), 9.0]),
            "parameters": summary([] if name in ("Real", "Resample") else [1234, 1234]),
        }
        for name, values in FCD.items()
    }
    made = {
        "schema": 1,
        "benchmark": "mnist",
        "created": "2026-01-01T00:00:00+00:00",
        "device": "cpu",
        "seeds": [0, 1],
        "seconds": 12.0,
        "quick": True,
        "versions": {"torch": "2.13.0", HOSTILE: HOSTILE},
        "machine": {"torch_threads": 2},
        "classifier": {"sha256": "ab" * 32, "test_accuracy": 0.9941},
        "data": {"train": 60000, "binarize": "threshold"},
        "settings": {"samples": 10000, "epochs": {"AE": 3}, "hidden": [8, 4]},
        "systems": systems,
        "conditional": {HOSTILE: {"accuracy": summary([0.9, 0.8]), "fcd": summary([1.0, 1.1])}},
    }
    return {**made, **changed}


def exhibits() -> Exhibits:
    """Some of everything, of rows of any name."""
    generator = np.random.default_rng(0)
    train = generator.integers(0, 2, (40, 8, 8))
    pictures = [
        Picture(name, seed, draw_grid(generator.random((64, 8, 8))), 64)
        for name in FCD
        for seed in (0, 1)
    ]
    by_class = Picture(HOSTILE, 0, draw_grid(train[:20], columns=10), 20, by_class=True)
    real = generator.normal(size=(60, 4))
    sampled = {name: generator.normal(size=(30, 4)) for name in ("flow", HOSTILE)}
    steps = list(range(1000))
    return Exhibits(
        pictures=(*pictures, by_class),
        curves=(
            Curves("flow", steps, {"train_loss": [9.0 - s / 500 for s in steps], HOSTILE: steps}),
            Curves(HOSTILE, [1, 2], {"<b>_loss": [float("nan"), 1.0], "b_loss": [2.0, 1.0]}),
        ),
        maps=(map_latents(HOSTILE, real, sampled, labels=np.arange(60) % 10),),
        neighbours=tuple[Neighbours, ...](
            find_neighbours(name, train[:12], train) for name in ("Real", HOSTILE)
        ),
    )


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a benchmark leaves it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "results.json").write_text(json.dumps(results()))
    (folder / "gallery.json").write_text(json.dumps(exhibits_to(exhibits())))
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        # A container's root may start no sandbox; the page is ours.
        chromium = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The accessibility checks of axe-core, which is not among what is installed."""
    path = os.environ.get("LATENTFIT_AXE")
    if not path or not Path(path).is_file():
        pytest.skip("needs axe-core: npm pack axe-core, and LATENTFIT_AXE=.../axe.min.js")
    return Path(path).read_text("utf-8")
