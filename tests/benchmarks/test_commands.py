import importlib
import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from click.testing import CliRunner

from latentfit.errors import DatasetUnavailableError
from latentfit.reporting import read_report, render
from latentfit_bench import digits, mnist
from latentfit_bench.classifier import SHA256, load_classifier
from latentfit_bench.datasets import binarize, load_digits
from latentfit_bench.measure import latent_measures, standardised_nll
from latentfit_bench.systems import SYSTEMS

STATISTICS = (
    "fcd",
    "fcd_penultimate",
    "kid",
    "density",
    "coverage",
    "c2st",
    "copying",
    "fit_seconds",
    "sample_seconds",
    "nll",
    "parameters",
)
FIGURES = {"samples.png", "fcd.png", "training-gan.png", "training-flow.png", "tsne.png"}
PAGE = {"report.html", "gallery.json"}


def bench(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def global_rng_states():
    numpys = np.random.get_state()[1]  # noqa: NPY002 - the legacy state is what must not change
    return random.getstate(), numpys.tolist(), torch.random.get_rng_state().tolist()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """All systems on digits, with two seeds, into a folder that holds something already."""
    out = tmp_path_factory.mktemp("results")
    (out / "keep.txt").write_text("mine")
    (out / "results.json").write_text("old")
    # Some libraries draw from random while they are imported, which is not the benchmark's doing.
    importlib.import_module("sklearn.manifold")
    importlib.import_module("latentfit_bench.figures")
    torch.manual_seed(99)
    before = global_rng_states()
    result = bench(digits.command, "--quick", "--seeds", 2, "--out", out)
    after = global_rng_states()
    assert result.exit_code == 0, result.output
    untouched = before == after
    return result, out, json.loads((out / "results.json").read_text()), untouched


def test_the_results_have_the_schema(quick):
    results = quick[2]
    assert results["schema"] == 1
    assert results["benchmark"] == "digits"
    assert results["quick"] is True
    assert results["device"] in ("cpu", "cuda")
    assert results["seeds"] == [0, 1]
    assert {"created", "versions", "data", "settings", "seconds"} <= results.keys()
    assert {"python", "torch", "latentfit"} <= results["versions"].keys()
    assert results["classifier"]["sha256"] == SHA256["digits"]
    assert 0.9 < results["classifier"]["test_accuracy"] < 1
    assert list(results["systems"]) == list(SYSTEMS)
    for name, row in results["systems"].items():
        assert {*STATISTICS, "paper_fcd", "options"} <= row.keys()
        for key in STATISTICS:
            assert row[key].keys() == {"mean", "std", "values"}
            assert len(row[key]["values"]) in (0, 2)
        assert len(row["fcd"]["values"]) == len(row["fcd_penultimate"]["values"]) == 2
        is_sampler = SYSTEMS[name].kind == "sampler"
        assert bool(row["options"]) == is_sampler
        assert bool(row["nll"]["values"]) == (is_sampler and name != "AdvAE")
        assert bool(row["parameters"]["values"]) == is_sampler
        assert bool(row["c2st"]["values"]) == (is_sampler or name in ("AAE", "VAE"))
        for key in ("fit_seconds", "sample_seconds"):
            assert bool(row[key]["values"]) == (is_sampler or name in ("AAE", "VAE"))
        assert row["errors"] == []
        # The paper's values are MNIST's.
        assert row["paper_fcd"] is None


def test_the_papers_configuration_is_run(quick):
    options = quick[2]["systems"]["FlowAE"]["options"]
    assert options["method"] == "realnvp"
    assert (options["layers"], options["hidden"], options["base"]) == (5, [128], "normal")
    assert quick[2]["systems"]["AdvAE"]["options"]["hidden"] == [256, 256]
    assert quick[2]["systems"]["FlowAE-default"]["options"] != options


def test_the_real_rows_distance_is_scipys(quick):
    data, model = load_digits(), load_classifier("digits").model
    moments = []
    for images in (data.test_images, data.train_images):
        _, logits = model.features(binarize(images, "threshold"))
        rows = logits.double().numpy()
        moments.append((rows.mean(0), np.cov(rows, rowvar=False)))
    (mean_x, cov_x), (mean_y, cov_y) = moments
    root = scipy.linalg.sqrtm(cov_x @ cov_y).real
    expected = ((mean_x - mean_y) ** 2).sum() + np.trace(cov_x + cov_y - 2 * root)
    assert quick[2]["systems"]["Real"]["fcd"]["values"] == pytest.approx([expected] * 2, rel=1e-4)


def test_the_rows_come_out_in_the_order_that_must_be(quick):
    fcd = {name: row["fcd"]["mean"] for name, row in quick[2]["systems"].items()}
    assert fcd["Real"] < fcd["Resample"]
    for name in ("FlowAE", "AdvAE", "AAE", "VAE"):
        assert fcd["Resample"] < fcd[name]


def test_seeds_differ_but_for_the_real_images(quick):
    for name, row in quick[2]["systems"].items():
        first, second = row["fcd"]["values"]
        assert (first == second) == (name == "Real")


def test_the_folder_holds_all_files_and_keeps_others(quick):
    out = quick[1]
    assert (out / "keep.txt").read_text() == "mine"
    names = {path.name for path in out.iterdir()}
    assert names == {"keep.txt", "results.json", "table.md", *FIGURES, *PAGE}
    for name in FIGURES:
        assert (out / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "quick" in (out / "table.md").read_text()


def test_the_report_shows_all_rows_of_all_seeds(quick):
    out, results = quick[1], quick[2]
    report = read_report(out)
    assert [row.name for row in report.rows] == list(SYSTEMS)
    shown = report.exhibits
    assert [(p.row, p.seed) for p in shown.pictures] == [(n, s) for n in SYSTEMS for s in (0, 1)]
    assert [near.row for near in shown.neighbours] == list(SYSTEMS)
    drawn = {m.name.split()[-1]: [cloud.name for cloud in m.sampled] for m in shown.maps}
    on_latents = [name for name, system in SYSTEMS.items() if system.kind == "sampler"]
    assert drawn == {"AE": on_latents, "AAE": ["AAE"], "VAE": ["VAE"]}
    assert {curves.unit for curves in shown.curves} == {"step", "epoch"}
    page = (out / "report.html").read_text("utf-8")
    digits = re.compile(r"\d+")  # the gallery has points and losses to some digits only
    assert digits.sub("", page) == digits.sub("", render(report))
    best = min([*on_latents, "AAE", "VAE"], key=lambda n: results["systems"][n]["fcd"]["mean"])
    assert re.search(f"{best} (is|and [A-Za-z-]+ are) best, ", page)
    real, resample = report.rows[0], report.rows[2]
    assert real.mean("coverage") > resample.mean("coverage")
    assert abs(real.mean("kid")) < resample.mean("kid")
    assert resample.mean("copying") < -10  # the control: it is nothing but copies
    assert all(row.mean("copying") > -3 for row in report.samplers)


def test_the_table_is_on_stdout_and_the_progress_on_stderr(quick):
    result, out = quick[:2]
    lines = result.stdout.splitlines()
    assert len(lines) == 2 + len(SYSTEMS)
    assert max(map(len, lines)) <= 80
    assert "training the VAE" in result.stderr
    assert str(out) in result.stderr


def test_the_global_rngs_are_untouched(quick):
    assert quick[3]


def test_json_is_all_there_is_on_stdout_and_a_seed_repeats(tmp_path):
    # In a process of its own: prints of libraries would show, too.
    program = "from latentfit_bench.digits import command; command()"
    arguments = ["--quick", "--json", "--systems", "Resample,flowae-default"]
    values = []
    for run in ("a", "b"):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments, "--out", str(tmp_path / run)],
            capture_output=True,
            text=True,
            check=True,
        )
        results = json.loads(done.stdout)
        assert results == json.loads((tmp_path / run / "results.json").read_text())
        assert list(results["systems"]) == ["Resample", "FlowAE-default"]
        values.append([row["fcd"]["values"] for row in results["systems"].values()])
    assert values[0] == values[1]


