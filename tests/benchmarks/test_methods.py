"""Rows of installed methods, others' and broken ones too, and of methods that are given the digit."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from latentfit.errors import (
    DuplicatePluginError,
    OptionError,
    PluginLoadError,
    UnknownPluginError,
)
from latentfit_bench import digits, mnist
from latentfit_bench.figures import conditional_name
from latentfit_bench.measure import Ruler, balanced_labels, balanced_rows, plain
from latentfit_bench.methods import all_methods, check_methods, find_methods, find_rows
from latentfit_bench.records import Record
from latentfit_bench.systems import SYSTEMS

MODULE = '''
import torch
from latentfit.plugin import DivergenceError, Sampler


class Blob(Sampler):
    """A Gaussian for each class, or one for all; it counts its parameters and tells a fact."""

    has_density = True
    conditions = ("classes",)

    def build(self, dim, n):
        classes = max(1, self.context_dim)
        self.mean = torch.nn.Parameter(torch.zeros(classes, dim))
        self.deviation = torch.nn.Parameter(torch.ones(classes, dim))

    def fit(self, rows, held_out, run):
        contexts = torch.ones(len(rows), 1) if run.context is None else run.context
        for k, own in enumerate(contexts.T.bool()):
            self.mean.data[k] = rows[own].mean(0)
            self.deviation.data[k] = rows[own].std(0)
        run.facts |= {"classes": len(self.mean), "worst": float("nan")}

    def _of(self, n, context):
        kind = torch.zeros(n, dtype=int) if context is None else context.argmax(1)
        return self.mean[kind], self.deviation[kind]

    def sample(self, n, generator, context=None):
        mean, deviation = self._of(n, context)
        return mean + deviation * torch.randn(mean.shape, generator=generator)

    def log_prob(self, rows, context=None):
        return torch.distributions.Normal(*self._of(len(rows), context)).log_prob(rows).sum(1)


class Diverging(Blob):
    def fit(self, rows, held_out, run):
        raise DivergenceError("it blew\\nup")


class Flaky(Blob):
    fits = 0

    def fit(self, rows, held_out, run):
        super().fit(rows, held_out, run)
        Flaky.fits += 1
        if Flaky.fits == 1:
            raise RuntimeError("not in the mood")


class Endless(Blob):
    def log_prob(self, rows, context=None):
        return super().log_prob(rows, context) - float("inf")


class VectorOnly(Blob):
    conditions = ("vector",)


class Plain(Blob):
    conditions = ()


class Demanding(Blob):
    def __init__(self, *, wish: int):
        super().__init__()
'''
METHODS = {
    "blob": "outsiders_bench:Blob",
    "diverging": "outsiders_bench:Diverging",
    "flaky": "outsiders_bench:Flaky",
    "endless": "outsiders_bench:Endless",
    "vector-only": "outsiders_bench:VectorOnly",
    "no-conditions": "outsiders_bench:Plain",
    "demanding": "outsiders_bench:Demanding",
    "broken": "outsiders_bench:Missing",
    "twice": "outsiders_bench:Blob",
    "VAE": "outsiders_bench:Blob",
}


@pytest.fixture(scope="module")
def outsiders(tmp_path_factory):
    """Other people's plugins, as they are found when installed."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "outsiders_bench.py").write_text(MODULE)
    for name, methods in (("outsiders", METHODS), ("rival", {"twice": "outsiders_bench:Flaky"})):
        info = folder / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        entries = "\n".join(f"{method} = {value}" for method, value in methods.items())
        (info / "entry_points.txt").write_text(f"[latentfit.samplers]\n{entries}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        importlib.invalidate_caches()
        yield
        sys.modules.pop("outsiders_bench", None)


def bench(*arguments, command=digits.command):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def ran(outsiders, tmp_path_factory):
    """Systems, methods that work and methods that fail, with two seeds, where another run was before."""
    out = tmp_path_factory.mktemp("results")
    (out / "results.json").write_text('{"conditional": {"Resample": {}, "gone": {}}}')
    for name in ("conditional-gone.png", "conditional-mine.png", "tsne.png"):
        (out / name).write_bytes(b"old")
    result = bench(
        *("--quick", "--seeds", 2, "--out", out, "--systems", "flaky,real,Resample"),
        *("--methods", "endless,blob,diverging,blob", "--conditional", "blob,diverging"),
    )
    return result, out, json.loads((out / "results.json").read_text())


def test_rows_are_systems_in_their_order_then_methods_as_given(ran):
    assert list(ran[2]["systems"]) == ["Real", "Resample", "flaky", "endless", "blob", "diverging"]
    assert list(ran[2]["conditional"]) == ["Reconstruction", "Resample", "blob", "diverging"]


def test_a_row_tells_all_of_its_method(ran):
    row = ran[2]["systems"]["blob"]
    k = ran[2]["settings"]["k"]
    assert row["parameters"]["values"] == [2 * k] * 2
    assert row["plugin"] == "outsiders 1.2"
    assert row["options"] == {"method": "blob"}
    assert row["fit"]["classes"] == 1
    assert row["errors"] == []
    assert all(len(row[key]["values"]) == 2 for key in ("fcd", "nll", "fit_seconds"))
    assert ran[2]["conditional"]["blob"]["parameters"]["mean"] == 20 * k
    assert "NaN" not in (ran[1] / "results.json").read_text()


def test_failures_are_told_in_their_rows_and_by_the_exit_code(ran):
    result, out, results = ran
    rows = results["systems"]
    assert rows["diverging"]["errors"] == [
        {"seed": seed, "error": "DivergenceError: it blew up"} for seed in (0, 1)
    ]
    assert rows["diverging"]["fcd"]["values"] == []
    assert rows["flaky"]["errors"] == [{"seed": 0, "error": "RuntimeError: not in the mood"}]
    assert len(rows["flaky"]["fcd"]["values"]) == 1  # the seed that worked counts
    assert len(rows["endless"]["fcd"]["values"]) == 2  # its samples are fine
    assert rows["endless"]["nll"]["values"] == []
    assert "inf" in rows["endless"]["errors"][0]["error"]
    assert results["conditional"]["diverging"]["errors"]
    assert result.exit_code == 1
    for text in (result.stderr, (out / "table.md").read_text()):
        assert "diverging, seed 1: DivergenceError: it blew up" in text
        assert "diverging by digit, seed 0: DivergenceError: it blew up" in text
    assert "seed 0: flaky" in result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("diverging ")]
    assert [line.split()[1:] for line in lines] == [["failed"], ["failed"]]


