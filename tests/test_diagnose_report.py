"""A diagnosis as text, JSON, figure and command; and what a fit warns of."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentfit import diagnose, fit_latent_sampler
from latentfit.cli import main
from latentfit.diagnosis import warn_about
from latentfit.errors import DataError, LatentsWarning


def normal(n: int, d: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.fixture(scope="module")
def bad() -> Any:
    """Latents with something of everything."""
    x = normal(1200, 12)
    x[600:, 5] += 3
    x[:, 2] = x[:, 0]
    x[:, 9] = 1
    x[:, 8] *= 1e-6
    x[:200] = x[300]
    x[77] = 5e5
    return x


def test_the_table_fits_80_columns_and_names_every_finding(bad: Any) -> None:
    found = diagnose(bad)
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    starts = [line[:23].strip().replace(" ", "_") for line in lines[3:] if line[0] != " "]
    assert starts == [finding.name for finding in found.findings]
    joined = " ".join(" ".join(lines).split())
    for finding in found.findings:
        assert " ".join(finding.advice.split()) in joined
        assert (f"{finding.severity}: {finding.summary}" in joined) == (finding.severity != "ok")


def test_json_holds_all_and_gives_it_back(bad: Any) -> None:
    found = diagnose(bad, seed=5)
    text = json.dumps(found.to_dict(), allow_nan=False)
    back = json.loads(text)
    assert back == found.to_dict()
    assert back["findings"][5]["values"]["indices"][0] == 77
    assert (back["seed"], back["rows"], len(back["eigenvalues"])) == (5, 1200, 12)


# The figure


def test_the_figure_shows_what_was_found(bad: Any) -> None:
    found = diagnose(bad)
    spectrum, leading, marginals, twonn = found.figure().axes
    ranks = [line.get_xdata()[0] for line in spectrum.lines[1:]]
    assert ranks == [found.effective_rank, found.numerical_rank]
    drawn = spectrum.lines[0].get_ydata() * found.eigenvalues.sum()
    np.testing.assert_allclose(drawn, found.eigenvalues[: found.numerical_rank])
    points = np.asarray(leading.collections[0].get_offsets())
    assert abs(points).max() == pytest.approx(np.linalg.norm(bad[77] - bad.mean(0)), rel=1e-3)
    names = [text.get_text() for text in marginals.get_legend().get_texts()]
    assert names[0] == "normal"
    assert f"dimension {found['kurtosis'].values['dimension']}," in names[-1]
    x, y = (twonn.lines[-1].get_data()[i] for i in (0, 1))
    assert y[1] / x[1] == pytest.approx(found.intrinsic_dimension)


@pytest.mark.parametrize(
    "suffix, start", [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")]
)
def test_the_figure_is_written_whole(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"latents{suffix}"
    path.write_text("before")
    diagnose(normal(200, 3)).save_figure(path)
    assert path.read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_there_is_nothing_to_draw_of_equal_latents() -> None:
    figure = diagnose(torch.ones(20, 3)).figure()
    assert not figure.axes
    assert [text.get_text() for text in figure.texts][-1].startswith("All latents are equal")


def test_a_figure_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.png, \.pdf, \.svg file to write; got .*latents.gif"):
        diagnose(normal(50, 2)).save_figure(tmp_path / "latents.gif")
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_is_imported_for_the_figure_alone_and_no_window_is_made(run_python: Any) -> None:
    run_python(
        "-W", "error", "-c",
        "import sys, numpy, latentfit\n"
        "def loaded(): return {name.split('.')[0] for name in sys.modules}\n"
        "found = latentfit.diagnose(numpy.random.default_rng(0).normal(size=(100, 3)))\n"
        "assert not loaded() & {'matplotlib', 'sklearn', 'scipy'}\n"
        "found.figure()\n"
        "assert 'matplotlib.pyplot' not in sys.modules",
    )  # fmt: skip


# The command


@pytest.fixture
def run(capsys: Any, tmp_path: Path, monkeypatch: Any, bad: Any) -> Any:
    monkeypatch.chdir(tmp_path)
    np.save("z.npy", bad)
    np.save("other.npy", normal(300, 12))

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(words)
        return code, *capsys.readouterr()

    return run


def test_the_command_prints_the_api_s_table_and_json(run: Any, bad: Any) -> None:
    assert run("diagnose", "z.npy") == (0, f"{diagnose(bad)}\n", "")
    code, out, err = run(
        "diagnose", "z.npy", "--validation", "other.npy", "--json", "--seed", "3", "--figure", "z.png"
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert json.loads(out) == diagnose(bad, validation=normal(300, 12), seed=3).to_dict()
    assert Path("z.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "words, told",
    [
        (("no.npy",), "there is no such file"),
        (("z.npy", "--validation", "no.npy"), "there is no such file"),
        (("z.npy", "--validation", "narrow.npy"), "got (M, 2)"),
        (("nan.npy",), "got 1 of 9 rows with NaN or infinity, the first at index 4"),
        (("z.npy", "--figure", "z.gif"), ".png, .pdf, .svg"),
        (("z.npy", "--figure", "no/z.png"), "there is no"),
        (("z.npy", "--seed", "-1"), "seed"),
    ],
)
def test_the_command_tells_errors_in_a_line(run: Any, words: tuple[str, ...], told: str) -> None:
    np.save("narrow.npy", normal(20, 2))
    np.save("nan.npy", np.where(np.arange(9) == 4, np.nan, np.arange(9)))
    before = {path.name for path in Path().iterdir()}
    code, out, err = run("diagnose", *words)
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    assert told in err
    assert err.count("\n") == 1
    assert {path.name for path in Path().iterdir()} == before


# What a fit warns of


def fit(latents: Any, method: str = "gaussian", **options: Any) -> list[warnings.WarningMessage]:
    """Fit, and give the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_latent_sampler(None, latents, method=method, **options)
    return caught