def test_bernoulli_images_are_run(tmp_path):
    arguments = ("--quick", "--json", "--systems", "Real,Resample", "--out")
    results = {}
    for how in ("threshold", "bernoulli"):
        done = bench(digits.command, *arguments, tmp_path, "--binarize", how)
        results[how] = json.loads(done.stdout)
        assert results[how]["data"]["binarize"] == how
    real = [result["systems"]["Real"]["fcd"]["mean"] for result in results.values()]
    assert real[0] != real[1]


@pytest.mark.parametrize("command", [digits.command, mnist.command])
def test_an_unknown_system_lists_all(command):
    result = bench(command, "--systems", "Real,Flow")
    assert result.exit_code == 2
    shown = " ".join(result.stderr.split())
    assert "'Flow'" in shown
    assert "Did you mean 'FlowAE'?" in shown
    for name in (*SYSTEMS, "realnvp", "auto"):
        assert name in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ("--systems", ","),
        ("--seeds", "0"),
        ("--seeds", "many"),
        ("--binarize", "dither"),
        ("--device", "toaster"),
        ("--device", "meta"),
        ("--device", "cuda:99"),
    ],
)
def test_bad_options_are_usage_errors_before_any_work(arguments, tmp_path):
    result = bench(digits.command, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert arguments[0] in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert bench(digits.command, "--out", tmp_path / "file").exit_code == 2
    result = bench(digits.command, "--out", tmp_path / "file" / "below")
    assert result.exit_code == 1
    assert "--out" in result.stderr


def test_mnist_without_data_raises_what_the_cli_prints(tmp_path):
    result = bench(mnist.command, "--data-dir", tmp_path, "--out", tmp_path / "out")
    assert isinstance(result.exception, DatasetUnavailableError)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["mnist", "digits"])