def test_figures_are_those_of_this_run(ran):
    out = ran[1]
    names = {path.name for path in out.glob("*.png")}
    assert names == {
        *("samples.png", "fcd.png", "tsne.png", "conditional-blob.png"),
        "conditional-mine.png",  # no run of ours wrote it
    }
    assert (out / "conditional-mine.png").read_bytes() == b"old"
    assert (out / "tsne.png").read_bytes() != b"old"


def test_a_gaussian_for_each_digit_is_seen_as_that_digit(ran):
    rows = ran[2]["conditional"]
    accuracy = {name: row["accuracy"]["mean"] for name, row in rows.items() if name != "diverging"}
    assert 0.5 < accuracy["blob"] < accuracy["Resample"] <= 1
    assert accuracy["Reconstruction"] > 0.7
    # Knowing the digit is worth nats.
    assert rows["blob"]["nll"]["mean"] < ran[2]["systems"]["blob"]["nll"]["mean"] - 0.5
    assert rows["Resample"]["fcd"]["mean"] < rows["blob"]["fcd"]["mean"]


class Bright:
    """A classifier whose logits are its image's first ten pixels."""

    class model:
        @staticmethod
        def features(images):
            return images, images[:, :10]


def test_accuracy_is_the_share_of_the_digits_that_are_seen():
    ruler = Ruler(Bright, torch.rand(50, 12))
    images = torch.eye(12)[[3, 1, 4, 1, 5]]
    assert ruler.measure(images, torch.tensor([3, 1, 4, 0, 0]))["accuracy"] == pytest.approx(0.6)
    assert "accuracy" not in ruler.measure(images)


def test_balanced_rows_have_each_digit_in_turn_from_anywhere_among_its_rows():
    labels = torch.randint(10, (400,), generator=torch.Generator().manual_seed(0))
    rows = balanced_rows(labels, 5000, torch.Generator().manual_seed(0))
    assert balanced_labels(12).tolist() == [*range(10), 0, 1]
    assert torch.equal(labels[rows], balanced_labels(5000))
    assert len(rows.unique()) > 390