def test_a_fit_warns_of_many_copies_once_and_at_the_caller_s_line() -> None:
    x = normal(1000, 4)
    few, many = np.vstack((x, x[:80])), np.vstack((x, x[:150], x[[7] * 50]))
    assert fit(few) == []
    (found,) = fit(many)
    assert found.category is LatentsWarning
    assert found.filename == __file__
    assert str(found.message).startswith("17 % of the latents are exact copies of others (that at")
    assert "index 7," in str(found.message)
    (once,) = fit(many, "auto", methods=("gaussian", "gmm"), max_seconds=4)
    assert str(once.message) == str(found.message)


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_a_fit_warns_of_a_scale_that_is_lost(factor: float) -> None:
    x = normal(2000, 4) * np.float32(factor)
    x[[40, 41]] *= 30
    assert fit(x) == []
    x[40] *= 100
    (found,) = fit(x)
    assert found.category is LatentsWarning
    assert "(that at index 40, for one)" in str(found.message)
    x = np.full((500, 3), 0.3, np.float32) + np.float32(1e-6) * normal(500, 3)
    x[3] = 9  # hardly anything varies but one row
    assert [w.category for w in fit(x * np.float32(factor))] == [LatentsWarning]


def test_many_equal_rows_and_some_others_are_told_as_copies() -> None:
    x = np.zeros((500, 3), np.float32)
    x[:20] = normal(20, 3)
    (found,) = fit(x)
    assert "96 % of the latents are exact copies" in str(found.message)


rng = np.random.default_rng(0)
USUAL = {
    "Gaussian": normal(2000, 5),
    "rank 3 of 30": normal(2000, 3) @ normal(3, 30, 1),
    "constant and repeated dimensions": normal(2000, 3)[:, [0, 0, 1, 2]] * [1, 2, 0, 1],
    "scales from 1e-6 to 1e6": normal(2000, 4) * np.float32([1e-6, 1, 1e3, 1e6]),
    "heavy tails": rng.standard_t(3, size=(2000, 5)),
    "skewed": np.exp(rng.normal(size=(2000, 3))),
    "two far blobs, one small and tight": np.vstack((normal(1800, 3), 1e3 + normal(200, 3) / 100)),
    "sparse, with exact zeros": np.maximum(normal(2000, 40) - 1, 0),
    "spatial": normal(500, 64).reshape(500, 4, 4, 4),
    "whole numbers": rng.integers(0, 256, size=(2000, 6)),
    "few rows": normal(10, 2),
    "half precision": torch.from_numpy(normal(2000, 8)).bfloat16(),
    "half precision in one dimension": torch.from_numpy(normal(2000, 1)).half(),
    "a copy here and there": np.vstack((normal(2000, 3), normal(100, 3))),
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_latents_give_no_warning(name: str) -> None:
    assert fit(USUAL[name]) == []


def test_looking_costs_little_and_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    x = torch.zeros(3_000_000, 4)
    x[:] = torch.arange(12_000_000).reshape(-1, 4)  # more than are looked at
    x[::7] = 1
    with pytest.warns(LatentsWarning, match="14 % of the latents"):
        warn_about(x)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.filterwarnings("default::latentfit.errors.LatentsWarning")
def test_the_command_tells_the_warning_in_a_line(run: Any) -> None:
    code, out, err = run(
        "fit", "--latents", "z.npy", "-m", "gaussian", "--quiet", "--out", "s.safetensors"
    )
    assert (code, out) == (0, "")
    assert err.startswith("Warning: 17 % of the latents are exact copies")
    assert err.count("\n") == 1