def test_help_has_examples_and_imports_nothing_heavy(task):
    program = (
        f"import sys; from latentfit_bench.{task} import command\n"
        "try:\n    command(['--help'])\n"
        "finally:\n"
        "    heavy = {'torch', 'numpy', 'sklearn', 'matplotlib', 'scipy'} & sys.modules.keys()\n"
        "    assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # As they were written, not filled into one paragraph.
    assert f"  Examples:\n    latentfit bench {task}\n" in done.stdout
    for name in SYSTEMS:
        assert name in done.stdout


def test_the_nll_is_that_of_standardised_latents():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.1, 3.0, 40.0], dtype=torch.float64)
    train, held_out = (
        5 + scale * torch.randn(1000, 3, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    mean, std = train.mean(0), train.std(0)

    def log_prob(z):
        return torch.distributions.Normal(mean, std).log_prob(z).sum(1)

    standardised = (held_out - mean) / std
    expected = -torch.distributions.Normal(0.0, 1.0).log_prob(standardised).sum(1).mean().item()
    assert standardised_nll(log_prob, train, held_out) == pytest.approx(expected, rel=1e-9)


def test_held_out_latents_that_come_in_an_order_are_compared_at_random():
    rows = torch.randn(10_000, 3, generator=torch.Generator().manual_seed(0))
    train, held_out, sampled = rows.split((4000, 4000, 2000))
    # As the first half of MNIST's test images is easier.
    held_out = held_out[held_out[:, 0].argsort()]
    measured = latent_measures(sampled, train, held_out, seed=0)
    assert measured["c2st"] == pytest.approx(0.5, abs=0.05)
    assert abs(measured["copying"]) < 3.5


@pytest.mark.mnist
@pytest.mark.slow
def test_mnist_quick_on_the_real_data(mnist_folder, tmp_path):
    arguments = ("--quick", "--json", "--systems", "Real,Resample,FlowAE-default,VAE")
    result = bench(mnist.command, *arguments, "--data-dir", mnist_folder, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    systems = json.loads(result.stdout)["systems"]
    fcd = {name: row["fcd"]["mean"] for name, row in systems.items()}
    assert fcd["Real"] < 0.35
    assert fcd["Real"] < fcd["Resample"] < fcd["FlowAE-default"] < fcd["VAE"]
    assert systems["VAE"]["paper_fcd"] == 8.12
