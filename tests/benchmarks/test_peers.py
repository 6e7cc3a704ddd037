"""The contestants of benchmarks/peers.py on a few latents; and what is made of results."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from latentfit_bench.models import Autoencoder

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
contestants = importlib.import_module("peer_contestants")
peers = importlib.import_module("peers")
sys.path.pop(0)

pytest.importorskip("pythae")


@pytest.fixture(scope="module")
def task() -> Any:
    torch.manual_seed(0)
    images = (torch.rand(1200, 784) > 0.7).float()
    model = Autoencoder(784, 10).eval().requires_grad_(False)
    return contestants.Task(model, images, model.encode(images), 0)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants, "EPOCHS", 2)
    monkeypatch.setattr(contestants, "MARKS", (1, 2))
    monkeypatch.setattr(contestants, "FLOW_MATCHING_STEPS", 40)


def fit(name: str, task: Any) -> tuple[Any, Any]:
    watch = contestants.Watch()
    return contestants.CONTESTANTS[name](task, watch), watch


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*contestants.PYTHAE, *contestants.RAW, "gmm", "Resample"])
def test_a_contestant_draws_and_scores_latents(name: str, task: Any, short: None) -> None:
    if name == "zuko NSF":
        pytest.importorskip("zuko")
    fitted, watch = fit(name, task)
    assert fitted.sample(700).shape == (700, 10)
    assert fitted.sample(700).isfinite().all()
    assert (fitted.log_prob is None) == (name in ("Resample", "flow matching loop"))
    states = [state for *_, state in watch.curve]
    if "GMM" not in name and name not in ("gmm", "Resample"):
        assert all(seconds > 0 for _, seconds, _ in watch.curve)
        assert len(states) in (1, 2, 5)  # Pythae's own fits, epochs, steps
    for state in (*states, fitted):
        if state.log_prob is not None:
            scores = state.log_prob(task.latents)
            assert scores.shape == (1200,)
            assert scores.isfinite().all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["scikit-learn GMM 10", "normflows RealNVP", "Pythae MAF"])
def test_densities_are_in_the_latents_units(name: str, task: Any, short: None) -> None:
    """The mass by importance sampling from a wide Gaussian: one."""
    fitted, _ = fit(name, task)
    drawn = fitted.sample(2000)
    wide = torch.distributions.Normal(drawn.mean(0), 1.5 * drawn.std(0))
    torch.manual_seed(0)
    z = wide.sample((100_000,))
    weights = (fitted.log_prob(z).double() - wide.log_prob(z).sum(1).double()).exp()
    assert float(weights.mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.filterwarnings("ignore")
def test_pythae_is_given_the_very_same_autoencoder(task: Any) -> None:
    wrapped = contestants.pythae_model(task.model)
    images = task.images[:5]
    assert torch.equal(wrapped({"data": images.view(-1, 1, 28, 28)}).z, task.model.encode(images))
    decoded = wrapped.decoder(task.latents[:5]).reconstruction.flatten(1)
    assert torch.equal(decoded, task.model.decode(task.latents[:5]))


def row(fcd: float, seconds: float, nll: float | None, *curve: tuple[float, float, float]) -> Any:
    states = [{"state": f"{s} s", "seconds": s, "fcd": f, "nll": n} for s, f, n in curve]
    return {"repeat": 0, "fcd": fcd, "fcd_penultimate": fcd, "fit_seconds": seconds, "nll": nll} | {
        "density": 0.9,
        "coverage": 0.8,
        "sample_seconds": 0.1,
        "peak_mb": 500.0,
        "curve": states,
    }


ROWS = {
    "Resample": [row(1.0, 0.0, None), row(1.2, 0.0, None)],
    "realnvp": [
        row(1.1, 60, 10.5, (4, 4.0, 11.5), (8, 2.0, 11.0), (16, 1.5, 10.9)),
        row(1.3, 70, 10.5, (4, 2.0, 11.0), (8, 1.9, 10.9)),
    ],
    "r3gan": [row(2.2, 120, None), row(2.2, 130, None)],
    "Pythae MAF": [row(3.0, 40, 11.2), row(3.0, 60, 11.2)],
    "Pythae GMM": [row(9.0, 2, 10.95), row(9.0, 2, 10.95)],
}


def test_the_bars_are_computed_from_medians() -> None:
    found = peers.bars(ROWS)
    assert found["fcd_over_floor"]["realnvp"] == pytest.approx(1.2 / 1.1)
    best = found["best_adversarial_over_best_flow"]
    assert best["fcd"] == pytest.approx(2.2 / 1.2)
    assert best["fit_seconds"] == pytest.approx(125 / 65)
    # Beats MAF (3.0, 11.2) after 8 s and 4 s; the best of all (3.0, 10.95) after 16 s and 8 s.
    assert found["seconds_to_beat"]["realnvp"] == {"Pythae MAF": 6, "the best of Pythae": 12}
    assert found["default_to_beat_over_peers_fit"] == pytest.approx(6 / 50)
    assert found["seconds_to_beat"]["r3gan"]["Pythae MAF"] is None  # it has no density
    assert found["best_density_over_floor"] == pytest.approx(1)


def test_results_have_bars_from_the_first_row_on() -> None:
    for n in range(len(ROWS) + 1):
        peers.bars(dict(list(ROWS.items())[:n]))
    for name, of in ROWS.items():
        peers.bars({name: of})


def test_results_become_a_table_and_a_figure(tmp_path: Path) -> None:
    results = {
        "rows": ROWS,
        "created": "2026-01-01",
        "machine": {"jobs": 1, "torch_threads": 1, "cpus": 2},
        "versions": {"torch": "2"},
    }
    lines = peers.table(results).splitlines()
    (line,) = [line for line in lines if line.startswith("| realnvp")]
    cells = "| realnvp | 65.0 | 0.10 | 10.50 | 1.20 | 1.10 to 1.30 | 1.09 | 1.20 | 0.900 | 0.800 | 500 |"
    assert line == cells
    peers.figure(results, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