def test_strict_json_is_made_of_what_plugins_tell():
    told = {
        "a": (1, float("inf")),
        2: [None, True, "x"],
        "b": np.float64("nan"),
        "c": torch.float32,
    }
    made = plain(told)
    assert made == {
        "a": [1, None],
        "2": [None, True, "x"],
        "b": None,
        "c": "torch.float32",
    }
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_auto_tells_what_it_chose_and_why():
    class Fitted:
        method = "spline"
        info = {  # noqa: RUF012
            "options": {"layers": 3},
            "versions": {"plugin": "latentfit 1"},
            "fit": {},
            "ranking": [{"method": "spline", "c2st": 0.5}, {"method": "gmm", "error": "no"}],
        }

    (row,) = find_rows(["auto"])
    record = Record(row)
    record.describe(Fitted)
    entry = record.result()
    assert entry["chosen"] == ["spline"]
    assert entry["ranking"] == [Fitted.info["ranking"]]
    assert entry["options"] == {"method": "auto", "layers": 3}


@pytest.mark.slow
# On a slow machine its few seconds are up before a method has begun.
@pytest.mark.filterwarnings("default::latentfit.errors.LatentsWarning")
def test_auto_is_run_and_the_table_is_called_after_its_choice(tmp_path):
    result = bench("--quick", "--systems", "auto,Resample", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    row = json.loads((tmp_path / "results.json").read_text())["systems"]["auto"]
    ((best, *others),) = row["ranking"]
    assert others
    assert row["chosen"] == [best["method"]]
    assert f"auto ({best['method']})" in result.stdout


def test_names_are_found_in_any_case_for_systems_and_exactly_for_methods(outsiders):
    assert [row.name for row in find_rows(["spline", "blob", "real", "spline"])] == [
        "Real",
        "spline",
        "blob",
    ]
    assert find_methods(["blob", "auto", "blob"]) == ["blob", "auto"]
    # A method that is called what a system is called: the system, but for --methods.
    assert find_rows(["vae"])[0] is SYSTEMS["VAE"]
    assert find_methods(["VAE"]) == ["VAE"]


@pytest.mark.parametrize("option", ["--systems", "--methods", "--conditional"])
@pytest.mark.parametrize("command", [digits.command, mnist.command])
def test_unknown_names_list_systems_and_methods_and_the_closest(
    outsiders, option, command, tmp_path
):
    result = bench(option, "blob,splin", "--out", tmp_path / "out", command=command)
    assert result.exit_code == 2
    shown = " ".join(result.stderr.split())
    assert f"'{option}'" in shown
    assert "'splin'" in shown
    assert "Did you mean 'spline'?" in shown
    for name in (*SYSTEMS, *METHODS, "realnvp", "auto"):
        assert name in shown
    assert not (tmp_path / "out").exists()


def test_a_systems_name_is_no_method(outsiders):
    with pytest.raises(UnknownPluginError, match="'FlowAE' is a system, for --systems"):
        find_methods(["flowae"])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("--methods", "blob,broken"), PluginLoadError),
        (("--systems", "broken"), PluginLoadError),
        (("--conditional", "broken"), PluginLoadError),
        (("--methods", "twice"), DuplicatePluginError),
        (("--methods", "demanding"), OptionError),
    ],
)
def test_methods_that_cannot_be_used_are_refused_before_any_work(
    outsiders, arguments, expected, tmp_path
):
    result = bench(*arguments, "--out", tmp_path / "out")
    assert isinstance(result.exception, expected)
    assert arguments[1].split(",")[-1] in str(result.exception)
    assert "training" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["vector-only", "no-conditions"])
def test_methods_that_cannot_be_conditioned_are_refused_before_any_work(
    outsiders, method, tmp_path
):
    result = bench("--conditional", f"blob,{method}", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "--conditional" in result.stderr
    assert method in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_check_passes_what_works_conditioned_or_not(outsiders):
    check_methods(["blob", "vector-only", "realnvp"])
    check_methods(["blob", "realnvp", "spline"], conditional=True)


def test_all_methods_are_those_that_can_be_imported(outsiders):
    working, errors = all_methods()
    assert {"blob", "realnvp", "diverging"} <= set(working)
    assert {"broken", "twice"} <= set(errors)
    assert "Missing" in errors["broken"]
    assert not set(working) & set(errors)
    assert working == sorted(working)


def test_a_figures_name_stays_in_the_folder():
    assert conditional_name("flow-matching") == "conditional-flow-matching.png"
    assert conditional_name("../a b\\c:d") == "conditional-.._a_b_c_d.png"
